"""P4Inv: square linear layers that always know their inverse and determinant."""

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import (
    capacitance,
    factorized,
    inverse_and_det,
    refined_inverse,
    row_space_sketch,
    small_inverse,
    small_slogdet,
    wide_residual,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import Total, full_precision
from p4lab.p4.linear import (
    ILL_CONDITIONED,
    INACCURATE,
    LARGEST_CONDITION_EPS,
    LARGEST_DEFECT,
    MIN_FACTOR,
    NEARLY_SINGULAR,
    NOT_FINITE,
    RESETS,
    P4Factored,
    Reset,
    add_low_rank,
)
from p4lab.p4.report import Check
from p4lab.p4.tracked import TrackedInverse
from p4lab.p4.watch import Batch

LARGEST_ROUNDING = 1.0
"""A merge is refused above this rounding that it would add to A A^-1 - I."""


class P4Inv(TrackedInverse, P4Factored):
    r"""Linear layer with invertible weights, trained by rank-k perturbations of a frozen matrix.

    .. math:: y = W x + b, \qquad W = A + u^T v, \qquad
              W^{-1} = A^{-1} - A^{-1} u^T C^{-1} q, \qquad \det W = \det A \, \det C, \qquad C = I_k + q u^T,\; q = v
              A^{-1}

    A, its inverse, sign and log|det| are buffers; ``u`` and ``bias`` (and ``v`` with ``train_v=True``) are parameters
    of shape (k, d), (d,) and (k, d). `merge` moves ``u^T v`` into A and redraws ``v``.

    Args:
        dim: width d.
        rank: number k of rank-one terms, at least 1 (no more than d of them are kept). The paper has 1.
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or an invertible (d, d) tensor.
        reset: how ``v`` is redrawn: "gaussian" (the paper) or "gradient" (orthonormal, from a sketch of the weight
            gradient of the last backward pass; orthonormal and random where there was none); or "identity": with
            ``rank >= dim`` it is the identity and stays so.
        train_v: whether ``v`` trains along with ``u`` (the paper) or stays fixed between merges: then W is linear in
            what is trained, and log|det| costs O(d k^2).
        min_factor: smallest singular value of C (by the bound 1/|C^-1|_F; |f| for k = 1) that a merge accepts; 0
            switches skipping off.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from (None: torch's default
            generator).
        device: device of all tensors.
        dtype: float32 or float64.

    Attributes:
        refine_order: order of the refinement that a merge schedule asks for, 2, 3 or 7 (may be set at any time).

    Raises:
        OptionError: dim, rank, reset, init, min_factor out of range.
        ShapeError, SingularMatrixError: ``init`` is a tensor that is not square, not finite or not invertible in
            ``dtype``.
        DtypeError: a dtype other than float32 and float64, or ``init`` is neither a name nor a tensor.

    Cost for a batch of B: forward and backward 2 B d^2 + O(B d k) multiply-adds (an `nn.Linear` has 3 B d^2); merge
    O(d^2 k). No d x d tensor is made in forward or backward.

    Source: arXiv:2010.07033, section 2; rank k, the gradient reset and the skip rule are p4lab's.

    Example:
        >>> layer = P4Inv(3, rank=2, seed=0)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        True
        >>> bool(layer.merge())
        True
    """

    resets: ClassVar[tuple[Reset, ...]] = (*RESETS, "identity")
    checks: ClassVar[tuple[Check, ...]] = (
        NOT_FINITE,
        NEARLY_SINGULAR,
        ILL_CONDITIONED,
        INACCURATE,
    )
    q: Tensor | None

    def __init__(
        self,
        dim: int,
        rank: int = 1,
        bias: bool = True,
        init: str | Tensor = "identity",
        reset: Reset = "gaussian",
        train_v: bool = False,
        min_factor: float = MIN_FACTOR,
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(min_factor, dim, dim, rank, bias, reset, seed, device, dtype)
        if reset == "identity" and train_v:
            raise OptionError("reset='identity' with train_v=True: u alone reaches every matrix, and v has to stay")
        self.train_v, self.refine_order = train_v, 3
        kind = self.kind
        self.freeze(init)
        self.u = nn.Parameter(torch.zeros(self.rank, dim, **kind))
        v = torch.zeros(self.rank, dim, **kind)
        if train_v:
            self.v = nn.Parameter(v)
            self.register_buffer("q", None)
        else:
            self.register_buffer("v", v)
            self.register_buffer("q", torch.zeros(self.rank, dim, **kind))
        self._fit_slots()
        self.reset()

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim_in)
        # Looked up directly: a module takes its time to find a tensor by name, and this runs in every step.
        parameters, buffers = self._parameters, self._buffers
        if self._reset_kind == "identity":  # u is as large as W: two products fewer
            return self._ordered(F.linear(x, self.weight, parameters["bias"]))
        v = cast(Tensor, (parameters if self.train_v else buffers)["v"])
        y = F.linear(x, cast(Tensor, buffers["frozen_weight"]), parameters["bias"])
        return self._watched(x, add_low_rank(y, F.linear(x, v), cast(Tensor, parameters["u"])))

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable; not finite where W is exactly singular.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        q, c_inv = self._q_and_c_inv()
        r = y if self.bias is None else y - self.bias
        x = F.linear(add_low_rank(r, F.linear(F.linear(r, q), c_inv), self.u, alpha=-1), self.frozen_inverse)
        return self._watched(x, x, inverted=True)

    @full_precision
    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar in float64; -inf where W is exactly singular.

        Cost O(d k^2), or O(d^2 k) with ``train_v=True``. On devices without float64 (mps) it is float32.
        """
        return self.frozen_logabsdet + small_slogdet(capacitance(self._q(), self.u))[1]

    @full_precision
    def sign(self) -> Tensor:
        """Return the sign of det W, a scalar (0 where W is exactly singular)."""
        with torch.no_grad():
            return self.frozen_sign * small_slogdet(capacitance(self._q(), self.u))[0]

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights ``A + u^T v``, shape (d, d), differentiable. Cost O(d^2 k)."""
        return torch.addmm(self.frozen_weight, self.u.t(), self.v)

    @property
    @full_precision
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable. Cost O(d^2 k)."""
        q, c_inv = self._q_and_c_inv()
        return torch.addmm(self.frozen_inverse, F.linear(self.frozen_inverse, self.u), c_inv @ q, alpha=-1)

    @full_precision
    def penalty(self, strength: float = 0.1, floor: float = -2.0, ceiling: float = 15.0) -> Tensor:
        r"""Return a barrier against vanishing and exploding determinants, a differentiable scalar.

        .. math:: s \sum_{l} \mathrm{relu}(f - l)^2 + \mathrm{relu}(l - c)^2, \qquad
                  l \in \{-\ln\|C^{-1}\|_F,\; \tfrac{1}{d} \ln|\det W|\}

        For k = 1 the first term is the paper's ``ln|1 + v^T A^-1 u|``; the second is judged per dimension, so that it
        does not depend on d. A pure function of the layer: nothing is stored.

        Args:
            strength: s.
            floor: f, nats.
            ceiling: c, nats.

        Cost as `logabsdet`. Source: arXiv:2010.07033, section 2.3.
        """
        c = capacitance(self._q(), self.u)
        c_inv, _, logabsdet = inverse_and_det(c)
        # linalg's norm is not differentiable at 0, which C^-1 never is.
        direction = -torch.linalg.vector_norm(c_inv).log()
        levels = torch.stack([direction, ((self.frozen_logabsdet + logabsdet) / self.dim).to(direction.dtype)])
        return strength * ((floor - levels).relu().square() + (levels - ceiling).relu().square()).sum()

    def thresholds(self) -> tuple[float, ...]:
        """Return the limits of all checks but the first; without ``min_factor`` there are none."""
        checked = (LARGEST_ROUNDING, LARGEST_DEFECT) if self.min_factor > 0 else (math.inf, math.inf)
        return (*super().thresholds(), *checked)

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        """Return the trained parameters that a merge resets: u, and v if it trains."""
        return (self.u, *self.directions())

    def directions(self) -> tuple[nn.Parameter, ...]:
        """Return v if it trains."""
        return (cast(nn.Parameter, self.v),) if self.train_v else ()

    def _absorb(self) -> Changes:
        # Judged by the capacitance matrix, and by the inverse's error along u^T v. Cost O(d^2 k), no d x d temporary.
        a, a_inv, u, v, q = self.frozen_weight, self.frozen_inverse, self.u, self.v, self._q()
        wide = self.frozen_logabsdet.dtype
        ut = u.t()
        # Refined once with a wide residual: log|det| then drifts with the rounding of A only.
        p = (a_inv @ ut).to(wide)
        defect = wide_residual(a, p, ut).to(u.dtype)
        p = p + (a_inv @ defect).to(wide)
        c = capacitance(v.to(wide), p.t())
        c_inv, sign, logabsdet = inverse_and_det(c)
        p = (p @ c_inv).to(u.dtype)
        u_norm, v_norm, p_norm, q_norm, defect_norm, c_inv_norm = map(
            torch.linalg.vector_norm, (u, v, p, q, defect, c_inv)
        )
        # A and A^-1 change by u^T v and p q; their product rounds by eps times both, at any scale of A and any d.
        rounding = torch.finfo(u.dtype).eps * (u_norm * v_norm) * (p_norm * q_norm)
        if u.dtype == wide:
            # A nearly singular A makes A^-1 u^T huge, and in float64 there is nothing wider for it to cancel in: p then
            # misses (A + u^T v)^-1 u^T, and q multiplies what it misses.
            missing = torch.linalg.vector_norm(ut - a @ p - ut @ (v @ p))
            rounding = torch.maximum(rounding, missing * q_norm)
        size, defect_norm = u_norm + v_norm + defect_norm, defect_norm / (u_norm + torch.finfo(u.dtype).tiny)
        report = self.judge((), c_inv_norm, rounding, defect_norm, size=size)
        # Without a trained v, v and q are finite by construction and need no mask.
        zero = torch.zeros((), dtype=u.dtype, device=u.device)
        accepted, changes = report.accepted, Changes(report)
        ut, p = torch.where(accepted, ut, zero), torch.where(accepted, p, zero)
        if self.train_v:
            v, q = torch.where(accepted, v, zero), torch.where(accepted, q, zero)
        changes.absorb_product(a, ut, v)
        changes.absorb_product(a_inv, p, q, alpha=-1)
        changes.absorb(self.frozen_sign, self.frozen_sign * sign.to(u.dtype))
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + logabsdet)
        return changes

    def _absorb_anew(self) -> Changes:
        # Neither A^-1 nor its digits are needed: A + u^T v is factorized in the wide dtype. Cost O(d^3).
        wide = self.frozen_logabsdet.dtype
        w = torch.addmm(self.frozen_weight.to(wide), self.u.t().to(wide), self.v.to(wide))
        inverse, sign, logabsdet, condition = factorized(w)
        eps = torch.finfo(self.u.dtype).eps
        before = torch.linalg.vector_norm(self.frozen_weight) * torch.linalg.vector_norm(self.frozen_inverse)
        # Nearer to a singular matrix than the dtype can tell is only refused if it is no way out of there.
        worse = torch.minimum(condition * eps / LARGEST_CONDITION_EPS, condition / before.to(wide))
        report = self.judge((w, inverse), *(worse * limit for limit in self.thresholds()))
        changes = Changes(report)
        changes.absorb(self.frozen_weight, w.to(self.u.dtype))
        self._plan_factors(changes, inverse, sign, logabsdet)
        return changes

    def shrink(self, changes: Changes, factor: float | Tensor) -> None:
        """Plan ``W <- factor W``. Cost O(d^2), in place."""
        super().shrink(changes, factor)
        # Where the merge is refused u^T v stays, and shrinks with A.
        factor = torch.as_tensor(factor, dtype=self.u.dtype, device=self.u.device)
        changes.scale(self.u, factor)
        if self.q is not None:
            changes.scale(self.q, 1 / factor)

    def correct(self) -> Tensor:
        """Return ``refine(refine_order)``: the correction step of the P4 contract."""
        return self.refine(self.refine_order)

    @torch.no_grad()
    @full_precision
    def refine(self, order: int = 3) -> Tensor:
        """Improve the frozen inverse by one hyperpower step and return ``max |A A^-1 - I|`` after it.

        Args:
            order: 2, 3 or 7.

        Returns:
            Scalar tensor; 1 or more says that the step would not have converged and nothing was done (then:
            `recompute`).

        Raises:
            OptionError: unknown order.

        Cost O(d^3): 3, 4 or 6 products. Source: arXiv:2010.07033, section 2.3.
        """
        changes = Changes()
        inverse, error = refined_inverse(self.frozen_weight, self.frozen_inverse, order)
        changes.put(self.frozen_inverse, inverse)
        self._plan_followers(changes)
        self._refusals.alarm(changes, error)
        changes.commit()
        return error

    # --- inside ------------------------------------------------------------------------------------------------------

    def _q(self) -> Tensor:
        return self.v @ self.frozen_inverse if self.q is None else self.q

    @full_precision
    def _q_and_c_inv(self) -> tuple[Tensor, Tensor]:
        q = self._q()
        return q, small_inverse(capacitance(q, self.u))

    def _plan_followers(self, changes: Changes) -> None:
        if self.q is not None:
            changes.follow(self.q, self.v, self.frozen_inverse)

    def set_directions(self, changes: Changes, v: Tensor) -> None:
        """Plan new directions, and ``q = v A^-1``."""
        super().set_directions(changes, v)
        if self.q is not None:
            changes.follow(self.q, v, self.frozen_inverse)

    def _new_directions(self, generator: torch.Generator, changes: Changes, total: Total) -> Tensor:
        if self._reset_kind == "identity":
            return torch.eye(self.dim, **self.kind)
        return super()._new_directions(generator, changes, total)

    def _frame(self, rows: Tensor, omega: Tensor) -> Tensor:
        # The paper's random directions are not orthonormal.
        return omega if self._reset_kind == "gaussian" else super()._frame(rows, omega)

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span the dominant row space of the weight gradient (`p4lab.linalg.row_space_sketch`)."""
        x, g, inverted = batch

        def pull(rows: Tensor) -> Tensor:
            # Trained through the inverse, W sees the gradient -W^-T g x^T: the sketch of g^T x needs W^-1 W^-T between.
            return F.linear(changes.product(rows, self.frozen_inverse), self.frozen_inverse)

        return row_space_sketch(x, g, omega, pull if inverted else None)

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        bias = self.bias is not None
        return f"dim={self.dim}, rank={self.rank}, bias={bias}, reset={self.reset_kind!r}, train_v={self.train_v}"
