"""P4Stiefel: linear layers with orthonormal columns or rows, by low-rank Cayley transforms of the longer side."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import (
    cayley_core,
    cayley_turn,
    initial_frame,
    nearest_orthogonal,
    orthogonality_error,
    polar_step,
    skew_sketch,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.linear import NOT_FINITE, Reset, widest
from p4lab.p4.orthogonal import (
    LARGEST_ERROR,
    ROUNDING,
    Turned,
    absorbed_turn,
    turned,
)
from p4lab.p4.watch import Batch


class P4Stiefel(Turned):
    r"""Linear layer whose weights have orthonormal columns (dim_out >= dim_in) or orthonormal rows (dim_out < dim_in).

    .. math:: y = W x + b, \qquad W = R F \ \text{ or } \ W = (R F)^T, \qquad F^T F = I, \qquad
              R = (I + S/2)^{-1} (I - S/2), \quad S = u^T v - v^T u

    With n the larger and p the smaller of the two dims, the frozen frame F has shape (n, p), and ``u`` and ``v`` shape
    (k, n). `merge` moves R into F and redraws ``v``. A tall layer keeps the length of every vector; a wide one is the
    transpose of a tall one, never longer than its input.

    Args:
        dim_in: length of an input.
        dim_out: length of an output.
        rank: number k of rows of ``u``, at least 1 (no more than n of them are kept).
        bias: whether there is an additive bias.
        init: "orthogonal" (uniformly random), "identity", "reverse" or "permutation" (the leading columns of such a
            matrix), or a (dim_out, dim_in) tensor with orthonormal columns or rows.
        reset: how ``v`` is redrawn: "gaussian" (a random frame) or "gradient" (from a sketch of the skew gradient of
            the last backward pass).
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from.
        device: device of all tensors.
        dtype: float32 or float64.

    Raises:
        OptionError: a dimension, rank, reset or init out of range, or a tensor that is not orthonormal.
        ShapeError: ``init`` has another shape.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward and backward 2 B n p + O(B n k) multiply-adds, or 3 B n p + O(n p k) where that is
    less (for p < 16 k and a large B; the weights are then formed); an `nn.Linear` has 3 B n p. Merge O(n p k),
    correction 3 n p^2. Memory n (p + 2 k).

    Source: P4 scheme arXiv:2010.07033; Cayley transforms on the Stiefel manifold are Wen and Yin's (2013).

    Example:
        >>> layer = P4Stiefel(2, 5, rank=2, seed=0)
        >>> _ = torch.nn.init.normal_(layer.u)
        >>> x = torch.randn(4, 2)
        >>> torch.allclose(layer(x).norm(dim=-1), x.norm(dim=-1), atol=1e-6)
        True
    """

    checks = (NOT_FINITE, ROUNDING)
    frozen_frame: Tensor

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        rank: int = 8,
        bias: bool = True,
        init: str | Tensor = "orthogonal",
        reset: Reset = "gaussian",
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim_in, dim_out, rank, bias, reset, seed, device, dtype)
        self.is_tall = dim_out >= dim_in
        length, kind = max(dim_in, dim_out), self.kind
        if isinstance(init, str):
            frame = initial_frame(init, length, min(dim_in, dim_out), self.generator)
        else:
            frame = self._start(init)
        self.register_buffer("frozen_frame", frame.to(**kind).clone().contiguous())
        self._open(length)

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., dim_in).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim_in)
        if self.forms_weight(x):
            y = F.linear(x, self.weight, self.bias)
        elif self.is_tall:
            y = cayley_turn(F.linear(x, self.frozen_frame), self.u, self.v, self.bias)
        else:
            y = F.linear(cayley_turn(x, -self.u, self.v), self.frozen_frame.t(), self.bias)
        return self._watched(x, y)

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights, shape (dim_out, dim_in), differentiable. Cost O(n p k)."""
        rows = cayley_turn(self.frozen_frame.t(), self.u, self.v)
        return rows.t() if self.is_tall else rows

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def largest_rank(self) -> int:
        """Return n, the length of a column of the frame."""
        return max(self.dim_in, self.dim_out)

    def _absorb(self) -> Changes:
        # Cost O(n p k), no temporary of the frame's size.
        p = torch.cat([self.u, self.v])
        q, rounding = turned(p, p @ self.frozen_frame, cayley_core(p.to(widest(p.device))))
        return absorbed_turn(self, self.frozen_frame, p, q, rounding)

    def _absorb_anew(self) -> Changes:
        # An enormous u rounds too much in the layer's own dtype: R F in the wide one, brought back to the manifold.
        wide = copy.deepcopy(self).to(widest(self.u.device))
        q, error = polar_step(wide._as_frame(wide.weight))
        changes = Changes(self.judge((q,), error))
        changes.absorb(self.frozen_frame, q.to(self.u.dtype))
        return changes

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return ``max |F^T F - I|`` of the frozen frame. Cost O(n p^2)."""
        return orthogonality_error(self.frozen_frame)

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Take one Newton-Schulz step to the nearest frame and return ``max |F^T F - I|`` after it. Cost O(n p^2)."""
        frame, error = polar_step(self.frozen_frame)
        changes = Changes()
        changes.put(self.frozen_frame, frame)
        changes.commit()
        return error

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest weights with orthonormal columns or rows (polar decomposition). Cost O(n p^2).

        Raises:
            SingularMatrixError: none is nearest, for the rank is not full, or not all is finite.
        """
        return self._as_frame(nearest_orthogonal(self._as_frame(super().nearest(weight))))

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the orthonormal matrix nearest to a given one, shape (dim_out, dim_in), with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError, OptionError: it has another shape, is not finite or not orthonormal; the
                layer is left as it was.

        Cost O(n p^2).
        """
        changes = Changes()
        changes.put(self.frozen_frame, self._start(weight).to(self.frozen_frame))
        self._restart(changes)

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span directions of the frame's skew gradient (`p4lab.linalg.skew_sketch`)."""
        # The skew gradient is that of pairs (R F x, g), or (x, R F g); a random omega makes nothing of R.
        x, g, _ = batch
        short = omega @ self.frozen_frame
        return skew_sketch(x, g, short) if self.is_tall else skew_sketch(g, x, short)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _as_frame(self, weight: Tensor) -> Tensor:
        """Return weights as a frame, shape (n, p), or a frame as weights."""
        return weight if self.is_tall else weight.t()

    def _start(self, init: Tensor) -> Tensor:
        """Return a user's weights as a frame, in float64 on the CPU."""
        frame = self._as_frame(self._given(init))
        nearest, error = nearest_orthogonal(frame), float(orthogonality_error(frame))
        if not error <= LARGEST_ERROR:
            raise OptionError(
                f"init has no orthonormal {'columns' if self.is_tall else 'rows'}: they are off by {error:.3g} (at "
                f"most {LARGEST_ERROR} is accepted); take layer.nearest(init), or the Q of torch.linalg.qr"
            )
        return nearest
