"""A P4Inv layer that is driven toward det = 0, in float32 and float64 side by side, and what rescues it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import ConfigError
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import Axes, Button, Lab, Number, Picture, Sight, Try, View, diagnostics
from p4lab.p4 import P4Inv
from p4lab.plots import RUN_COLORS, Figure, Loss, gallery
from p4lab.plots.format import number
from p4lab.plots.layers import Layer, Path, Plot, Points, Text
from p4lab.problems.matrix import MatrixProblem
from p4lab.training import Engine, Event, Lanes
from p4lab.training.config import Rule, RunConfig, one_of, setting, whole
from p4lab.training.measure import figures
from p4lab.training.records import Kind
from p4lab.training.runs import Runs

LANES = ("float32", "float64")
COLORS = dict(zip(LANES, RUN_COLORS, strict=False))
LARGEST_ANGLE = math.pi / 3
DAMAGE, WRECK = 0.1, 0.5
"""Noise on a frozen inverse that refinement mends, and noise that is too much for it."""
LOSS = Loss("loss |W − T|² / d", log=True, bits=False, test=False, exact=True)
EXTENTS = (1.4, 2.5, 5.0)
"""How far the picture of eigenvalues may reach; what is farther out is left out."""
LOWEST = 1e-17
"""Singular values below it are drawn there."""
WAIT = 10.0
"""Seconds that the player may take to do a deed."""


# --- what is trained --------------------------------------------------------------------------------------------------


class SharedDirections(P4Inv):
    """A P4Inv layer whose random directions are drawn in float64 and rounded: the same ones in every precision."""

    def _noise(self, generator: torch.Generator, rows: int) -> Tensor:
        return torch.randn(rows, self.dim, generator=generator, dtype=torch.float64, device="cpu").to(self.u)


class StabilityProblem(MatrixProblem):
    """Minimize ``|W - T|_F^2 / d``, and say how near to singular and how exact the layer is."""

    def set_target(self, target: Tensor) -> None:
        """Replace the target T, shape (d, d); a run may go on meanwhile.

        Raises:
            ShapeError: another shape.
        """
        super().set_target(target)
        self._target_eigenvalues = _eigenvalues(self.target)

    @torch.no_grad()
    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return what there is to see of a P4Inv layer; all NaN where its weights are not finite.

        "eigenvalues" and "target" (of W and T, real and imaginary part) have shape (d, 2), "singular" (values of W,
        descending) has shape (d,); "det" (sign of det W by a factorization in float64), "sign" (carried), "residual"
        and "logabsdet_error" are scalars. Cost O(d^3). ``z`` is not used.
        """
        weight = model.weight.detach().to("cpu", torch.float64)
        carried = ("sign", "residual", "logabsdet_error")
        finite = bool(weight.isfinite().all())
        values = figures(model, weight) if finite else dict.fromkeys(carried, math.nan)
        return {
            "eigenvalues": _eigenvalues(weight) if finite else torch.full((self.dim, 2), math.nan),
            "target": self._target_eigenvalues.clone(),
            "singular": torch.linalg.svdvals(weight) if finite else torch.full((self.dim,), math.nan),
            "det": torch.linalg.slogdet(weight)[0] if finite else torch.tensor(math.nan),
            **{name: torch.tensor(values[name], dtype=torch.float64) for name in carried},
        }


@dataclass(frozen=True)
class StabilityConfig(RunConfig):
    r"""Learn ``T = Q (I + (p - 1) w w^T)`` with a fixed rotation Q, a unit vector w and the push p in the user's hand.

    The singular values of T are 1, ..., 1, |p|, and det T = p: at 1 it is a rotation, at 0 it is singular, below 0 the
    layer, which starts at the identity, has to cross det = 0.
    """

    problem: ClassVar[str] = "stability"

    rank: int = setting(8, choices=(1, 4, 8, 16), help="At most d")
    reset: Any = setting("gaussian", rule=one_of("gaussian"), live=False)
    learning_rate: float = setting(
        5e-3, choices=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0), help=""
    )
    merge_every: int = setting(5, choices=(1, 2, 5, 10, 20, 50, 100))
    refine_every: int = setting(
        0,
        "Refine every n merges",
        choices={0: "off", 1: "", 2: "", 5: "", 20: ""},
        kind="segments",
        unit="",
        help="Iterative refinement of the inverse",
    )
    skip: bool = setting(True, help="Refuse merges that would ruin the inverse")
    measure_every: int = 5
    dim: int = setting(16, "Width d", whole(2, 256), choices=(2, 8, 16, 64), own=True)
    push: float = setting(
        1.0,
        "Push p",
        Rule(float, lambda value: abs(value) <= 2, "a number from -2 to 2"),
        choices=(-1.0, -0.3, -0.1, -1e-2, -1e-3, -1e-4, -1e-6, 0.0, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0),
        own=True,
        live=True,
        help="det of the target, and its least σ",
    )

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    def target(self) -> Tensor:
        """Return T, shape (d, d), float64."""
        noise = torch.randn(self.dim + 1, self.dim, generator=_generator(self.seed), dtype=torch.float64, device="cpu")
        skew = noise[1:] - noise[1:].t()
        rotation = torch.linalg.matrix_exp(skew * (LARGEST_ANGLE / torch.linalg.matrix_norm(skew, 2)))
        w = noise[0] / torch.linalg.vector_norm(noise[0])
        return rotation + (self.push - 1) * torch.outer(rotation @ w, w)

    def parts(self) -> tuple[StabilityProblem, P4Inv]:
        """Return the problem, and a P4Inv layer that starts at the identity."""
        rank, start = min(self.rank, self.dim), torch.eye(self.dim, dtype=torch.float64)
        layer = SharedDirections(self.dim, rank, bias=False, train_v=self.train_v, seed=self.seed, **self.where)
        return StabilityProblem(start, self.target(), False, **self.where), layer

    def update(self, problem: Any) -> None:
        """Bring the target up to date with the push."""
        problem.set_target(self.target())


@dataclass(frozen=True)
class StabilityView(View):
    """What is looked at."""

    view: str = diagnostics("accuracy")
    speed: float | None = setting(100)


def precisions(config: RunConfig) -> Lanes:
    """Return a float32 and a float64 lane with the same start, target and directions."""
    return Lanes(config, "dtype", LANES)


def damage(run: Engine | Lanes, amount: float = DAMAGE) -> None:
    """Multiply every entry of the frozen inverses by ``1 + amount * N(0, 1)``, the same noise in each lane; an event.

    Weights and frozen determinants stay right. What the perturbation's part of the determinant, and merges, take from
    the inverse does not.
    """
    for engine in _engines(run):
        for layer in _layers(engine):
            inverse = layer.frozen_inverse
            noise = torch.randn(inverse.shape, generator=_generator(engine.step), dtype=torch.float64, device="cpu")
            with torch.no_grad():
                inverse.mul_(1 + amount * noise.to(inverse))
                if layer.q is not None:
                    layer.q.copy_(layer.v @ inverse)
        engine.records.add(Event(engine.step, "set", (), f"damage = {amount:g}"))


def recompute(run: Engine | Lanes) -> None:
    """Factorize the frozen matrices anew for inverse and determinant, in every lane; an event. Cost O(d^3)."""
    for engine in _engines(run):
        for layer in _layers(engine):
            layer.recompute()
        engine.records.add(Event(engine.step, "set", (), "inverse = recomputed"))


def _engines(run: Engine | Lanes) -> list[Engine]:
    return list(run.engines.values()) if isinstance(run, Lanes) else [run]


def _layers(engine: Engine) -> list[P4Inv]:
    return [layer for layer in engine.layers if isinstance(layer, P4Inv)]


def _eigenvalues(matrix: Tensor) -> Tensor:
    return torch.view_as_real(torch.linalg.eigvals(matrix))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def attack(label: str, help: str, push: float) -> Button:
    """Return a button that moves the push."""
    return Button(label, lambda player: player.set(push=push), help)


def deed(name: str, label: str, help: str, do: Callable[[Engine | Lanes], None]) -> Button:
    """Return a button that does something to the frozen matrices of all lanes at once; not to those of the past."""

    def at_present(runs: Runs) -> None:
        if runs.shown is not None:
            raise ConfigError(f"{name}: step {runs.shown.step:,} is past; press Now, or Branch here to change it")
        do(runs.active.engine)

    return Button(label, lambda player: player.ask(at_present, WAIT), help)


BUTTONS = {
    "attack:singular": attack("Drive to 0", "Push = 0: the target is singular", 0.0),
    "attack:hover": attack("Hover at 1e-3", "Push = 0.001: a target of condition number 1,000", 1e-3),
    "attack:cross": attack("Cross det = 0", "Push = −1: a target of the other sign", -1.0),
    "attack:safety": attack("Back to safety", "Push = 1: the target is a rotation", 1.0),
    "damage": deed("damage", "Damage A⁻¹", f"Noise of {DAMAGE:.0%} on every entry, in both lanes", damage),
    "wreck": deed(
        "wreck", "Wreck A⁻¹", f"Noise of {WRECK:.0%}: too much for refinement", lambda run: damage(run, WRECK)
    ),
    "recompute": deed("recompute", "Recompute A⁻¹", "Factorize A anew: the last resort, O(d³)", recompute),
}


# --- pictures ---------------------------------------------------------------------------------------------------------

Look = Sight[StabilityConfig, StabilityView]


def eigenvalues(sight: Look) -> Plot:
    """Return the eigenvalues of both lanes, of the first one before, and of the target in the complex plane."""
    earlier = gallery.complex_points(sight.lanes[LANES[0]].spectrum.values[-gallery.EARLIER - 1 : -1])
    points = [sight.lanes[name].pictures["eigenvalues"] for name in LANES]
    target = sight.snapshot.pictures["target"]
    farthest = float(np.nan_to_num(np.abs(np.concatenate([*points, target]))).max())
    extent = gallery.step_up(farthest, EXTENTS)
    layers: list[Layer] = [
        gallery.unit_circle(),
        Points(gallery.within(earlier, extent), RUN_COLORS[0], size=3, fade=True),
        Points(target, "orange", "cross", 11, label="target"),
        *_marks([gallery.within(p, extent) for p in points]),
        Points([[0, 0]], "red", "square", 7),
        Text((0, 0), "det = 0", "red", "below"),
    ]
    return Plot(layers, gallery.square(extent))


def singular_values(sight: Look) -> Plot:
    """Return the singular values of both lanes on a logarithmic axis, down to the rounding errors of either."""
    values = [sight.lanes[name].pictures["singular"] for name in LANES]
    rank = np.arange(1, len(values[0]) + 1)
    width = len(rank) + 1
    layers: list[Layer] = []
    for name, color in COLORS.items():
        level = np.log10(np.finfo(name).eps)
        layers += [
            Path([[0, level], [width, level]], color, width=1, dashed=True),
            Text((width / 2, level), f"ε of {name}", color, "above"),
        ]
    with np.errstate(over="ignore"):
        points = [np.stack([rank, np.log10(np.maximum(value, LOWEST))], -1) for value in values]
    highest = max(1.0, *(float(np.nan_to_num(p[:, 1]).max()) for p in points))
    return Plot([*layers, *_marks(points)], (0, width, np.log10(LOWEST), 1.1 * highest))


def _marks(points: list[NDArray[Any]]) -> list[Layer]:
    looks = (("dot", 7), ("ring", 12))
    return [
        Points(of, COLORS[lane], shape, size, label=lane)
        for lane, of, (shape, size) in zip(LANES, points, looks, strict=True)
    ]


# --- curves and numbers -----------------------------------------------------------------------------------------------


def curves(sight: Look) -> Figure:
    """Return the exact losses of both lanes."""
    return training_figure(sight, LOSS)


def _of_lane(key: str, name: str, lane: str, label: str, help: str) -> Number:
    return Number(
        f"{name}_{lane}",
        f"{label}, f{lane.removeprefix('float')}",
        lambda sight: number(float(sight.lanes[lane].pictures[key]), ".1e"),
        help=help,
        color=COLORS[lane],
    )


def _sign(sight: Look) -> dict[str, str]:
    text = {1.0: "+", -1.0: "−", 0.0: "0"}
    wrong = [
        f"{name.removeprefix('float')} bit: {text.get(float(lane.pictures['sign']), '?')}"
        for name, lane in sight.lanes.items()
        if lane.pictures["sign"] != lane.pictures["det"]
    ]
    true = text.get(float(sight.snapshot.pictures["det"]), "?")
    return {"value": true, "unit": ", ".join(wrong) and f"carried {', '.join(wrong)}"}


def _counts(*kinds: Kind) -> Callable[[Look], dict[str, str]]:
    def read(sight: Look) -> dict[str, str]:
        one, two = (numbers.total(sight.lanes[name], *kinds) for name in LANES)
        return {"value": f"{one:,}", "unit": f"| {two:,}"}

    return read


RESIDUAL = "Largest entry of |A A⁻¹ − I|"
ERROR = "Carried log|det W| against a factorization in float64, nats"

CALM: Mapping[str, Any] = {
    "push": 1.0,
    "skip": True,
    "penalty": False,
    "refine_every": 0,
    "speed": 100,
    "page:below": "Diagnostics",
    "restart": True,
}
"""What an attack begins with: a fresh run, and no rescue but skip."""

BREAK = Lab(
    name="break",
    title="Break it: P4Inv near det = 0",
    subtitle="One layer in float32 and in float64",
    config=StabilityConfig(),
    view=StabilityView(),
    trainer=precisions,
    groups={
        "Attacks": ("push", *(name for name in BUTTONS if name != "recompute")),
        "Rescues": ("skip", "penalty", "refine_every", "refine_order", "recompute"),
        "Steps": ("learning_rate", "merge_every", "speed"),
    },
    more={"Layer": ("dim", "rank", "optimizer", "seed"), "Diagnostics": ("view",)},
    buttons=BUTTONS,
    tries=(
        Try(
            "Drive to 0, unprotected",
            "*Start*, after 2 s *Drive to 0*, after 5 s *Back to safety*. The residual climbs, in float64 "
            "from a lower place. The loss falls as if nothing had happened, yet residual and log|det| stay "
            "wrong, until you press *Recompute A⁻¹*.",
            {**CALM, "skip": False},
        ),
        Try(
            "The same with skip",
            "*Start*, *Drive to 0*, *Back to safety*. Float32 refuses the merges that would ruin it, and its "
            "residual stops rising. After 16 refusals in a row the layer factorizes itself anew in float64, "
            "and goes on merging.",
            CALM,
        ),
        Try(
            "The same with the penalty",
            "*Start*, *Drive to 0*, *Back to safety*. The smallest singular value stops well above 0, nothing "
            "is refused, and the inverse stays exact. With this seed the way back is free.",
            {**CALM, "skip": False, "penalty": True},
        ),
        Try(
            "Cross det = 0",
            "*Start*, *Cross det = 0*. The layer steps over the wall unharmed; only lingering there hurts. "
            "With *Penalty on det* it is held up for some seconds. That is no proof: with *Seed* 2 or 3 (and "
            "*Reset*) it jumps across at once.",
            CALM,
        ),
        Try(
            "Hover at 1e-3",
            "*Start*, after 2 s *Hover at 1e-3*, after 5 s *Back to safety*. Hardly a merge is refused, yet "
            "the residual stays where it has risen to. *Refine every n merges* 1 clears it; the error of "
            "log|det|, a sum of past factors, remains.",
            CALM,
        ),
        Try(
            "Damage the inverse",
            "*Start*, *Damage A⁻¹*. Skip refuses the merges that would trust it, until refinement has mended "
            "it in stairs: in float64 five with *Order of refinement* 2, three with 3, two with 7. Without "
            "*Skip bad merges*, log|det| stays wrong.",
            {**CALM, "refine_every": 5, "speed": 20},
        ),
        Try(
            "Wreck the inverse",
            "*Start*, *Wreck A⁻¹*. Noise of 50% is too much for refinement of any order. With *Skip bad "
            "merges* the layer factorizes itself anew after 16 refusals; without, *Recompute A⁻¹* is what is "
            "left.",
            {**CALM, "refine_every": 1},
        ),
        Try(
            "Another rescue",
            "Go back by *Time travel* to the moment before an attack, choose another rescue, and press "
            "*Branch here* and *Start*: both runs are in the curves.",
        ),
    ),
    pictures=(
        Picture(Axes("Eigenvalues of W", "complex plane", "Re λ", "Im λ", height=264), eigenvalues, area="eigenvalues"),
        Picture(
            Axes("Singular values of W", "and rounding errors", "index", "log₁₀ σ", equal=False, height=264),
            singular_values,
            area="singular",
        ),
    ),
    numbers=(
        *numbers.steps(rate_help="Speed"),
        Number("merges", "merged", _counts("merge"), help="Merges: float32 | float64"),
        Number("skips", "refused", _counts(*numbers.REFUSED), help="Merges refused: float32 | float64"),
        Number(
            "det", "sign of det", _sign, help="By a factorization in float64; and what a lane carries, if that differs"
        ),
        Number(
            "smallest",
            "smallest σ",
            lambda sight: number(float(sight.snapshot.pictures["singular"][-1]), ".1e"),
            help="Smallest singular value of W, float32",
        ),
        *(_of_lane("residual", "residual", lane, "residual", RESIDUAL) for lane in LANES),
        *(_of_lane("logabsdet_error", "error", lane, "log|det| off", ERROR) for lane in LANES),
    ),
    curves=curves,
    loss=LOSS,
    alarm="error",
    style="""
.p4-side .p4-group:has(.p4-item-button) {
  display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 5px 6px;
}
.p4-side .p4-group:has(.p4-item-button) > :is(h3, .p4-item:not(.p4-item-button)) { grid-column: 1 / -1; }
.p4-side .p4-group:has(.p4-item-button) > :is(h3, .p4-item) { margin-bottom: 0; }
.p4-side .p4-item-button .p4-button { width: 100%; height: 30px; padding: 0 2px; font-size: 12px; }
.p4-side .p4-item-button[data-name="recompute"] { grid-column: 1 / -1; }
""",
)
