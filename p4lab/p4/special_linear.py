"""P4 on the special linear group: linear layers that preserve volume, by shears."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from p4lab.errors import OptionError, SingularMatrixError
from p4lab.linalg import (
    factorized,
    gradient_rows,
    initial_matrix,
    inverse_and_logabsdet,
    orthonormal_rows,
    orthonormalized_rows,
    refined_inverse,
    residual,
    unit_determinant,
    usable_rows,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import Total, full_precision
from p4lab.p4.linear import LARGEST_CONDITION_EPS, NOT_FINITE, Reset, VolumePreserving, add_low_rank, widest
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.validate import check_tensor
from p4lab.p4.watch import Batch

LARGEST_LOGABSDET = 1e-4
"""A start counts as volume preserving up to this ``|log|det A||`` for each dimension."""
LARGEST_ROUNDING = 1e-2
"""A merge is refused above this rounding that it would add to A A^-1 - I."""
ROUNDING = Check(
    MergeStatus.SKIPPED_INACCURATE,
    "rounding error that merging would bring to |A A^-1 - I|; the perturbation stays and trains on",
)
"""The merge is judged by what rounding does to the inverse."""


class P4SpecialLinear(VolumePreserving):
    r"""Linear layer that preserves volume, ``|det W| = 1``, trained by shears of a frozen matrix.

    .. math:: y = W x + b, \qquad W = (I + N) A, \qquad N = \bar u^T v, \qquad \bar u = u (I - v^T v), \qquad
              W^{-1} = A^{-1} (I - N)

    v (k orthonormal rows) is a buffer, ``u`` of shape (k, d) is a parameter whose part in the span of v does nothing:
    then ``v \bar u^T = 0``, so that N^2 = 0, ``det(I + N) = 1`` for any u, and the inverse is known. No u is singular,
    which is why shears were chosen: P4Inv divided by ``|det|^(1/d)`` has the same reach, but a wall at det = 0 between
    merges, and a factor in front of every step. Shears (transvections) generate SL(d); those of one merge cannot
    stretch along their own directions, so a gradient reset takes v as a random half of k of the gradient's directions
    and of k others.
    The sign of det W is that of the start. Rounding moves det A by about ``eps cond(A)`` in each merge: a target that
    plain descent would reach through det = 0 only drives A to large condition numbers.

    Args:
        dim: width d.
        rank: number k of shears, at least 1 (no more than d / 2 of them are kept).
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or a (d, d) tensor of determinant 1 or -1.
        reset: how ``v`` is redrawn: "gaussian" (a random frame) or "gradient" (from a sketch of the weight gradient of
            the last backward pass; random where there was none).
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from (None: torch's default
            generator).
        device: device of all tensors.
        dtype: float32 or float64.

    Raises:
        OptionError: dim, rank, reset, init out of range, or a tensor of another determinant.
        ShapeError, SingularMatrixError: ``init`` is a tensor that is not square, not finite or not invertible.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward and backward 2 B d^2 + O(B d k + d k^2) multiply-adds (an `nn.Linear` has 3 B d^2);
    merge O(d^2 k); correction O(d^3). No d x d tensor is made in forward or backward.

    Source: P4 is arXiv:2010.07033; this family is p4lab's. Use: temperature-steerable flows (arXiv:2108.01590).

    Example:
        >>> layer = P4SpecialLinear(4, rank=2, seed=0)
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        True
        >>> bool(layer.merge())
        True
    """

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE, ROUNDING)
    frozen_weight: Tensor
    frozen_inverse: Tensor

    def __init__(
        self,
        dim: int,
        rank: int = 8,
        bias: bool = True,
        init: str | Tensor = "identity",
        reset: Reset = "gaussian",
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, dim, rank, bias, reset, seed, device, dtype)
        kind = self.kind
        if isinstance(init, str):
            a = initial_matrix(init, dim, self.generator)
            a_inv, sign = a.t(), torch.linalg.slogdet(a).sign
        else:
            a, a_inv, sign = unimodular_start(init, dim, kind["dtype"])
        self.register_buffer("frozen_weight", a.to(**kind).clone().contiguous())
        self.register_buffer("frozen_inverse", a_inv.to(**kind).clone().contiguous())
        self.register_buffer("frozen_sign", sign.to(**kind))
        self._open(dim)

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim)
        z = F.linear(x, self.frozen_weight, self.bias)
        s = F.linear(z, self.v, None if self.bias is None else -(self.v @ self.bias))
        return self._watched(z, add_low_rank(z, s, self._sheared()))

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        z = self._remembered(r, add_low_rank(r, F.linear(r, self.v), self._sheared(), alpha=-1), inverted=True)
        return self._ordered(F.linear(z, self.frozen_inverse))

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights ``(I + N) A``, shape (d, d), differentiable. Cost O(d^2 k)."""
        return torch.addmm(self.frozen_weight, self._sheared().t(), self.v @ self.frozen_weight)

    @property
    @full_precision
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable. Cost O(d^2 k)."""
        return torch.addmm(self.frozen_inverse, self.frozen_inverse @ self._sheared().t(), self.v, alpha=-1)

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def largest_rank(self) -> int:
        """Return d / 2: shears map the span of v to the rest, and that of all vectors to nothing."""
        return max(1, self.dim // 2)

    def thresholds(self) -> tuple[float, ...]:
        """Return the largest rounding error that a merge may bring."""
        return (LARGEST_ROUNDING,)

    def _absorb(self) -> Changes:
        # Judged by the rounding that it would bring. Cost O(d^2 k), no d x d temporary.
        v = self.v
        # v is orthonormal to rounding only: a second projection, in the wide dtype, leaves no more than u's rounding.
        wide_v = v.to(widest(v.device))
        u = _outside(_outside(self.u.to(wide_v.dtype), wide_v), wide_v).to(v.dtype)
        p, q = self.frozen_inverse @ u.t(), v @ self.frozen_weight
        size = torch.linalg.vector_norm(u) * torch.linalg.vector_norm(q)
        rounding = torch.finfo(v.dtype).eps * size * torch.linalg.vector_norm(p) * torch.linalg.vector_norm(v)
        report = self.judge((p,), rounding)
        changes = Changes(report)
        zero = torch.zeros((), dtype=v.dtype, device=v.device)
        u, p = torch.where(report.accepted, u, zero), torch.where(report.accepted, p, zero)
        changes.absorb_product(self.frozen_weight, u.t(), q)
        changes.absorb_product(self.frozen_inverse, p, v, alpha=-1)
        return changes

    def _absorb_anew(self) -> Changes:
        # (I + N) A in the wide dtype, its determinant set to 1 and its inverse factorized anew. Cost O(d^3).
        wide = widest(self.u.device)
        v = self.v.to(wide)
        w = self.frozen_weight.to(wide)
        w = torch.addmm(w, _outside(self.u.to(wide), v).t(), v @ w)
        inverse, _, _, condition = factorized(w)
        w, inverse, error = unit_determinant(w, inverse)
        eps = torch.finfo(self.u.dtype).eps
        before = torch.linalg.vector_norm(self.frozen_weight) * torch.linalg.vector_norm(self.frozen_inverse)
        worse = torch.minimum(condition * eps / LARGEST_CONDITION_EPS, condition / before.to(wide))
        changes = Changes(self.judge((w, inverse, error), worse * LARGEST_ROUNDING))
        changes.absorb(self.frozen_weight, w.to(self.u.dtype))
        changes.absorb(self.frozen_inverse, inverse.to(self.u.dtype))
        return changes

    def nearest(self, weight: Tensor) -> Tensor:
        """Return a given matrix, shape (d, d), divided by ``|det|^(1/d)``. Cost O(d^3).

        Raises:
            SingularMatrixError: it is singular or not finite.
        """
        wide = super().nearest(weight)
        logabsdet = torch.linalg.slogdet(wide).logabsdet
        if not bool(torch.isfinite(logabsdet)):
            raise SingularMatrixError("a singular matrix has no multiple of determinant 1: take an invertible one")
        return wide * (-logabsdet / self.dim).exp()

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the given matrix, of shape (d, d) and determinant 1 or -1, with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError, OptionError: it is not square, not finite, singular or of another
                determinant; the layer is left as it was.

        Cost O(d^3).
        """
        changes = Changes()
        targets = self.frozen_weight, self.frozen_inverse, self.frozen_sign
        for target, value in zip(targets, unimodular_start(weight, self.dim, self.u.dtype), strict=True):
            changes.put(target, value.to(target))
        self._restart(changes)

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return ``|log|det A||`` of the frozen matrix, factorized anew in float64. Cost O(d^3)."""
        return torch.linalg.slogdet(self.frozen_weight.to(widest(self.u.device))).logabsdet.abs()

    @torch.no_grad()
    @full_precision
    def inverse_error(self) -> Tensor:
        """Return ``max |A A^-1 - I|``. Cost O(d^3)."""
        return residual(self.frozen_weight, self.frozen_inverse)

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Scale one row of A so that ``|det A| = 1``, refine A^-1 by one step, and return ``|log|det A||``.

        Cost O(d^3). What is taken off is rounding, about ``eps sqrt(d)`` for each merge since the last correction.
        """
        weight, inverse, error = unit_determinant(self.frozen_weight, self.frozen_inverse)
        changes = Changes()
        changes.put(self.frozen_weight, weight)
        inverse, residual_left = refined_inverse(weight, inverse)
        changes.put(self.frozen_inverse, inverse)
        self._refusals.alarm(changes, residual_left)
        changes.commit()
        return error

    @torch.no_grad()
    @full_precision
    def recompute(self) -> Tensor:
        """Correct the determinant, factorize the frozen matrix anew for its inverse, and return ``|log|det A||``.

        The rows of v are made orthonormal anew: a cast up left them so to the digits of the narrow dtype only.
        Cost O(d^3).
        """
        weight, inverse, error = unit_determinant(self.frozen_weight, self.frozen_inverse)
        exact = factorized(weight.to(widest(self.u.device)))[0].to(weight.dtype)
        changes = Changes()
        changes.put(self.frozen_weight, weight)
        changes.put(self.frozen_inverse, torch.where(torch.isfinite(exact).all(), exact, inverse))
        changes.put(self.v, orthonormalized_rows(self.v)[0])
        changes.commit()
        return error

    # --- inside ------------------------------------------------------------------------------------------------------

    def _seen_of_identity(self) -> Tensor:
        rows = self.frozen_weight.t()
        return rows if self.bias is None else rows + self.bias  # as a batch: z, without the part of the shear

    @full_precision
    def _sheared(self) -> Tensor:
        return _outside(self.u, self.v)

    def _new_directions(self, generator: torch.Generator, changes: Changes, total: Total) -> Tensor:
        # Of 2k directions v takes a random k-dimensional part: shears map v's span to the rest, so a stretch along
        # dominant directions (a symmetric gradient) can only be reached if v does not contain them all.
        k, count = self.rank, min(2 * self.rank, self.dim)
        omega = rows = self._noise(generator, count)
        mix = torch.randn(k, count, generator=generator, dtype=omega.dtype, device="cpu").to(omega.device)
        if self.reset_kind == "gradient":
            sketch = self._sketched(omega[:k], changes, total)
            rows = torch.cat((usable_rows(sketch, fallback=omega[:k]), omega[k:]))
        return orthonormal_rows(mix @ torch.linalg.qr(rows.t()).Q.t(), fallback=omega[:k])

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows ``omega G`` with the gradient G by E in ``W <- (I + E) W``."""
        # G = g^T y; of a batch through the inverse it is -(g W^-1 W)^T y with the gradient g at z = (I - N) r, taken
        # back to r.
        z, g, inverted = batch
        u = self._sheared()
        if inverted:
            return gradient_rows(torch.addmm(g, g @ u.t(), self.v, alpha=-1), z, omega)
        z = z if self.bias is None else z - self.bias
        return gradient_rows(g, torch.addmm(z, z @ self.v.t(), u), omega)


def unimodular_start(init: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return a user's matrix, scaled to ``|det| = 1`` exactly, its inverse and sign, in float64 on the CPU.

    Raises:
        DtypeError: no tensor.
        ShapeError, SingularMatrixError: not a (d, d) matrix, not finite, or singular.
        OptionError: ``|log|det||`` above 1e-4 d.

    Cost O(d^3).
    """
    check_tensor("init", init)
    inverse, sign, logabsdet = inverse_and_logabsdet(init, dim, dtype)
    if not float(logabsdet.abs()) <= LARGEST_LOGABSDET * dim:
        raise OptionError(
            f"init has log|det| = {float(logabsdet):.3g} in {dim} dimensions, expected 0: "
            "divide it by |det|^(1/d), or take P4Inv"
        )
    scale = (logabsdet / dim).exp()
    return init.detach().to("cpu", torch.float64) / scale, inverse * scale, sign


def _outside(u: Tensor, v: Tensor) -> Tensor:
    """Return the part of the rows u that is orthogonal to the orthonormal rows v."""
    return torch.addmm(u, u @ v.t(), v, alpha=-1)
