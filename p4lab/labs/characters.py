"""The lab of one's own model: a transformer whose projections keep a property, beside the plain one, at equal time."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p4lab.errors import TrainingError
from p4lab.labs import equal_time, numbers
from p4lab.labs.lab import BELOW, Axes, Board, Grid, Grids, Lab, Picture, Sight, Try, fixed, per_second, weights_of
from p4lab.p4 import ORTHOGONAL, p4_modules
from p4lab.plots import Figure, Shown, gallery
from p4lab.plots.format import count, number
from p4lab.plots.layers import Images, Layer, Path, Plot, Row, Rows, Tile
from p4lab.plots.race import lane_style
from p4lab.problems import bits
from p4lab.problems.character_ways import (
    EVERY,
    KEEPING,
    PROJECTIONS,
    RANK,
    WARM_UP,
    WAYS,
    build,
    optimizer_of,
)
from p4lab.problems.characters import ALPHABET, Characters
from p4lab.training import Engine, Lanes, Snapshot, State
from p4lab.training.config import Rule, RunConfig, budget, rate_factor, setting, turn, whole
from p4lab.training.race import common_step, loss_at

COLORS = {lane: lane_style(place)[0] for place, lane in enumerate(("plain", "kept"))}
SHOWN = 48
"""Singular vectors in a picture, those of the largest singular values."""
START, LENGTH = "def ", 72
"""What the models continue, and by how many characters."""
SMALL = (
    ("residual", "violation of the property"),
    ("grad_norm", "norm of the gradient"),
    ("step_ms", "step time (ms)"),
)
HINTS = {
    State.RUNNING: "Both take turns. Learning rates, merges and time act at once; model and property wait for Reset.",
    State.PAUSED: "Step gives both a turn. Choose another projection to see what has become of it.",
}


# --- what is trained --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _problem(length: int, device: str) -> "ShownCharacters":
    return ShownCharacters(length, device)


class ShownCharacters(Characters):
    """The text; what is shown of a lane is made of its weights by whoever looks."""

    def pictures(self, model: nn.Module, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights. ``z`` is not used."""
        return weights_of(model)


@dataclass(frozen=True)
class CharactersConfig(RunConfig):
    """Train a transformer of characters with plain projections, and one whose projections keep a property.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "characters"

    seed: int = setting(0, help="Of start, batches and directions")
    dtype: str = setting("float32", choices=("float32",))
    rank: int = setting(RANK, choices=(4, 8, 16, 32, 64), help="Directions of a perturbation, on each side")
    merge_every: int = setting(EVERY, choices=(1, 4, 10, 20, 50, 100))
    refine_every: int = ORTHOGONAL.refine_every
    batch_size: int = setting(16, choices=(8, 16, 32, 64), help="Windows of text in a step")
    measure_every: int = 10
    keeps: str = setting("spectrum", "Projections keep", choices=KEEPING, look="wide")
    way: str = setting("plain", "", choices=tuple(WAYS))
    dim: int = setting(128, "Width d", whole(8, 1024), choices=(64, 128, 256), own=True)
    blocks: int = setting(2, "Blocks", whole(1, 12), choices=(1, 2, 4), own=True)
    length: int = setting(64, "Window", whole(2, 512), choices=(32, 64, 128), own=True, help="Characters")
    rate_factor: float = rate_factor(0.1, 0.3, 0.5, 1.0, 2.0, 3.0)
    turn: float = turn(150.0)
    budget: float = budget(60.0, "Of training")

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    def parts(self) -> tuple[Characters, nn.Module]:
        """Return the text, which all lanes share, and the model of this way."""
        model = build(self.way, self.dim, self.blocks, self.length, self.rank, self.seed)
        return _problem(self.length, self.device), model.to(self.device)

    def measures(self, problem: Characters, model: Any, watched: Tensor | None) -> dict[str, Any]:
        """Return the test loss, and the largest violation of the property as "residual" (NaN where there is none)."""
        violations = [float(layer.violation()) for layer in p4_modules(model)]
        return {
            "test_loss": float(problem.test_loss(model)),
            **dict.fromkeys(("logabsdet", "sign", "logabsdet_error", "condition"), math.nan),
            "residual": max(violations, default=math.nan),
        }


def character_lane(config: CharactersConfig) -> Engine:
    """Return the engine of a model."""
    problem, model = config.parts()

    def rates(config: CharactersConfig) -> list[float]:
        return [config.rate_factor * float(rate) for rate in own]

    optimizer = optimizer_of(config.way, model)
    own = [group["lr"] for group in optimizer.param_groups]
    return Engine(
        config, problem, model, optimizer, rates=rates, anneal=lambda engine: min(1.0, (engine.step + 1) / WARM_UP)
    )


def character_lanes(config: CharactersConfig) -> Lanes:
    """Return a plain lane and one that keeps what the setting ``keeps`` says; each trains for the same time.

    Example:
        >>> lanes = character_lanes(CharactersConfig(dim=16, blocks=1, length=8, turn=1.0))
        >>> lanes.run()
        >>> list(lanes.engines)
        ['plain', 'kept']
    """
    ways = {"plain": "plain", "kept": config.keeps}
    return Lanes(config, "way", {name: character_lane(config.replace(way=way)) for name, way in ways.items()})


# --- what is looked at ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CharactersView(equal_time.RaceView):
    """What is looked at."""

    speed: float | None = setting(None, choices=per_second(1, 5, 20, None))
    projection: str = setting(
        "0.query",
        "Projection",
        Rule(str, lambda name: name.partition(".")[0].isdigit(), "the number of a block, a dot, and a projection"),
        choices=lambda config: {
            f"{block}.{name[2:]}": f"block {block + 1}, {name[2:]}"
            for block in range(config.blocks)
            for name in PROJECTIONS
        },
        kind="choice",
        own=True,
        live=True,
        look="wide",
        help="Which matrix of the transformer is drawn",
    )


Look = Sight[CharactersConfig, CharactersView]


def labels(config: CharactersConfig) -> dict[str, str]:
    """Return what the lanes are called."""
    return {"plain": "plain weights", "kept": KEEPING[config.keeps]}


# --- matrices ---------------------------------------------------------------------------------------------------------


def matrix_of(model: Any, projection: str) -> NDArray[np.float64]:
    """Return the effective weights of a projection, such as "0.query", shape (dim_out, dim_in)."""
    block, name = projection.split(".")
    blocks = model.blocks
    layer = getattr(blocks[min(int(block), len(blocks) - 1)], name)
    weight: NDArray[np.float64] = layer.weight.detach().to("cpu", torch.float64).numpy()
    return weight


def decomposed(sight: Look, lane: str, start: bool = False) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return left singular vectors, shape (dim_out, n), and singular values, shape (n,), now or at the start."""
    projection, config = sight.view.projection, sight.lanes[lane].config
    key: Any = (fixed(config), projection) if start else (sight.moment(lane), projection)

    def make() -> tuple[NDArray[Any], NDArray[Any]]:
        model = sight.keep(f"first of {lane}", fixed(config), config.model) if start else sight.model(lane)
        matrix = matrix_of(model, projection)
        if not np.isfinite(matrix).all():
            return np.full((len(matrix), min(matrix.shape)), np.nan), np.full(min(matrix.shape), np.nan)
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return left, values

    vectors, values = sight.keep(f"{'start' if start else 'now'} of {lane}", key, make)
    return vectors, values


def spectra(sight: Look) -> Plot:
    """Return the singular values of the chosen projection in both lanes, and those of the starts."""
    layers: list[Layer] = []
    top, size = 0.0, 1
    for lane in sight.lanes:
        for start in (True, False):
            values = decomposed(sight, lane, start)[1]
            points = np.stack([np.arange(1, len(values) + 1), values], axis=1)
            color = "grey" if start else COLORS[lane]
            layers.append(Path(points, color, 1 if start else 2.5, dashed=start, label="start" if start else ""))
            top, size = max(top, float(np.nanmax(values, initial=0.0))), max(size, len(values))
    return Plot(layers, (1.0, float(size), 0.0, gallery.step_up(1.05 * top, (0.5, 1, 1.5, 2, 3, 5, 10, 20, 50, 100))))


def turned(sight: Look) -> Images:
    """Return how much of each singular vector of the start is left in each one of now, for both lanes."""
    tiles = []
    for lane in sight.lanes:
        before, now = (decomposed(sight, lane, start)[0][:, :SHOWN] for start in (True, False))
        overlap = np.abs(np.nan_to_num(before.T @ now))
        kept = float(np.mean(np.max(overlap, axis=1)))
        ink = np.rint(255 * np.clip(overlap, 0, 1)).astype(np.uint8)
        tiles.append(Tile(ink[None], f"{labels(sight.config)[lane]}: {kept:.2f} left"))
    return Images(tiles)


# --- text and numbers -------------------------------------------------------------------------------------------------


def text_of(sight: Look, lane: str) -> str:
    """Return how a lane continues "def ", one line of text with a sign where lines end."""

    def write() -> str:
        model, generator = sight.model(lane), torch.Generator().manual_seed(sight.config.seed)
        try:
            return (START + str(model.write(START, LENGTH, generator))).replace("\n", "⏎")
        except TrainingError as error:
            return f"nothing: {error}"

    result: str = sight.keep(f"text of {lane}", sight.moment(lane), write)
    return result


def texts(sight: Look) -> Rows:
    """Return what both lanes write."""
    names = labels(sight.config)
    rows = [Row([names[lane], text_of(sight, lane)], COLORS[lane]) for lane in sight.lanes]
    return Rows({"": "", f'continues "{START}"': "Drawn at temperature 0.8, always with the run's seed"}, rows)


def bits_of(loss: float) -> str:
    """Return how a loss in nats reads in bits per character."""
    return number(bits(loss), ".3f")


def board(sight: Look) -> Rows:
    """Return how good each lane is, and what it costs."""
    common = common_step(sight.lanes)
    columns = (
        numbers.Column(
            "bits per character",
            lambda lane: bits_of(lane.last("test_loss")),
            "Cross-entropy on files that are kept back",
        ),
        numbers.Column(
            "at equal steps",
            lambda lane: bits_of(loss_at(lane, common)),
            "The same when as many steps were done as the slower lane has",
        ),
        equal_time.STEPS,
        equal_time.MEAN_STEP,
        numbers.Column(
            "violation",
            lambda lane: numbers.violation_text(lane.last("residual")),
            "Of the property, the largest of all projections: of singular values relative to the largest one, or "
            "max |WᵀW − I|",
        ),
        numbers.Column("merged", lambda lane: count(lane.counts["merge"]), "Times that perturbations were merged"),
    )
    return numbers.lane_table(sight, columns, labels(sight.config), colors=COLORS)


def hint(sight: Look) -> str | None:
    """Return what to do next."""
    return equal_time.hint(sight, HINTS)


def curves(sight: Look) -> Figure:
    """Return the test losses of both lanes, and violations, gradients and step times."""
    return equal_time.curves(
        sight,
        _lines,
        label="test loss (bits per character)",
        log=False,
        small=SMALL,
        levels={"every character alike": math.log2(len(ALPHABET))},
    )


def _lines(snapshot: Snapshot) -> list[Shown]:
    config: Any = snapshot.config
    return equal_time.lines(snapshot, labels(config), COLORS, equal_time.in_bits)


CHARACTERS = Lab(
    name="characters",
    title="Your own model",
    subtitle="A transformer that keeps a property",
    config=CharactersConfig(),
    view=CharactersView(),
    trainer=character_lanes,
    lanes=labels,
    groups={
        "Property": ("keeps", "rank", "merge_every"),
        "Show": ("projection", "axis"),
        "Training": ("rate_factor", "budget"),
    },
    more={"Transformer": ("dim", "blocks", "length", "batch_size"), "Run": ("seed", "device", "speed")},
    tries=(
        Try(
            "Singular values",
            "Press *Start*. Those of the plain weights spread while they train. Those of the other lane, "
            "whose rows start with length 1, stay on their grey line; and it learns all the same, if more "
            "slowly.",
            {"keeps": "spectrum", "restart": True},
        ),
        Try(
            "Singular vectors",
            "What moves instead. The squares compare those of the start with those of now: a sharp diagonal "
            "means that nothing has turned yet. Those of the plain weights turn further.",
        ),
        Try(
            "Text",
            "What both make of “def ”. Within a minute they know how words look, and in some minutes of "
            "training (raise *Time each*) how lines are indented.",
            {"page:below": "Text"},
        ),
        Try(
            "Another matrix",
            "Choose another *Projection*. In the plain lane those of the network, up and down, turn furthest; "
            "in the other one query, key and up do.",
            {"projection": "0.up"},
        ),
        Try(
            "Rotations",
            "Press *Start*. Now all singular values are 1, and so their vectors have no meaning of their own. "
            "Which is ahead, after the same time?",
            {"keeps": "orthogonal", "page:below": "Lanes", "restart": True},
        ),
    ),
    pictures=(
        Picture(
            Axes("Singular values", "grey: at the start", "index", "value", equal=False, height=300),
            spectra,
            0.3,
            "spectra",
        ),
        Picture(
            Grids(
                [Grid("", color=COLORS[lane]) for lane in ("plain", "kept")],
                255,
                ends=("singular vectors, start (down) and now: orthogonal", "same"),
            ),
            turned,
            0.5,
            "turned",
        ),
        Picture(Board("Text"), texts, 2.0, "texts", BELOW),
        Picture(Board("Lanes"), board, 0.5, "board", BELOW),
    ),
    numbers=(
        *equal_time.TURNS,
        *(
            numbers.of_lane(
                f"bits_{lane}",
                label,
                lane,
                lambda snapshot: bits_of(snapshot.last("test_loss")),
                "bits/char",
                "Test loss",
                COLORS[lane],
            )
            for lane, label in (("plain", "plain"), ("kept", "kept"))
        ),
        numbers.of_lane(
            "violation",
            "violation",
            "kept",
            lambda snapshot: numbers.violation_text(snapshot.last("residual")),
            help="Of the property, the largest of all projections",
        ),
    ),
    curves=curves,
    hint=hint,
    style="""
.p4-pictures { grid-template-columns: minmax(0, 1fr) minmax(0, 1.3fr); }
.p4-characters-turned { display: grid; grid-template: minmax(0, 1fr) auto / repeat(2, minmax(0, 1fr)); gap: 4px 16px; }
.p4-grids > .p4-scale { grid-column: 1 / -1; }
.p4-characters-texts .p4-table :is(th, td):last-child {
  text-align: left; font-family: var(--jp-code-font-family); white-space: pre;
}
""",
)
