"""What the paper found on its linear problems, and what our own runs say to it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p4lab.errors import TrainingError
from p4lab.labs.linear import CASES, LinearConfig, ways
from p4lab.training import Engine

ROUNDED = 2e-4
"""An error of log|det| below this differs between processors, by how they round."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a run ended.

    Attributes:
        engine: the run.
        steps: optimizer steps until the loss had fallen far enough; None if it did not.
        stopped: why training stopped early ("" if it did not).
    """

    engine: Engine
    steps: int | None
    stopped: str = ""

    @property
    def losses(self) -> NDArray[np.float64]:
        """The loss before each step."""
        return np.array(self.engine.records.steps.columns["loss"])

    @property
    def start(self) -> float:
        """The loss before the first step."""
        return float(self.losses[0])

    @property
    def loss(self) -> float:
        """The loss before the last step."""
        return float(self.losses[-1])

    def measured(self, name: str) -> NDArray[np.float64]:
        """Return a figure at all measurements, from the start on."""
        return self.engine.snapshot().curves[name][1]


def train_until(config: LinearConfig, way: str, fall: float, steps: int) -> Outcome:
    """Train one way until the loss is below ``fall`` times the loss of the first step, at most ``steps`` steps.

    Raises:
        KeyError: unknown way.
    """
    engine = Engine(config.replace(**ways(config.dim)[way]))
    losses = engine.records.steps.columns["loss"]
    try:
        while engine.step < steps:
            engine.run()
            if losses[-1] < fall * losses[0]:
                # The loss of a step is that before it.
                return Outcome(engine, engine.step - 1)
    except TrainingError as error:
        return Outcome(engine, None, str(error))
    return Outcome(engine, None)


Runs = Mapping[str, Outcome]


@dataclass(frozen=True)
class Finding:
    """One statement of the paper, or about a preset of ours, against our measurement.

    Attributes:
        case: which problem.
        claim: what the paper found ("ours: ..." if it is not about the paper).
        measured: what we see.
        agrees: "yes", "partly" or "no"; "" where there is nothing to agree with.
    """

    case: str
    claim: str
    measured: str
    agrees: str


@dataclass(frozen=True)
class Plan:
    """How a problem is run.

    Attributes:
        rate: learning rate of all ways.
        own: learning rate of the second run of the preset, whose directions have length 1.
        fall: converged is a loss of this fraction of that at the start.
        limit: most steps.
    """

    rate: float
    own: float
    fall: float
    limit: int


PLANS = {
    "spd": Plan(rate=CASES["spd"].rate, own=0.2, fall=0.1, limit=8000),
    "rotation": Plan(rate=CASES["rotation"].rate, own=5.0, fall=1e-3, limit=1500),
    "minus_identity": Plan(rate=CASES["minus_identity"].rate, own=5.0, fall=1e-3, limit=1500),
}


def experiment(case: str, **changes: Any) -> dict[str, Outcome]:
    """Run every way on a problem with the settings of its plan, and the preset once more at its own rate.

    Args:
        case: one of `CASES`.
        changes: settings over those of the plan, such as ``penalty=True``.

    Returns:
        Outcomes by way, and "own_rate" for the preset's second run. Cost: up to 8,000 steps each.

    Raises:
        KeyError: unknown case.
    """
    plan = PLANS[case]
    config = LinearConfig(learning_rate=plan.rate, **CASES[case].settings).replace(**changes)
    runs = {way: train_until(config, way, plan.fall, plan.limit) for way in ways(config.dim)}
    own = config.replace(learning_rate=plan.own, measure_every=5)
    return {**runs, "own_rate": train_until(own, "recommended", plan.fall, plan.limit)}


def spd_findings(runs: Runs) -> list[Finding]:
    """Compare the runs on the positive definite target with the paper."""
    title = CASES["spd"].title
    return [
        _ratio(title, "N = 1 needs as many steps as the plain matrix", runs, "n1", 0.9, 1.1),
        _ratio(title, "N = 10 about as many", runs, "n10", 0.9, 1.4),
        _ratio(title, "N = 50 twice as many", runs, "n50", 1.7, 2.6),
        _ratio(title, "through the inverse it is slower", runs, "through_inverse", 1.2, math.inf),
        *_preset(title, runs, PLANS["spd"]),
    ]


def rotation_findings(runs: Runs) -> list[Finding]:
    """Compare the runs on the rotation with the paper."""
    title = CASES["rotation"].title
    early, late = (_speed(runs["n1"], part) / _speed(runs["plain"], part) for part in (0, 1))
    straight, around = (_closest(runs[way]) for way in ("plain", "n1"))
    closest = ", ".join(f"{text} {_closest(runs[way]):.2f}" for way, text in _NAMES.items())
    return [
        Finding(title, "the plain matrix converges linearly", *_straight(runs["plain"])),
        Finding(
            title,
            "P4Inv's eigenvalues go around the origin",
            f"geometric mean of |λ|, at its least: {closest}",
            "yes" if around > 1.25 * straight else "partly" if around > straight else "no",
        ),
        Finding(
            title,
            "P4Inv is slower at first",
            f"N = 1: {early:.1f} times the plain rate in the first half, {late:.1f} times in the second",
            "no" if early > 0.95 else "yes" if late > 1.1 * early else "partly",
        ),
        Finding(
            title, "its inverse is right to 5 decimals throughout", *_digits("N = 1", runs["n1"].measured("residual"))
        ),
        _fails(title, "through the inverse it fails", {"through the inverse": runs["through_inverse"]}),
        *_preset(title, runs, PLANS["rotation"]),
    ]


def minus_identity_findings(runs: Runs, penalized: Runs) -> list[Finding]:
    """Compare the runs on -I, without and with a penalty, with the paper."""
    title = CASES["minus_identity"].title
    last, residual = runs["n1"], runs["n1"].measured("residual")
    error, sign = last.measured("logabsdet_error")[-1], last.measured("sign")[-1]
    names = {"N = 1": "n1", "N = 10": "n10", "N = 50": "n50"}
    recovers = residual[-1] < 1e-5 < np.nanmax(residual)
    return [
        _fails(title, "with a penalty it must not converge", {text: penalized[way] for text, way in names.items()}),
        _ratio(title, "without, almost as fast as the plain matrix", runs, "n1", 0.8, 1.4),
        Finding(
            title,
            "the residual rises while det passes 0, recovers to 5 digits",
            f"N = 1: up to {below(np.nanmax(residual))}, in the end {below(residual[-1])}",
            "yes" if recovers else "no",
        ),
        Finding(
            title,
            "log|det| ends right without being recomputed",
            f"N = 1: off by {below(max(error, ROUNDED))} nats, sign {'−' if sign < 0 else '+'}",
            "yes" if error < 1e-3 and sign < 0 else "no",
        ),
        *_preset(title, runs, PLANS["minus_identity"]),
    ]


def table(findings: list[Finding]) -> str:
    """Return findings as lines of text, one for each."""
    rows = [("problem", "the paper's finding", "what we measure", "agrees?")]
    rows += [(finding.case, finding.claim, finding.measured, finding.agrees or "–") for finding in findings]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


# --- in words ---------------------------------------------------------------------------------------------------------

_NAMES = {"plain": "plain", "n1": "N = 1", "n10": "N = 10", "own_rate": "preset"}


def _ratio(title: str, claim: str, runs: Runs, way: str, low: float, high: float) -> Finding:
    plain, other = runs["plain"].steps, runs[way].steps
    if plain is None or other is None:
        return Finding(title, claim, _reached(runs[way]), "no")
    ratio = other / plain
    measured = f"{about(other)} steps, {ratio:.1f} times the plain matrix's {about(plain)}"
    return Finding(title, claim, measured, "yes" if low <= ratio <= high else "no")


def _preset(title: str, runs: Runs, plan: Plan) -> list[Finding]:
    tried = {plan.rate: runs["recommended"], plan.own: runs["own_rate"]}
    claim = "ours: the recommended preset, learning rate"
    return [Finding(title, f"{claim} {rate:g}", _reached(run), "") for rate, run in tried.items()]


def _fails(title: str, claim: str, runs: Runs) -> Finding:
    measured = "; ".join(f"{name} {_reached(run)}" for name, run in runs.items())
    return Finding(title, claim, measured, "yes" if all(run.steps is None for run in runs.values()) else "no")


def _reached(run: Outcome) -> str:
    if run.steps is not None:
        return f"{about(run.steps)} steps"
    if run.stopped:
        return "stops: loss not finite"
    return (
        f"not in {run.engine.step:,}, where the loss is {float(f'{100 * run.loss / run.start:.1g}'):g}% of the start's"
    )


def about(steps: int) -> str:
    """Return a number of steps to two digits; what is behind them depends on rounding.

    Example:
        >>> about(7), about(99), about(1234), about(1855)
        ('7', '99', '1,200', '1,900')
    """
    scale = 10 ** max(0, len(str(steps)) - 2)
    return f"{round(steps / scale) * scale:,}"


def below(value: float) -> str:
    """Return the next higher power of ten.

    Example:
        >>> below(3e-5), below(2e-7), below(0.5), below(0.0)
        ('< 1e−4', '< 1e−6', '< 1e0', '0')
    """
    return f"< 1e{math.floor(math.log10(value)) + 1:+d}".replace("+", "").replace("-", "−") if value > 0 else "0"


def _digits(name: str, residual: NDArray[np.float64]) -> tuple[str, str]:
    worst, median = float(np.nanmax(residual)), float(np.nanmedian(residual))
    measured = f"{name}: |A A⁻¹ − I| {below(worst)} at its worst, {below(median)} at half of all times"
    return measured, "yes" if worst < 1e-5 else "partly" if worst < 1e-4 else "no"


def _straight(run: Outcome) -> tuple[str, str]:
    losses = np.log(run.losses)
    correlation = float(np.corrcoef(np.arange(len(losses)), losses)[0, 1])
    return f"correlation of log loss and step: {correlation:.4f}", "yes" if correlation < -0.999 else "no"


def _speed(run: Outcome, part: int) -> float:
    """Return how much log loss falls per step in the first or second half of a run."""
    halves = np.array_split(np.log(run.losses), 2)
    return float(halves[part][0] - halves[part][-1]) / (len(halves[part]) - 1)


def _closest(run: Outcome) -> float:
    """Return the least geometric mean of the eigenvalues' distances from 0, |det|^(1/d)."""
    return math.exp(run.measured("logabsdet").min() / run.engine.problem.dim)
