"""What better mixing buys: RealNVP with five kinds of layers between its couplings, side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from p4lab import flows
from p4lab.flows import MIXINGS, Flow, effective_parameters
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import BELOW, Board, Grid, Grids, Lab, Picture, Sight, Try, View, diagnostics, fixed, per_second
from p4lab.p4 import RECOMMENDED
from p4lab.plots import Figure, Loss, gallery
from p4lab.plots.format import count, number
from p4lab.plots.layers import Images, Rows, Tile
from p4lab.problems.densities import DENSITIES, DensityProblem, density
from p4lab.problems.digits import DIM, Digits, bits, to_levels
from p4lab.training import Lanes, Snapshot
from p4lab.training.config import RunConfig, one_of, setting, whole

DIGITS = "digits"
SIDE = 32
"""Cells along a side of the picture of a density."""
NATS = 8.0
"""How far the ink of a log-density reaches below its highest value."""
TOP = 16
"""Darkest level of the pictures."""
SAMPLES = 9
"""Digits in a picture."""
NAMES = {
    "swap": "Swap",
    "permutation": "Permutation",
    "plu": "PLU (Glow)",
    "p4inv": "P4Inv",
    "p4orthogonal": "P4Orthogonal",
}
"""The lanes of the lab, names of `p4lab.flows.MIXINGS`, and what they are called."""
LOSS = Loss("−log q (nats)", bits=False, test=False)
FINITE, FAR = 1e6, 4.0
"""Losses that are drawn; times that most lanes fit below the top of the curves, should one of them run away."""


# --- what is trained --------------------------------------------------------------------------------------------------


def mixing_matrices(model: Flow) -> Tensor:
    """Return the mixing matrices in the order in which the data meets them, shape (blocks - 1, d, d).

    Example:
        >>> mixing_matrices(flows.realnvp(2, 2))
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    return torch.stack([layer.weight for layer in model.linear_layers()])


def distance_from_swap(matrices: Any) -> Any:
    r"""Return how far matrices W are from the swap S: the root mean square over their rows.

    .. math:: |W - S|_F / \sqrt{d}

    That of another permutation is at most the root of 2, that of a random rotation near it.

    Args:
        matrices: shape (..., d, d), a tensor or numpy array.

    Returns:
        Shape (...), of the same kind.

    Example:
        >>> round(float(distance_from_swap(torch.eye(4))), 3)
        1.414
    """
    values = torch.as_tensor(matrices)
    swap = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device).flip(-1)
    distance = torch.linalg.matrix_norm(values - swap) / values.shape[-1] ** 0.5
    return distance if torch.is_tensor(matrices) else distance.numpy()


class MixedDigits(Digits):
    """The digits; what is shown of a lane are its mixing matrices and a few samples."""

    @torch.no_grad()
    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return "matrices" (see `mixing_matrices`), and "images": samples of shape (9, 8, 8), uint8, 0 to 16."""
        samples = to_levels(self.to_data(model.inverse(z[:SAMPLES])))
        return {"matrices": _on_cpu(model), "images": samples}


class MixedDensity(DensityProblem):
    """A density in the plane; what is shown of a lane are its mixing matrices and its density."""

    @torch.no_grad()
    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return "matrices" (see `mixing_matrices`), and "images": the log-density as ink, (1, 32, 32), uint8, 0 to 16.

        Ink fades over 8 nats below the highest true value. ``z`` is not used.
        """
        log_density = model.log_prob(self._grid.view(-1, 2)).view(SIDE, SIDE)
        share = 1 + (log_density - _highest(self.density.name)) / NATS
        ink = (TOP * torch.nan_to_num(share, nan=0.0)).round().clamp(0, TOP)
        return {"matrices": _on_cpu(model), "images": ink.to("cpu", torch.uint8)[None]}


def _on_cpu(model: Flow) -> Tensor:
    return mixing_matrices(model).detach().to("cpu", torch.float32, copy=True)


@lru_cache(maxsize=16)
def _highest(name: str) -> float:
    truth = density(name)
    return float(truth.log_prob(truth.grid(SIDE)).max())


@lru_cache(maxsize=16)
def _density_problem(name: str, seed: int, device: str, dtype: str) -> MixedDensity:
    return MixedDensity(density(name), seed, torch.device(device), getattr(torch, dtype), SIDE)


@lru_cache(maxsize=4)
def _digits(seed: int, device: str, dtype: str) -> MixedDigits:
    return MixedDigits(seed, torch.device(device), getattr(torch, dtype))


@dataclass(frozen=True)
class SwapsConfig(RunConfig):
    """Learn digits, or a density in the plane, with RealNVP and one kind of mixing layer.

    Networks and batches of one seed are the same whatever mixes the coordinates.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "swaps"

    learning_rate: float = setting(
        5e-3, choices=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1), help="Of all lanes"
    )
    batch_size: int = setting(128, choices=(64, 128, 256, 512))
    merge_every: int = setting(RECOMMENDED.every, choices=(1, 2, 4, 10, 20, 50, 100), help="Of P4Inv and P4Orthogonal")
    rank: int = setting(
        RECOMMENDED.rank,
        choices=(1, 2, 8, 64),
        help="Directions of a perturbation, no more than fit the width (42 of 64 for P4Inv, 32 for P4Orthogonal)",
    )
    measure_every: int = 10
    data: str = setting(
        DIGITS,
        "Problem",
        choices={DIGITS: "Digits (64 pixels)"} | {name: density(name).label for name in DENSITIES},
        look="wide",
    )
    mixing: str = setting("p4inv", "Mixing", one_of(*MIXINGS))
    blocks: int = setting(8, "Couplings", whole(2, 32), choices=(2, 4, 8, 12), own=True)
    hidden: int = setting(
        64,
        "Hidden width",
        whole(1, 1024),
        choices=(16, 32, 64, 128),
        own=True,
        help="Width of the hidden layer of each coupling's network",
    )

    @property
    def width(self) -> int:
        """64 pixels, or the plane's 2."""
        return DIM if self.data == DIGITS else 2

    def parts(self) -> tuple[MixedDigits | MixedDensity, torch.nn.Module]:
        """Return the problem, which all lanes share, and the flow."""
        where = self.seed, self.device, self.dtype
        problem = _digits(*where) if self.data == DIGITS else _density_problem(self.data, *where)
        return problem, self.model()

    def model(self) -> Flow:
        """Return the flow at its start."""
        options: dict[str, Any] = {"hidden": self.hidden, "depth": 1, "seed": self.seed, "preset": self.preset}
        return flows.realnvp(self.width, self.blocks, self.mixing, **options, **self.where)


@dataclass(frozen=True)
class SwapsView(View):
    """What is looked at."""

    view: str = diagnostics("training")
    speed: float | None = setting(None, choices=per_second(1, 5, 20, None))
    block: int = setting(
        1,
        "Mixing layer",
        whole(1, 32),
        choices=lambda config: range(1, max(12, config.blocks)),
        kind="choice",
        live=True,
        help="Which mixing layer, in the order in which the data meets them",
    )
    matrix: str = setting(
        "matrix",
        "Heatmaps",
        choices={"matrix": "Matrix", "change": "Change"},
        kind="segments",
        live=True,
        help="The matrix W, or W minus what it was at the start",
    )
    curve: str = setting(
        "test", "Loss on", choices={"test": "Test data", "train": "Batches"}, kind="segments", live=True
    )


def side_by_side(config: RunConfig, mixings: Sequence[str] = tuple(NAMES)) -> Lanes:
    """Return one lane for each kind of mixing, with the same networks at the start and the same batches.

    Raises:
        ConfigError: a name is not one of `p4lab.flows.MIXINGS`.
    """
    return Lanes(config, "mixing", mixings)


# --- pictures ---------------------------------------------------------------------------------------------------------

Look = Sight[SwapsConfig, SwapsView]


def heatmaps(sight: Look) -> Images:
    """Return the chosen mixing matrix of every lane, or how it has changed."""
    change = sight.view.matrix == "change"
    matrices, notes = [], []
    for lane in NAMES:
        snapshot = sight.lanes[lane]
        block = min(sight.view.block, len(snapshot.pictures["matrices"])) - 1
        matrix = snapshot.pictures["matrices"][block]
        notes.append(f"{number(distance_from_swap(matrix), '.3f')} from the swap")
        matrices.append(matrix - start_of(sight, lane)[block] if change else matrix)
    span = gallery.span_of(matrices, 0.999) if change else 1.0
    tiles = [Tile(gallery.levels(matrix, span)[None], note) for matrix, note in zip(matrices, notes, strict=True)]
    return Images(tiles, (f"{'change' if change else 'entry'} −{span:g}", f"{span:g}"))


def start_of(sight: Look, lane: str) -> Any:
    """Return the mixing matrices of a lane before the first step, shape (blocks - 1, d, d)."""
    config: Any = sight.lanes[lane].config
    return sight.keep(
        f"start of {lane}", fixed(config), lambda: mixing_matrices(config.model()).detach().to("cpu").numpy()
    )


def images(sight: Look) -> Images:
    """Return what each lane's flow makes: digits, or its density in the plane."""
    digits = sight.config.data == DIGITS
    ends = ("grey level 0", "16") if digits else ("log q, 8 nats below the highest log p", "highest log p")
    note, columns = ("samples", 3) if digits else ("log-density", 1)
    return Images([Tile(sight.lanes[lane].pictures["images"], note, columns) for lane in NAMES], ends)


# --- numbers ----------------------------------------------------------------------------------------------------------


def entropy(config: Any) -> float | None:
    """Return the entropy of what is learnt, estimated on the test set (nats); None for the digits: nobody knows."""
    if config.data == DIGITS:
        return None
    return _density_problem(config.data, config.seed, config.device, config.dtype).entropy


def _above_entropy(lane: Snapshot) -> float | None:
    floor = entropy(lane.config)
    return None if floor is None else lane.last("test_loss") - floor


@lru_cache(maxsize=64)
def _parameters(data: str, mixing: str, blocks: int, hidden: int) -> int:
    return effective_parameters(SwapsConfig(data=data, mixing=mixing, blocks=blocks, hidden=hidden).model())


def _size(lane: Snapshot) -> str:
    config: Any = lane.config
    return count(_parameters(config.data, config.mixing, config.blocks, config.hidden))


def _condition(lane: Snapshot) -> float:
    matrices = lane.pictures["matrices"].astype(np.float64)
    return float(np.linalg.cond(matrices).max()) if np.isfinite(matrices).all() else math.nan


COLUMNS = (
    numbers.Column(
        "parameters", _size, "That training moves in the long run; of a mixing layer, the dimension of its family"
    ),
    numbers.Column(
        "test NLL",
        lambda lane: number(lane.last("test_loss"), ".3f"),
        "Mean of −log q over data that are not trained on: nats per pixel, for densities nats",
    ),
    numbers.Column(
        "bits/pixel",
        lambda lane: number(bits(lane.last("test_loss")) if entropy(lane.config) is None else None, ".3f"),
        "For digits",
    ),
    numbers.Column(
        "KL to truth", lambda lane: number(_above_entropy(lane), ".3f"), "For densities: test NLL minus entropy, nats"
    ),
    numbers.Column(
        "from the swap",
        lambda lane: number(distance_from_swap(lane.pictures["matrices"].astype(np.float64)).mean(), ".3f"),
        "|W − S| / √d, mean over all mixing layers; the layer that is shown has its own above",
    ),
    numbers.Column(
        "condition", lambda lane: number(_condition(lane), ".3g"), "Largest condition number of a mixing matrix"
    ),
    *numbers.merge_columns(),
    numbers.step_time(),
)


def board(sight: Look) -> Rows:
    """Return how good each lane is, and what it costs."""
    return numbers.lane_table(sight, COLUMNS, NAMES)


def _loss(lane: Snapshot) -> str:
    value = lane.last("test_loss")
    return number(value if abs(value) < 1e4 else None, ".3f")


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(sight: Look) -> Figure:
    """Return the loss that is chosen of every lane, on an axis that one lane cannot run away with."""
    key = "test_loss" if sight.view.curve == "test" else "smooth_loss"
    # As it is: the mean of one that is measured now and then would lag behind.
    chosen = replace(LOSS, exact=True, label="−log q (nats/dim)" if sight.config.data == DIGITS else LOSS.label)
    figure = training_figure(sight, chosen, NAMES, lambda lane: {**lane.curves, "loss": lane.curves[key]})
    layout = figure["layout"]
    axis = {name: value for name, value in layout["yaxis"].items() if name != "range"}
    reach = _reach([lane.curves[key][1] for lane in sight.lanes.values()])
    return {**figure, "layout": {**layout, "legend": gallery.LEGEND, "yaxis": {**axis, **reach}}}


def _reach(losses: Sequence[Any]) -> dict[str, Any]:
    """Return a range that leaves out the first steep fall of a long run, and lanes far above most others."""
    lanes = [[float(value) for value in loss[len(loss) // 10 :] if abs(value) < FINITE] for loss in losses if len(loss)]
    tops, low = [max(lane) for lane in lanes if lane], min((min(lane) for lane in lanes if lane), default=0.0)
    if not tops or not low < max(tops):
        return {}
    high = min(max(tops), low + FAR * (median(tops) - low)) if low < median(tops) else max(tops)
    margin = 0.06 * (high - low)
    return {"range": [low - margin, high + margin]}


SWAPS = Lab(
    name="swaps",
    title="What better mixing buys",
    subtitle="Five kinds of layers between RealNVP's couplings",
    config=SwapsConfig(),
    view=SwapsView(),
    trainer=side_by_side,
    lanes=lambda config: NAMES,
    groups={
        "Data": ("data",),
        "Show": ("block", "matrix", "curve"),
        "Optimizer": ("learning_rate", "batch_size"),
        "P4 layers": ("merge_every", "rank"),
        "Run": ("speed",),
    },
    more={"Flows": ("blocks", "hidden"), "Run": ("seed", "device", "dtype"), "Diagnostics": ("view",)},
    tries=(
        Try(
            "How mixing forms",
            "Press *Start*. One matrix for each lane, of the *Mixing layer* that you choose; red is positive, "
            "blue is negative. The swap's anti-diagonal fades in the lanes that learn; *Change* shows only "
            "what is new.",
            {"data": "digits", "matrix": "matrix", "restart": True},
        ),
        Try(
            "What it is good for",
            "The table tells how far the matrices are from the swap. It takes patience: after 240 steps of "
            "digits the fixed swap is still ahead of P4Inv, after 600 it is behind.",
            {"page:below": "Lanes"},
        ),
        Try(
            "Watch them form",
            "Pause, and drag *Time travel* back: matrices and samples of every moment.",
        ),
        Try(
            "In the plane",
            "Press *Start*. A density instead of the digits: now the matrices are 2 × 2, and the table tells "
            "the distance to the truth.",
            {"data": "two_moons", "page:below": "Lanes", "restart": True},
        ),
    ),
    pictures=(
        Picture(
            Grids([Grid(name) for name in NAMES.values()], gallery.LEVELS, "diverging", ("−1", "1")),
            heatmaps,
            0.2,
            "matrices",
        ),
        Picture(Grids([Grid(name) for name in NAMES.values()], TOP), images, 0.5, "images"),
        Picture(Board("Lanes"), board, 1.0, "board", BELOW),
    ),
    numbers=(
        *numbers.steps("Optimizer steps of every lane", "Steps of all lanes together"),
        *(
            numbers.of_lane(
                f"nll_{lane}",
                name,
                lane,
                _loss,
                help="Test NLL: mean of −log q, nats per pixel of the digits, else nats",
            )
            for lane, name in NAMES.items()
        ),
        *numbers.merges(lanes=True, label="merged", help="Perturbations merged, all lanes"),
    ),
    curves=curves,
    loss=LOSS,
    style="""
.p4-pictures { grid-template: minmax(0, 1.2fr) minmax(0, 1fr) / minmax(0, 1fr); grid-auto-flow: row; gap: 4px; }
.p4-pictures > .p4-grids {
  display: grid; grid-template: minmax(0, 1fr) auto / repeat(5, minmax(0, 1fr)); gap: 2px 16px;
}
.p4-grids > .p4-scale { grid-column: 1 / -1; }
.p4-swaps-images figcaption { display: none; }
""",
)
