"""The configs of the lab's problems."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from p4lab.errors import OptionError
from p4lab.flows import p4inv_bent
from p4lab.p4 import RECOMMENDED
from p4lab.p4.linear import Reset
from p4lab.problems import Digits
from p4lab.problems.matrix import MatrixProblem, matrix, matrix_model
from p4lab.training.config import Rule, RunConfig, one_of, setting, whole

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)


@dataclass(frozen=True)
class DigitsConfig(RunConfig):
    """A flow of P4Inv layers and Bent identities on handwritten digits.

    There is one P4Inv layer more than nonlinearities.
    """

    problem: ClassVar[str] = "digits"

    rank: int = setting(RECOMMENDED.rank_for(Digits.dim), choices=(1, 2, 4, 8, 16))
    reset: Reset = setting(RECOMMENDED.reset, help="How new directions are drawn after a merge")
    learning_rate: float = setting(2e-3, choices=RATES)
    merge_every: int = setting(RECOMMENDED.every, choices=(1, 2, 5, 10, 20, 50, 100, 200))
    refine_every: int = setting(
        RECOMMENDED.refine_every,
        choices=(1, 2, 5, 10, 20, 50, 100),
        help="Iterative refinement of the inverses after so many merges",
    )
    penalty: bool = setting(False, help="Add a penalty on vanishing and exploding determinants to the loss")
    blocks: int = setting(12, "Blocks", whole(0, 100), choices=(4, 8, 12, 16, 24), own=True, help="Nonlinearities")

    @property
    def width(self) -> int:
        """64 pixels."""
        return Digits.dim

    def parts(self) -> tuple[Digits, torch.nn.Module]:
        """Return the digits, and the flow with identity weights."""
        options: dict[str, Any] = {"rank": self.rank, "reset": self.reset, "train_v": self.train_v, "seed": self.seed}
        model = p4inv_bent(Digits.dim, self.blocks, init="identity", **options, **self.where)
        return Digits(self.seed, torch.device(self.device), getattr(torch, self.dtype)), model


def _is_matrix(text: str) -> bool:
    try:
        # Named matrices exist at every width; typed ones are checked against theirs when the run is built.
        matrix(text, text.count(";") + 1 if any(c.isdigit() for c in text) else 2, seed=0)
    except OptionError:
        return False
    return True


TYPED = 'A name such as shear, or rows such as "1 0; 0.5 1"'
_MATRIX = Rule(str, _is_matrix, 'the name of a matrix such as "rotation", or its rows such as "1 0; 0.5 1"')


@dataclass(frozen=True)
class MatrixConfig(RunConfig):
    """Learn a d x d matrix T from y = T x.

    ``start`` and ``target`` (T) are names of `p4lab.problems.matrix.NAMES`, or rows as in "1 0; 0.5 1". Routes are
    "plain" (an ordinary weight), "p4inv", and "through_inverse" (the inverse of a P4Inv layer learns T). If batches are
    not sampled, the loss is exact: ``|W - T|_F^2 / d``.
    """

    problem: ClassVar[str] = "matrix"
    task: ClassVar[type[MatrixProblem]] = MatrixProblem
    """What is trained on."""

    rank: int = setting(1, choices=(1, 2, 4), help="Rank-one terms")
    reset: Any = setting("gaussian", help="Of the next v")
    optimizer: str = setting("sgd", choices={"sgd": "SGD", "adam": "Adam"})
    learning_rate: float = setting(
        0.05, choices=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0)
    )
    batch_size: int = 64
    merge_every: int = setting(10, choices=(1, 2, 5, 10, 20, 50, 100))
    penalty: bool = setting(False, help="Add a penalty on vanishing and exploding determinants")
    skip: bool = setting(True, help="Refuse merges that would make the matrix nearly singular")
    measure_every: int = 5
    dim: int = setting(2, "Width d", whole(2, 256), choices=(2, 8, 32), own=True)
    start: str = setting("identity", "Start", _MATRIX, help=TYPED)
    target: str = setting("rotation", "Target", _MATRIX, live=True, help=f"{TYPED}; it may move while the run goes on")
    route: str = setting("p4inv", "Route", one_of("p4inv", "plain", "through_inverse"))
    sampled: bool = setting(False, "Sampled batches", help="x from N(0, I); if off, the loss is exact")

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    def matrix(self, name: str) -> torch.Tensor:
        """Return the matrix that ``start`` or ``target`` stands for, float64.

        Raises:
            OptionError: it does not fit ``dim``.
        """
        return matrix(getattr(self, name), self.dim, self.seed)

    def parts(self) -> tuple[MatrixProblem, torch.nn.Module]:
        """Return the problem, and the model of the route."""
        start, rank = self.matrix("start"), min(self.rank, self.dim)
        problem = self.task(start, self.matrix("target"), self.sampled, **self.where)
        return problem, matrix_model(self.route, start, rank, self.reset, self.train_v, self.seed, **self.where)

    def update(self, problem: MatrixProblem) -> None:
        """Set the target."""
        problem.set_target(self.matrix("target"))


@dataclass(frozen=True)
class CustomConfig(RunConfig):
    """Settings of a user's own problem, model, optimizer and merge schedule; those are given to the engine."""

    problem: ClassVar[str] = "custom"

    optimizer: str = setting("adam", "", Rule(str, lambda _: True, "the name of an optimizer's class"))
    learning_rate: float = setting(2e-3, choices=(*RATES, 2e-1, 5e-1, 1.0))
    merge_every: int = setting(RECOMMENDED.every, choices=(1, 2, 5, 10, 20, 50, 100, 200))
    refine_every: int = setting(RECOMMENDED.refine_every, choices=(1, 2, 5, 10, 20, 50, 100, 200))
    penalty: bool = setting(False, help="Penalize vanishing and exploding determinants")
