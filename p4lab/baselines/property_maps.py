"""Properties as functions of a matrix: random ones that have it, the nearest ones, penalties, and how far it is off."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from p4lab.linalg.initial import haar_rotation, spread_spd
from p4lab.p4.circulant import circulant


def channels_of(dim: int) -> int:
    """Return how many channels an item has where d numbers are read as a set: at most 8, for at least 4 items.

    Example:
        >>> channels_of(64), channels_of(16), channels_of(7)
        (8, 4, 1)
    """
    return next(c for c in (8, 4, 2, 1) if dim % c == 0 and dim // c >= min(4, dim))


def as_it_is(w: Tensor) -> Tensor:
    """Return a matrix as it is."""
    return w


def eye_like(w: Tensor) -> Tensor:
    """Return the identity of a matrix's shape, kind and place."""
    return torch.eye(len(w), dtype=w.dtype, device=w.device)


def largest(difference: Tensor) -> float:
    """Return the largest absolute value."""
    return float(difference.abs().max())


# --- from a free matrix to one with the property ----------------------------------------------------------------------


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


def spread_values(like: Tensor) -> Tensor:
    """Return the singular values from 1 to 0.1 that a kept spectrum has, in the kind and place of a matrix."""
    return torch.linspace(1.0, 0.1, len(like), dtype=like.dtype, device=like.device)


def respread(weight: Tensor) -> Tensor:
    """Return the nearest matrix with the singular values of `spread_values`."""
    u, _, vt = torch.linalg.svd(weight)
    return u * spread_values(weight) @ vt


def averaged(raw: Tensor, channels: int) -> Tensor:
    """Return the mean of a matrix over all permutations of the items: the nearest one that commutes with them."""
    n = len(raw) // channels
    blocks = raw.view(n, channels, n, channels)
    same = torch.einsum("iaib->ab", blocks) / n
    other = (blocks.sum((0, 2)) - n * same) / max(1, n * (n - 1))
    eye = torch.eye(n, dtype=raw.dtype, device=raw.device)
    return torch.kron(eye, same) + torch.kron(1 - eye, other)


# --- penalties, differentiable scalars of the weights -----------------------------------------------------------------


def orthogonal_penalty(w: Tensor) -> Tensor:
    """Return ``|W^T W - I|^2``."""
    return (w.t() @ w - eye_like(w)).square().sum()


def volume_penalty(w: Tensor) -> Tensor:
    """Return ``(ln|det W|)^2 / d``."""
    return torch.linalg.slogdet(w).logabsdet.square() / len(w)


def definite_penalty(w: Tensor) -> Tensor:
    """Return ``|W - W^T|^2``, plus the squares of what eigenvalues of the symmetric part lack to 0.05."""
    negative = (0.05 - torch.linalg.eigvalsh((w + w.t()) / 2)).relu().square().sum()
    return (w - w.t()).square().sum() + negative


def norm_penalty(w: Tensor) -> Tensor:
    """Return the squares of what singular values exceed 1 by."""
    return (torch.linalg.svdvals(w) - 1).relu().square().sum()


def spectrum_penalty(w: Tensor) -> Tensor:
    """Return the squares of what singular values are off by."""
    return (torch.linalg.svdvals(w) - spread_values(w)).square().sum()


def circulant_penalty(w: Tensor) -> Tensor:
    """Return ``|P^-1 W P - W|^2`` for the cyclic shift P."""
    return (w.roll((1, 1), (0, 1)) - w).square().sum()


def permutation_penalty(w: Tensor) -> Tensor:
    """Return the squared distance from the group average."""
    return (w - averaged(w, channels_of(len(w)))).square().sum()


# --- violations, in float64 on the CPU --------------------------------------------------------------------------------


def volume_violation(w: Tensor) -> float:
    """Return ``|det W - 1|``."""
    sign, logabsdet = torch.linalg.slogdet(w)
    # Near det = 1 from the logarithm: a product of d numbers would only add roundings of its own.
    return abs(math.expm1(min(float(logabsdet), 700.0))) if sign > 0 else 1 + float(logabsdet.exp())


def definite_violation(w: Tensor) -> float:
    """Return the larger of ``|W - W^T|`` and minus the least eigenvalue of the symmetric part."""
    least = float(torch.linalg.eigvalsh((w + w.t()) / 2)[0])
    return max(largest(w - w.t()), -least)


def spectrum_violation(w: Tensor) -> float:
    """Return how far the singular values are off."""
    return largest(torch.linalg.svdvals(w) - spread_values(w))


def permutation_violation(w: Tensor) -> float:
    """Return how much W changes under a transposition of two items and under their cycle, which generate all."""
    c = channels_of(len(w))
    blocks = w.view(len(w) // c, c, len(w) // c, c)
    cycle = largest(blocks.roll((1, 1), (0, 2)) - blocks)
    order = torch.arange(len(blocks), device="cpu")
    order[:2] = order[:2].flip(0)
    return max(cycle, largest(blocks[order][:, :, order] - blocks))


# --- targets, of standard normal noise of shape (3, d, d) in float64 --------------------------------------------------


def volume_target(noise: Tensor) -> Tensor:
    """Return a rotation by angles up to one, times a positive definite stretch, of determinant 1.

    It has no eigenvalue near the negative axis, where the straight way from the identity would lead through det = 0.
    """
    d = noise.shape[-1]
    skew = torch.linalg.matrix_exp((noise[0] - noise[0].t()) / (4 * math.sqrt(d)))
    frame = haar_rotation(noise[1])
    stretch = torch.linspace(-0.7, 0.7, d, dtype=noise.dtype, device="cpu").exp()
    return skew @ (frame * stretch @ frame.t())


def lipschitz_target(noise: Tensor) -> Tensor:
    """Return a matrix with singular values from 0.1 to 1, and two different random frames."""
    return haar_rotation(noise[0]) * spread_values(noise[0]).flip(0) @ haar_rotation(noise[1])


def spectrum_target(noise: Tensor) -> Tensor:
    """Return a matrix with the singular values of `spread_values`, and two different random frames."""
    return haar_rotation(noise[0]) * spread_values(noise[0]) @ haar_rotation(noise[1])


def circulant_target(noise: Tensor) -> Tensor:
    """Return a circulant matrix with a random kernel."""
    return circulant(noise[0, 0] / math.sqrt(noise.shape[-1]))


def permutation_target(noise: Tensor) -> Tensor:
    """Return a matrix that acts on each item's deviation from their mean by one matrix, on the mean by another."""
    d = noise.shape[-1]
    c = channels_of(d)
    deviation, mean = (spread_spd(noise[i, :c, :c]) for i in (0, 1))
    j = torch.full((d // c, d // c), c / d, dtype=noise.dtype, device="cpu")
    return torch.kron(torch.eye(d // c, dtype=noise.dtype, device="cpu") - j, deviation) + torch.kron(j, mean)


def invertible_target(noise: Tensor) -> Tensor:
    """Return a matrix whose eigenvalues fill a disc around 1 that leaves 0 out."""
    return eye_like(noise[0]) + 0.7 * noise[0] / math.sqrt(noise.shape[-1])
