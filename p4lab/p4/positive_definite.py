"""P4PositiveDefinite: symmetric positive definite matrices that always know their inverse and determinant."""

import math
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.linalg import (
    better_of,
    capacitance,
    congruence,
    definite,
    definiteness_defect,
    gradient_rows,
    initial_matrix,
    inverse_and_det,
    inverse_and_logabsdet,
    operator_sketch,
    refined_inverse,
    small_inverse,
    small_slogdet,
    symmetric_update,
    symmetrized,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import Total, full_precision
from p4lab.p4.linear import (
    ILL_CONDITIONED,
    INACCURATE,
    LARGEST_DEFECT,
    MIN_FACTOR,
    NEARLY_SINGULAR,
    NOT_FINITE,
    P4Factored,
    Reset,
    add_low_rank,
    widest,
)
from p4lab.p4.report import Check
from p4lab.p4.validate import check_tensor
from p4lab.p4.watch import Batch, transformed

LARGEST_ROUNDING = 1.0
"""A merge is refused above this rounding that it would add to A A^-1 - I."""
LARGEST_ASYMMETRY = 1e-5
"""A start counts as symmetric up to this part of its largest entry."""
LIFTED = 1e-3
"""Of a matrix that is not definite, eigenvalues are lifted to this part of the largest one, by size."""
CHECKED_ROWS = 64
"""A merge looks at so many rows of A A^-1 - I, or some more, and the next merge at the next ones."""


class P4PositiveDefinite(P4Factored):
    r"""Linear layer with symmetric positive definite weights, trained by congruences.

    .. math:: y = W x + b, \qquad W = F^T A F, \quad F = I + u^T v, \qquad
              W^{-1} = F^{-1} A^{-1} F^{-T}, \quad F^{-1} = I - u^T C^{-1} v, \qquad
              \ln\det W = \ln\det A + 2 \ln|\det C|, \quad C = I_k + v u^T

    W is positive definite for every u with det C other than 0, and can grow as well as shrink. A, its inverse and its
    log-determinant are buffers; ``u`` and ``bias`` are trained; ``v`` has orthonormal rows and is redrawn by a merge.
    As a covariance it belongs to a normal distribution with mean b: see `log_density`; as a metric: `quadratic`.

    Args:
        dim: width d.
        rank: number k of rows of u, at least 1 (no more than d of them are kept).
        bias: whether there is an additive bias.
        init: "identity" or a symmetric positive definite (d, d) tensor.
        reset: how ``v`` is redrawn: "gaussian" (random) or "gradient" (from a sketch of the gradient of the last
            backward pass, that of the log-determinant included).
        min_factor: smallest singular value of C (by the bound 1/|C^-1|_F) that a merge accepts; 0 switches skipping
            off.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from.
        device: device of all tensors.
        dtype: float32 or float64.

    Attributes:
        refine_order: order of the inverse's refinement in `correct`, 2, 3 or 7 (may be set at any time).

    Raises:
        OptionError: dim, rank, reset, init or min_factor out of range, or an ``init`` that is not symmetric.
        ShapeError, SingularMatrixError: ``init`` has another shape, or is not positive definite in ``dtype``.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward and backward 2 B d^2 + O(B d k) multiply-adds; merge O(d^2 k); `correct` O(d^3).

    Source: P4 scheme arXiv:2010.07033; the family is p4lab's.

    Example:
        >>> layer = P4PositiveDefinite(3, rank=2, seed=0)
        >>> normal = torch.distributions.MultivariateNormal(layer.bias, layer.weight)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer.log_density(x), normal.log_prob(x), atol=1e-5)
        True
    """

    checks: ClassVar[tuple[Check, ...]] = (
        NOT_FINITE,
        NEARLY_SINGULAR,
        ILL_CONDITIONED,
        INACCURATE,
    )
    wide_buffers: ClassVar[tuple[str, ...]] = ("frozen_logabsdet",)

    frozen_weight: Tensor
    frozen_inverse: Tensor
    frozen_logabsdet: Tensor

    def __init__(
        self,
        dim: int,
        rank: int = 1,
        bias: bool = True,
        init: str | Tensor = "identity",
        reset: Reset = "gaussian",
        min_factor: float = MIN_FACTOR,
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(min_factor, dim, dim, rank, bias, reset, seed, device, dtype)
        self.dim, self.refine_order = dim, 3
        self._volume: Tensor | None = None
        kind = self.kind
        a, a_inv, logabsdet = _start(init, dim, kind["dtype"])
        self.register_buffer("frozen_weight", a.to(**kind).clone())
        self.register_buffer("frozen_inverse", a_inv.to(**kind).clone())
        self.register_buffer("frozen_logabsdet", logabsdet.to(kind["device"], widest(torch.device(kind["device"]))))
        self._open(dim)

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        y = self._times(x)
        return y if self.bias is None else y + self.bias

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        return self._solve(y if self.bias is None else y - self.bias)

    @full_precision
    def logabsdet(self) -> Tensor:
        """Return ln det W (nats), a differentiable scalar in float64. Cost O(d k^2)."""
        logabsdet = self.frozen_logabsdet + 2 * small_slogdet(capacitance(self.v, self.u))[1]
        watched = self._reset_kind == "gradient" and self.training and logabsdet.requires_grad
        if watched and not torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
            logabsdet.register_hook(self._keep_volume)
        return logabsdet

    def sign(self) -> Tensor:
        """Return the sign of det W: 1."""
        return torch.ones((), **self.kind)

    def quadratic(self, x: Tensor) -> Tensor:
        """Return ``x^T W x``, the squared length of x in the metric W; shape (..., d) to (...). Cost O(B d^2)."""
        return (x * self._times(x)).sum(-1)

    def log_density(self, x: Tensor) -> Tensor:
        r"""Return the log-density (nats) of the normal distribution with covariance W and mean b.

        .. math:: -\tfrac12 (x - b)^T W^{-1} (x - b) - \tfrac12 \ln\det W - \tfrac{d}{2} \ln 2\pi

        Args:
            x: shape (..., d).

        Returns:
            Shape (...). Cost O(B d^2): no factorization.
        """
        self._check(x, self.dim)
        r = x if self.bias is None else x - self.bias
        squared = (r * self._solve(r)).sum(-1)
        return -0.5 * (squared + self.logabsdet().to(squared.dtype) + self.dim * math.log(2 * math.pi))

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights ``F^T A F``, shape (d, d), differentiable. Cost O(d^2 k)."""
        return symmetric_update(self.frozen_weight, self.v, congruence(self.frozen_weight, self.u, self.v))

    @property
    @full_precision
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable. Cost O(d^2 k)."""
        p = -small_inverse(capacitance(self.v, self.u)).t() @ self.u
        return symmetric_update(self.frozen_inverse, p, congruence(self.frozen_inverse, self.v, p))

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def thresholds(self) -> tuple[float, ...]:
        """Return the limits of |C^-1|, of the rounding error and of the inverse's error."""
        checked = (LARGEST_ROUNDING, LARGEST_DEFECT) if self.min_factor > 0 else (math.inf, math.inf)
        return (*super().thresholds(), *checked)

    def _absorb(self) -> Changes:
        # F is judged by its k x k capacitance matrix. Cost O(d^2 k), no d x d temporary.
        a, x, u, v = self.frozen_weight, self.frozen_inverse, self.u, self.v
        wide = self.frozen_logabsdet.dtype
        wide_u = u.to(wide)
        c_inv, _, logabsdet = inverse_and_det(capacitance(v.to(wide), wide_u))
        p = (c_inv.t() @ wide_u).to(u.dtype)
        w, vx = congruence(a, u, v), v @ x
        z = torch.addmm(vx, vx @ v.t(), p, alpha=-0.5)  # congruence(x, v, -p)
        w_norm, z_norm, p_norm, c_norm = map(torch.linalg.vector_norm, (w, z, p, c_inv))
        rounding = w_norm * z_norm * p_norm * (torch.finfo(u.dtype).eps * self.rank**0.5)  # v has rows of length 1
        # Near to a singular matrix the rounding of A alone wears the inverse out: seen along one direction of length 1.
        blocks = max(1, self.dim // CHECKED_ROWS)
        size = -(-self.dim // blocks)
        start, scale = self._refusals.attempts % blocks * size, blocks**0.5
        some = slice(start, start + size)
        defect = torch.linalg.vector_norm(torch.addmv(v[0][some], a[some], vx[0], beta=scale, alpha=-scale))
        report = self.judge((), c_norm, rounding, defect, size=w_norm + z_norm)
        changes = Changes(report)
        zero, k = torch.zeros((), dtype=u.dtype, device=u.device), self.rank
        rows = torch.where(report.accepted, torch.cat((v, w, v, p, z, p)), zero)
        changes.absorb_product(a, rows[: 2 * k].t(), rows[k : 3 * k])
        changes.absorb_product(x, rows[3 * k : 5 * k].t(), rows[4 * k :], alpha=-1)
        changes.absorb(self.frozen_logabsdet, torch.add(self.frozen_logabsdet, logabsdet, alpha=2))
        return changes

    def _absorb_anew(self) -> Changes:
        # F^T A F in the wide dtype, factorized anew. Cost O(d^3).
        wide = self.frozen_logabsdet.dtype
        u, v, a = self.u.to(wide), self.v.to(wide), self.frozen_weight.to(wide)
        w, inverse, logabsdet, condition = definite(
            symmetric_update(a, v, congruence(a, u, v)), self._least_eigenvalue()
        )
        changes = Changes(self.judge((w, inverse), *(0 * condition for _ in self.thresholds())))
        changes.absorb(self.frozen_weight, w.to(self.u.dtype))
        changes.absorb(self.frozen_inverse, inverse.to(self.u.dtype))
        changes.absorb(self.frozen_logabsdet, logabsdet)
        return changes

    def _least_eigenvalue(self) -> float:
        # A matrix nearer to a singular one than this, as a part of its norm, is none that the dtype can tell from it.
        return 2 * self.dim**0.5 * torch.finfo(self.u.dtype).eps

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the symmetric part of a given matrix, shape (d, d)."""
        return symmetrized(super().nearest(weight))

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the given symmetric positive definite matrix, of shape (d, d), with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError, OptionError: it has another shape, is not positive definite in the layer's
                dtype, or not symmetric; the layer is left as it was.

        Cost O(d^3).
        """
        changes = Changes()
        targets = self.frozen_weight, self.frozen_inverse, self.frozen_logabsdet
        for target, value in zip(targets, _start(weight, self.dim, self.u.dtype), strict=True):
            changes.put(target, value.to(target))
        self._restart(changes)

    def shrink(self, changes: Changes, factor: float | Tensor) -> None:
        """Plan ``W <- factor W``. Cost O(d^2), in place."""
        factor = torch.as_tensor(factor, dtype=self.frozen_logabsdet.dtype, device=self.u.device)
        narrow = factor.to(self.u.dtype)
        for target, scale in ((self.frozen_weight, narrow), (self.frozen_inverse, 1 / narrow)):
            changes.scale(target, scale)
        grown = self.dim * narrow.to(factor.dtype).log()
        changes.write(self.frozen_logabsdet, partial(self.frozen_logabsdet.add_, grown))

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return the largest of ``|A - A^T|``, ``|A^-1 - A^-T|`` and ``|A A^-1 - I|``; infinite if not definite.

        Cost O(d^3).
        """
        return definiteness_defect(self.frozen_weight, self.frozen_inverse)

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Make A symmetric to the last bit, refine its inverse, and return the violation left. Cost O(d^3)."""
        a, x = symmetrized(self.frozen_weight), self.frozen_inverse
        refined = symmetrized(refined_inverse(a, x, self.refine_order)[0])
        # Near to a singular matrix a symmetric part can be worse than the inverse that it is taken from.
        inverse, violation = better_of(*((t, definiteness_defect(a, t)) for t in (x, refined)))
        changes = Changes()
        changes.put(self.frozen_weight, a)
        changes.put(self.frozen_inverse, inverse)
        self._refusals.alarm(changes, violation)
        changes.commit()
        return violation

    @torch.no_grad()
    @full_precision
    def recompute(self) -> Tensor:
        """Factorize the frozen matrix anew for inverse and log-determinant, and return the violation left.

        Eigenvalues that rounding has brought down to its own size, or below 0, are lifted. If A is not finite, nothing
        is changed and the returned violation says so. Cost O(d^3); waits for the device.
        """
        a, inverse, logabsdet, _ = definite(
            self.frozen_weight.to(self.frozen_logabsdet.dtype), self._least_eigenvalue()
        )
        usable = torch.isfinite(inverse).all() & torch.isfinite(logabsdet)
        changes = Changes()
        for target, value in (
            (self.frozen_weight, a),
            (self.frozen_inverse, inverse),
            (self.frozen_logabsdet, logabsdet),
        ):
            changes.put(target, torch.where(usable, value.to(target.dtype), target))
        changes.commit()
        return self.violation()

    # --- inside ------------------------------------------------------------------------------------------------------

    @classmethod
    def _near(cls, weight: Tensor, **options: Any) -> Self:
        # Definite matrices are an open set: none of them is nearest to a matrix outside of it.
        symmetric = symmetrized(weight.detach().to("cpu", torch.float64))
        values, vectors = torch.linalg.eigh(symmetric)
        least = LIFTED * values.abs().max()
        lifted = symmetric if bool(values[0] >= least) else symmetrized(vectors * values.clamp(min=least) @ vectors.t())
        return cls(init=lifted, **options)

    def _times(self, x: Tensor) -> Tensor:
        self._check(x, self.dim)
        z = nn.functional.linear(add_low_rank(x, nn.functional.linear(x, self.v), self.u), self.frozen_weight)
        return self._watched(x, add_low_rank(z, nn.functional.linear(z, self.u), self.v))

    def _solve(self, r: Tensor) -> Tensor:
        c_inv = self._c_inv()
        z = add_low_rank(r, nn.functional.linear(r, self.u) @ c_inv, self.v, alpha=-1)
        z = nn.functional.linear(z, self.frozen_inverse)
        x = add_low_rank(z, nn.functional.linear(nn.functional.linear(z, self.v), c_inv), self.u, alpha=-1)
        return self._watched(x, x, inverted=True)

    @full_precision
    def _c_inv(self) -> Tensor:
        return small_inverse(capacitance(self.v, self.u))

    def _keep_volume(self, g: Tensor) -> None:
        if not transformed(g):
            self.__dict__["_volume"] = g.detach()

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span the dominant range of the gradient by u (`p4lab.linalg.operator_sketch`)."""
        x, g, inverted = batch
        a, a_inv, volume = self.frozen_weight, self.frozen_inverse, self._volume

        def gradient(rows: Tensor) -> Tensor:  # of the loss by W, made symmetric: G + G^T
            if inverted:  # through the inverse, W sees -W^-1 g x^T
                total = -changes.product(gradient_rows(x, g, rows), a_inv)
                total = total - gradient_rows(g, x, changes.product(rows, a_inv))
            else:
                total = gradient_rows(x, g, rows) + gradient_rows(g, x, rows)
            return total if volume is None else total + 2 * volume.to(rows.dtype) * changes.product(rows, a_inv)

        # By u the gradient is v (G + G^T) A: v has to span the range of (G + G^T) A.
        return operator_sketch(lambda rows: gradient(changes.product(changes.product(gradient(rows), a), a)), omega)

    def _redraw(self, changes: Changes, total: Total) -> None:
        super()._redraw(changes, total)
        changes.assign(self, _volume=None)


def _start(init: str | Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(init, str):
        if init != "identity":
            raise OptionError(f"init={init!r} is not known: choose 'identity' or pass a positive definite tensor")
        eye = initial_matrix(init, dim, torch.Generator())
        return eye, eye, torch.zeros((), dtype=torch.float64)
    check_tensor("init", init)
    a = init.detach().to("cpu", torch.float64)
    if a.shape != (dim, dim):
        raise ShapeError(f"init has shape {tuple(a.shape)}, expected ({dim}, {dim}): pass a matrix of the layer's dim")
    inverse, _, logabsdet = inverse_and_logabsdet(a, dim, dtype)
    asymmetry = float((a - a.t()).abs().max() / a.abs().max())
    if asymmetry > LARGEST_ASYMMETRY:
        raise OptionError(f"init is not symmetric (|A - A^T| is {asymmetry:.3g} of |A|): pass (A + A^T) / 2")
    smallest = float(torch.linalg.eigvalsh(a)[0])
    if smallest <= 0:
        raise SingularMatrixError(
            f"init is not positive definite: its smallest eigenvalue is {smallest:.3g}; add a multiple of the identity"
        )
    return symmetrized(a), symmetrized(inverse), logabsdet
