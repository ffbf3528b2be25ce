"""How a flow learns a Boltzmann distribution: by example, by energy, or by both."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError

ReducedEnergy = Callable[[Tensor], Tensor]
"""x of shape (n, d) to u(x) = E(x) / kT of shape (n,), differentiable in x."""


class Density(Protocol):
    """What the losses ask of a model; `p4lab.flows.Flow` has it."""

    @property
    def dim(self) -> int:
        """Width d."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log q(x) in nats, shape (...) for x of shape (..., d)."""

    def sample_with_log_prob(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return samples x, shape (n, d), and log q(x), shape (n,), differentiable in the model's parameters."""


def compress(energy: Tensor, threshold: float) -> Tensor:
    r"""Return energies that grow with their logarithm above a threshold, once differentiable.

    .. math:: c(u) = \begin{cases} u & u \le t \\ t + \log(1 + u - t) & u > t \end{cases}

    Args:
        energy: reduced energies u, any shape.
        threshold: t, nats.

    Source: Noé et al., arXiv:1812.01729.

    Example:
        >>> compress(torch.tensor([-1.0, 5.0, 1e20]), 10.0)
        tensor([-1.0000,  5.0000, 56.0517])
    """
    return torch.where(energy > threshold, threshold + (energy - threshold).clamp(min=0).log1p(), energy)


def by_example(model: Density, x: Tensor) -> Tensor:
    r"""Return the mean negative log-likelihood (nats), a differentiable scalar.

    .. math:: L = -E_x \log q(x)

    It is not finite if some log q(x) is not: data that hold NaN are not left out silently.

    Args:
        model: q.
        x: samples of the target, shape (n, d).
    """
    return -model.log_prob(x).mean()


def by_energy(
    model: Density,
    energy: ReducedEnergy,
    n: int,
    generator: torch.Generator | None = None,
    threshold: float = 1e3,
    path_gradient: bool = True,
) -> Tensor:
    r"""Return the reverse Kullback-Leibler divergence up to the log partition function (nats), a differentiable scalar.

    .. math:: L = E_{x \sim q} [c(u(x)) + \log q(x)], \qquad KL(q \| p) = L + \log Z \text{ without compression}

    The path gradient leaves out the part of the gradient whose expectation is 0, so that its variance vanishes where q
    is the target:

    .. math:: \nabla_\theta L = E_z [(\nabla_x c(u(x)) + \nabla_x \log q(x)) \cdot \partial_\theta x]

    Samples whose position, energy, force or log q is not finite are left out; if none is left, the loss is NaN.

    Args:
        model: q.
        energy: u; called once with samples of shape (n, d), its gradient taken once.
        n: number of samples.
        generator: CPU generator of the samples (None: torch's default).
        threshold: of `compress`, nats.
        path_gradient: whether the gradient is the path gradient.

    Raises:
        OptionError: n < 1.
        ShapeError: the energy returns another shape than (n,).

    Cost: one sample and one energy with gradient; the path gradient also needs log q once more, and its gradient in x.
    Source: Noé et al., arXiv:1812.01729; Vaitl et al., arXiv:2206.09016 (path gradients).
    """
    if n < 1:
        raise OptionError(f"n={n}: expected at least 1 sample")
    x, log_q = model.sample_with_log_prob(n, generator=generator)
    there = torch.isfinite(x).all(-1)
    # Detached: the forces are known before anything flows back, so that those that are not finite can be left out.
    at = torch.where(there[:, None], x.detach(), 0.0)
    u, slope = _value_and_gradient(lambda at: compress(energy(at), threshold), at)
    finite = there & torch.isfinite(u) & torch.isfinite(log_q) & torch.isfinite(slope).all(-1)
    if path_gradient:
        _, log_q_slope = _value_and_gradient(model.log_prob, at)
        finite = finite & torch.isfinite(log_q_slope).all(-1)
        slope, log_q = slope + log_q_slope, log_q.detach()
    slope = torch.where(finite[:, None], slope, 0.0)
    along = (slope * torch.where(there[:, None], x, 0.0)).sum(-1)
    # Of the value u + log q and of the gradient of ``along``.
    terms = torch.where(finite, u + log_q, 0.0) + (along - along.detach())
    count = finite.sum()
    return terms.sum() / torch.where(count > 0, count, torch.nan)


def mixed(
    model: Density,
    x: Tensor,
    energy: ReducedEnergy,
    share: float,
    n: int | None = None,
    generator: torch.Generator | None = None,
    threshold: float = 1e3,
    path_gradient: bool = True,
) -> Tensor:
    r"""Return a mean of `by_example` and `by_energy`, a differentiable scalar.

    .. math:: L = (1 - s) L_\text{example} + s L_\text{energy}

    Args:
        model: q.
        x: samples of the target, shape (m, d); not looked at if ``share`` is 1.
        energy: u; not called if ``share`` is 0.
        share: s, from 0 (by example) to 1 (by energy).
        n: number of samples of the model (None: m).
        generator, threshold, path_gradient: as for `by_energy`.

    Raises:
        OptionError: share out of range, or as `by_energy`.
    """
    if not 0 <= share <= 1:
        raise OptionError(f"share={share}: expected a number from 0 (by example) to 1 (by energy)")
    if share == 0:
        return by_example(model, x)
    reverse = by_energy(model, energy, len(x) if n is None else n, generator, threshold, path_gradient)
    return reverse if share == 1 else (1 - share) * by_example(model, x) + share * reverse


def _value_and_gradient(function: ReducedEnergy, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function's values and its gradient, both without a graph and in the dtype of the points."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        values = function(at)
        if values.shape != at.shape[:-1]:
            raise ShapeError(f"energies of shape {tuple(values.shape)}: expected {tuple(at.shape[:-1])}, one per row")
        (gradient,) = torch.autograd.grad(values.sum(), at)
    return values.detach().to(at), gradient
