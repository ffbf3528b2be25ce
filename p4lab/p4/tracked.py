"""What square layers share that know the inverse, sign and log|det| of their frozen matrix."""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from p4lab.linalg import factorized, initial_matrix, inverse_and_logabsdet, residual
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.linear import P4Linear, widest
from p4lab.p4.validate import check_tensor


class TrackedInverse(P4Linear):
    """Base class of square layers with a frozen matrix A, and A^-1, sign and log|det A| beside it.

    A subclass calls `freeze` when it is made, and overrides `_plan_followers` if anything else depends on A^-1.
    """

    wide_buffers: ClassVar[tuple[str, ...]] = ("frozen_logabsdet",)

    frozen_weight: Tensor
    frozen_inverse: Tensor
    frozen_logabsdet: Tensor
    frozen_sign: Tensor

    @property
    def dim(self) -> int:
        """Width d."""
        return self.dim_in

    def freeze(self, init: str | Tensor) -> None:
        """Register A, at a start by name or at a given matrix, and what is known of it.

        Raises:
            OptionError: unknown name.
            DtypeError: no tensor.
            ShapeError, SingularMatrixError: a tensor that is not square, not finite or not invertible.
        """
        kind = self.kind
        if isinstance(init, str):
            a = initial_matrix(init, self.dim, self.generator)
            a_inv, (sign, logabsdet) = a.t(), torch.linalg.slogdet(a)
        else:
            check_tensor("init", init)
            a = init.detach()
            a_inv, sign, logabsdet = inverse_and_logabsdet(a, self.dim, kind["dtype"])
        # Clones: a buffer must never share memory with the caller's tensor or with its own transpose.
        self.register_buffer("frozen_weight", a.to(**kind).clone().contiguous())
        self.register_buffer("frozen_inverse", a_inv.to(**kind).clone().contiguous())
        self.register_buffer("frozen_sign", sign.to(**kind))
        self.register_buffer("frozen_logabsdet", logabsdet.to(kind["device"], widest(torch.device(kind["device"]))))

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the given matrix, of shape (d, d), with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError: it is not square, not finite or not invertible in the layer's dtype; the
                layer is left as it was.

        Cost O(d^3).
        """
        check_tensor("start_at", weight)
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
        return residual(self.frozen_weight, self.frozen_inverse)

    @torch.no_grad()
    @full_precision
    def recompute(self) -> Tensor:
        """Factorize the frozen matrix anew for inverse, sign and log|det|, and return ``max |A A^-1 - I|``.

        Training never needs it; it rescues a layer whose inverse is beyond refinement. If A itself is singular or not
        finite, nothing is changed and the returned residual says so. Cost O(d^3).
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
        self._plan_followers(changes)
        changes.commit()
        return residual(self.frozen_weight, self.frozen_inverse)

    def _plan_factors(self, changes: Changes, inverse: Tensor, sign: Tensor, logabsdet: Tensor) -> None:
        changes.absorb(self.frozen_inverse, inverse.to(self.frozen_inverse))
        changes.absorb(self.frozen_sign, sign.to(self.frozen_sign))
        changes.absorb(self.frozen_logabsdet, logabsdet.to(self.frozen_logabsdet))

    def _plan_followers(self, changes: Changes) -> None:
        """Plan what depends on the inverse that is planned (default: nothing does)."""
