"""Rotations that differ from the identity by a low rank: the Cayley transform, and pairs of reflections.

All of them have the form ``R = I - P^T K P`` with the rows of P, shape (2k, d), and a small core K, shape (2k, 2k);
they are orthogonal where ``K + K^T = K^T P P^T K``.
"""

import torch
from torch import Tensor

from p4lab.linalg.low_rank import small_inverse

FEWEST_SAMPLES = 128
"""A sketch looks at no more samples of a batch than these, or 4 k if that is more: all others tell it little more."""


def cayley_core(p: Tensor) -> Tensor:
    r"""Return the core K of the Cayley transform of the skew matrix ``S = u^T v - v^T u`` with orthonormal rows v.

    .. math:: (I + S/2)^{-1} (I - S/2) = I - P^T K P, \qquad P = \binom{u}{v}, \qquad
              K = \begin{pmatrix} Y & 2 Y C \\ -2 D Y & 2 I - 4 D Y C \end{pmatrix},

              Y = \left(2 C D + \tfrac{1}{2} u u^T\right)^{-1}, \quad
              C = I - \tfrac{1}{2} u v^T, \quad D = I + \tfrac{1}{2} v u^T

    No real u makes it singular: a skew matrix has no eigenvalue -2. Rows v that are orthonormal only up to e, say to
    the rounding of a narrower dtype, cost an error of e^2: ``2 I - v v^T`` stands for the inverse of ``v v^T``.

    Args:
        p: the k rows of u, then the k rows of v, shape (2k, d).

    Returns:
        Shape (2k, 2k), differentiable. Cost O(d k^2), with an inverse of size k; no host synchronisation.

    Source: Wen and Yin (2013), lemma 4, here with the blocks eliminated.

    Example:
        >>> p = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # u = 2 e_1 and v = e_2 turn the plane by a right angle
        >>> (torch.eye(2) - p.T @ cayley_core(p) @ p).round(decimals=5) + 0.0
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    k = p.shape[0] // 2
    eye = torch.eye(k, dtype=p.dtype, device=p.device)
    gram = p @ p.t()
    across = 0.5 * gram[:k, k:]
    v_inv = 2 * eye - gram[k:, k:]
    c, d = (eye - across) @ v_inv, eye + across.t()
    y = small_inverse(torch.addmm(0.5 * gram[:k, :k], c, d, alpha=2))
    yc, dy = 2 * (y @ c), -2 * (v_inv @ (d @ y))
    return torch.cat([torch.cat([y, yc], 1), torch.cat([dy, torch.addmm(2 * v_inv, dy, c, alpha=2)], 1)])


def cayley_pairs_core(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the core K of the Cayley transform of a sum of turns, each in the plane of a pair of rows.

    .. math:: (I - S/2)^{-1} (I + S/2) = I + P^T K P, \qquad S = \sum_i t_i (a_i^T b_i - b_i^T a_i), \qquad
              K = N^{-1} \left(J^T - \tfrac{1}{2} T N^{-1} P P^T N^{-1}\right)^{-1} T N^{-1}

    with the rows ``a_1, b_1, a_2, b_2, ...`` in P, their lengths on the diagonal of N, ``t_i |a_i| |b_i|`` twice each
    on that of T, and the block [[0, 1], [-1, 0]] for each pair in J. The rows may be any; no real S makes it singular.

    Args:
        p: shape (2k, d).
        t: shape (k,).

    Returns:
        K, shape (2k, 2k), and ``|N K N|``, a scalar to which rounding errors of the transform are proportional; both
        differentiable. Cost O(d k^2), with an inverse of size 2k; no host synchronisation.

    Source: Wen and Yin (2013), lemma 4, with both factors built of the same rows.

    Example:
        >>> p = torch.eye(2)  # a turn of t = 2 in the plane of e_1 and e_2 is one by a right angle
        >>> k, size = cayley_pairs_core(p, torch.tensor([2.0]))
        >>> (torch.eye(2) + p.T @ k @ p).round(decimals=5) + 0.0
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    k = len(t)
    gram = p @ p.t()
    shrink = gram.diagonal().clamp_min(torch.finfo(p.dtype).tiny).rsqrt()
    angles = (t.unsqueeze(1) / shrink.view(k, 2).prod(1, keepdim=True)).expand(k, 2).reshape(2 * k)
    system = gram * (-0.5 * angles * shrink).unsqueeze(1) * shrink
    system.diagonal(1)[::2].sub_(1)
    system.diagonal(-1)[::2].add_(1)
    core = torch.linalg.inv_ex(system).inverse * angles
    return core * shrink.unsqueeze(1) * shrink, torch.linalg.vector_norm(core)


def reflections_core(p: Tensor) -> Tensor:
    r"""Return the core K of a product of k pairs of Householder reflections that cancel at ``h = 0``.

    .. math:: H_{v_1} \cdots H_{v_k} H_{w_1} \cdots H_{w_k} = I - P^T K P, \qquad w_i = v_i + h_i, \qquad
              P = \binom{h}{v}, \qquad H_w = I - 2 \frac{w w^T}{|w|^2}

    Args:
        p: the k rows of h, then the k orthonormal rows of v, shape (2k, d). An error e of their orthonormality costs
            one of e^2, as in `cayley_core`.

    Returns:
        Shape (2k, 2k), differentiable; not finite where a row of w is 0. Cost O(d k^2), no host synchronisation.

    Source: compact WY form, Joffrain et al. (2006), in rows that differ little when h is small.

    Example:
        >>> p = torch.eye(2)  # mirrors at half a right angle to each other turn by a right angle
        >>> torch.eye(2) - p.T @ reflections_core(p) @ p
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    h, v = p.chunk(2)
    w = h + v
    gram = w @ w.t()
    t = small_inverse(gram.triu(1) + (0.5 * gram.diagonal()).diag())
    eye = torch.eye(len(w), dtype=p.dtype, device=p.device)
    twice = 2 * (2 * eye - v @ v.t())
    lower = t - twice @ (v @ w.t()) @ t
    return torch.cat([torch.cat([t, t], 1), torch.cat([lower, lower + twice], 1)])


def skew_sketch(y: Tensor, g: Tensor, omega: Tensor) -> Tensor:
    r"""Sketch the directions v along which ``u^T v - v^T u`` follows the skew gradient of a rotation.

    .. math:: V = \Omega\, y^T g, \qquad X = g^T y - y^T g

    X has twice the rank of ``g^T y``, but vanishes between directions that are orthogonal to all rows of g: with a v
    that spans these, some u gives all of X. Neither matrix is formed.

    Args:
        y: what was rotated, shape (batch, d); turned by any rotation it serves as well, for omega is isotropic.
        g: gradient of the loss there, shape (batch, d); y and g may be exchanged.
        omega: random rows, shape (k, d).

    Returns:
        Rows that span the sketch, shape (k, d). Cost for max(128, 4 k) evenly spaced samples of the batch: twice
        samples d k.

    Source: method of p4lab; the range finder is that of Halko, Martinsson, Tropp (2011), algorithm 4.1.
    """
    every = max(1, len(y) // max(FEWEST_SAMPLES, 4 * len(omega)))
    return (omega @ y[::every].t()) @ g[::every]


def moved_momentum(momentum: Tensor, old: Tensor, new: Tensor) -> Tensor:
    r"""Express the momentum of u, along directions v that are redrawn, in the new ones.

    u's gradient is ``v X`` with the skew gradient X of the rotation, so that an average m over old directions knows X
    on their span, and, X being skew, on the span's complement towards it:

    .. math:: m \leftarrow v_{new} \hat X, \qquad
              \hat X = v_{old}^T m - m^T v_{old} + v_{old}^T (v_{old} m^T) v_{old}

    Args:
        momentum: m, shape (k, d).
        old: orthonormal rows, shape (k, d).
        new: orthonormal rows, shape (k, d).

    Returns:
        Shape (k, d). Cost O(d k^2).

    Source: method of p4lab; the rule is that of arXiv:2010.07033, section 2.3, for directions that overlap.
    """
    overlap = new @ old.t()
    across = new @ momentum.t() - overlap @ (old @ momentum.t())
    return overlap @ momentum - across @ old
