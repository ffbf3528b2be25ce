"""The paper's linear problems: six ways to learn a matrix, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import Axes, Control, Lab, Number, Picture, Sight, Try, View, diagnostics, per_second
from p4lab.p4 import PAPER, RECOMMENDED, Preset
from p4lab.plots import RUN_COLORS, Figure, Loss, gallery
from p4lab.plots.curves import Curves
from p4lab.plots.eigenvalues import Complex, eigenvalue_paths
from p4lab.plots.format import number
from p4lab.plots.layers import Layer, Path, Plot, Points, Text
from p4lab.problems.matrix import MatrixModel, MatrixProblem
from p4lab.training import Lanes, MatrixConfig, RunConfig, Snapshot, Trail
from p4lab.training.config import Setting, one_of, setting


@dataclass(frozen=True)
class Case:
    """One of the three problems.

    Attributes:
        title: how it reads.
        dim: d.
        target: T, a name of `p4lab.problems.matrix.NAMES`.
        rate: a learning rate at which the paper's findings show.
    """

    title: str
    dim: int
    target: str
    rate: float

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make the problem."""
        return {"dim": self.dim, "target": self.target}


CASES = {
    "spd": Case("SPD 32", 32, "spd_near_one", 0.01),
    "rotation": Case("SO(128)", 128, "rotation", 0.2),
    "minus_identity": Case("−I 101", 101, "minus_identity", 0.2),
}
"""The problems of arXiv:2010.07033, section 4.1."""
INTERVALS = (1, 10, 50)
"""Optimizer steps between merges (the paper's N)."""
WAYS = {
    "plain": "plain",
    **{f"n{n}": f"N = {n}" for n in INTERVALS},
    "recommended": "preset",
    "through_inverse": "inverse",
}
"""What the lanes are called; see `ways`."""
COLORS = dict(zip(WAYS, RUN_COLORS, strict=False))
LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False, exact=True)
"""Below the loss curves, where there is room for six names."""
RUNAWAY = 100.0
"""Losses above it are not drawn: a lane that runs away would flatten all others."""
TAIL = 40
"""How many earlier moments the tails of eigenvalues reach back."""
SHADES = ("22", "55", "aa")
"""Opacities of a tail, its oldest third first, as hexadecimal digits behind a colour."""
EXTENTS = (1.35, 2.0, 3.0, 5.0)
"""How far a picture may reach; what is farther out is left out."""


# --- what is trained --------------------------------------------------------------------------------------------------


class LinearProblem(MatrixProblem):
    """Minimize ``|W - T|_F^2 / d``, and show the eigenvalues of T."""

    def set_target(self, target: Tensor) -> None:
        """Replace the target T, shape (d, d).

        Raises:
            ShapeError: another shape.
        """
        super().set_target(target)
        self._eigenvalues = torch.view_as_real(torch.linalg.eigvals(self.target))

    def pictures(self, model: MatrixModel, z: Tensor) -> dict[str, Tensor]:
        """Return "target": the eigenvalues of T, real and imaginary part, shape (d, 2). ``z`` is not used."""
        return {"target": self._eigenvalues.clone()}


@dataclass(frozen=True)
class LinearConfig(MatrixConfig):
    """Learn T by one of `ways`, starting at the identity; the default is the paper's P4Inv on -I.

    The target cannot change while a run goes on.
    """

    problem: ClassVar[str] = "linear"
    task: ClassVar[type[MatrixProblem]] = LinearProblem

    train_v: bool = PAPER.train_v
    learning_rate: float = setting(
        0.2,
        choices=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
        help="Of all lanes",
    )
    refine_every: int = setting(
        RECOMMENDED.refine_every,
        "Refine every n merges",
        choices={0: "off", 1: "", 10: "", 50: ""},
        kind="segments",
        unit="",
        help="Iterative refinement of the inverse",
    )
    penalty: bool = setting(False, help=RunConfig.settings["penalty"].help)
    skip: bool = setting(True, help="Refuse merges that would ruin the inverse")
    measure_every: int = 25
    dim: int = CASES["minus_identity"].dim
    start: str = setting("identity", rule=one_of("identity"))
    target: str = setting(CASES["minus_identity"].target, live=False)


@dataclass(frozen=True)
class LinearView(View):
    """What is looked at."""

    view: str = diagnostics("accuracy")
    speed: float | None = setting(100, choices=per_second(20, 100, 500, None))
    way: str = setting("n1", "Lane", choices=WAYS, live=True)


def ways(dim: int) -> dict[str, dict[str, Any]]:
    """Return what to set for each way to learn a matrix of width d, by name.

    The plain matrix, the paper's P4Inv merged every N = 1, 10 and 50 steps, the recommended preset, and the paper's
    P4Inv (N = 10) through its inverse.
    """
    return {
        "plain": {"route": "plain"},
        **{f"n{n}": {"route": "p4inv", **_settings(PAPER, dim), "merge_every": n} for n in INTERVALS},
        "recommended": {"route": "p4inv", **_settings(RECOMMENDED, dim)},
        "through_inverse": {"route": "through_inverse", **_settings(PAPER, dim)},
    }


def _settings(preset: Preset, dim: int) -> dict[str, Any]:
    return {
        "rank": preset.rank_for(dim),
        "reset": preset.reset,
        "train_v": preset.train_v,
        "merge_every": preset.every,
    }


def side_by_side(config: RunConfig) -> Lanes:
    """Return one lane for each of `ways`, from the same start and with the same batches."""
    return Lanes(config, "way", ways(config.width))


def case_of(config: LinearConfig) -> str | None:
    """Return which of `CASES` a config is about; None if it is another problem."""
    return next((name for name, case in CASES.items() if case.settings.items() <= config.to_dict().items()), None)


# --- pictures ---------------------------------------------------------------------------------------------------------

Look = Sight[LinearConfig, LinearView]


class Followed:
    """Orders the spectra of one lane so that each column follows one eigenvalue; what is ordered stays so."""

    def __init__(self) -> None:
        self._ordered: dict[int, tuple[Complex, Complex]] = {}

    def paths(self, spectra: Trail) -> Complex:
        """Return the last `TAIL` spectra and the present one, shape (n, d), ordered.

        Cost O(d^2 log d) for each spectrum that is new.
        """
        ordered: list[Complex] = []
        recent: dict[int, tuple[Complex, Complex]] = {}
        values = spectra.values[-TAIL - 1 :]
        for step, row in zip(spectra.steps[-TAIL - 1 :].tolist(), values, strict=True):
            raw, path = self._ordered.get(step, (None, None))
            if raw is None or path is None or not np.array_equal(raw, row, equal_nan=True):
                path = eigenvalue_paths(np.stack([ordered[-1], row]))[1] if ordered else row
            recent[step] = row, path
            ordered.append(path)
        self._ordered = {**self._ordered, **recent} if len(self._ordered) < 8 * TAIL else recent
        return np.array(ordered, np.complex128).reshape(len(ordered), -1)


def eigenvalues(sight: Look, lane: str) -> Plot:
    """Return the eigenvalues of one lane in the complex plane, with tails that fade, and those of the target."""
    snapshot = sight.lanes[lane]
    paths = sight.keep(f"spectra of {lane}", None, Followed).paths(snapshot.spectrum)
    now, target = gallery.complex_points(paths[-1:]), snapshot.pictures["target"]
    extent = gallery.step_up(1.05 * float(np.nanmax(np.abs(np.concatenate([now, target])), initial=0.0)), EXTENTS)
    thirds = np.linspace(0, len(paths) - 1, len(SHADES) + 1).round().astype(int)
    tails = [
        Path(gallery.within(gallery.strands(paths[first : last + 1]), extent), COLORS[lane] + shade, width=1.5)
        for shade, first, last in zip(SHADES, thirds[:-1], thirds[1:], strict=True)
        if last > first
    ]
    steps = snapshot.spectrum.steps
    moment = f"step {int(steps[-1]):,}" if len(steps) else "no step yet"
    layers: list[Layer] = [
        gallery.unit_circle(),
        *tails,
        Points(gallery.within(target, extent), "orange", "cross", 9, label="target"),
        Points([[0, 0]], "red", "square", 6),
        Text((0, 0), "det = 0", "red", "below"),
        Points(gallery.within(now, extent), COLORS[lane], "dot", 6, label=f"{WAYS[lane]}, {moment}"),
    ]
    return Plot(layers, gallery.square(extent))


# --- curves and numbers -----------------------------------------------------------------------------------------------


def curves(sight: Look) -> Figure:
    """Return the losses of all lanes; the one that is looked at closely comes first, and with its merges."""

    def change(lane: Snapshot) -> Curves:
        steps, losses = lane.curves["loss"]
        near = steps, np.where(losses < RUNAWAY, losses, np.nan)
        return {**lane.curves, "loss": near}

    loss = replace(LOSS, exact=not sight.config.sampled)
    return training_figure(sight, loss, {sight.view.way: WAYS[sight.view.way], **WAYS}, change)


def _of_lane_shown(name: str, label: str, form: str, help: str) -> Number:
    return Number(name, label, lambda sight: number(sight.lanes[sight.view.way].last(name), form), help=help)


def _loss(lane: Snapshot) -> str:
    return number(lane.last("test_loss"), ".0e")


FROM_I: Mapping[str, Any] = {"case": "minus_identity", "way": "n1", "penalty": False, "skip": True, "refine_every": 50}
"""The problem -I with its rate, and no more than the usual rescues."""

LINEAR = Lab(
    name="linear",
    title="Linear problems: from I to T",
    subtitle="Six ways to learn one matrix",
    config=LinearConfig(),
    view=LinearView(),
    trainer=side_by_side,
    lanes=lambda config: WAYS,
    groups={
        "Problem": ("case", "sampled"),
        "Show": ("way",),
        "Steps": ("learning_rate", "optimizer"),
        "Run": ("speed",),
    },
    more={
        "Inverse and determinant": ("penalty", "skip", "refine_every"),
        "Run": ("seed", "dtype"),
        "Diagnostics": ("view",),
    },
    controls={
        "case": Control(
            Setting("Target T", choices={name: case.title for name, case in CASES.items()}),
            case_of,
            lambda config, name: {**CASES[name].settings, "learning_rate": CASES[name].rate},
        )
    },
    tries=(
        Try(
            "From I to −I",
            "Press *Start*. The plain eigenvalues walk straight through 0, all at once, and log|det| dips to "
            "−670. Those of *N = 1* spread out and pass one after another, down to −108; its residual rises "
            "there and comes back.",
            {**FROM_I, "page:below": "Diagnostics", "restart": True},
        ),
        Try(
            "Watch it as a film",
            "Pause, click into *Time travel* and hold an arrow key: all pictures run backwards and forwards.",
        ),
        Try(
            "A steep wall",
            "Press *Start*. Plain weights know no penalty. For P4Inv it is a wall, and so steep that it "
            "throws *N = 1* and *N = 10* back too far: they stop. The preset comes on, more slowly.",
            {**FROM_I, "penalty": True, "restart": True},
        ),
        Try(
            "SO(128)",
            "Press *Start*, and compare *Lane* N = 10 and inverse. The one goes in strokes; some eigenvalues "
            "come within 0.01 of the origin. The other stays 0.45 away, and has three quarters of its loss "
            "left after 500 steps.",
            {"case": "rotation", "way": "n10", "penalty": False, "restart": True},
        ),
        Try(
            "Learning rate",
            "Press *Start*. *N = 1*, still fine at 0.5, runs away: its random v has length √d, so that its "
            "steps are d times as long. The directions of *preset* have length 1: a thousandth after 136 "
            "steps, at rate 5 after 54.",
            {**FROM_I, "learning_rate": 2.0, "restart": True},
        ),
        Try(
            "No refinement, no skip",
            "Press *Start*. After 800 steps the residual of *N = 1* is 1e-4, where it was 2e-7 with both on. "
            "The loss is the same.",
            {**FROM_I, "skip": False, "refine_every": 0, "page:below": "Diagnostics", "restart": True},
        ),
    ),
    pictures=(
        Picture(
            Axes("Eigenvalues", "of the plain matrix", "real part", "imaginary part", height=290),
            lambda sight: eigenvalues(sight, "plain"),
            area="plain",
        ),
        Picture(
            Axes("Eigenvalues", "of the lane shown", "real part", "imaginary part", height=290),
            lambda sight: eigenvalues(sight, sight.view.way),
            area="shown",
        ),
    ),
    numbers=(
        *numbers.steps(rate_help="Speed"),
        *(numbers.of_lane(f"loss_{way}", text, way, _loss, help=f"{LOSS.label}, {text}") for way, text in WAYS.items()),
        _of_lane_shown("logabsdet", "log|det W|", ".2f", "Carried, nats; of the lane shown"),
        _of_lane_shown("residual", "|A A⁻¹ − I|", ".0e", "Largest entry; of the lane shown"),
    ),
    curves=curves,
    loss=LOSS,
)
