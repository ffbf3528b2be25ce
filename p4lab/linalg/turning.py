"""Vectors turned by a low-rank Cayley transform, as one node of the autograd graph."""

from typing import Any, cast

import torch
from torch import Tensor

from p4lab.linalg.low_rank import small_inverse
from p4lab.linalg.transforms import autocasts, is_transforming


def cayley_turn(z: Tensor, u: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Return each row turned by the Cayley transform of ``S = u^T v - v^T u``, plus a bias.

    .. math:: y = R z + b, \qquad R = (I + S/2)^{-1} (I - S/2) = I - 2 v^T v + 2 (v - w)^T H (v + w), \\
              w = \tfrac12 (u - t v), \quad t = u v^T, \quad H = \left(I_k - \tfrac12 (t - t^T) + w w^T\right)^{-1}

    ``-u`` turns back. The backward pass is written out; it keeps z and some tensors of shape (batch, k). Derivatives of
    derivatives, forward mode, `torch.func` and autocast take the formula as plain operations.

    Args:
        z: rows, shape (..., d).
        u: shape (k, d).
        v: orthonormal rows, shape (k, d), constants: they get no gradient.
        bias: shape (d,).

    Returns:
        Shape (..., d). Cost for n rows: 4 n d k + O(d k^2 + n k^2) multiply-adds forward, 6 n d k backward (4 n d k
        where z needs no gradient).

    Source: Cayley map by blocks along v and its complement (Schur complement), as in
    `p4lab.linalg.low_rank_rotation`.

    Example:
        >>> u, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # a right angle
        >>> cayley_turn(torch.tensor([[3.0, 5.0]]), u, v)
        tensor([[-5.,  3.]])
    """
    plain = autocasts(z.device.type) or is_transforming()
    return _plain(z, u, v, bias) if plain else cast(Tensor, _Turn.apply(z, u, v, bias))


def _factors(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return w, the rows of l = v + w and of v, and -2 H^T."""
    t = u @ v.t()
    w = torch.addmm(u, t, v, beta=0.5, alpha=-0.5)
    a = torch.addmm(t.t() - t, w, w.t(), beta=0.5)
    a = a + torch.eye(len(a), dtype=a.dtype, device=a.device)
    return w, torch.cat((v + w, v)), -2 * small_inverse(a).t()


def _coefficients(s: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return of rows ``s = z p^T`` the part along l, its image, and the coefficients c in ``R z = z + c p``."""
    along, a = s.chunk(2, -1)
    q = along @ n
    return along, q, torch.cat((q, -2 * (a + q)), -1)


def _plain(z: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if autocasts(z.device.type):  # products with z may be lowered, but not the property
        with torch.autocast(z.device.type, enabled=False):
            _, p, n = _factors(u, v)
    else:
        _, p, n = _factors(u, v)
    y = z + _coefficients(z @ p.t(), n)[2] @ p
    return y if bias is None else y + bias.to(y.dtype)


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, u: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        rows = z.reshape(-1, z.shape[-1])
        w, p, n = _factors(u, v)
        along, q, c = _coefficients(rows @ p.t(), n)
        y = torch.addmm(rows, c, p)
        if bias is not None:
            y += bias
        ctx.save_for_backward(z, u, v, bias, w, p, n, along, q)
        # For a stack of matrices not a view, which nobody could change in place.
        return y if z.dim() == 2 else torch.ops.aten._unsafe_view.default(y, z.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, u, v, bias, w, p, n, along, q = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants derivatives of these derivatives
            inputs = [(i, t) for i, t in enumerate((z, u, None, bias)) if ctx.needs_input_grad[i] and t is not None]
            results = torch.autograd.grad(_plain(z, u, v, bias), [t for _, t in inputs], g, create_graph=True)
            gradients: list[Tensor | None] = [None] * 4
            for (i, _), gradient in zip(inputs, results, strict=True):
                gradients[i] = gradient
            return tuple(gradients)
        to_z, to_u, _, to_bias = ctx.needs_input_grad
        rows, g_rows = z.reshape(-1, z.shape[-1]), g.reshape(-1, g.shape[-1])
        g_l, g_v = (g_rows @ p.t()).chunk(2, -1)
        g_a = -2 * g_v
        g_q = g_l + g_a
        g_along = g_q @ n.t()
        g_z = torch.addmm(g_rows, torch.cat((g_along, g_a), -1), p).reshape(g.shape) if to_z else None
        g_u = None
        if to_u:
            g_w = torch.addmm(q.t() @ g_rows, g_along.t(), rows)
            g_core = n @ (g_q.t() @ along) @ n  # of I - (t - t^T)/2 + w w^T, twice
            skew, g_w = g_core.t() - g_core, torch.addmm(g_w, g_core + g_core.t(), w, beta=0.5, alpha=0.25)
            g_u = torch.addmm(g_w, 0.25 * skew - g_w @ v.t(), v)
        return g_z, g_u, None, g_rows.sum(0) if to_bias else None
