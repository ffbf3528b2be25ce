"""A small Glow on digits: four kinds of 1 x 1 convolutions side by side, samples, and ways between two digits."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from p4lab.flows.glow import MultiScale, glow
from p4lab.flows.mixing import MIXINGS
from p4lab.labs import equal_time, numbers
from p4lab.labs.lab import BELOW, Axes, Board, Grid, Grids, Lab, Picture, Sight, Try, per_second
from p4lab.labs.ways import EACH, SAMPLES, TEST, ShownDigits, Way, digits, draw_samples, shipped
from p4lab.p4 import EVERYTHING
from p4lab.plots import Figure, Shown
from p4lab.plots.format import count, number
from p4lab.plots.layers import Handle, Images, Path, Plot, Points, Rows, Tile
from p4lab.plots.race import lane_style
from p4lab.problems.digits import bits
from p4lab.problems.images import CLASSES, LEVELS, SHAPE, to_levels
from p4lab.training import Lanes, Snapshot, State
from p4lab.training.config import Rule, RunConfig, budget, one_of, setting, turn, whole

NAMES = {"p4inv": "P4Inv", "plu": "PLU (Glow)", "dense": "Dense", "permutation": "Permutation"}
"""The lanes of the lab, names of `p4lab.flows.MIXINGS`, and what they are called."""
COLORS = {lane: lane_style(place)[0] for place, lane in enumerate(NAMES)}
SHIPPED = "shipped"
SHIPPED_TEXT = "Trained before"
FLOWS = {SHIPPED: SHIPPED_TEXT, **NAMES}
"""The flows that are shown: the one that comes with p4lab, and the lanes."""
ROUND_TRIP = 10
"""Test digits of which a measurement finds out how well they come back."""
STRIP = 9
"""Digits along a way."""
FINE = 33
"""Points of the curve along a way."""
SMALL = (
    ("round_trip", "round trip max |F⁻¹(F(y)) − y|"),
    ("condition", "largest condition number of W"),
    ("step_ms", "step time (ms)"),
)
HINTS = {
    State.IDLE: "Drag the ring along the way between two digits. Start trains all four, with the same time for each.",
    State.RUNNING: "All take turns. Learning rate, merges and time act at once; another flow waits for Reset.",
    State.PAUSED: "Step gives every lane one turn, To merge goes on until P4Inv has merged.",
}


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImagesConfig(RunConfig):
    """Learn digits of 28 x 28 pixels and ten classes with a small Glow; lanes differ in their 1 x 1 convolutions.

    Networks and batches of one seed are the same whatever mixes the channels.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "images"

    learning_rate: float = setting(5e-3, choices=(5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2), help="Of all lanes")
    batch_size: int = setting(32, choices=(8, 16, 32, 64))
    merge_every: int = setting(EVERYTHING.every, choices=(1, 2, 5, 10, 20, 50, 100), help="Of P4Inv")
    refine_every: int = EVERYTHING.refine_every
    reset: Any = setting(EVERYTHING.reset, "", one_of(EVERYTHING.reset), live=False, help="All directions, always")
    measure_every: int = 20
    mixing: str = setting("p4inv", "Mixing", one_of(*MIXINGS))
    blocks: int = setting(
        4, "Blocks", whole(1, 16), choices=(1, 2, 4, 6), own=True, help="ActNorm, 1 × 1 and coupling, per scale"
    )
    hidden: int = setting(
        32, "Hidden channels", whole(1, 256), choices=(8, 16, 32, 48), own=True, help="Of the couplings' networks"
    )
    turn: float = turn(150.0)
    budget: float = budget(60.0, "Seconds of training")

    @property
    def width(self) -> int:
        """The most channels that are mixed."""
        return 4 * SHAPE[0] * 2

    def model(self) -> MultiScale:
        """Return the flow before it has seen a digit."""
        return glow(SHAPE, 2, self.blocks, self.mixing, self.hidden, CLASSES, self.seed, **self.where)

    def parts(self) -> tuple[ShownDigits, nn.Module]:
        """Return the problem, which all lanes share, and the flow at its start, with initialized ActNorms."""
        problem, flow = digits(self.device, self.dtype), self.model()
        problem.initialize(flow, torch.Generator().manual_seed(self.seed))
        return problem, flow

    def measures(self, problem: Any, model: Any, watched: Tensor | None) -> dict[str, Any]:
        """Return the test loss, how well test digits come back, and the largest condition number of a mixing matrix."""
        return {
            **super().measures(problem, model, None),
            "round_trip": problem.round_trip(model, ROUND_TRIP)[1],
            "condition": model.condition(),
        }


def side_by_side(config: RunConfig) -> Lanes:
    """Return one lane for each kind of mixing; they take turns, so that each has trained for the same time."""
    return Lanes(config, "mixing", tuple(NAMES))


# --- what is looked at ------------------------------------------------------------------------------------------------

_DIGITS = {place: str(place) for place in range(CLASSES)}


@dataclass(frozen=True)
class ImagesView(equal_time.RaceView):
    """What is looked at."""

    speed: float | None = setting(None, choices=per_second(1, 5, None))
    temperature: float = setting(
        0.7,
        "Temperature",
        choices=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
        live=True,
        help="T of the prior N(0, T I); what Glow calls temperature is its root",
    )
    digit: str = setting(
        EACH,
        "Samples of class",
        choices={EACH: "each", **{text: text for text in _DIGITS.values()}},
        live=True,
        help="The class that the flows are told",
    )
    flow: str = setting(SHIPPED, "Way of", choices=FLOWS, live=True, look="wide", help="The flow that finds the way")
    first: int = setting(4, "From a", choices=_DIGITS, kind="choice", live=True, help="A digit of the test set")
    second: int = setting(9, "to a", choices=_DIGITS, kind="choice", live=True, help="A digit of the test set")
    way: float = setting(
        0.5,
        "Along the way",
        Rule(float, lambda value: math.isfinite(value) and 0 <= value <= 1, "a number from 0 to 1"),
        choices=tuple(step / 100 for step in range(101)),
        kind="slider",
        own=True,
        live=True,
        look="play",
        help="0 is the first digit, 1 the second",
    )


Look = Sight[ImagesConfig, ImagesView]


def flow_of(sight: Look, name: str) -> MultiScale:
    """Return a flow of `FLOWS`, with the weights of this moment."""
    flow: MultiScale = shipped()[0] if name == SHIPPED else sight.model(name)
    return flow


def moment_of(sight: Look, name: str) -> tuple[Any, ...]:
    """Return what changes whenever a flow of `FLOWS` does."""
    return () if name == SHIPPED else sight.moment(name)


def chosen(sight: Look) -> tuple[Any, ...]:
    """Return what changes whenever the way does."""
    view = sight.view
    return view.flow, view.first, view.second, moment_of(sight, view.flow)


def way_of(sight: Look) -> Way:
    """Return the way that is chosen."""
    view = sight.view
    way: Way = sight.keep("way", chosen(sight), lambda: Way.between(flow_of(sight, view.flow), view.first, view.second))
    return way


# --- pictures ---------------------------------------------------------------------------------------------------------


def samples(sight: Look) -> Images:
    """Return samples of all flows, from the same latent vectors."""
    view, seed = sight.view, sight.config.seed

    def tile(name: str) -> Tile:
        key = moment_of(sight, name), view.digit, view.temperature, seed
        make = partial(draw_samples, flow_of(sight, name), view.digit, view.temperature, seed)
        columns = SAMPLES if name == SHIPPED else SAMPLES // 2
        return Tile(sight.keep(f"samples of {name}", key, make), _quality(sight, name), columns)

    return Images([tile(name) for name in FLOWS])


def _quality(sight: Look, name: str) -> str:
    if name == SHIPPED:
        figures = shipped()[1]
        return f"{figures['bits']:.3f} bits/pixel, P4Inv, {figures['seconds'] / 60:.0f} min"
    lane = sight.lanes[name]
    return numbers.STOPPED if lane.message else f"{number(bits(lane.last('test_loss')), '.3f')} bits/pixel"


def strip(sight: Look) -> Images:
    """Return digits along the way, and the one where the ring is."""
    way, view = way_of(sight), sight.view
    along = sight.keep("strip", chosen(sight), lambda: to_levels(way.at(np.linspace(0, 1, STRIP))[0]).numpy())
    here, _ = way.at(np.array([view.way]))
    note = f"{FLOWS[view.flow]}: from a {view.first} to a {view.second} of the test set"
    return Images([Tile(to_levels(here).numpy(), f"t = {view.way:.2f}", 1), Tile(along, note, STRIP)])


def along(sight: Look) -> Plot:
    """Return how many bits per pixel the digits along the way have, and the ring."""
    way = way_of(sight)
    places = np.linspace(0, 1, FINE)
    curve = sight.keep("curve", chosen(sight), lambda: way.at(places)[1])
    height = float(np.interp(sight.view.way, places, curve))
    if not np.isfinite(curve).all():
        return Plot([], (0.0, 1.0, 0.0, 1.0))
    low, high = float(curve.min()), float(curve.max())
    margin = max(0.1, 0.4 * (high - low))
    bottom, top, here = low - margin, high + margin, sight.view.way
    color = COLORS.get(sight.view.flow, "ink")
    return Plot(
        [
            Path([[here, bottom], [here, top]], "orange", 1, dashed=True),
            Path(np.stack([places, curve], axis=1), color, 2),
            Points(np.stack([places[[0, -1]], curve[[0, -1]]], axis=1), color, "dot", 8),
            Points([[here, height]], "orange", "dot", 8),
            # Below the curve, which would run through its label.
            Handle("way", (here, bottom + 0.5 * margin), "orange", f"t = {here:.2f}"),
        ],
        (-0.03, 1.03, bottom, top),
    )


def moved(sight: Look, name: str, point: tuple[float, ...]) -> dict[str, float]:
    """Return where the ring is when it was dragged to a point."""
    return {name: round(min(1.0, max(0.0, point[0])), 2)}


# --- numbers and curves -----------------------------------------------------------------------------------------------


def _loss(lane: Snapshot) -> str:
    return number(bits(lane.last("test_loss")), ".3f")


COLUMNS = (
    numbers.Column("bits/pixel", _loss, f"Of {TEST} test digits, now: all have trained for the same time"),
    equal_time.STEPS,
    numbers.step_time(),
    numbers.Column(
        "round trip",
        lambda lane: number(lane.last("round_trip"), ".0e"),
        "max |F⁻¹(F(y)) − y| of standardized logits of test digits",
    ),
    numbers.Column("condition", lambda lane: number(lane.last("condition"), ".3g"), "Largest of a mixing matrix"),
    numbers.Column("merged", lambda lane: count(lane.counts["merge"]), "Perturbations merged into frozen matrices"),
)


def leader(sight: Look) -> str | None:
    """Return the lane with the lowest test loss; None before the first turn."""
    losses = {name: lane.last("test_loss") for name, lane in sight.lanes.items() if not lane.message}
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=lambda name: finite[name]) if finite and sight.snapshot.step else None


def board(sight: Look) -> Rows:
    """Return how good each lane is, and what it costs; the one that is ahead is set in bold."""
    return numbers.lane_table(sight, COLUMNS, NAMES, colors=COLORS, active=leader(sight))


def hint(sight: Look) -> str | None:
    """Return what to do next."""
    return equal_time.hint(sight, HINTS)


def curves(sight: Look) -> Figure:
    """Return the test losses of all lanes, their round trips, condition numbers and step times."""
    return equal_time.curves(
        sight,
        _lines,
        log=False,
        label="test loss (bits per pixel)",
        small=SMALL,
        levels={SHIPPED_TEXT.lower(): shipped()[1]["bits"]},
    )


def _lines(snapshot: Snapshot) -> list[Shown]:
    return equal_time.lines(snapshot, NAMES, COLORS, equal_time.in_bits)


IMAGES = Lab(
    name="images",
    title="A small Glow",
    subtitle="Four kinds of 1 × 1 convolutions learn digits, the same time for each",
    config=ImagesConfig(),
    view=ImagesView(),
    trainer=side_by_side,
    lanes=lambda config: NAMES,
    groups={
        "Between two digits": ("flow", "first", "second", "way"),
        "Samples": ("digit", "temperature"),
        "Training": ("learning_rate", "merge_every", "budget"),
    },
    more={
        "Training": ("batch_size", "axis"),
        "Flows": ("blocks", "hidden"),
        "Run": ("seed", "device", "dtype", "speed"),
    },
    tries=(
        Try(
            "Between two digits",
            "Drag the ring. An arc joins the latent vectors of two test digits, and each of its points is "
            "decoded. The curve is what the flow thinks of the picture: high in the middle means that it has "
            "never seen such a digit.",
            {"page:pictures": "Between two digits", "flow": "shipped", "first": 4, "second": 9},
        ),
        Try(
            "Another way",
            "Choose other digits by *From a* and *to a*, or the *Way of* a lane that trains. *▶ Play* goes along it.",
            {"page:pictures": "Between two digits", "first": 0, "second": 1},
        ),
        Try(
            "Temperature",
            "Samples from a narrower prior, N(0, T I), are cleaner and more alike. Drag *Temperature* above "
            "1: they fall apart.",
            {"page:pictures": "Samples", "temperature": 0.3},
        ),
        Try(
            "One class",
            "All flows are asked for one class. Press *Start*: four of them learn it, the same time for each.",
            {"page:pictures": "Samples", "digit": "7", "temperature": 0.7},
        ),
        Try(
            "Condition",
            "Press *Start*, and see what training does to the mixing matrices: their condition numbers grow, "
            "and that of a permutation stays 1.",
            {"page:below": "Diagnostics"},
        ),
    ),
    pictures=(
        Picture(
            Grids([Grid("Here"), Grid("Between two digits")], LEVELS - 1), strip, 0.3, "strip", "Between two digits"
        ),
        Picture(
            Axes(
                "Along the way", "", "t, from the first digit to the second", "bits/pixel", False, 150, "drag the ring"
            ),
            along,
            0.3,
            "along",
            "Between two digits",
            moved,
        ),
        Picture(
            Grids([Grid(text, color=COLORS.get(name, "")) for name, text in FLOWS.items()], LEVELS - 1),
            samples,
            1.0,
            "samples",
            "Samples",
        ),
        Picture(Board("Lanes"), board, 1.0, "board", BELOW),
    ),
    numbers=(
        *equal_time.TURNS,
        *(
            numbers.of_lane(f"bits_{lane}", name, lane, _loss, "bits/pixel", "Of test digits", COLORS[lane])
            for lane, name in NAMES.items()
        ),
    ),
    curves=curves,
    hint=hint,
    # The digit under the ring stands beside the way; samples of the shipped flow are a line, those of lanes two rows.
    style="""
.p4-pictures { grid-auto-flow: row; grid-template: none / minmax(0, 1fr); grid-auto-rows: minmax(0, 1fr); gap: 8px; }
.p4-images-strip { display: grid; grid-template: minmax(0, 1fr) / 150px minmax(0, 1fr); gap: 20px; }
.p4-images-samples {
  display: grid; grid-template: repeat(3, minmax(0, 1fr)) / repeat(2, minmax(0, 1fr)); gap: 6px 20px;
}
.p4-images-samples figure:nth-of-type(1) { grid-column: 1 / -1; }
.p4-grids > .p4-scale { display: none; }
""",
)
