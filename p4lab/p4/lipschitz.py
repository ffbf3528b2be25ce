"""P4Lipschitz: linear layers whose spectral norm never exceeds a bound, and the bound of a whole network."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import (
    complete_frame,
    initial_matrix,
    is_exporting,
    low_rank_rotation,
    orthonormalized_rows,
    pairing,
    row_defect,
    skew_sketch,
)
from p4lab.p4.changes import Changes
from p4lab.p4.contract import P4Module, full_precision
from p4lab.p4.linear import OfFixedSize, Reset, add_low_rank
from p4lab.p4.watch import Batch

START = math.sqrt(0.5)
"""A named start has singular values of this part of the bound: halfway, by angle, between 0 and the bound."""


class P4Lipschitz(OfFixedSize):
    r"""Linear layer with spectral norm of at most c, trained by rotations of a larger frame.

    .. math:: y = W x + b, \qquad W = R F J, \qquad R R^T = c^2 I, \quad F F^T = I, \quad J = [I, 0]^T

    R = [A, S] is the frozen frame of shape (dim_out, dim_in + dim_out): the weights A and the slack S that is left to
    the bound, :math:`A A^T + S S^T = c^2 I`. F is the Cayley map of a skew-symmetric matrix of rank 2k, so that
    :math:`\|W\|_2 \le c` for every value of ``u``, during training as well as after a merge, and every matrix of norm
    c or less can be reached. Nothing is clipped: near the bound a singular value is c cos(angle), and smooth. Where the
    loss pushes against the bound that is a well-conditioned optimum; one that only just touches it is approached slowly
    (error ~ 1/steps in gradient descent), which a slightly larger bound avoids.

    Args:
        dim_in: length of an input.
        dim_out: length of an output.
        bound: c > 0.
        rank: number k of rows of ``u``, at least 1 (no more than dim_in + dim_out of them are kept).
        bias: whether there is an additive bias.
        init: "orthogonal", "identity", "reverse" or "permutation" (the leading block of such a matrix, with all
            singular values at 0.71 c), or a (dim_out, dim_in) tensor of norm c or less.
        reset: how the fixed directions ``v`` are redrawn: "gaussian" (random) or "gradient" (from a sketch of the
            gradient of the last backward pass).
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from.
        device: device of all tensors.
        dtype: float32 or float64.

    Attributes:
        bound: c; fixed.

    Raises:
        OptionError: a dimension, rank, bound, reset or init out of range, or an ``init`` above the bound.
        ShapeError: ``init`` has another shape.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B and d = dim_in = dim_out: forward and backward 2 B d^2 + 12 B d k + O(d^2 k) multiply-adds, or
    3 B d^2 + O(d^2 k) where that is less (from d = 12 k downwards for a large B; the weights are then formed, shape
    (d, d)); an `nn.Linear` has 3 B d^2. Merge O(d^2 k); `correct` O(d^3). Memory 2 d^2.

    Source: P4 scheme arXiv:2010.07033; the family (Halmos dilation, turned by low-rank Cayley maps) is p4lab's.

    Example:
        >>> layer = P4Lipschitz(3, 2, bound=0.5, rank=2, seed=0)
        >>> _ = torch.nn.init.normal_(layer.u, std=100.0)
        >>> bool(torch.linalg.matrix_norm(layer.weight, 2) <= 0.5 * (1 + 1e-5))
        True
    """

    frozen_frame: Tensor

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        bound: float = 1.0,
        rank: int = 1,
        bias: bool = True,
        init: str | Tensor = "orthogonal",
        reset: Reset = "gaussian",
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < bound < math.inf:
            raise OptionError(f"bound={bound!r}: expected a positive, finite spectral norm")
        super().__init__(dim_in, dim_out, rank, bias, reset, seed, device, dtype)
        self.bound = float(bound)
        kind = self.kind
        frame = self.bound * complete_frame(self._start(init) / self.bound)
        self.register_buffer("frozen_frame", frame.to(**kind).contiguous())
        self._open(dim_in + dim_out)
        self._pairs: Tensor | None = None
        self._pairs_like_u()  # now, so that compilers see no change later

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., dim_in).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim_in)
        if self._is_narrow(x):
            y = F.linear(x, self.weight, self.bias)
        else:
            rows, left = self._factors(self.dim_in)
            y = add_low_rank(F.linear(x, self.frozen_weight, self.bias), F.linear(x, rows), left)
        return self._watched(x, y)

    def lipschitz_constant(self) -> float:
        """Return c, which bounds the spectral norm."""
        return self.bound

    @property
    def frozen_weight(self) -> Tensor:
        """The frozen weights A, a view of shape (dim_out, dim_in)."""
        return self.frozen_frame[:, : self.dim_in]

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights, shape (dim_out, dim_in), differentiable. Cost O(d^2 k)."""
        rows, left = self._factors(self.dim_in)
        return torch.addmm(self.frozen_weight, left.t(), rows)

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def _agreed(self) -> tuple[float, ...]:
        return *super()._agreed(), self.bound

    def largest_rank(self) -> int:
        """Return dim_in + dim_out, the width of the frame that is turned."""
        return self.dim_in + self.dim_out

    def _absorb(self) -> Changes:
        # Every finite rotation is accepted. Cost O(d^2 k), no d x d temporary.
        rows, left = self._factors(self.dim_in + self.dim_out)
        report = self.judge((rows, left))
        changes = Changes(report)
        zero = torch.zeros((), dtype=left.dtype, device=left.device)
        rows, left = torch.where(report.accepted, rows, zero), torch.where(report.accepted, left, zero)
        changes.absorb_product(self.frozen_frame, left.t(), rows)
        return changes

    def nearest(self, weight: Tensor) -> Tensor:
        """Return a given matrix with its singular values cut at c, shape (dim_out, dim_in). Cost O(d^3)."""
        left, values, right = torch.linalg.svd(super().nearest(weight), full_matrices=False)
        return left * values.clamp(max=self.bound) @ right

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W the given matrix of norm c or less, shape (dim_out, dim_in), with no perturbation left.

        Raises:
            ShapeError, OptionError: it has another shape, is not finite, or its norm is above the bound; the layer is
                left as it was.

        Cost O(d^3).
        """
        frame = self.bound * complete_frame(self._start(weight) / self.bound)
        changes = Changes()
        changes.put(self.frozen_frame, frame.to(self.frozen_frame))
        self._restart(changes)

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return ``max |R R^T / c^2 - I|``, of which half bounds how far the norm is above c per unit. Cost O(d^3)."""
        return row_defect(self.frozen_frame, self.bound).abs().max()

    @torch.no_grad()
    @full_precision
    def correct(self) -> Tensor:
        """Make the rows of R orthogonal again by one Newton-Schulz step; return the violation left. Cost O(d^3)."""
        frame, error = orthonormalized_rows(self.frozen_frame, self.bound)
        changes = Changes()
        changes.put(self.frozen_frame, frame)
        changes.commit()
        return error

    # --- inside ------------------------------------------------------------------------------------------------------

    @full_precision
    def _factors(self, columns: int) -> tuple[Tensor, Tensor]:
        """Return rows and left, 2k rows each, with ``R F = R + left^T rows`` for the first columns."""
        p, core = low_rank_rotation(self.u, self.v, self._pairs_like_u())
        return core @ p[:, :columns], p @ self.frozen_frame.t()

    def _is_narrow(self, x: Tensor) -> bool:
        """Whether a step takes fewer multiply-adds with the weights than with the factors; an export has the former."""
        if is_exporting():
            return True
        area, batch = self.dim_in * self.dim_out, x.numel() // self.dim_in
        return area * (batch + 6 * self.rank) <= 6 * self.rank * (self.dim_in + self.dim_out) * batch

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span directions of the frame's skew gradient (`p4lab.linalg.skew_sketch`)."""
        x, g, _ = batch  # the gradient by F is R^T g^T x J^T
        return changes.product(skew_sketch(x, g, omega[:, : self.dim_in]), self.frozen_frame)

    def _pairs_like_u(self) -> Tensor:
        pairs = self._pairs
        if pairs is None or pairs.device != self.u.device or pairs.dtype != self.u.dtype:
            pairs = self._pairs = pairing(self.rank, self.u.dtype, self.u.device)
        return pairs

    def _start(self, init: str | Tensor) -> Tensor:
        shape = self.dim_out, self.dim_in
        if isinstance(init, str):
            full = initial_matrix(init, max(shape), self.generator)
            return START * self.bound * full[: self.dim_out, : self.dim_in]
        a = self._given(init)
        norm = float(torch.linalg.matrix_norm(a, 2)) if bool(torch.isfinite(a).all()) else math.inf
        if norm > self.bound * (1 + 1e-6):
            raise OptionError(
                f"init has spectral norm {norm:.6g}, above bound={self.bound:g}: scale it by {self.bound / norm:.3g}, "
                "or raise the bound"
            )
        return a

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"{super().extra_repr()}, bound={self.bound:g}"


ONE_LIPSCHITZ = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.ReLU,
    nn.ReLU6,
    nn.Tanh,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Softmax,
)
"""These modules never increase a Euclidean distance (with their default options)."""


@torch.no_grad()
def lipschitz_bound(model: nn.Module) -> float:
    r"""Return a bound on the Lipschitz constant of a model, the product of those of its layers.

    .. math:: \|f(x) - f(y)\|_2 \le \prod_i c_i \; \|x - y\|_2

    A `P4Lipschitz` layer counts with its bound, another linear layer (`nn.Linear`, or a P4 layer that has ``weight``)
    with its spectral norm. Any module with a method ``lipschitz_constant() -> float`` may take part.

    Args:
        model: an `nn.Sequential`, nested as you like, of such layers and of activations with slope 1 at most.

    Raises:
        OptionError: a module whose constant is not known.

    Cost O(d^3) for layers other than P4Lipschitz; waits for the device.

    Example:
        >>> model = nn.Sequential(P4Lipschitz(4, 8, bound=2.0), nn.Tanh(), P4Lipschitz(8, 1, bound=0.5))
        >>> lipschitz_bound(model)
        1.0
    """
    constant = getattr(model, "lipschitz_constant", None)
    if callable(constant):
        return float(constant())
    if isinstance(model, nn.Sequential):
        return math.prod(lipschitz_bound(module) for module in model)
    if isinstance(model, ONE_LIPSCHITZ):
        return 1.0
    weight = getattr(model, "weight", None) if isinstance(model, (nn.Linear, P4Module)) else None
    if not torch.is_tensor(weight):
        raise OptionError(
            f"the Lipschitz constant of {type(model).__name__} is not known: give it a method lipschitz_constant()"
        )
    return float(torch.linalg.matrix_norm(weight, 2))
