"""Densities in the plane: RealNVP and P4Inv + Bent learn one side by side, or what you draw."""

import base64
import binascii
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab import flows
from p4lab.errors import ConfigError
from p4lab.flows import Flow, effective_parameters
from p4lab.flows.linear_layers import Permutation
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import BELOW, Axes, Bar, Board, Canvas, Lab, Picture, Sight, Try, View, weights_of
from p4lab.plots import RUN_COLORS, Figure, Loss
from p4lab.plots.format import DASH, number
from p4lab.plots.gallery import LEGEND, square, step_up, within
from p4lab.plots.layers import Heatmap, Layer, Path, Plot, Points, Row, Rows
from p4lab.problems.densities import DENSITIES, Density2D, DensityProblem, density, grid_density
from p4lab.problems.density2d import grid
from p4lab.problems.metrics import bridge_mass, mode_coverage, round_trip_error
from p4lab.training import Lanes, Snapshot
from p4lab.training.config import Rule, RunConfig, setting, whole

SIDE = 24
"""Cells along a side of a drawing."""
LEVELS = 15
"""Greatest amount of ink in a cell."""
AREA = (-4.0, 4.0, -4.0, 4.0)
"""x0, x1, y0, y1 of a drawing."""
DRAWING = "drawing"
FLOWS = {"p4inv_bent": "P4Inv + Bent", "realnvp": "RealNVP"}
"""The lanes, by what they are called in `p4lab.flows`."""
ORDER = ("realnvp", "p4inv_bent")
"""From left to right."""
LOSS = Loss("loss −log q (nats)", bits=False)
SPANS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""How far above the entropy the axis of the losses reaches."""
ENTROPY = "entropy of the truth"
INTERVALS = (1, 2, 4, 10, 20, 50, 100)
DEPTHS = tuple(k / 48 for k in range(49))
"""Shares of the way from the latent space to the data."""
COARSE, FINE = 80, 144
"""Cells along a side of a density, while training and at rest."""
DATA, SAMPLES = 300, 500
"""Points of the data that are shown, and samples that are on their way through a flow."""
NATS = 10.0
"""How far the colours of a log-density reach below its highest value."""
HEADROOM = 1.1
"""How far the colours of a density reach above the highest true value."""
PATIENCE = 0.4
"""Seconds between two pictures of a flow that trains, as long as nobody moves the depth."""
SECTORS = ("blue", "orange", "green", "purple")
"""Colours of samples by the quadrant that their latent z lies in, counterclockwise from the upper right."""
EXTENTS = (4.0, 5.0, 6.5, 8.0, 10.0, 13.0, 16.0, 20.0, 30.0, 50.0)
"""How far a picture of the flow may reach from the origin."""
REACH, LINES, KNOTS = 3.0, 13, 49
"""The lattice covers latent z from -3 to 3, which holds 99.5% of the samples, by 13 lines of 49 points each way."""
MEASURED, ROUND_TRIPS = 4000, 500
"""Samples for the bridge mass and the pieces, and points that are mapped to and fro, in the table."""
TRUTH_COLOR = "#e0791b"
Array = NDArray[np.float32]


# --- drawings ---------------------------------------------------------------------------------------------------------


def encode_drawing(ink: NDArray[Any]) -> str:
    """Return a drawing as text that fits into a config: four bits for a cell, base64, 384 characters.

    Args:
        ink: shape (24, 24), whole numbers from 0 to 15, the first row at the top.

    Raises:
        ConfigError: another shape, or a number out of range.

    Example:
        >>> text = encode_drawing(np.eye(24))
        >>> len(text), bool((decode_drawing(text) == np.eye(24)).all())
        (384, True)
    """
    values = np.asarray(ink)
    if values.shape != (SIDE, SIDE) or not np.isfinite(values).all() or values.min() < 0 or values.max() > LEVELS:
        span = f"{values.min():g} to {values.max():g}" if values.size else "no values"
        raise ConfigError(
            f"drawing of shape {values.shape}, {span}: expected ({SIDE}, {SIDE}), whole numbers from 0 to {LEVELS}"
        )
    cells = values.astype(np.uint8).ravel()
    return base64.urlsafe_b64encode((cells[::2] << 4 | cells[1::2]).tobytes()).decode()


def decode_drawing(text: str) -> NDArray[np.uint8]:
    """Return the drawing that `encode_drawing` made text of, shape (24, 24), uint8.

    Raises:
        ConfigError: not such a text.
    """
    try:
        pairs = np.frombuffer(base64.b64decode(text, altchars=b"-_", validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"drawing={text[:20]!r}...: expected base64 ({error})") from error
    if 2 * len(pairs) != SIDE * SIDE:
        raise ConfigError(f"drawing={text[:20]!r}... of {len(text)} characters: expected {SIDE * SIDE * 2 // 3}")
    return np.stack([pairs >> 4, pairs & LEVELS], axis=1).reshape(SIDE, SIDE)


def _is_drawing(text: str) -> bool:
    try:
        return text == "" or bool(decode_drawing(text).any())
    except ConfigError:
        return False


# --- what is trained --------------------------------------------------------------------------------------------------


class LaneProblem(DensityProblem):
    """Learn a density; what is shown of a lane is made of its weights, by whoever looks."""

    @torch.no_grad()
    def pictures(self, model: torch.nn.Module, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights, on the CPU. ``z`` is not used."""
        return weights_of(model)


@dataclass(frozen=True)
class DensityConfig(RunConfig):
    """Learn a density in the plane with one of two flows; the default is the paper's P4Inv + Bent.

    RealNVP starts at the identity, P4Inv + Bent as a rotation or reflection, which a normal density does not feel: each
    Bent identity is undone by the inverse one that follows it. P4Inv + Bent has one P4Inv layer more than
    nonlinearities; the networks of RealNVP are as wide as it takes to have as many parameters.

    Raises:
        ConfigError: as `RunConfig`, or no drawing where there should be one.
    """

    problem: ClassVar[str] = "density"

    rank: int = setting(2, choices=(1, 2))
    learning_rate: float = setting(1e-2, choices=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1))
    batch_size: int = setting(256, choices=(64, 256, 1024))
    merge_every: int = setting(4, choices=INTERVALS)
    refine_every: int = setting(50, choices=INTERVALS)
    measure_every: int = 50
    density: str = setting(
        "eight_gaussians",
        "Density",
        choices={**{name: density(name).label for name in DENSITIES}, DRAWING: "Your drawing"},
        look="wide",
    )
    drawing: str = setting(
        "",
        "",
        Rule(str, _is_drawing, "a drawing with ink on it, as text of encode_drawing"),
        brief=lambda text: "another drawing" if text else "no drawing",
    )
    flow: str = setting("p4inv_bent", "Flow", choices=FLOWS)
    blocks: int = setting(
        16, "Blocks", whole(1, 100), choices=(4, 8, 16, 32, 64), own=True, help="Nonlinearities of P4Inv + Bent"
    )
    couplings: int = setting(
        4,
        "Couplings",
        whole(2, 32),
        choices=(2, 4, 6, 8),
        own=True,
        help="Of RealNVP; its networks get as wide as it takes",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density == DRAWING and not self.drawing:
            raise ConfigError("density='drawing': there is no drawing yet; paint one and press Train on this")

    @property
    def width(self) -> int:
        """The plane's 2."""
        return 2

    def truth(self) -> Density2D:
        """Return the density that is learnt."""
        return _truth(self.density, self.drawing if self.density == DRAWING else "")

    def parts(self) -> tuple[LaneProblem, torch.nn.Module]:
        """Return the problem, and the flow."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        return LaneProblem(self.truth(), self.seed, device, dtype), self.model()

    def model(self) -> Flow:
        """Return the flow at its start."""
        if self.flow == "realnvp":
            hidden = matching_width(self.blocks, self.couplings)
            return flows.realnvp(2, self.couplings, hidden=hidden, depth=1, seed=self.seed, **self.where)
        options: dict[str, Any] = {"rank": min(self.rank, 2), "reset": self.reset, "train_v": self.train_v}
        return flows.p4inv_bent(2, self.blocks, init="paired", seed=self.seed, **options, **self.where)


@lru_cache(maxsize=32)
def matching_width(blocks: int, couplings: int) -> int:
    """Return the hidden width at which RealNVP has as good as the same number of parameters as P4Inv + Bent.

    Counted are `p4lab.flows.effective_parameters`; the networks of RealNVP's couplings have one hidden layer.

    Example:
        >>> matching_width(100, 8)
        18
    """
    target = flows.effective_parameters(flows.p4inv_bent(2, blocks))
    twin = flows.matched(lambda hidden: flows.realnvp(2, couplings, hidden=hidden, depth=1), target)
    return int(twin.layers[0].hidden)


@lru_cache(maxsize=32)
def _truth(name: str, drawing: str) -> Density2D:
    if name == DRAWING:
        return grid_density(decode_drawing(drawing), AREA)
    return density(name)


@lru_cache(maxsize=32)
def _entropy(name: str, drawing: str, seed: int) -> float:
    return DensityProblem(_truth(name, drawing), seed).entropy


def entropy(config: DensityConfig) -> float:
    """Return the entropy of what is learnt, estimated on the test set (nats): test loss minus this is the KL."""
    return _entropy(config.density, config.drawing if config.density == DRAWING else "", config.seed)


def sketched(config: DensityConfig) -> NDArray[np.uint8]:
    """Return what is learnt as a drawing, shape (24, 24), the first row at the top."""
    if config.density == DRAWING:
        return decode_drawing(config.drawing)
    fine = 4
    density = config.truth().log_prob(grid(AREA, fine * SIDE)).exp().view(SIDE, fine, SIDE, fine).mean((1, 3))
    return (LEVELS * density / density.max()).round().to(torch.uint8).numpy()


def side_by_side(config: RunConfig) -> Lanes:
    """Return RealNVP and P4Inv + Bent, with the same batches and as good as the same number of parameters."""
    return Lanes(config, "flow", tuple(FLOWS))


@dataclass(frozen=True)
class DensityView(View):
    """What is looked at."""

    depth: float = setting(
        1.0,
        "Depth",
        Rule(float, lambda value: 0 <= value <= 1, "a share of the way from the latent space (0) to the data (1)"),
        choices={d: "latent z" if d == 0 else "data x" if d == 1 else f"{100 * d:.0f} %" for d in DEPTHS},
        live=True,
        look="play",
        help="How far samples and grid below have come on their way from the latent space to the data",
    )
    lattice: bool = setting(True, "Grid", live=True, help="A lattice of latent lines, on its way with the samples")
    samples: bool = setting(True, "Samples", live=True, help="Data and samples over the densities")
    log: bool = setting(True, "", choices={False: "Density", True: "Log-density"}, kind="segments", live=True)


Look = Sight[DensityConfig, DensityView]


# --- densities --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def truth_on_grid(truth: Density2D, side: int) -> NDArray[np.float64]:
    """Return log p (nats) in the centres of cells, the first row at the bottom."""
    return truth.log_prob(grid(truth.bounds, side).flip(0)).numpy()


def heatmap(log_density: NDArray[Any], truth: Density2D, log: bool, label: str = "") -> Heatmap:
    """Return the layer of a log-density (nats), in colours that truth and lanes share: from the highest true one."""
    top = float(truth_on_grid(truth, FINE).max())
    if log:
        low = top - NATS
        shown = np.maximum(np.nan_to_num(log_density, nan=np.nan, neginf=low, posinf=top), low)
        return Heatmap(shown, truth.bounds, low=low, high=top, label=label)
    shown = np.exp(np.minimum(log_density, top + 3))
    return Heatmap(shown, truth.bounds, low=0.0, high=HEADROOM * float(np.exp(top)), label=label)


def true_density(sight: Look) -> Plot:
    """Return the density that is learnt, with data over it."""
    config, view = sight.config, sight.view

    def make() -> Plot:
        truth = config.truth()
        label = "log p (nats)" if view.log else "density p"
        layers: list[Layer] = [heatmap(truth_on_grid(truth, FINE), truth, view.log, label)]
        if view.samples:
            data = truth.sample(DATA, torch.Generator().manual_seed(config.seed))
            layers.append(Points(data.numpy(), "orange", size=3))
        return Plot(layers, truth.bounds)

    plot: Plot = sight.keep("truth", (config.density, config.drawing, config.seed, view.log, view.samples), make)
    return plot


def flow_density(sight: Look, lane: str) -> Plot:
    """Return the density of one lane, with samples over it."""
    model, truth, side = sight.model(lane), sight.config.truth(), COARSE if sight.running else FINE
    layers: list[Layer] = [heatmap(log_density(model, truth.bounds, side), truth, sight.view.log)]
    if sight.view.samples:
        points, _, _ = at_depth(sight, lane, 1.0)
        layers.append(Points(within(points[:DATA], 2 * EXTENTS[-1]), "orange", size=3))
    return Plot(layers, truth.bounds)


@torch.no_grad()
def log_density(model: Flow, bounds: tuple[float, float, float, float], side: int) -> Array:
    """Return log q (nats) of a flow in the centres of ``side`` x ``side`` cells, the first row at the bottom."""
    x = grid(bounds, side).flip(0).reshape(-1, 2).to(next(model.parameters()))
    return model.log_prob(x).view(side, side).float().cpu().numpy()


# --- the way through a flow -------------------------------------------------------------------------------------------


def latents(seed: int, samples: int = SAMPLES) -> Tensor:
    """Return the latent variables of the samples, shape (n, 2), float64; the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 2, generator=generator, dtype=torch.float64, device="cpu")


def lattice() -> Tensor:
    """Return the lines of a lattice, shape (26, 49, 2), float64: first the upright ones, then the level ones."""
    places = torch.linspace(-REACH, REACH, LINES, dtype=torch.float64)
    along = torch.linspace(-REACH, REACH, KNOTS, dtype=torch.float64)
    upright = torch.stack(torch.meshgrid(places, along, indexing="ij"), dim=-1)
    return torch.cat([upright, upright.flip(-1)])


@torch.no_grad()
def stages(model: Flow, z: Tensor) -> Array:
    """Return points on their way from the latent space to the data, shape (layers + 1, n, 2).

    Layers that only permute the coordinates are left out: the coordinates are named as in the data throughout.
    """
    layers = list(model.layers)
    points = model.stages(z.to(next(model.parameters())))  # after undoing the last layer, the last but one, ...
    path = [_unpermuted(points[0], layers)]
    for passed, (layer, stage) in enumerate(zip(reversed(layers), points[1:], strict=True), start=1):
        if not isinstance(layer, Permutation):
            path.append(_unpermuted(stage, layers[: len(layers) - passed]))
    return torch.stack(path).float().cpu().numpy()


def _unpermuted(points: Tensor, ahead: list[Any]) -> Tensor:
    """Return points with the permutations that are still ahead of them undone at once."""
    for layer in reversed(ahead):
        if isinstance(layer, Permutation):
            points = layer.inverse(points)
    return points


def between(path: Array, share: float) -> tuple[Array, float]:
    """Return the points of `stages` after a share of the way, and the number of layers passed.

    Between two layers everything moves along straight lines.
    """
    place = min(1.0, max(0.0, share)) * (len(path) - 1)
    first = min(int(place), len(path) - 2)
    part = np.float32(place - first)
    return (1 - part) * path[first] + part * path[first + 1], place


def at_depth(sight: Look, lane: str, share: float) -> tuple[Array, Array, str]:
    """Return samples (n, 2), the lattice's lines with a row of NaN behind each (m, 2), and how far they have come."""
    model, seed = sight.model(lane), sight.config.seed
    path = sight.keep(
        f"way of {lane}",
        (id(model), sight.moment(lane)),
        lambda: stages(model, torch.cat([latents(seed), lattice().reshape(-1, 2)])),
    )
    points, place = between(path, share)
    lines = np.full((2 * LINES, KNOTS + 1, 2), np.nan, np.float32)
    lines[:, :-1] = points[SAMPLES:].reshape(2 * LINES, KNOTS, 2)
    return points[:SAMPLES], lines.reshape(-1, 2), f"grid of z after {round(place, 1):g} of {len(path) - 1} layers"


def passage(sight: Look, lane: str) -> Plot:
    """Return samples and a lattice on their way through one lane's flow."""
    view = sight.view
    chosen = view.depth, view.lattice, sight.frame.run, sight.frame.shown
    now = int(time.monotonic() / PATIENCE) if sight.running else sight.moment(lane)

    def make() -> Plot:
        samples, lines, label = at_depth(sight, lane, view.depth)
        start, _, _ = at_depth(sight, lane, 0.0)
        quadrant, extent = quadrants(start), extent_of(samples)
        layers: list[Layer] = []
        if view.lattice:
            layers.append(Path(within(lines, 4 * extent), "grey", width=1, label=label))
        layers += [Points(within(samples[quadrant == k], 2 * extent), color, size=4) for k, color in enumerate(SECTORS)]
        return Plot(layers, square(extent))

    plot: Plot = sight.keep(f"passage of {lane}", (chosen, now), make)
    return plot


def quadrants(z: NDArray[Any]) -> NDArray[np.intp]:
    """Return 0 to 3, counterclockwise from the upper right, for z of shape (n, 2)."""
    return np.where(z[:, 1] >= 0, np.where(z[:, 0] >= 0, 0, 1), np.where(z[:, 0] < 0, 2, 3))


def extent_of(points: NDArray[Any]) -> float:
    """Return how far a picture has to reach to show nearly all points: in steps, so that it seldom moves."""
    finite = np.abs(points[np.isfinite(points).all(-1)])
    farthest = float(np.quantile(finite.max(-1), 0.98)) if len(finite) else 0.0
    return step_up(np.nextafter(1.05 * farthest, np.inf), EXTENTS)


# --- the canvas -------------------------------------------------------------------------------------------------------


def canvas(sight: Look) -> NDArray[np.uint8] | None:
    """Return the drawing of the planned config when it has changed: by another run, or a config that was pasted."""
    planned: Any = sight.frame.planned
    before = sight.memory.get("canvas", ("", None))[0]
    sight.memory["canvas"] = planned.drawing, None
    return decode_drawing(planned.drawing) if planned.drawing not in ("", before) else None


def use(ink: NDArray[np.uint8]) -> Mapping[str, Any]:
    """Return the settings of a run that learns a drawing."""
    return {"density": DRAWING, "drawing": encode_drawing(ink)}


# --- the table and the curves -----------------------------------------------------------------------------------------

COLUMNS = {
    "": "",
    "parameters": "That training moves in the long run; a P4Inv layer counts its whole matrix",
    "test NLL": "Mean of −log q over 4,096 points that are not trained on, nats; of the truth: its entropy",
    "KL to truth": "Test NLL minus entropy, nats",
    "bridge mass": f"Share of {MEASURED:,} samples where the truth is negligible",
    "pieces": "Arms, rings or modes that get at least half of their mass",
    "round trip": "Largest |x − F⁻¹(F(x))| over data",
}


def board(sight: Look) -> Rows:
    """Return one row for the truth and one for each flow."""
    truth, floor = sight.config.truth(), entropy(sight.config)
    pieces = len(truth.piece_shares)
    covered = f"{pieces} of {pieces}" if pieces > 1 else DASH
    rows = [Row([truth.label, DASH, f"{floor:.3f}", "0", "0 %", covered, DASH], TRUTH_COLOR)]
    colors = dict(zip(FLOWS, RUN_COLORS, strict=False))
    for lane in ORDER:
        cells = sight.keep(f"row of {lane}", sight.moment(lane), partial(_row, sight, lane, truth, floor))
        rows.append(Row(cells, colors[lane]))
    return Rows(COLUMNS, rows, f"Flows at step {sight.snapshot.step:,}")


def _row(sight: Look, lane: str, truth: Density2D, floor: float) -> list[str]:
    model, snapshot, seed = sight.model(lane), sight.lanes[lane], sight.config.seed
    loss = snapshot.last("test_loss")
    samples = model.sample(MEASURED, generator=torch.Generator().manual_seed(seed)).cpu()
    pieces = len(truth.piece_shares)
    data = truth.sample(ROUND_TRIPS, torch.Generator().manual_seed(seed)).to(next(model.parameters()))
    return [
        f"{FLOWS[lane]} (stopped)" if snapshot.message else FLOWS[lane],
        f"{effective_parameters(model):,}",
        number(loss, ".3f"),
        number(loss - floor, ".3f"),
        number(100 * bridge_mass(samples, truth).value, ".1f", " %"),
        f"{round(pieces * mode_coverage(samples, truth))} of {pieces}" if pieces > 1 else DASH,
        number(round_trip_error(model, data), ".0e"),
    ]


def curves(sight: Look) -> Figure:
    """Return losses that stand above a line at the entropy of the truth; a tenth of a run may be cut off."""
    figure = training_figure(sight, LOSS, FLOWS)
    floor = entropy(sight.config)
    early = [_early(lane) for lane in sight.lanes.values()]
    highest = max((value - floor for value in early if np.isfinite(value)), default=SPANS[-1])
    span = next((span for span in SPANS if 1.1 * highest < span), None)
    line = {"xref": "x domain", "yref": "y", "x0": 0, "x1": 1, "y0": floor, "y1": floor}
    label = {"xref": "x domain", "yref": "y", "x": 0.05, "y": floor, "xanchor": "left", "yanchor": "bottom"}
    layout = dict(figure["layout"])
    layout["shapes"] = [
        *layout["shapes"],
        {"type": "line", **line, "line": {"color": "#8a8f98", "width": 1.5, "dash": "dash"}, "layer": "below"},
    ]
    layout["annotations"] = [
        *layout["annotations"],
        {**label, "text": f"{ENTROPY}, {floor:.3f}", "showarrow": False, "font": {"size": 11, "color": "#8a8f98"}},
    ]
    layout["legend"] = LEGEND
    if span is not None:
        layout["yaxis"] = {**layout["yaxis"], "range": [floor - 0.08 * span, floor + span]}
    return {"data": [_shortened(trace) for trace in figure["data"]], "layout": layout}


def _shortened(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a curve whose name in the legend leaves room for the others."""
    name = str(trace.get("name", ""))
    if name.endswith(": train"):  # it is the faint line under its running mean
        return {**trace, "showlegend": False}
    short = name.removesuffix(": train, running mean").replace(": test", ", test")
    return {**trace, "name": short}


def _early(lane: Snapshot) -> float:
    """Return the loss after a tenth of the run."""
    _, values = lane.curves["smooth_loss"]
    return float(values[len(values) // 10]) if len(values) else float("nan")


def _divergence(lane: Snapshot) -> str:
    config: Any = lane.config
    return number(lane.last("test_loss") - entropy(config), ".3f")


DENSITIES_2D = Lab(
    name="density",
    title="Densities in the plane",
    subtitle="Same data, as many parameters each",
    config=DensityConfig(),
    view=DensityView(),
    trainer=side_by_side,
    lanes=lambda config: FLOWS,
    groups={
        "Truth": ("density",),
        "Flows": ("blocks", "couplings"),
        "Optimizer": ("learning_rate", "optimizer", "batch_size"),
        "P4Inv": ("merge_every", "rank", "reset"),
        "Run": ("speed",),
    },
    more={
        "P4Inv": ("train_v", "refine_every", "skip", "penalty"),
        "Run": ("seed", "device", "dtype"),
        "Diagnostics": ("view",),
    },
    tries=(
        Try(
            "Bridges",
            "Press *Start*. Truth and flows have one scale of colours, and *Log-density* shows bridges that "
            "are too faint for *Density*. After 350 steps half of RealNVP's samples lie on them, of those of "
            "P4Inv + Bent a quarter.",
            {
                "density": "eight_gaussians",
                "rank": 2,
                "log": True,
                "page:pictures": "Densities",
                "page:below": "Flows",
                "restart": True,
            },
        ),
        Try(
            "From noise to data",
            "Drag *Depth*, or press *▶ Play*: latent lines, and samples coloured by their quadrant of z, on "
            "their way through the layers. RealNVP moves one coordinate at a time, P4Inv + Bent bends the "
            "plane as a whole.",
            {"page:pictures": "From noise to data", "depth": 0.0},
        ),
        Try(
            "Where must it tear?",
            "Press *Start*, and watch the grid. It cannot tear between the moons, and what is stretched "
            "instead is the bridge. Then try another *Density*.",
            {"density": "two_moons", "depth": 1.0, "page:pictures": "From noise to data", "restart": True},
        ),
        Try(
            "Draw your own",
            "Paint into the square (or tab into it: arrows move the brush, Space paints), and press *Train on "
            "this*. *Copy truth* gives you something to change. Who pastes your *Config* gets the drawing, "
            "too.",
            {"page:pictures": "Draw your own"},
        ),
        Try(
            "Turn the knobs",
            "*Learning rate* and *Merge every* act on the next step. Go back by *Time travel*, change one of "
            "them, and press *Branch here* and *Start*.",
        ),
        Try(
            "One direction",
            "Press *Start*. This is the paper's perturbation: one direction at a time, in a plane that has "
            "two. After 350 steps it is 0.88 nats from the truth, where *Rank* 2 is at 0.71.",
            {"density": "eight_gaussians", "rank": 1, "restart": True},
        ),
    ),
    pictures=(
        Picture(Axes("Truth", "and data", "x₁", "x₂", height=300), true_density, area="truth"),
        *(
            Picture(
                Axes(FLOWS[lane], "and samples", "x₁", height=300),
                partial(flow_density, lane=lane),
                0.5,
                f"of-{lane}",
                "Densities",
            )
            for lane in ORDER
        ),
        Picture(Bar(("depth", "lattice", "samples", "log")), area="bar"),
        Picture(
            Canvas(
                SIDE, LEVELS, AREA, "Draw your own", "", use, lambda sight: sketched(sight.config), ("density", DRAWING)
            ),
            canvas,
            0.33,
            "canvas",
            "Draw your own",
        ),
        *(
            Picture(
                Axes(f"{FLOWS[lane]}, z → x", "colour: z", "x₁", height=300),
                partial(passage, lane=lane),
                0.1,
                f"way-{lane}",
                "From noise to data",
            )
            for lane in ORDER
        ),
        Picture(Board("Flows"), board, 2.0, "board", BELOW),
    ),
    numbers=(
        *numbers.steps(),
        *(
            numbers.of_lane(
                f"kl_{lane}",
                f"KL, {FLOWS[lane]}",
                lane,
                _divergence,
                "nats",
                "Kullback-Leibler divergence of the flow from the truth: test loss minus entropy",
            )
            for lane in ORDER
        ),
        *numbers.merges(),
    ),
    curves=curves,
    loss=LOSS,
    share=0.52,
    # The first column has room for a colour bar: the squares themselves are equally large.
    style="""
.p4-layout .p4-pictures { gap: 12px; grid-template-columns: calc((100% - 24px - 76px) / 3 + 76px); }
.p4-bar .p4-item-slider .p4-setting { width: 52px; }
""",
)
