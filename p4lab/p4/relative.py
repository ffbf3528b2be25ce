"""P4Relative: invertible linear layers that follow the whole gradient of a batch, in the frame of their outputs."""

import math
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import (
    capacitance,
    factorized,
    initial_matrix,
    inverse_and_det,
    inverse_and_logabsdet,
    refined_inverse,
    residual,
    small_inverse,
    small_slogdet,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.following import Following, transformed_by_torch
from p4lab.p4.linear import MIN_FACTOR, NOT_FINITE, P4Factored, add_low_rank, widest
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.watch import check_order

TURN = 20.0
"""Narrow layers turn so many times as fast as they stretch, unless they are told otherwise (`p4lab.bench race`)."""
TOO_LONG = Check(
    MergeStatus.DISCARDED_SINGULAR,
    "R or 1/R: the step is too long, and is not taken; use a smaller learning rate",
)
"""A step that is too long is dropped: its directions belong to a batch that is gone."""


class P4Relative(Following, P4Factored):
    r"""Linear layer with invertible weights that descends along the whole gradient of a batch, relative to itself.

    .. math:: y = W x + b, \qquad W = R\,A, \qquad R = (1 + s)\, I + u^T q, \qquad
              \det R = (1 + s)^d \det\left(I_k + \tfrac{q u^T}{1 + s}\right)

    The gradient of a batch of B samples with outputs ``z = W x`` and gradients g at them has, in this frame, rank B but
    for a multiple of the identity: :math:`G W^T = g^T z + c I`, with ``c`` the gradient by log|det W|. So the rows of
    ``q`` are the outputs of the batch, set by its backward pass, and the gradients of u and s are the coordinates g and
    c of that matrix (its natural gradient: nothing is projected away). With plain descent a step and its merge are then
    the relative gradient's, for any condition of A, and the inverse and log|det| come along.

    A layer with ``rank >= dim`` needs no rows: ``q`` is the identity, u is all of a (d, d) matrix, any optimizer may
    train it, and R, which then turns t times as fast as it stretches, never changes the sign of the determinant:

    .. math:: R = I + N + \tfrac{1}{2} N^2, \qquad N = \tfrac{1 + t}{2} u^T + \tfrac{1 - t}{2} u

    (Likelihoods curve less along rotations than along scales.)

    Merge after each optimizer step (``every=1``): the next batch has other directions.

    Args:
        dim: width d.
        rank: number k of rows there is room for, those of all batches between merges; a batch that does not fit is
            folded into them with random signs, which keeps its gradient in the mean. No more than d are kept.
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or an invertible (d, d) tensor.
        turn: t, for layers with ``rank >= dim``.
        min_factor: a step is dropped if ``|R^-1|`` in the directions of the step exceeds its inverse; 0 drops none.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from (None: torch's default
            generator).
        device: device of all tensors.
        dtype: float32 or float64.

    Attributes:
        track_for: number of merges for which the inverse is tracked after it was last asked for: at first d / 2k, which
            cost as much as a factorization (may be set at any time).
        factorizations: how often the inverse was asked for when it was not up to date.

    Raises:
        OptionError: dim, rank, init, turn, min_factor out of range.
        ShapeError, SingularMatrixError: ``init`` is a tensor that is not square, not finite or not invertible in
        ``dtype``.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward and backward B d^2 (2 B d^2 with an input gradient), merge 2 B d^2 + O(B^2 d), twice
    that while the inverse is in use. It is tracked for ``track_for`` merges after it was last asked for; later it takes
    a factorization, O(d^3). No d x d tensor is made for ``rank < dim``.

    Source: relative gradient: Cardoso and Laheld (1996), arXiv:2006.15090; perturbation and merge: arXiv:2010.07033;
    their combination, the tracked inverse and the turn are p4lab's.

    Example:
        >>> layer = P4Relative(3, seed=0)
        >>> x = torch.randn(5, 3)
        >>> (layer(x).square().mean() - layer.logabsdet()).backward()
        >>> torch.optim.SGD(layer.parameters(), lr=0.1).step()
        >>> bool(layer.merge()), torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        (True, True)
    """

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE, TOO_LONG)
    wide_buffers: ClassVar[tuple[str, ...]] = ("frozen_logabsdet",)
    samples: ClassVar[str] = "the rows of u are samples and s stands for all of the diagonal"
    instead: ClassVar[str] = "P4Inv"

    frozen_weight: Tensor
    frozen_inverse: Tensor
    frozen_logabsdet: Tensor
    frozen_sign: Tensor
    q: Tensor
    s: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        rank: int = 64,
        bias: bool = True,
        init: str | Tensor = "identity",
        turn: float = TURN,
        min_factor: float = MIN_FACTOR,
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not turn > 0 or math.isinf(turn):
            raise OptionError(f"turn={turn!r}: expected a positive number, the speed of rotations to that of scales")
        super().__init__(min_factor, dim, dim, rank, bias, "gaussian", seed, device, dtype)
        self.turn, self.refine_order, self.factorizations = turn, 3, 0
        self.track_for = dim // (2 * self.rank)
        kind = self.kind
        if isinstance(init, str):
            a = initial_matrix(init, dim, self.generator)
            a_inv, (sign, logabsdet) = a.t(), torch.linalg.slogdet(a)
        else:
            a = init.detach()
            a_inv, sign, logabsdet = inverse_and_logabsdet(a, dim, kind["dtype"])
        self.register_buffer("frozen_weight", a.to(**kind).clone().contiguous())
        self.register_buffer("frozen_inverse", a_inv.to(**kind).clone().contiguous())
        self.register_buffer("frozen_sign", sign.to(**kind))
        self.register_buffer("frozen_logabsdet", logabsdet.to(kind["device"], widest(torch.device(kind["device"]))))
        self.u = nn.Parameter(torch.zeros(self.rank, dim, **kind))
        self.register_parameter("s", None if self.is_narrow else nn.Parameter(torch.zeros((), **kind)))
        self.register_buffer("q", torch.eye(dim, **kind) if self.is_narrow else torch.zeros(self.rank, dim, **kind))
        self._idle, self._stale = 0, False
        self.reset()

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim_in)
        if transformed_by_torch(x):
            y = F.linear(x, self.weight)
            return y if self.bias is None else y + self.bias
        bias = self._parameters["bias"]
        if self._is_merged():
            y = F.linear(x, self.frozen_weight, bias)
        elif self.is_narrow:
            y = F.linear(x, self.weight.detach(), bias)
        else:
            z = F.linear(x, self.frozen_weight)
            u, s = self.u.detach(), cast(Tensor, self.s).detach()
            y = add_low_rank(z * (1 + s), F.linear(z, self.q), u)
            y = y if bias is None else y + bias
        return self._followed(y, bias)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable; not finite where W is exactly singular.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        if transformed_by_torch(y):
            return F.linear(r, self.weight_inverse)
        r = self._followed(r.clone() if r is y else r, None, inverted=True)
        self._ask()
        if self._is_merged():
            return F.linear(r, self.frozen_inverse)
        if self.is_narrow:
            return F.linear(r, self.weight_inverse.detach())
        f, u = 1 + cast(Tensor, self.s).detach(), self.u.detach()
        c_inv = small_inverse(capacitance(self.q / f, u))
        r = add_low_rank(r, F.linear(F.linear(r, self.q), c_inv / f), u, alpha=-1)
        return F.linear(r / f, self.frozen_inverse)

    @full_precision
    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar in float64; -inf where W is exactly singular.

        Cost O(1) after a merge, else that of a merge. On devices without float64 (mps) it is float32.
        """
        if transformed_by_torch(self.u):
            return self.frozen_logabsdet + self._determinant()[1]
        value = self.frozen_logabsdet if self._is_merged() else self.frozen_logabsdet + self._determinant()[1].detach()
        return cast(Tensor, Pull.apply(value, self.u if self.s is None else self.s, self))

    @full_precision
    def sign(self) -> Tensor:
        """Return the sign of det W, a scalar (0 where W is exactly singular)."""
        with torch.no_grad():
            return self.frozen_sign.clone() if self._is_merged() else self.frozen_sign * self._determinant()[0]

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights, shape (d, d), differentiable by u and s themselves. Cost as a merge."""
        if self.is_narrow:
            return self._step().to(self.u.dtype) @ self.frozen_weight
        a, s = self.frozen_weight, cast(Tensor, self.s)
        return torch.addmm(a * (1 + s), self.u.t(), self.q @ a)

    @property
    @full_precision
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable by u and s. Cost as a merge."""
        self._ask()
        x = self.frozen_inverse
        if self.is_narrow:
            return x @ small_inverse(self._step()).to(self.u.dtype)
        f = 1 + cast(Tensor, self.s)
        c_inv = small_inverse(capacitance(self.q / f, self.u))
        return torch.addmm(x / f, F.linear(x, self.u), (c_inv / f.square()) @ self.q, alpha=-1)

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        """Return u, and s if there is one."""
        return (self.u,) if self.s is None else (self.u, self.s)

    def _absorb(self) -> Changes:
        changes = self._absorb_dense() if self.is_narrow else self._absorb_rows()
        changes.assign(self, _stale=not self._is_tracked(), _idle=self._idle + 1)
        return changes

    def _absorb_rows(self) -> Changes:
        # Cost 2 k d^2, twice that while the inverse is tracked; no d x d temporary.
        a, x, wide = self.frozen_weight, self.frozen_inverse, self.frozen_logabsdet.dtype
        u, q = (rows[: self._rows or len(rows)] for rows in (self.u, self.q))
        f = 1 + cast(Tensor, self.s)
        c_inv, sign, logabsdet = inverse_and_det(capacitance(q.to(wide) / f.to(wide), u.to(wide)))
        norm = torch.linalg.vector_norm
        report = self.judge((), norm(c_inv) / f.abs(), size=norm(u) + f.abs())
        changes, accepted = Changes(report), report.accepted
        zero, one = (torch.full((), value, dtype=u.dtype, device=u.device) for value in (0.0, 1.0))
        ut, f = torch.where(accepted, u.t(), zero), torch.where(accepted, f, one)
        # A batch that is not finite must leave A alone, and no trace in the rows: 0 times NaN is NaN.
        q = q.nan_to_num(0.0, 0.0, 0.0)
        changes.write(self.q, partial(self.q.nan_to_num_, 0.0, 0.0, 0.0))
        if self._is_tracked():
            left, right = x @ ut, torch.where(accepted, c_inv.to(u.dtype), zero) @ q
            changes.scale(x, 1 / f)
            changes.absorb_product(x, left / f.square(), right, alpha=-1)
        right = q @ a
        changes.scale(a, f)
        changes.absorb_product(a, ut, right)
        changes.absorb(self.frozen_sign, self.frozen_sign * sign.to(u.dtype) * f.sign() ** self.dim)
        grown = logabsdet + self.dim * f.to(wide).abs().log()
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + grown)
        return changes

    def _absorb_dense(self) -> Changes:
        # Cost O(d^3): for layers so narrow that a batch has as many samples as they have directions.
        step = self._step()
        pivots = torch.linalg.lu_factor_ex(step).LU.diagonal().abs()
        report = self.judge((), torch.maximum(pivots.min().reciprocal(), pivots.max()))
        changes, kind = Changes(report), self.u.dtype
        changes.absorb(self.frozen_weight, step.to(kind) @ self.frozen_weight)
        if self._is_tracked():
            changes.absorb(self.frozen_inverse, self.frozen_inverse @ small_inverse(step).to(kind))
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + pivots.log().sum())
        return changes

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the given matrix, of shape (d, d), with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError: it is not square, not finite or not invertible in the layer's dtype; the
                layer is left as it was.

        Cost O(d^3).
        """
        factors = inverse_and_logabsdet(weight, self.dim, self.u.dtype)
        changes = Changes()
        changes.put(self.frozen_weight, weight.detach().to(self.frozen_weight))
        self._plan_factors(changes, *factors)
        self._restart(changes)

    def shrink(self, changes: Changes, factor: float | Tensor) -> None:
        """Plan ``W <- factor W``. Cost O(d^2), in place."""
        factor = torch.as_tensor(factor, dtype=self.frozen_logabsdet.dtype, device=self.u.device)
        narrow = factor.to(self.u.dtype)
        changes.scale(self.frozen_weight, narrow)
        changes.scale(self.frozen_inverse, 1 / narrow)
        grown = self.dim * narrow.to(factor.dtype).log()
        changes.write(self.frozen_logabsdet, partial(self.frozen_logabsdet.add_, grown))

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return ``max |A A^-1 - I|``. Cost O(d^3)."""
        self._ask()
        return residual(self.frozen_weight, self.frozen_inverse)

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Improve the frozen inverse by one hyperpower step, and return ``max |A A^-1 - I|`` after it.

        An inverse that nobody asked for lately is left alone, for whoever asks gets a new one; then it returns 0. Cost
        O(d^3) or nothing. Source: arXiv:2010.07033, section 2.3.
        """
        if self._stale:
            return torch.zeros((), dtype=self.u.dtype, device=self.u.device)
        changes = Changes()
        inverse, error = refined_inverse(self.frozen_weight, self.frozen_inverse, self.refine_order)
        changes.put(self.frozen_inverse, inverse)
        changes.commit()
        return error

    @torch.no_grad()
    @full_precision
    def recompute(self) -> Tensor:
        """Factorize the frozen matrix anew for inverse, sign and log|det|, and return ``max |A A^-1 - I|``.

        If A itself is singular or not finite, nothing is changed and the returned residual says so. Cost O(d^3).
        """
        inverse, sign, logabsdet, _ = factorized(self.frozen_weight.to(self.frozen_logabsdet.dtype))
        usable = torch.isfinite(inverse).all() & torch.isfinite(logabsdet)
        changes = Changes()
        self._plan_factors(
            changes,
            torch.where(usable, inverse.to(self.u.dtype), self.frozen_inverse),
            torch.where(usable, sign.to(self.u.dtype), self.frozen_sign),
            torch.where(usable, logabsdet, self.frozen_logabsdet),
        )
        changes.commit()
        return residual(self.frozen_weight, self.frozen_inverse)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _plan_factors(self, changes: Changes, inverse: Tensor, sign: Tensor, logabsdet: Tensor) -> None:
        changes.put(self.frozen_inverse, inverse.to(self.frozen_inverse))
        changes.put(self.frozen_sign, sign.to(self.frozen_sign))
        changes.put(self.frozen_logabsdet, logabsdet.to(self.frozen_logabsdet))
        changes.assign(self, _stale=False, _idle=0)

    def _ask(self) -> None:
        """Have the frozen inverse up to date, and track it from now on."""
        if self._stale:
            self.factorizations += 1
            self.recompute()
        self._idle = 0

    def _is_tracked(self) -> bool:
        """Return whether the next merge updates the inverse."""
        return not self._stale and self._idle <= self.track_for

    def _followed(self, y: Tensor, bias: Tensor | None, inverted: bool = False) -> Tensor:
        """Return y, whose backward pass gives u the coordinates of the batch's gradient."""
        return cast(Tensor, Follow.apply(y, self.u, bias, self, inverted)) if self.follows() else y

    def take_rows(self, z: Tensor, g: Tensor) -> Tensor:
        """Make the outputs z of a batch rows of q, and return the gradient of u: g in the same rows, shape (k, d).

        Raises:
            MergeOrderError: there is no room left since the last merge.
        """
        z, g = self.fitted(z, g)
        place = self.claim(len(z))
        self.q[place].copy_(z)
        return F.pad(g, (0, 0, place.start, self.rank - place.stop))

    def _step(self) -> Tensor:
        """Return R of a layer with ``rank >= dim``, in the wide dtype."""
        u = self.u.to(self.frozen_logabsdet.dtype)
        n = torch.add(u.t() * ((1 + self.turn) / 2), u, alpha=(1 - self.turn) / 2)
        step = torch.addmm(n, n, n, alpha=0.5)
        return step + torch.eye(self.dim, dtype=u.dtype, device=u.device)

    def _determinant(self) -> tuple[Tensor, Tensor]:
        """Return sign and log|det| of R."""
        wide = self.frozen_logabsdet.dtype
        if self.is_narrow:
            sign, logabsdet = small_slogdet(self._step())
            return sign.to(self.u.dtype), logabsdet
        f = 1 + cast(Tensor, self.s).to(wide)
        sign, logabsdet = small_slogdet(capacitance(self.q.to(wide) / f, self.u.to(wide)))
        return (sign * f.sign() ** self.dim).to(self.u.dtype), logabsdet + self.dim * f.abs().log()

    # --- state -------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return what `Following.get_extra_state` does, and whether the inverse is out of date."""
        return {**super().get_extra_state(), "stale": torch.tensor(self._stale, device="cpu")}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Set what `get_extra_state` gave."""
        super().set_extra_state(state)
        self._stale, self._idle = bool(state["stale"]), 0

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        how = f"turn={self.turn:g}" if self.is_narrow else f"rank={self.rank}"
        return f"dim={self.dim}, {how}, bias={self.bias is not None}"


class Follow(torch.autograd.Function):
    """The output of a layer, untouched, whose backward pass gives u the coordinates of the gradient ``g^T z``."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, u: Tensor, bias: Tensor | None, layer: P4Relative, inverted: bool) -> Tensor:
        """Return y itself, not a view of it, so that operations in place may follow."""
        ctx.layer, ctx.inverted, ctx.redraws = layer, inverted, layer.redraws
        ctx.save_for_backward(y, bias)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient on; of a layer with rows, its batch becomes rows of q."""
        (gradient,), layer = gradients, ctx.layer
        check_order(layer, ctx.redraws)
        y, bias = ctx.saved_tensors
        z, g = (y if bias is None else y - bias).reshape(-1, layer.dim), gradient.reshape(-1, layer.dim)
        # Through the inverse, r = y - b is given and W r' = r: then G W^T is - g^T r.
        if layer.is_narrow:
            coordinates = -(z.t() @ g) if ctx.inverted else z.t() @ g
        else:
            coordinates = layer.take_rows(z.detach(), -g if ctx.inverted else g)
        return gradient, coordinates, None, None, None


class Pull(torch.autograd.Function):
    """log|det W| as a layer knows it, whose gradient c is the coordinate of the identity: ``c W^-T W^T = c I``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, parameter: Tensor, layer: P4Relative) -> Tensor:
        """Return the value."""
        ctx.layer, ctx.redraws = layer, layer.redraws
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return c for s, or c I for all of u."""
        (c,), u = gradients, ctx.layer.u
        check_order(ctx.layer, ctx.redraws)
        c = c.to(u.dtype)
        return None, c * torch.eye(len(u), dtype=u.dtype, device=u.device) if ctx.layer.is_narrow else c, None
