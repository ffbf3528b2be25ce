"""The paper's linear problems, and the ways to learn them side by side."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import TrainingError
from p4lab.p4 import PAPER, RECOMMENDED, Preset
from p4lab.problems.matrix import MatrixModel, MatrixProblem, matrix_model
from p4lab.training.config import Rule, RunConfig, one_of
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.setups import MatrixConfig


@dataclass(frozen=True)
class Case:
    """One of the three problems.

    Attributes:
        title: how it reads.
        dim: d.
        target: T, a name of `p4lab.problems.matrix.NAMES`.
    """

    title: str
    dim: int
    target: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that make the problem."""
        return {"dim": self.dim, "target": self.target}


CASES = {
    "spd": Case("SPD 32", 32, "spd_near_one"),
    "rotation": Case("SO(128)", 128, "rotation"),
    "minus_identity": Case("−I 101", 101, "minus_identity"),
}
"""The problems of arXiv:2010.07033, section 4.1."""
INTERVALS = (1, 10, 50)
"""Optimizer steps between merges (the paper's N)."""


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

    The target cannot change while a run goes on. Attributes are those of `MatrixConfig`.
    """

    problem: ClassVar[str] = "linear"
    rules: ClassVar[dict[str, Rule]] = {"start": one_of("identity")}
    live: ClassVar[tuple[str, ...]] = RunConfig.live

    train_v: bool = PAPER.train_v
    learning_rate: float = 0.2
    measure_every: int = 25
    dim: int = CASES["minus_identity"].dim
    target: str = CASES["minus_identity"].target

    def parts(self) -> tuple[LinearProblem, torch.nn.Module]:
        """Return the problem, and the model of the route."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        start = self.matrix("start")
        problem = LinearProblem(start, self.matrix("target"), self.sampled, dtype, device)
        rank = min(self.rank, self.dim)
        return problem, matrix_model(self.route, start, rank, self.reset, self.train_v, self.seed, dtype, device)


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
