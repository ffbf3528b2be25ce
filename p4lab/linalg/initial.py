"""Initial matrices with their inverses and determinants."""

import math

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError, SingularMatrixError

KINDS = ("identity", "reverse", "permutation", "orthogonal")
"""These are the names of `initial_matrix`."""
LARGEST_RESIDUAL = 1e-2
"""A matrix counts as invertible in a dtype up to this error ``|A A^-1 - I|``."""


def initial_matrix(kind: str, dim: int, generator: torch.Generator) -> Tensor:
    """Return a named, perfectly conditioned matrix in float64.

    Args:
        kind: "identity", "reverse" (the coordinates in reversed order: RealNVP's swap), "permutation" (uniformly
            random) or "orthogonal" (Haar distributed).
        dim: number of rows d.
        generator: source of randomness, on the CPU.

    Returns:
        Shape (d, d), float64; its inverse is its transpose. Cost O(d^2), O(d^3) for "orthogonal".

    Raises:
        OptionError: unknown ``kind``.

    Example:
        >>> initial_matrix("reverse", 2, torch.Generator())
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    eye = torch.eye(dim, dtype=torch.float64, device="cpu")
    if kind == "identity":
        return eye
    if kind == "reverse":
        return eye.flip(0)
    if kind == "permutation":
        return eye[torch.randperm(dim, generator=generator, device="cpu")]
    if kind == "orthogonal":
        return initial_frame(kind, dim, dim, generator)
    raise OptionError(f"init={kind!r} is not known: choose one of {KINDS} or pass an invertible tensor")


def initial_frame(kind: str, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Return orthonormal columns in float64: the leading ones of `initial_matrix`.

    Args:
        kind: a name that `initial_matrix` knows.
        length: n of a column.
        count: number d of columns, no more than n.
        generator: source of randomness, on the CPU.

    Returns:
        Shape (n, d), float64. Cost O(n^2), O(n d^2) for "orthogonal".

    Raises:
        OptionError: unknown ``kind``.

    Example:
        >>> initial_frame("identity", 3, 1, torch.Generator()).flatten()
        tensor([1., 0., 0.], dtype=torch.float64)
    """
    if kind != "orthogonal":
        return initial_matrix(kind, length, generator)[:, :count]
    q, r = torch.linalg.qr(torch.randn(length, count, dtype=torch.float64, generator=generator, device="cpu"))
    return q * r.diagonal().sign()  # without the signs, Q is not uniformly distributed (Mezzadri 2007)


def inverse_and_logabsdet(matrix: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Invert a user's matrix in float64 and check that the result is usable in ``dtype``.

    Args:
        matrix: shape (d, d), any device and floating dtype.
        dim: expected d.
        dtype: dtype in which the inverse will be used.

    Returns:
        ``(inverse, sign, log|det|)``, in float64 on the CPU.

    Raises:
        ShapeError: not a (d, d) matrix.
        SingularMatrixError: not finite, singular, or so ill-conditioned that |A A^-1 - I| > 1e-2 in ``dtype``.

    Cost O(d^3).
    """
    if matrix.shape != (dim, dim):
        raise ShapeError(
            f"init has shape {tuple(matrix.shape)}, expected ({dim}, {dim}): pass a square matrix of the layer's dim"
        )
    wide = matrix.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(wide).all()):
        bad = int((~torch.isfinite(wide)).sum())
        raise SingularMatrixError(f"init has {bad} entries that are NaN or infinite: pass a finite matrix")
    sign, logabsdet = torch.linalg.slogdet(wide)
    inverse, info = torch.linalg.inv_ex(wide)
    a, x = wide.to(dtype), inverse.to(dtype)
    error = float((a @ x - torch.eye(dim, dtype=dtype, device="cpu")).abs().max()) if int(info) == 0 else math.inf
    if not error <= LARGEST_RESIDUAL:
        s = torch.linalg.svdvals(wide)
        raise SingularMatrixError(
            f"init is singular or too ill-conditioned for {dtype}: "
            f"singular values from {float(s[-1]):.3g} to {float(s[0]):.3g}, "
            f"|A A^-1 - I| = {error:.3g} (at most {LARGEST_RESIDUAL} is accepted). "
            "Add a multiple of the identity, or use dtype=torch.float64"
        )
    return inverse, sign, logabsdet


def haar_rotation(noise: Tensor) -> Tensor:
    """Return the rotation in SO(d) that normal noise, shape (d, d), is mapped to; uniformly distributed (Haar)."""
    q, r = torch.linalg.qr(noise)
    rotation = q * r.diagonal().sign()
    rotation[:, 0] *= torch.linalg.det(rotation).sign()
    return rotation


def spread_spd(noise: Tensor) -> Tensor:
    """Return ``M M^T + I / 2`` with ``M = noise / sqrt(d)``: symmetric, eigenvalues from 0.5 to about 4.5."""
    return noise @ noise.t() / len(noise) + 0.5 * torch.eye(len(noise), dtype=noise.dtype, device="cpu")
