"""Matrices with a property as functions of free ones, the nearest ones, and penalties: for the lab of properties."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from p4lab.problems.property_targets import channels_of


def cholesky(raw: Tensor) -> Tensor:
    """Return ``L L^T`` for the triangle L of a free matrix, with a softplus on its diagonal."""
    factor = raw.tril(-1) + F.softplus(raw.diagonal()).diag()
    return factor @ factor.t()


def cholesky_start(start: Tensor) -> Tensor:
    """Return the free matrix with which `cholesky` gives a positive definite one."""
    factor = torch.linalg.cholesky(start)
    return factor.tril(-1) + factor.diagonal().expm1().log().diag()


def unit_volume(raw: Tensor) -> Tensor:
    """Return a matrix divided by ``|det|^(1/d)``."""
    return raw * torch.exp(-torch.linalg.slogdet(raw).logabsdet / len(raw))


def clipped(weight: Tensor, bound: float) -> Tensor:
    """Return the nearest matrix with spectral norm of at most c."""
    u, s, vt = torch.linalg.svd(weight)
    return u * s.clamp(max=bound) @ vt


def averaged(raw: Tensor, channels: int) -> Tensor:
    """Return the mean of a matrix over all permutations of the items: the nearest one that commutes with them."""
    n = len(raw) // channels
    blocks = raw.view(n, channels, n, channels)
    same = torch.einsum("iaib->ab", blocks) / n
    other = (blocks.sum((0, 2)) - n * same) / max(1, n * (n - 1))
    eye = torch.eye(n, dtype=raw.dtype, device=raw.device)
    return torch.kron(eye, same) + torch.kron(1 - eye, other)


# --- penalties --------------------------------------------------------------------------------------------------------


def penalty_of(prop: str, dim: int, bound: float) -> Callable[[Tensor], Tensor]:
    """Return the usual penalty for a property, a differentiable scalar of the weights (a mean over their d columns).

    Args:
        prop: one of `p4lab.problems.property_targets.PROPERTIES` but "invertible", see `Barrier`.
        dim: width d.
        bound: c, for "lipschitz".
    """
    return lambda w: _PENALTIES[prop](w / bound if prop == "lipschitz" else w) / dim


def _definite(w: Tensor) -> Tensor:
    negative = (0.05 - torch.linalg.eigvalsh((w + w.t()) / 2)).relu().square().sum()
    return (w - w.t()).square().sum() + negative


_PENALTIES: dict[str, Callable[[Tensor], Tensor]] = {
    "orthogonal": lambda w: (w.t() @ w - torch.eye(len(w), dtype=w.dtype, device=w.device)).square().sum(),
    "volume": lambda w: torch.linalg.slogdet(w).logabsdet.square() / len(w),
    "positive_definite": _definite,
    "lipschitz": lambda w: (torch.linalg.svdvals(w) - 1).relu().square().sum(),
    "circulant": lambda w: (w.roll((1, 1), (0, 1)) - w).square().sum(),
    "permutation": lambda w: (w - averaged(w, channels_of(len(w)))).square().sum(),
}
