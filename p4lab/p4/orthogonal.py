"""P4 on the orthogonal group: linear layers that stay rotations, by low-rank Cayley transforms."""

import copy
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import (
    cayley_core,
    cayley_turn,
    initial_matrix,
    inverse_and_logabsdet,
    is_exporting,
    moved_momentum,
    nearest_orthogonal,
    orthogonality_error,
    orthonormal_rows,
    orthonormalized_rows,
    polar_step,
    skew_sketch,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.linear import NOT_FINITE, OfFixedSize, P4Linear, Reset, VolumePreserving, add_low_rank, widest
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.validate import check_tensor
from p4lab.p4.watch import Batch

LARGEST_ERROR = 1e-4
"""A start counts as orthogonal, or as a member of another closed family, up to this error of its entries."""
TURN_COST = 16
"""Multiply-adds of a turned row, forward and backward, per number and direction: 10, but of narrow products."""
LARGEST_ROUNDING = 1e-3
"""A merge is refused above this rounding that it would add to Q^T Q - I."""
ROUNDING = Check(
    MergeStatus.SKIPPED_INACCURATE,
    "rounding error that merging would bring to |Q^T Q - I|; the perturbation stays and trains on",
)
"""The merge is judged by what rounding does to the property."""


class Orthogonal(VolumePreserving):
    """Base class of the layers ``y = R Q x + b`` with a frozen orthogonal Q and a rotation R that the optimizer moves.

    R stands at the output, where its gradient needs neither Q nor the input. A subclass supplies `turn`, `turn_back`,
    ``_absorb``.

    Args:
        dim: width d.
        rank: size of the perturbation.
        bias, reset, seed, device, dtype: as for `P4Orthogonal`.
        init: as for `P4Orthogonal`.
    """

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE, ROUNDING)
    frozen_weight: Tensor

    def __init__(
        self,
        dim: int,
        rank: int,
        bias: bool,
        init: str | Tensor,
        reset: Reset,
        seed: int | torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(dim, dim, rank, bias, reset, seed, device, dtype)
        if isinstance(init, str):
            q = initial_matrix(init, dim, self.generator)
        else:
            q = orthogonal_start(init, dim, self.kind["dtype"])
        self.register_buffer("frozen_weight", q.to(**self.kind).clone().contiguous())
        self.register_buffer("frozen_sign", torch.linalg.slogdet(q).sign.to(**self.kind))

    # --- for subclasses ----------------------------------------------------------------------------------------------

    @abstractmethod
    def turn(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``R z + bias`` for z of shape (..., d)."""

    @abstractmethod
    def turn_back(self, z: Tensor) -> Tensor:
        """Return ``R^T z`` for z of shape (..., d)."""

    def forms_weight(self, x: Tensor) -> bool:
        """Return whether a training step is faster with the weights than with the factors (default: no)."""
        return False

    def thresholds(self) -> tuple[float, ...]:
        """Return the largest rounding error that a merge may bring."""
        return (LARGEST_ROUNDING,)

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``R Q x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim)
        if self.forms_weight(x):
            return self._watched(x, F.linear(x, self.weight, self.bias))
        return self._watched(x, self.turn(F.linear(x, self.frozen_weight), self.bias))

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``Q^T R^T (y - b)`` for y of shape (..., d), differentiable.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        z = self._remembered(r, self.turn_back(r), inverted=True)
        return self._ordered(F.linear(z, self.frozen_weight.t()))

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights ``R Q``, shape (d, d), differentiable. Cost as a merge."""
        return self.turn(self.frozen_weight.t()).t()

    def _seen_of_identity(self) -> Tensor:
        return self.frozen_weight.t()

    @property
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights: their transpose, shape (d, d), differentiable. Cost as a merge."""
        return self.weight.t()

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return ``max |Q^T Q - I|`` of the frozen matrix. Cost O(d^3)."""
        return orthogonality_error(self.frozen_weight)

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Take one Newton-Schulz step to the nearest orthogonal matrix and return ``max |Q^T Q - I|`` after it.

        Cost O(d^3): three products.
        """
        q, error = polar_step(self.frozen_weight)
        changes = Changes()
        changes.put(self.frozen_weight, q)
        changes.commit()
        return error

    def _absorb_anew(self) -> Changes:
        # An enormous u rounds too much in the layer's own dtype: R Q in the wide one, brought back to the group.
        wide = copy.deepcopy(self).to(widest(self.u.device))
        q, error = polar_step(wide.weight)
        report = self.judge((q,), error)
        changes = Changes(report)
        changes.absorb(self.frozen_weight, q.to(self.u.dtype))
        return changes

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the orthogonal matrix nearest to a given one, shape (d, d) (polar decomposition). Cost O(d^3).

        Raises:
            SingularMatrixError: it is singular or not finite, as the mean of rotations by opposite angles is.
        """
        return nearest_orthogonal(super().nearest(weight))

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the orthogonal matrix nearest to a given one, of shape (d, d), with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError, OptionError: it is not square, not finite or not orthogonal; the layer is
                left as it was.

        Cost O(d^3).
        """
        q = orthogonal_start(weight, self.dim, self.u.dtype)
        changes = Changes()
        changes.put(self.frozen_weight, q.to(self.frozen_weight))
        changes.put(self.frozen_sign, torch.linalg.slogdet(q).sign.to(self.frozen_sign))
        self._restart(changes)


class Turned(OfFixedSize):
    """Base class of the layers that low-rank turns perturb, on one side or on two: what becomes of their directions."""

    turns: ClassVar[int] = 1
    """There are so many turns; the rows of u and v are as long as all that they turn."""

    def forms_weight(self, x: Tensor) -> bool:
        """Return whether a training step is faster with the weights, turned once, than by row; exports do so, too."""
        if is_exporting():
            return True
        samples, cost = x.numel() // self.dim_in, TURN_COST * self.rank
        return self.dim_in * self.dim_out * (samples + self.turns * cost) <= cost * samples * self.v.shape[1]

    def thresholds(self) -> tuple[float, ...]:
        """Return the largest rounding error that a merge may bring."""
        return (LARGEST_ROUNDING,)

    def sides(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the parts of rows of u, or of v, that belong to each turn (default: there is one)."""
        return (rows,)

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, changes: Changes) -> Tensor:
        """Express the momentum of u in the new directions (`p4lab.linalg.moved_momentum`). Cost O(d k^2)."""
        if parameter is not self.u:
            return momentum
        parts = zip(*map(self.sides, (momentum, self.v, changes.new(self.v))), strict=True)
        return _joined(moved_momentum(*part) for part in parts)

    @torch.no_grad()
    @full_precision
    def recompute(self) -> Tensor:
        """Correct the frozen tensor, and the rows of v: a cast up left them orthonormal to the narrow dtype only.

        Returns what violation is left of the frozen tensor. Cost as `correct`.
        """
        changes = Changes()
        changes.put(self.v, _joined(orthonormalized_rows(part)[0] for part in self.sides(self.v)))
        changes.commit()
        return self.correct()

    def _frame(self, rows: Tensor, omega: Tensor) -> Tensor:
        parts = zip(self.sides(rows), self.sides(omega), strict=True)
        return _joined(orthonormal_rows(part, fallback=noise) for part, noise in parts)


def _joined(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    return torch.cat((first, *others), 1) if others else first


class LowRankRotation(Turned, Orthogonal):
    """Base class of the families ``R = I - P^T K P`` with 2k rows in P; a subclass supplies `rows` and `core`."""

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
        super().__init__(dim, rank, bias, init, reset, seed, device, dtype)
        self._open(dim)

    @abstractmethod
    def rows(self) -> Tensor:
        """Return P, shape (2k, d): k rows that train, then the k rows v."""

    @abstractmethod
    def core(self, p: Tensor) -> Tensor:
        """Return K, shape (2k, 2k)."""

    def turn(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``R z + bias`` for z of shape (..., d). Cost for a batch of B: O(B d k + d k^2)."""
        p, k = self._rows_and_core()
        y = add_low_rank(z, F.linear(F.linear(z, p), k), p, alpha=-1)
        return y if bias is None else y + bias.to(y.dtype)

    def turn_back(self, z: Tensor) -> Tensor:
        """Return ``R^T z`` for z of shape (..., d). Cost as `turn`."""
        p, k = self._rows_and_core()
        return add_low_rank(z, F.linear(z, p) @ k, p, alpha=-1)

    def _absorb(self) -> Changes:
        # Judged by the rounding errors of R's core and of the merge. Cost O(d^2 k), no d x d temporary.
        p = self.rows()
        q, rounding = turned(p, p @ self.frozen_weight, self.core(p.to(widest(p.device))))
        return absorbed_turn(self, self.frozen_weight, p, q, rounding)

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span directions of the skew gradient (`p4lab.linalg.skew_sketch`)."""
        # The gradient at R is g^T Q x R^T, or through the inverse R g^T r, and a random omega makes nothing of R.
        x, g, inverted = batch
        return skew_sketch(g, x, omega) if inverted else skew_sketch(x, g, omega @ self.frozen_weight)

    @full_precision
    def _rows_and_core(self) -> tuple[Tensor, Tensor]:
        p = self.rows()
        return p, self.core(p)


class P4Orthogonal(LowRankRotation):
    r"""Linear layer with orthogonal weights, trained by low-rank Cayley transforms of a frozen matrix.

    .. math:: y = W x + b, \qquad W = R\,Q, \qquad R = (I + S/2)^{-1} (I - S/2), \qquad S = u^T v - v^T u

    Q and v (k orthonormal rows) are buffers; ``u`` and ``bias`` are parameters of shape (k, d) and (d,). `merge` moves
    R into Q and redraws ``v``. The inverse is the transpose, log|det W| is 0, and the sign of det W never changes.

    Args:
        dim: width d.
        rank: number k of directions, at least 1 (no more than d of them are kept).
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or an orthogonal (d, d) tensor.
        reset: how ``v`` is redrawn: "gaussian" (a random frame) or "gradient" (from a sketch of the skew gradient of
            the last backward pass; random where there was none).
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from (None: torch's default
            generator).
        device: device of all tensors.
        dtype: float32 or float64.

    Raises:
        OptionError: dim, rank, reset, init out of range, or a tensor that is not orthogonal.
        ShapeError, SingularMatrixError: ``init`` is a tensor that is not square, not finite or not invertible.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward and backward 2 B d^2 + O(B d k + d k^2) multiply-adds (an `nn.Linear` has 3 B d^2),
    without an input gradient B d^2, and no d x d tensor is made; or 3 B d^2 + O(d^2 k) where that is less (for d < 16 k
    and a large B; the weights are then formed). Merge O(d^2 k); correction 3 d^3.

    Source: the Cayley transform of low rank is Wen and Yin's (2013); perturbation and merge are arXiv:2010.07033; their
    combination, the gradient reset and the momentum are p4lab's.

    Example:
        >>> layer = P4Orthogonal(3, rank=2, seed=0)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        True
        >>> bool(layer.merge())
        True
    """

    def turn(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``R z + bias`` for z of shape (..., d) (`p4lab.linalg.cayley_turn`)."""
        return cayley_turn(z, self.u, self.v, bias)

    def turn_back(self, z: Tensor) -> Tensor:
        """Return ``R^T z`` for z of shape (..., d). Cost as `turn`."""
        return cayley_turn(z, -self.u, self.v)

    def rows(self) -> Tensor:
        """Return the rows of u, then those of v."""
        return torch.cat([self.u, self.v])

    def core(self, p: Tensor) -> Tensor:
        """Return the core of the Cayley transform (`p4lab.linalg.cayley_core`)."""
        return cayley_core(p)


def turned(p: Tensor, seen: Tensor, core: Tensor) -> tuple[Tensor, Tensor]:
    """Return q with ``R M = M - P^T q``, shape (2k, d), for ``R = I - P^T K P``, and the rounding error of that.

    Args:
        p: P, shape (2k, n).
        seen: P M, shape (2k, d).
        core: K, shape (2k, 2k), in the wide dtype: otherwise R were orthogonal to no more than a hundred roundings.

    Cost O(d k^2).
    """
    q = core.to(p.dtype) @ seen
    p_norm, q_norm = torch.linalg.vector_norm(p), torch.linalg.vector_norm(q)
    inner = (p_norm.square() * torch.linalg.vector_norm(core)).square()
    return q, torch.finfo(p.dtype).eps * p_norm * q_norm + torch.finfo(core.dtype).eps * inner


def absorbed_turn(
    layer: P4Linear, frame: Tensor, p: Tensor, q: Tensor, rounding: Tensor, scale: Tensor | None = None
) -> Changes:
    """Plan ``F <- F - s P^T q`` for a frozen tensor of a layer, judged by the rounding (see `turned`) in units of s."""
    report = layer.judge((q,), rounding)
    changes = Changes(report)
    # q is masked, too: a core that is not finite must leave F alone.
    zero = torch.zeros((), dtype=p.dtype, device=p.device)
    p, q = torch.where(report.accepted, p, zero), torch.where(report.accepted, q, zero)
    p = p if scale is None else p * scale
    changes.absorb_product(frame, p.t(), q, alpha=-1)
    return changes


def orthogonal_start(init: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Return the orthogonal matrix nearest to a user's one, in float64 on the CPU.

    Raises:
        DtypeError: no tensor.
        ShapeError, SingularMatrixError: not a (d, d) matrix, not finite, or singular.
        OptionError: ``max |Q^T Q - I|`` above 1e-4.

    Cost O(d^3).
    """
    check_tensor("init", init)
    inverse_and_logabsdet(init, dim, dtype)
    q = init.detach().to("cpu", torch.float64)
    error = float(orthogonality_error(q))
    if not error <= LARGEST_ERROR:
        raise OptionError(
            f"init is not orthogonal: max |Q^T Q - I| = {error:.3g} (at most {LARGEST_ERROR} is accepted); "
            "take the Q of torch.linalg.qr(init)"
        )
    return nearest_orthogonal(q)
