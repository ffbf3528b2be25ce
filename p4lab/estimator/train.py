"""Build and train the flow of an estimator."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor, nn

from p4lab.errors import SingularMatrixError, TrainingError
from p4lab.estimator.cells import Cells
from p4lab.fit import Fit, fit
from p4lab.flows import Flow, FoldedLinear, p4inv_bent, realnvp, spline_flow
from p4lab.p4 import RECOMMENDED, p4_modules

FLOWS: dict[str, Callable[..., Flow]] = {"realnvp": realnvp, "spline_flow": spline_flow, "p4inv_bent": p4inv_bent}
"""Flows by their names in `p4lab.flows`."""
CLIP = 10.0
"""Largest norm of the gradient."""
MEASURE_EVERY = 10
"""Steps between two looks at the rows that are held out."""
POINTS = 16
"""Points of each row that is held out, if rows are cells."""
GUARD = 0.05
"""Share of the Gaussian in the density: far from all rows a flow says nothing that can be trusted."""
DEPENDENT = 1e-13
"""Eigenvalues of a correlation matrix below this are rounding: a table of float32 numbers has none as small."""


@dataclass(frozen=True)
class Plan:
    """Which flow is trained, and how; fields are arguments of `p4lab.estimator.FlowDensity`."""

    flow: str
    mixing: str
    blocks: int
    hidden: int
    whiten: bool
    noise: float
    max_iter: int
    batch_size: int
    learning_rate: float
    validation_fraction: float
    patience: int


@dataclass(frozen=True)
class Outcome:
    """What training comes to.

    Attributes:
        mixture: the density, float64, with nothing of P4 left.
        steps: optimizer steps that were done.
        best: the step whose weights the flow has.
        scores: of the rows that are held out, every `MEASURE_EVERY` steps (nats per row).
        finite: whether loss and gradient were finite to the end.
    """

    mixture: "Guarded"
    steps: int
    best: int
    scores: list[float]
    finite: bool


class Guarded(nn.Module):
    r"""A flow, and with a small share the Gaussian that it started as, so that no row is impossible.

    .. math:: p(y) = (1 - \epsilon) \, p_\text{flow}(y) + \epsilon \, N(y; \mu, \Sigma)

    Args:
        flow: of width d.
        gaussian: a flow of one linear layer.
        share: epsilon, between 0 and 1.

    Source: Hesterberg (1995) has such "defensive" mixtures.
    """

    def __init__(self, flow: Flow, gaussian: Flow, share: float = GUARD) -> None:
        super().__init__()
        self.flow, self.gaussian, self.share = flow, gaussian, share

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log p (nats), shape (...) for y of shape (..., d)."""
        parts = self.flow.log_prob(y) + math.log1p(-self.share), self.gaussian.log_prob(y) + math.log(self.share)
        return torch.logaddexp(*parts)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, shape (n, d), with a CPU generator."""
        guarded = torch.rand(n, 1, generator=generator, device="cpu") < self.share
        z = self.flow.latent(n, generator)
        with torch.no_grad():
            return torch.where(guarded.to(z.device), self.gaussian.inverse(z), self.flow.inverse(z))


def check_independent(y: Tensor, names: Sequence[Any]) -> None:
    """Raise if columns are linear functions of others, as far as there are enough rows to tell.

    Args:
        y: points of shape (n, d), float64, of variance about 1.
        names: of the columns, one for each coordinate.

    Raises:
        SingularMatrixError: the rows lie in a subspace, and have no density.
    """
    if len(y) <= y.shape[1]:
        return
    values, vectors = torch.linalg.eigh(y.t().cov().reshape(y.shape[1], -1))
    if float(values[0]) <= DEPENDENT * float(values[-1]):
        involved = vectors[:, 0].abs() > 0.05
        columns = dict.fromkeys(name for name, part in zip(names, involved.tolist(), strict=True) if part)
        raise SingularMatrixError(
            f"columns {', '.join(map(repr, columns))} determine each other, so that the rows have no density: drop one"
        )


def gaussian(y: Tensor, whiten: bool) -> Flow:
    """Return the Gaussian with the mean and covariance of points, as a flow, float64.

    Args:
        y: points of shape (n, d), float64, of mean about 0 and variance about 1.
        whiten: whether the covariance is Ledoit and Wolf's, or the identity, with mean 0.
    """
    n, dim = y.shape
    if not whiten:
        return Flow([FoldedLinear(torch.eye(dim).to(y))])
    values, vectors = torch.linalg.eigh(torch.from_numpy(ledoit_wolf(y.numpy())[0]))
    values = values.clamp(min=DEPENDENT if n > dim else 1 / n)
    weight = (vectors / values.sqrt()) @ vectors.t()
    return Flow([FoldedLinear(weight, -weight @ y.mean(0))])


def build(plan: Plan, start: Flow, seed: int, device: torch.device | str = "cpu") -> Guarded:
    """Return a flow that starts as a Gaussian, float32, and with it that Gaussian.

    Args:
        plan: which flow; one coordinate has no halves, and then it is a spline.
        start: the Gaussian.
        seed: of the weights.
        device: where the flow lives.

    Raises:
        OptionError: what the flow refuses.
    """
    kind: dict[str, Any] = {"dtype": torch.float32, "device": device}
    if start.dim == 1:
        from p4lab.flows.from_zuko import splines  # here: zuko switches off torch's validation of distributions

        flow = Flow([splines(1, **kind)])
    elif plan.flow == "p4inv_bent":
        flow = p4inv_bent(start.dim, plan.blocks, init="paired", seed=seed, **kind)
    else:
        flow = FLOWS[plan.flow](start.dim, plan.blocks, plan.mixing, hidden=plan.hidden, seed=seed, **kind)
    start = start.to(**kind)
    return Guarded(Flow([start, flow]), start)


def train(
    plan: Plan, cells: Cells, names: Sequence[Any], generator: torch.Generator, device: torch.device | str = "cpu"
) -> Outcome:
    """Maximize the likelihood of rows; of rows that fill cells, a lower bound of it, from a new point at each step.

    Args:
        plan: which flow, and how.
        cells: the rows, on the CPU.
        names: of the columns, one for each coordinate.
        generator: CPU generator of all that is random.
        device: where the flow trains and stays.

    Raises:
        TrainingError: a loss is not finite, and no rows are held out by which to choose earlier weights.
        OptionError, SingularMatrixError: as `build`, or from training.
    """
    exact = cells.exact
    kind: dict[str, Any] = {"generator": generator, "device": "cpu"}

    def points(part: Cells) -> tuple[Tensor, Tensor]:
        u = torch.zeros_like(part.low) if exact else torch.rand(part.low.shape, dtype=torch.float64, **kind)
        return part.points(u)

    y = points(cells)[0]
    check_independent(y, names)
    n = len(cells)
    order = torch.randperm(n, **kind)
    n_held = min(n - 1, math.ceil(plan.validation_fraction * n))
    held, rows = cells[order[:n_held]], cells[order[n_held:]]
    seed = int(torch.randint(2**31, (), **kind))
    mixture = build(plan, gaussian(y, plan.whiten), seed, device)
    flow = mixture.flow
    optimizer = torch.optim.Adam(flow.parameters(), lr=plan.learning_rate, fused=True)
    merges = RECOMMENDED.schedule(flow, optimizer) if p4_modules(flow) else None
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.max_iter)

    def loss() -> Tensor:
        part = rows
        if len(rows) > plan.batch_size:
            part = rows[torch.randint(len(rows), (plan.batch_size,), **kind)]
        y = points(part)[0].float()
        if plan.noise:  # where y is not drawn anew anyway
            y = y + plan.noise * torch.randn(y.shape, dtype=y.dtype, **kind) * ~part.curved
        return -flow.log_prob(y.to(device)).mean()

    top, kept, best, scores = -math.inf, flow.state_dict(), 0, list[float]()
    # Cells are seen at many points, so that luck does not choose the weights.
    y, log_volume = points(held if exact else held[torch.arange(n_held, device="cpu").repeat(POINTS)])
    y_held = y.to(device, torch.float32)

    @torch.no_grad()
    def measure(now: Fit) -> bool:
        nonlocal top, kept, best
        if not n_held or (now.step % MEASURE_EVERY and now.step < plan.max_iter):
            return False
        scores.append(float(mixture.log_prob(y_held).double().mean()) + float(log_volume.mean()))
        if scores[-1] > top:
            top, kept, best = scores[-1], copy.deepcopy(flow.state_dict()), now.step
        return now.step - best >= plan.patience

    measure(Fit(plan.max_iter, math.inf))
    end = fit(loss, optimizer, plan.max_iter, schedules=[merges, rates], clip=CLIP, not_finite="stop", after=measure)
    if not end.taken and not n_held:
        raise TrainingError(
            f"the loss is {float(end.loss):g} after {end.step} steps: lower learning_rate, or hold some rows out "
            "(validation_fraction), so that the best weights are kept"
        )
    if n_held:
        flow.load_state_dict(kept)
    else:
        best = end.step
    plain = Guarded(flow.fold(), mixture.gaussian).double()
    return Outcome(plain, end.step, best, scores, end.taken)
