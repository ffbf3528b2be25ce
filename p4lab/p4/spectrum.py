"""P4Spectrum: linear layers that keep all their singular values, by low-rank rotations on both sides."""

import copy
import math
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from p4lab.errors import OptionError, SingularMatrixError
from p4lab.linalg import (
    cayley_core,
    cayley_turn,
    initial_frame,
    skew_sketch,
    with_singular_values,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.linear import NOT_FINITE, Reset, widest
from p4lab.p4.orthogonal import LARGEST_ERROR, Turned, absorbed_turn, turned
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.watch import Batch

ROUNDING = Check(
    MergeStatus.SKIPPED_INACCURATE,
    "rounding error that merging would bring to the singular values; the perturbation stays and trains on",
)
"""The merge is judged by what rounding does to the property, relative to the largest singular value."""


class P4Spectrum(Turned):
    r"""Linear layer that turns the singular vectors of its weights and keeps all singular values.

    .. math:: y = W x + b, \qquad W = L A R, \qquad L = C(u_o, v_o), \quad R = C(u_i, v_i), \qquad
              C(u, v) = (I + S/2)^{-1} (I - S/2), \quad S = u^T v - v^T u

    A is frozen, shape (dim_out, dim_in); L and R are rotations of low rank. ``u`` and ``v`` have shape
    (k, dim_out + dim_in): the rows of both sides, side by side. `merge` sets ``A <- L A R`` and redraws ``v``. Norm,
    condition and |det| stay what they were at the start, whatever the optimizer does.

    Args:
        dim_in: length of an input.
        dim_out: length of an output.
        rank: number k of directions on each side, at least 1 (no more than the smaller dim are kept).
        bias: whether there is an additive bias.
        init: "linear" (as `nn.Linear` starts), "orthogonal", "identity", "reverse" or "permutation" (all singular
            values are 1), or a (dim_out, dim_in) tensor.
        reset: how ``v`` is redrawn: "gaussian" (random frames) or "gradient" (from sketches of the skew gradients of
            the last backward pass).
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from.
        device: device of all tensors.
        dtype: float32 or float64.

    Attributes:
        singular_values: the singular values, descending, in float64 whatever the layer is cast to.

    Raises:
        OptionError: a dimension, rank, reset or init out of range, or an ``init`` that is zero.
        ShapeError, SingularMatrixError: ``init`` has another shape, or is not finite.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B and d = dim_in = dim_out: forward and backward 2 B d^2 + O(B d k) multiply-adds, or 3 B d^2 +
    O(d^2 k) where that is less (for d < 32 k and a large B; the weights are then formed); an `nn.Linear` has 3 B d^2.
    Merge O(d^2 k); `correct` O(d^3): a singular value decomposition.

    Source: P4 scheme arXiv:2010.07033; training with fixed singular values is POET's (arXiv:2506.08001), which turns
    blocks or all of both sides; low ranks, gradient resets and carried momentum are p4lab's.

    Example:
        >>> layer = P4Spectrum(3, 4, rank=2, init=torch.eye(4, 3) * torch.tensor([3.0, 2.0, 1.0]), seed=0)
        >>> _ = torch.nn.init.normal_(layer.u)
        >>> bool(layer.merge()), torch.linalg.svdvals(layer.weight).detach().round(decimals=4)
        (True, tensor([3., 2., 1.]))
    """

    checks = (NOT_FINITE, ROUNDING)
    turns = 2
    wide_buffers = ("singular_values",)
    frozen_weight: Tensor
    singular_values: Tensor

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        rank: int = 8,
        bias: bool = True,
        init: str | Tensor = "linear",
        reset: Reset = "gaussian",
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim_in, dim_out, rank, bias, reset, seed, device, dtype)
        kind = self.kind
        a, values = self._start(self._named(init) if isinstance(init, str) else init)
        self.register_buffer("frozen_weight", a.to(**kind).clone().contiguous())
        device = self.frozen_weight.device
        self.register_buffer("singular_values", values.to(device, widest(device)))
        self._open(dim_out + dim_in)

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., dim_in).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim_in)
        if self.forms_weight(x):
            return self._watched(x, F.linear(x, self.weight, self.bias))
        (u_out, u_in), (v_out, v_in) = self.sides(self.u), self.sides(self.v)
        z = F.linear(cayley_turn(x, u_in, v_in), self.frozen_weight)
        return self._watched(x, cayley_turn(z, u_out, v_out, self.bias))

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights ``L A R``, shape (dim_out, dim_in), differentiable. Cost O(d^2 k)."""
        (u_out, u_in), (v_out, v_in) = self.sides(self.u), self.sides(self.v)
        return cayley_turn(cayley_turn(self.frozen_weight, -u_in, v_in).t(), u_out, v_out).t()

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def _absorb(self) -> Changes:
        # Both sides as one product of rank 4k. Cost O(d^2 k), no d x d temporary.
        wide = widest(self.u.device)
        p_out, p_in = (torch.cat(rows) for rows in zip(self.sides(self.u), self.sides(self.v), strict=True))
        # Numbers are in units of the largest singular value, so that no norm overflows.
        size = self.singular_values[0].to(p_in.dtype)
        q_out, rounding_out = turned(p_out, p_out @ self.frozen_weight / size, cayley_core(p_out.to(wide)))
        # The rows P of the right side see L A, of which nothing is formed but P (L A)^T.
        seen = torch.addmm(p_in @ self.frozen_weight.t() / size, p_in @ q_out.t(), p_out, alpha=-1)
        q_in, rounding_in = turned(p_in, seen, cayley_core(p_in.to(wide)).t())
        left, right = torch.cat((p_out, q_in)), torch.cat((q_out, p_in))
        return absorbed_turn(self, self.frozen_weight, left, right, rounding_out + rounding_in, size)

    def _absorb_anew(self) -> Changes:
        # An enormous u rounds too much in the layer's own dtype: L A R in the wide one, with its singular values back.
        wide = copy.deepcopy(self).to(widest(self.u.device))
        weight = wide.weight
        finite = torch.isfinite(weight).all()
        weight = with_singular_values(torch.where(finite, weight, wide.frozen_weight), self.singular_values)
        changes = Changes(self.judge((weight,), torch.zeros_like(self.singular_values[0])))
        changes.absorb(self.frozen_weight, weight.to(self.u.dtype))
        return changes

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return ``max |s(A) - s|`` of the singular values, relative to the largest one. Cost O(d^3)."""
        return self._difference(self.frozen_weight)

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Give A the singular values of the start again, and return the violation after it. Cost O(d^3)."""
        wide = self.frozen_weight.to(self.singular_values.dtype)
        weight = with_singular_values(wide, self.singular_values).to(self.frozen_weight.dtype)
        changes = Changes()
        changes.put(self.frozen_weight, weight)
        changes.commit()
        return self._difference(weight)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest weights with the layer's singular values, shape (dim_out, dim_in). Cost O(d^3)."""
        return with_singular_values(super().nearest(weight), self.singular_values.to("cpu", torch.float64))

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the given matrix, shape (dim_out, dim_in), with the layer's singular values and no perturbation left.

        Raises:
            ShapeError, SingularMatrixError, OptionError: it has another shape, is not finite or has other singular
                values; the layer is left as it was.

        Cost O(d^3).
        """
        a, values = self._start(weight)
        own = self.singular_values.to(values)
        error = float((values - own).abs().max() / own[0])
        if not error <= LARGEST_ERROR:
            raise OptionError(
                f"the singular values differ by {error:.3g} of the largest from those that the layer keeps (at most "
                f"{LARGEST_ERROR} is accepted): take layer.nearest(weight), or build a layer with init=weight"
            )
        changes = Changes()
        changes.put(self.frozen_weight, with_singular_values(a, own).to(self.frozen_weight))
        self._restart(changes)

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span directions of both skew gradients (`p4lab.linalg.skew_sketch`)."""
        # The skew gradients are those of the pairs (L A R x, g) and (R^T A^T L^T g, x); a random omega makes nothing of
        # a rotation that stands beside it.
        x, g, _ = batch
        (u_out, u_in), (v_out, v_in) = self.sides(self.u), self.sides(self.v)
        omega_out, omega_in = self.sides(omega)
        out = skew_sketch(cayley_turn(x, u_in, v_in), g, omega_out @ self.frozen_weight)
        into = skew_sketch(cayley_turn(g, -u_out, v_out), x, omega_in @ self.frozen_weight.t())
        return torch.cat((out, into), 1)

    # --- inside ------------------------------------------------------------------------------------------------------

    @classmethod
    def _near(cls, weight: Tensor, **options: Any) -> Self:
        return cls(init=weight, **options)  # any matrix keeps its own singular values

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what belongs to the turn of the outputs, and what to that of the inputs."""
        return rows[:, : self.dim_out], rows[:, self.dim_out :]

    def _difference(self, weight: Tensor) -> Tensor:
        values = torch.linalg.svdvals(weight.to(self.singular_values.dtype))
        return (values - self.singular_values).abs().max() / self.singular_values[0]

    def _named(self, init: str) -> Tensor:
        shape = self.dim_out, self.dim_in
        if init == "linear":
            bound = 1 / math.sqrt(self.dim_in)
            return bound * (2 * torch.rand(*shape, generator=self.generator, dtype=torch.float64, device="cpu") - 1)
        frame = initial_frame(init, max(shape), min(shape), self.generator)
        return frame if self.dim_out >= self.dim_in else frame.t()

    def _start(self, init: Tensor) -> tuple[Tensor, Tensor]:
        """Return a user's weights and their singular values, in float64 on the CPU."""
        a = self._given(init)
        if not bool(torch.isfinite(a).all()):
            raise SingularMatrixError("init has entries that are NaN or infinite: pass a finite matrix")
        values = torch.linalg.svdvals(a)
        if not float(values[0]) > 0:
            raise OptionError("init is zero, and no rotation changes that: start from another matrix")
        return a, values
