"""Freeze, perturb, merge: the first lab, on a 2 x 2 matrix."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.errors import ConfigError
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import Axes, Equations, Lab, Number, Picture, Sight, Try, View
from p4lab.plots import Figure, Loss
from p4lab.plots.curves import merge_marks
from p4lab.plots.gallery import CIRCLE, square
from p4lab.plots.layers import Arrow, Handle, Heatmap, Layer, Path, Plot, Points, Term
from p4lab.problems.matrix import MatrixModel, MatrixProblem, as_text, matrix
from p4lab.training import Engine, MatrixConfig, RunConfig, Snapshot
from p4lab.training.config import setting

Array = NDArray[np.float64]
Look = Sight[MatrixConfig, View]

CONFIG = MatrixConfig(
    target="0.4 -1.3; 1.1 0.7",
    reset="gradient",
    learning_rate=0.1,
    merge_every=15,
    measure_every=1,
    dtype="float64",
)
LOSS = Loss("loss |W − T|² / 2", log=True, bits=False, test=False, exact=True)
FRESH = {
    **{name: getattr(CONFIG, name) for name in ("target", "learning_rate", "merge_every", "seed")},
    "speed": 5.0,
    "restart": True,
}
"""What each thing to try begins with, whatever was tried before: the lab's own settings, and a new run."""
CONTOURS = np.concatenate([np.vstack([r * CIRCLE, [[np.nan] * 2]]) for r in (0.25, 0.5, 1.0, 1.5)])
WINDOWS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
PIXELS = 64
TRIED = ("merge", "skip", "discard")
"""Kinds of events that a merge attempt leaves."""


@dataclass(frozen=True)
class StartView(View):
    """What is looked at."""

    speed: float | None = setting(
        5.0,
        "Steps per second",
        choices={1.0: "1", 2.0: "2", 5.0: "5", 20.0: "20", None: "max"},
        kind="segments",
        help="Slow motion",
    )


# --- what is trained --------------------------------------------------------------------------------------------------


class CarriedMatrix(MatrixProblem):
    """Adds what a P4Inv layer carries along to the pictures."""

    @torch.no_grad()
    def pictures(self, model: MatrixModel, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return those of `MatrixProblem`, "frozen_inverse", "weight_inverse" and "frozen_det"."""
        layer: Any = model
        carried = {
            "frozen_inverse": layer.frozen_inverse,
            "weight_inverse": layer.weight_inverse,
            "frozen_det": layer.frozen_sign * layer.frozen_logabsdet.exp(),
        }
        return super().pictures(model, z) | {name: tensor.double().clone() for name, tensor in carried.items()}


def engine(config: RunConfig) -> Engine:
    """Return what trains one P4Inv layer of width 2 and rank 1.

    Raises:
        ConfigError: another width, route or rank.
    """
    if not isinstance(config, MatrixConfig) or (config.dim, config.route, config.rank) != (2, "p4inv", 1):
        raise ConfigError(f"config={config.to_text()!r}: expected dim=2, route=p4inv and rank=1")
    problem, model = config.parts()
    carried = CarriedMatrix(problem.start, problem.target, problem.sampled, problem.dtype, problem.device)
    return Engine(config, carried, model)


# --- pictures ---------------------------------------------------------------------------------------------------------


def equations(sight: Look) -> list[list[Term | str]]:
    """Return the three equations of P4Inv with their present numbers: matrix, inverse, determinant."""
    p = sight.snapshot.pictures
    u, v, back = p["u"].T, p["v"], p["frozen_inverse"]
    factor = 1 + float((v @ back @ u).item())
    det = float(p["frozen_det"])
    return [
        [
            Term("W", p["weight"], "blue"),
            "=",
            Term("A", p["frozen"], "grey", flash=True),
            "+",
            Term("u", u, "purple"),
            Term("vᵀ", v),
        ],
        [
            Term("W⁻¹", p["weight_inverse"], "blue"),
            "=",
            Term("A⁻¹", back, "grey", flash=True),
            "−",
            Term("A⁻¹u vᵀA⁻¹ / f", back - p["weight_inverse"], "purple"),
        ],
        [
            Term("det W", det * factor, "blue"),
            "=",
            Term("det A", det, "grey", flash=True),
            "·",
            Term("f = 1 + vᵀA⁻¹u", factor, "purple"),
        ],
    ]


def plane(sight: Look) -> Plot:
    """Return what frozen, effective and target matrix make of the unit circle and the unit vectors."""
    p = sight.snapshot.pictures
    frozen, weight, target = p["frozen"], p["weight"], p["target"]
    circle, trail, merges = CIRCLE[:-1], sight.snapshot.trail.values, sight.snapshot.merge_points
    labels = tuple(f"merge after step {step}" for step in merges.steps for _ in range(2))
    corners = merges.values.transpose(0, 2, 1).reshape(-1, 2) if len(merges.steps) else np.zeros((0, 2))
    way = np.concatenate([trail[:, :, 0], np.full((1, 2), np.nan), trail[:, :, 1]])
    layers: list[Layer] = [
        Path(circle @ frozen.T, "grey", closed=True, label="frozen A"),
        Path(circle @ target.T, "orange", dashed=True, closed=True, label="target T"),
        Path(circle @ weight.T, "blue", width=2.5, closed=True, label="effective W = A + u vᵀ"),
        Path(way, "rgba(90, 145, 230, 0.55)", width=1.2),
        Points(corners, "blue", "ring", 6, labels, label="W at a merge"),
    ]
    for j in (0, 1):
        layers.append(Arrow((0, 0), frozen[:, j], "grey", 1.6))
        layers.append(Arrow((0, 0), weight[:, j], "blue", 2.4))
        layers.append(Arrow(frozen[:, j], weight[:, j], "purple", 2, label="the perturbation, along u"))
    return Plot([*layers, *(Handle(str(j), target[:, j], label=f"T e{'₁₂'[j]}") for j in (0, 1))])


def moved(sight: Look, name: str, point: tuple[float, ...]) -> dict[str, Any]:
    """Return the target with a column where it was moved to."""
    planned: Any = sight.frame.planned
    target = matrix(planned.target, 2, planned.seed).clone()
    target[:, int(name)] = torch.tensor(np.round(point, 2), dtype=target.dtype)
    return {"target": as_text(target)}


def search(sight: Look) -> Plot:
    """Return the vector u, the only thing that trains, on the loss that it sees between two merges."""
    p = sight.snapshot.pictures
    u, v, error = p["u"][0], p["v"][0], p["frozen"] - p["target"]
    best = -error @ v / (v @ v)
    way = since_merge(sight.snapshot)
    half = _window(sight, 1.3 * max(np.abs(way).max(initial=0.0), np.abs(best).max()))
    grid = np.linspace(-half, half, PIXELS)
    a = np.stack(np.meshgrid(grid, grid), -1)
    loss = (np.square(error).sum() + 2 * a @ (error @ v) + np.square(a).sum(-1) * (v @ v)) / 2
    layers: list[Layer] = [
        Heatmap(loss, square(half), log=True),
        Path(best + CONTOURS * half, "rgba(128, 140, 155, 0.5)", width=1),
        Points([best], "green", "cross", 10, label="best u for this v"),
        Points([(0, 0)], "ink", "ring", 8, ("u = 0: W = A",), label="u = 0, where each merge leads back"),
        Path(way, "purple", width=2),
        Arrow((0, 0), u, "purple", 2.5, label="u"),
        *_wall(p["frozen_inverse"].T @ v, half),
    ]
    return Plot(layers, square(half))


def since_merge(snapshot: Snapshot) -> Array:
    """Return the u of every step since the last merge, ``u = (W - A) v / |v|^2``, shape (n, 2)."""
    merges, trail = snapshot.merge_points.steps, snapshot.trail
    frozen, v = snapshot.pictures["frozen"], snapshot.pictures["v"][0]
    now = trail.values[trail.steps >= (merges[-1] if len(merges) else 0)]
    u: Array = (now - frozen) @ v / (v @ v)
    return u


def _window(sight: Look, reach: float) -> float:
    """Return half the side of a window that holds ``reach``: the one before, if it fits well."""
    window = sight.keep("window", None, lambda: [0.0])
    if not 0.2 * window[0] < reach <= window[0]:
        window[0] = next((size for size in WINDOWS if size >= reach), reach)
    return float(window[0])


def _wall(normal: Array, half: float) -> list[Layer]:
    """Return the line ``det W = 0``, that is ``1 + normal . u = 0``, if it crosses the window."""
    size = float(normal @ normal)
    point, along = -normal / size, np.array([-normal[1], normal[0]]) / math.sqrt(size)
    line = Path([point - 4 * half * along, point + 4 * half * along], "red", dashed=True, label="det W = 0")
    return [line] if np.abs(normal).sum() * half > 1 else []


# --- what is told -----------------------------------------------------------------------------------------------------


def phase(snapshot: Snapshot) -> str:
    """Return what is happening: frozen, perturbed, merged, or not merged."""
    tried = next((event for event in reversed(snapshot.events) if event.kind in TRIED), None)
    if snapshot.step == 0:
        return "Frozen: W = A, because u = 0. Press Step or Start to perturb it; the target, in orange, can be dragged."
    if tried is None or tried.step != snapshot.step:
        when = _steps(until_merge(snapshot))
        return f"Perturbed: W = A + u vᵀ moves with u, A stands still. Next merge in {' '.join(when.values())}."
    if tried.kind == "merge":
        return "Merged: A ← W and u ← 0, with a new direction v. W, and with it the loss, stays as it was."
    return "Not merged: A would become nearly singular, or its inverse inaccurate. u stays, and trains on."


def _steps(n: int) -> dict[str, str]:
    return {"value": str(n), "unit": "step" if n == 1 else "steps"}


def next_merge(sight: Look) -> dict[str, str]:
    """Return how many steps are left until the next merge, with their unit."""
    return _steps(until_merge(sight.snapshot))


def loss_seen(snapshot: Snapshot) -> float:
    """Return the loss before the last step; if the target has moved since, what it is now."""
    moved = any(e.kind == "set" and e.step == snapshot.step and e.text.startswith("target") for e in snapshot.events)
    if not moved:
        return snapshot.last("loss")
    return float(np.square(snapshot.pictures["weight"] - snapshot.pictures["target"]).sum() / 2)


def until_merge(snapshot: Snapshot) -> int:
    """Return the number of steps until the next merge is tried."""
    tried = [event.step for event in snapshot.events if event.kind in TRIED[:2] and event.step <= snapshot.step]
    return max(1, (tried[-1] if tried else 0) + snapshot.config.merge_every - snapshot.step)


def curves(sight: Look) -> Figure:
    """Return the training curves, the loss with a mark at each merge."""
    figure = training_figure(sight, LOSS)
    marks = merge_marks(sight.snapshot.curves["loss"], sight.snapshot.merge_points.steps)
    return {**figure, "data": [*figure["data"], marks]}


MERGES, SKIPS = numbers.merges(label="merges", help="")
START = Lab(
    name="start",
    title="Freeze, perturb, merge",
    subtitle="Only u trains.",
    config=CONFIG,
    view=StartView(),
    trainer=engine,
    offers={
        "merge_every": {"choices": (1, 2, 5, 10, 15, 30, 60)},
        "learning_rate": {
            "choices": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
            "help": "Step size of plain gradient descent on u",
        },
        "seed": {"help": "Other directions v"},
    },
    groups={"Training": ("merge_every", "learning_rate", "speed"), "Directions": ("seed",)},
    tries=(
        Try(
            "One step at a time",
            "Press *Step* a few times. Only u moves, and W with it; A stands still. The line above the "
            "numbers says which of the three moves is going on.",
            FRESH,
        ),
        Try(
            "Merge",
            "Press *Step*, then *To merge*. The grey circle jumps onto the blue one, u snaps back to 0, and a new v "
            "shows it another bowl. The blue circle stays where it is, and so does the loss; from here on it falls "
            "along the new direction.",
            FRESH,
        ),
        Try(
            "Move the target",
            "Press *Start*, and drag an orange ring: the target moves, and W follows it.",
            FRESH,
        ),
        Try(
            "Merge seldom",
            "Press *Start*. After some 30 steps u sits on the green cross, the best point for its one v, and "
            "the loss stands still until the merge after step 60.",
            {**FRESH, "merge_every": 60, "speed": 20.0, "restart": True},
        ),
        Try(
            "Merge every step",
            "Press *Start*. Each step has a direction of its own. Yet after 60 steps the loss is about where "
            "a merge every 15 steps brings it, at 0.003.",
            {**FRESH, "merge_every": 1, "restart": True},
        ),
        Try(
            "Cross det = 0",
            "The rings have changed places, so that det T < 0. Press *Step* six times: u steps over the "
            "dashed red line, det W changes its sign, and the layer keeps the right inverse on the other "
            "side.",
            {**FRESH, "target": "-1.3 0.4; 0.7 1.1", "restart": True},
        ),
        Try(
            "Two runs, compared",
            "Press *Start*, and after some 30 steps *Pause*; drag *Time travel* back, choose another "
            "*Merge every*, and press *Branch here* and *Start*: both runs are in the curves.",
            {**FRESH, "page:below": "Loss"},
        ),
    ),
    pictures=(
        Picture(Equations(), equations, area="equations"),
        Picture(Axes("The plane", "under A, W and T", height=400), plane, area="plane", moved=moved),
        Picture(
            Axes("u, all that trains", "least loss at the cross", "u₁", "u₂", height=400),
            search,
            area="search",
        ),
    ),
    numbers=(
        *numbers.steps(),
        Number(
            "train",
            "loss",
            lambda sight: numbers.loss_text(loss_seen(sight.snapshot), LOSS),
            help="|W − T|² / 2 before the last step; once the target has moved, as it is now",
        ),
        MERGES,
        Number("next", "next merge in", next_merge),
        Number("skips", SKIPS.label, SKIPS.read, help="Merges refused, because A would become nearly singular"),
    ),
    hint=lambda sight: phase(sight.snapshot),
    curves=curves,
    loss=LOSS,
    style="""
.p4-time [data-name="keep"] { display: none !important; }
.p4-layout {
  grid-template:
    "head head head" auto "time time time" auto "side plane search" calc(var(--p4-body) * var(--p4-share))
    "equations below below" calc(var(--p4-body) * (1 - var(--p4-share)) - 10px) / 356px minmax(0, 1fr) minmax(0, 1fr);
}
.p4-show, .p4-pictures { display: contents; }
.p4-layout > .p4-side { height: auto; }
.p4-start-equations { grid-area: equations; justify-content: center; }
.p4-start-plane { grid-area: plane; }
.p4-start-search { grid-area: search; }
.p4-pictures > .p4-formula { gap: 12px; font-size: 11.5px; }
.p4-matrix > span { min-width: 31px; }
.p4-equation { gap: 4px; }
.p4-matrix { padding: 0 4px; gap: 0 7px; }
""",
)
