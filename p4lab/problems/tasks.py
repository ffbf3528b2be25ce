"""What methods are raced on, by name: maps to learn, mixtures to separate, images to model, for every kind of layer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from p4lab.errors import OptionError
from p4lab.problems.digits import DIM as DIGITS_WIDTH
from p4lab.problems.likelihood_tasks import DigitsTask, ICATask, PatchesTask
from p4lab.problems.linear_maps import colouring, linear_target
from p4lab.problems.map_tasks import MapTask, Task
from p4lab.problems.sources import (
    PATCHES,
    WIDEST_DIGITS,
    WIDEST_PHOTOS,
    Sources,
    photo_patches,
    sech_sources,
)

WIDEST = 1024
"""The widest layers that race."""
COLOUR_SEED = 1_000_000
"""What is added to a target's seed for the axes of its coloured inputs: with the same seed, these would be a target."""


@dataclass(frozen=True)
class Entry:
    """A task by name.

    Attributes:
        label: what it is called.
        kind: "map", "ica" or "flow"; the latter two ask for log|det| of linear layers.
        make: from width, seed and whether it is trained both ways, with dtype and device as keywords, to the task.
        widest: the largest width that its data have.
        fixed: whether it has that width only.
        rotations: whether orthogonal matrices come near to its solution.
        both: whether its loss asks for the inverse, too.
    """

    label: str
    kind: Literal["map", "ica", "flow"]
    make: Callable[..., Task]
    widest: int = WIDEST
    fixed: bool = False
    rotations: bool = True
    both: bool = False

    def width(self, dim: int) -> int:
        """Return the width of the task where d is asked for."""
        return self.widest if self.fixed else dim


def _map(target: str, coloured: bool = False) -> Callable[..., Task]:
    def make(dim: int, seed: int, both: bool, **where: Any) -> Task:
        colours = colouring(dim, torch.Generator().manual_seed(seed + COLOUR_SEED)) if coloured else None
        return MapTask(linear_target(target, dim, seed), **where, colours=colours, both=both)

    return make


def _mixed(kind: Callable[..., Task], white: Callable[[int], Sources]) -> Callable[..., Task]:
    def make(dim: int, seed: int, both: bool, **where: Any) -> Task:
        x, basis = white(dim)
        return kind(x, linear_target("so", dim, seed).to(x), basis, **where, both=both)

    return make


def _known_sources(dim: int, seed: int, both: bool, **where: Any) -> Task:
    sources, basis = sech_sources(dim)
    mixing = colouring(dim, torch.Generator().manual_seed(seed)).t()
    return ICATask(sources, mixing, basis, **where, both=both, known=True)


def _digits(dim: int, seed: int, both: bool, **where: Any) -> Task:
    return DigitsTask(seed, **where)


ONE_WAY: dict[str, Entry] = {
    "spd": Entry("Map: SPD", "map", _map("spd"), rotations=False),
    "so": Entry("Map: rotation", "map", _map("so")),
    "minus_identity": Entry("Map: −I", "map", _map("minus_identity")),
    "ill_conditioned": Entry("Map: ill-conditioned", "map", _map("ill_conditioned"), rotations=False),
    "negative": Entry("Map: det < 0", "map", _map("negative")),
    "spd_coloured": Entry("Map: SPD, coloured", "map", _map("spd", coloured=True), rotations=False),
    "so_coloured": Entry("Map: rotation, coloured", "map", _map("so", coloured=True)),
    "ica_photos": Entry("ICA: photos", "ica", _mixed(ICATask, PATCHES["ica_photos"]), WIDEST_PHOTOS),
    "ica_digits": Entry("ICA: digits", "ica", _mixed(ICATask, PATCHES["ica_digits"]), WIDEST_DIGITS),
    "ica_sources": Entry("ICA: known sources", "ica", _known_sources, rotations=False),
    "digits": Entry("Flow: digits", "flow", _digits, DIGITS_WIDTH, fixed=True),
    "patches": Entry("Flow: photos", "flow", _mixed(PatchesTask, photo_patches), WIDEST_PHOTOS),
}
"""Here are the tasks that no inverse is needed for."""
BOTH_WAYS = ("spd", "so", "spd_coloured", "so_coloured", "ica_photos", "ica_sources", "patches")
"""Tasks that there are another time, trained through the inverse, too."""
TASKS: dict[str, Entry] = ONE_WAY | {
    f"{name}_both": replace(ONE_WAY[name], label=f"{ONE_WAY[name].label}, both ways", both=True) for name in BOTH_WAYS
}
"""Here are all tasks by name, in the order in which a lab offers them."""


def entry_of(name: str) -> Entry:
    """Return the entry of a task.

    Raises:
        OptionError: unknown name.
    """
    if name not in TASKS:
        raise OptionError(f"task {name!r} is not known: choose one of {tuple(TASKS)}")
    return TASKS[name]


def task(
    name: str, dim: int, seed: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Task:
    """Return a task by name.

    Args:
        name: one of `TASKS`: "spd", "so", "minus_identity", "ill_conditioned" (condition number 100), "negative"
            (det = -1); "spd_coloured", "so_coloured" (the covariance of the inputs has condition number 100);
            "ica_photos", "ica_digits" (white data mixed by a rotation, so that orthogonal methods can solve them, too);
            "ica_sources" (sources of a known density, mixed so that the covariance has condition number 100); flows of
            "digits" and, on the data of "ica_photos", "patches"; some with "_both" behind their name: trained through
            the inverse, too.
        dim: width d; "digits" has its own, 64.
        seed: seed of target, mixing or split.
        dtype: dtype of the data.
        device: where the data live.

    Raises:
        OptionError: unknown name, or a width that the data do not have.
        MissingPackageError: photo patches with d > 63, and scikit-image is not installed.
    """
    entry = entry_of(name)
    return entry.make(dim, seed, entry.both, dtype=dtype, device=device)
