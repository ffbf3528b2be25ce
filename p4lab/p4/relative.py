"""P4Relative: invertible linear layers that follow the whole gradient of a batch, in the frame of their outputs."""

import math
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import pivoted_slogdet, refined_inverse, small_inverse, small_slogdet
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.following import Following, transformed_by_torch
from p4lab.p4.linear import MIN_FACTOR, NOT_FINITE
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.tracked import TrackedInverse
from p4lab.p4.watch import check_order

TURN_OF_ROWS, TURN_OF_ALL = 10.0, 20.0
"""Layers turn so many times as fast as they stretch, with rows and without, unless they are told otherwise."""
TOO_LONG = Check(
    MergeStatus.DISCARDED_SINGULAR,
    "1/R: the step would make the matrix nearly singular, and is not taken; use a smaller learning rate",
)
"""A step that is too long is dropped: its directions belong to a batch that is gone."""


class Rows(NamedTuple):
    """What the rows of a layer make of A: ``R = I + N + N^2 / 2 = a I + left^T core right``, all but a (r, .)."""

    left: Tensor
    right: Tensor
    core: Tensor
    scale: Tensor
    ratio: Tensor
    """``R / a`` as a matrix of shape (r, r) that has its determinant: ``I + core right left^T / a``."""


class P4Relative(Following, TrackedInverse):
    r"""Linear layer with invertible weights that descends along the whole gradient of a batch, relative to itself.

    .. math:: y = W x + b, \qquad W = R\,A, \qquad R = I + N + \tfrac{1}{2} N^2, \qquad N = \tfrac{1}{2} (E + E^T) +
              \tfrac{t}{2} (E - E^T)

    .. math:: E = s I + \sum_i u_i\, \hat g_i^T z_i

    The gradient of a batch of B samples with outputs ``z = W x`` and gradients g at them has, in this frame, rank B but
    for a multiple of the identity: :math:`G W^T = g^T z + c I`, with ``c`` the gradient by log|det W|. Each sample is
    a row: its output z_i and the direction of its gradient, :math:`\hat g_i = g_i / |g_i|`, are set by the backward
    pass; the gradients of u_i and s (the last number of u) are |g_i| and c, the coordinates of that matrix, of which
    nothing is projected away. With plain descent a step and its merge are then the relative gradient's, for any
    condition of A, and the inverse and log|det| come along. But R turns t times as fast as it stretches, for
    likelihoods curve less along rotations than along scales: for t > 1 their gradient misjudges the two.

    A layer with ``rank >= dim`` needs no rows: u is all of a (d, d) matrix, which any optimizer may train, and no u is
    too large for

    .. math:: E = u^T, \qquad N \leftarrow N / \sqrt{1 + |N|_F^2}

    Merge after each optimizer step (``every=1``): the next batch has other directions.

    Args:
        dim: width d.
        rank: number k of rows there is room for, those of all batches between merges; a batch that does not fit is
            folded into them with random signs, which keeps its gradient in the mean. No more than d are kept.
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or an invertible (d, d) tensor.
        turn: t (None: 10 with rows, 20 without); 1 is the relative gradient itself.
        min_factor: a step along rows is dropped if it would shrink a direction to less than this; 0 drops none.
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

    Cost for a batch of B: forward and backward 2 B d^2, merge 3 B d^2 + O(B^2 d), and 2 to 4 B d^2 more while the
    inverse is in use (for t = 1: B d^2, or 2 B d^2 with an input gradient, and 2 B d^2). The inverse is tracked for
    ``track_for`` merges after it was last asked for; later it takes a factorization, O(d^3). No d x d tensor is made
    but where rows are as many as d, and between a step and its merge.

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
    samples: ClassVar[str] = "its numbers belong to samples and to all of the diagonal"
    instead: ClassVar[str] = "P4Inv"

    q: Tensor | None
    p: Tensor | None
    h: Tensor | None

    def __init__(
        self,
        dim: int,
        rank: int = 64,
        bias: bool = True,
        init: str | Tensor = "identity",
        turn: float | None = None,
        min_factor: float = MIN_FACTOR,
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if turn is not None and not 0 < turn < math.inf:
            raise OptionError(f"turn={turn!r}: expected a positive number, the speed of rotations to that of scales")
        super().__init__(min_factor, dim, dim, rank, bias, "gaussian", seed, device, dtype)
        self.turn = turn or (TURN_OF_ALL if self.is_narrow else TURN_OF_ROWS)
        self.track_for, self.refine_order, self.factorizations = dim // (2 * self.rank), 3, 0
        self.freeze(init)
        shape = (dim, dim) if self.is_narrow else (self.rank + 1,)
        self.u = nn.Parameter(torch.zeros(shape, **self.kind))
        # Outputs, directions of gradients there, and these as gradients at the input of A, which a turn needs.
        for name, needed in (("q", True), ("p", True), ("h", self.turn != 1)):
            rows = None if self.is_narrow or not needed else torch.zeros(self.rank, dim, **self.kind)
            self.register_buffer(name, rows)
        self._idle, self._stale = 0, False
        self.reset()

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim_in)
        bias = self._parameters["bias"]
        if transformed_by_torch(x):
            return F.linear(x, self.weight, bias)
        matrix = self.frozen_weight if self._is_merged() else self.weight.detach()
        if not self.follows():
            return F.linear(x, matrix, bias)
        return cast(Tensor, Follow.apply(x, matrix, bias, self.u, self, False))

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable; not finite where W is exactly singular.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        if transformed_by_torch(y):
            return F.linear(r, self.weight_inverse)
        self._ask()
        matrix = self.frozen_inverse if self._is_merged() else self.weight_inverse.detach()
        if not self.follows():
            return F.linear(r, matrix)
        return cast(Tensor, Follow.apply(r, matrix, None, self.u, self, True))

    @full_precision
    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar in float64; -inf where W is exactly singular.

        Cost O(1) after a merge, else that of a merge. On devices without float64 (mps) it is float32.
        """
        if transformed_by_torch(self.u):
            return self.frozen_logabsdet + self._determinant()[1]
        value = self.frozen_logabsdet if self._is_merged() else self.frozen_logabsdet + self._determinant()[1].detach()
        return cast(Tensor, Pull.apply(value, self.u, self)) if self.follows() else value.clone()

    @full_precision
    def sign(self) -> Tensor:
        """Return the sign of det W, a scalar (0 where W is exactly singular)."""
        with torch.no_grad():
            return self.frozen_sign.clone() if self._is_merged() else self.frozen_sign * self._determinant()[0]

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights, shape (d, d), differentiable by u itself. Cost as a merge."""
        if self.is_narrow:
            return self._step().to(self.u.dtype) @ self.frozen_weight
        rows = self._moves()
        return rows.scale * self.frozen_weight + rows.left.t() @ (rows.core @ (rows.right @ self.frozen_weight))

    @property
    @full_precision
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable by u itself. Cost as a merge."""
        self._ask()
        if self.is_narrow:
            return self.frozen_inverse @ small_inverse(self._step()).to(self.u.dtype)
        rows, x = self._moves(), self.frozen_inverse
        back = small_inverse(rows.ratio) @ rows.core @ rows.right
        return x / rows.scale - (x @ rows.left.t()) @ back / rows.scale.square()

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def _absorb(self) -> Changes:
        dense = self.is_narrow or (self.turn != 1 and 2 * self._rows >= self.dim)
        changes = self._absorb_dense() if dense else self._absorb_rows()
        changes.assign(self, _stale=not self._is_tracked(), _idle=self._idle + 1)
        return changes

    def _absorb_rows(self) -> Changes:
        # Cost 5 k d^2, or 3 k d^2 for t = 1, and 2 or 4 k d^2 while the inverse is tracked; no d x d temporary.
        a, x, u = self.frozen_weight, self.frozen_inverse, self.u
        rows = self._moves()
        # Rounded as A is: only its logarithm adds up over steps.
        ratio = rows.ratio.to(self.frozen_logabsdet.dtype)
        sign, logabsdet, pivots = pivoted_slogdet(ratio)
        size = torch.linalg.vector_norm(u) + torch.linalg.vector_norm(rows.core)
        # A step across a singular matrix, where the sign of the determinant changes, is too long as well.
        report = self.judge((), (pivots.min() * sign).clamp_min(0.0).reciprocal(), size=size)
        changes, accepted = Changes(report), report.accepted
        left, scale = torch.where(accepted, rows.left.t(), 0.0), torch.where(accepted, rows.scale, 1.0)
        if self._is_tracked():
            back = small_inverse(ratio).to(u.dtype) @ rows.core @ rows.right
            changes.scale(x, 1 / scale)
            right = torch.where(accepted, back / rows.scale.square(), 0.0)
            changes.absorb_product(x, x @ left, right, alpha=-1)
        changes.scale(a, scale)
        changes.absorb_product(a, left, torch.where(accepted, rows.core @ self._right_of_a(), 0.0))
        grown = logabsdet + self.dim * scale.to(logabsdet.dtype).log()
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + grown)
        return changes

    def _absorb_dense(self) -> Changes:
        # Cost O(d^3): for layers so narrow that a batch has as many samples as they have directions.
        step, kind = self._step(), self.u.dtype
        sign, logabsdet, pivots = pivoted_slogdet(step)
        report = self.judge((), (pivots.min() * sign).clamp_min(0.0).reciprocal())
        changes = Changes(report)
        changes.absorb(self.frozen_weight, step.to(kind) @ self.frozen_weight)
        if self._is_tracked():
            changes.absorb(self.frozen_inverse, self.frozen_inverse @ small_inverse(step).to(kind))
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + logabsdet)
        return changes

    def violation(self) -> Tensor:
        """Return ``max |A A^-1 - I|``. Cost O(d^3)."""
        self._ask()
        return super().violation()

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

    # --- inside ------------------------------------------------------------------------------------------------------

    def _plan_factors(self, changes: Changes, inverse: Tensor, sign: Tensor, logabsdet: Tensor) -> None:
        super()._plan_factors(changes, inverse, sign, logabsdet)
        changes.assign(self, _stale=False, _idle=0)

    def _ask(self) -> None:
        """Have the frozen inverse up to date, and track it from now on; training goes the same way nevertheless."""
        if self._stale:
            with torch.no_grad():
                inverse = small_inverse(self.frozen_weight.to(self.frozen_logabsdet.dtype)).to(self.u.dtype)
                changes = Changes()
                changes.put(self.frozen_inverse, inverse)
                changes.assign(self, _stale=False, factorizations=self.factorizations + 1)
                changes.commit()
        self._idle = 0

    def _is_tracked(self) -> bool:
        """Return whether the next merge updates the inverse."""
        return not self._stale and self._idle <= self.track_for

    def take_rows(self, z: Tensor, g: Tensor, h: Tensor | None) -> Tensor:
        """Make a batch rows of the layer, and return the gradient of u, shape (k + 1,).

        Args:
            z: outputs, shape (B, d).
            g: gradients there.
            h: ``g A`` (None: it is not known yet).

        Raises:
            MergeOrderError: there is no room left since the last merge.
        """
        if self.h is not None and h is None:
            h = g @ self.frozen_weight
        z, g, *more = self.fitted(z, g) if h is None else self.fitted(z, g, h)
        place = self.claim(len(z))
        norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
        with torch.no_grad():
            safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
            cast(Tensor, self.q)[place] = z
            torch.div(g, safe, out=cast(Tensor, self.p)[place])
            if self.h is not None:
                torch.div(more[0], safe, out=self.h[place])
        return F.pad(norm.flatten(), (place.start, self.rank + 1 - place.stop))

    def _weights(self) -> tuple[int, Tensor, Tensor, Tensor]:
        """Return the number of rows in use, u_i times the factors of E and of E^T, and s."""
        n = self._rows or 1
        u = self.u[:n, None]
        return n, u * ((1 + self.turn) / 2), u * ((1 - self.turn) / 2), self.u[-1]

    def _moves(self) -> Rows:
        n, straight, transposed, s = self._weights()
        q, p = cast(Tensor, self.q)[:n], cast(Tensor, self.p)[:n]
        if self.turn == 1:
            left, right = p, straight * q
        else:
            left, right = torch.cat([p, q]), torch.cat([straight * q, transposed * p])
        k = right @ left.t()
        eye = torch.eye(len(k), dtype=k.dtype, device=k.device)
        core = torch.add((1 + s) * eye, k, alpha=0.5)
        scale = 1 + s + s.square() / 2
        return Rows(left, right, core, scale, torch.addmm(eye, core / scale, k))

    def _right_of_a(self) -> Tensor:
        """Return ``right A``: of gradients it is known."""
        n, straight, transposed, _ = self._weights()
        product = straight * (cast(Tensor, self.q)[:n] @ self.frozen_weight)
        return product if self.h is None else torch.cat([product, transposed * self.h[:n]])

    def _step(self) -> Tensor:
        """Return R in the wide dtype."""
        wide = self.frozen_logabsdet.dtype
        eye = torch.eye(self.dim, dtype=wide, device=self.u.device)
        if self.is_narrow:
            u = self.u.to(wide)
            n = torch.add(u.t() * ((1 + self.turn) / 2), u, alpha=(1 - self.turn) / 2)
            n = n * (1 + n.square().sum()).rsqrt()
        else:
            rows = self._moves()
            n = torch.addmm(self.u[-1] * eye, rows.left.t().to(wide), rows.right.to(wide))
        return torch.addmm(n, n, n, alpha=0.5) + eye

    def _determinant(self) -> tuple[Tensor, Tensor]:
        """Return sign and log|det| of R."""
        wide = self.frozen_logabsdet.dtype
        if self.is_narrow:
            sign, logabsdet = small_slogdet(self._step())
        else:
            rows = self._moves()
            sign, logabsdet = small_slogdet(rows.ratio.to(wide))
            logabsdet = logabsdet + self.dim * rows.scale.to(wide).log()
        return sign.to(self.u.dtype), logabsdet

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
        return f"dim={self.dim}, rank={self.rank}, turn={self.turn:g}, bias={self.bias is not None}"


class Follow(torch.autograd.Function):
    """``W x + b``, or ``W^-1 r``, whose backward pass gives u the coordinates of the gradient ``g^T z``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, bias: Tensor | None, u: Tensor, layer: P4Relative, inverted: bool
    ) -> Tensor:
        """Return the product."""
        ctx.layer, ctx.inverted, ctx.redraws = layer, inverted, layer.redraws
        ctx.at_rest = matrix is layer.frozen_weight or matrix is layer.frozen_inverse
        y = F.linear(x, matrix, bias)
        ctx.save_for_backward(x if inverted else y, matrix, bias)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the bias and of u; of a layer with rows, its batch becomes rows."""
        (arrived,), layer = gradients, ctx.layer
        check_order(layer, ctx.redraws)
        given, matrix, bias = ctx.saved_tensors
        arrived = arrived.reshape(-1, layer.dim)
        wanted = ctx.needs_input_grad[0]
        back = arrived @ matrix if ctx.inverted or wanted or layer.h is not None else None
        z, h = given.reshape(-1, layer.dim), back
        if ctx.inverted:
            # r is given, with W x = r: then G W^T is minus the gradient at r times r, and that gradient times A is the
            # one that arrived.
            g, h = -cast(Tensor, back), -arrived
        else:
            z, g = z if bias is None else z - bias, arrived
        coordinates = z.t() @ g if layer.is_narrow else layer.take_rows(z, g, h if ctx.at_rest else None)
        of_x = cast(Tensor, back).view_as(given) if wanted else None
        return of_x, None, None if bias is None else arrived.sum(0), coordinates, None, None


class Pull(torch.autograd.Function):
    """log|det W| as a layer knows it, whose gradient c is the coordinate of the identity: ``c W^-T W^T = c I``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, u: Tensor, layer: P4Relative) -> Tensor:
        """Return the value."""
        ctx.layer, ctx.redraws = layer, layer.redraws
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return c as the last number of u, or c I for all of it."""
        (c,), u = gradients, ctx.layer.u
        check_order(ctx.layer, ctx.redraws)
        c = c.to(u.dtype)
        if ctx.layer.is_narrow:
            return None, c * torch.eye(len(u), dtype=u.dtype, device=u.device), None
        return None, F.pad(c.view(1), (len(u) - 1, 0)), None
