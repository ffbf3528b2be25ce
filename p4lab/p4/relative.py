"""P4Relative: invertible linear layers that follow the whole gradient of a batch, in the frame of their outputs."""

import math
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import OptionError
from p4lab.linalg import refined_inverse, small_inverse, small_slogdet
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.following import Following
from p4lab.p4.linear import NOT_FINITE
from p4lab.p4.report import Check
from p4lab.p4.tracked import TrackedInverse
from p4lab.p4.watch import check_order

TURN = 20.0
"""Layers turn so many times as fast as they stretch, unless they are told otherwise."""


class Rows(NamedTuple):
    """What rows make of A: ``R = I + M + M^2 / 2 = a I + left^T core right`` with left, right of shape (r, d)."""

    left: Tensor
    right: Tensor
    core: Tensor
    scale: Tensor
    ratio: Tensor
    """It has the determinant of ``R / a``: ``I + core right left^T / a``, shape (r, r)."""
    s: Tensor
    """The shortened s."""
    u: Tensor
    """The shortened u, shape (k, 1)."""


class P4Relative(Following, TrackedInverse):
    r"""Linear layer with invertible weights that descends along the whole gradient of a batch, relative to itself.

    .. math:: y = W x + b, \qquad W = R\,A, \qquad R = I + M + \tfrac{1}{2} M^2, \qquad M = \frac{N}{\sqrt{1 + |N|_F^2}}

    .. math:: N = \tfrac{1}{2} (E + E^T) + \tfrac{t}{2} (E - E^T), \qquad E = s I + \sum_i u_i\, \hat g_i^T z_i

    The gradient of a batch of B samples with outputs ``z = W x`` and gradients g at them has, in this frame, rank B but
    for a multiple of the identity: :math:`G W^T = g^T z + c I`, with ``c`` the gradient by log|det W|. Each sample is
    a row: its output z_i and the direction of its gradient, :math:`\hat g_i = g_i / |g_i|`, are set by the backward
    pass; the gradients of u_i and s (the last number of u) are |g_i| and c, the coordinates of that matrix, of which
    nothing is projected away. With t = 1 and plain descent a small step and its merge are the relative gradient's, for
    any condition of A, and the inverse and log|det| come along. But likelihoods curve less along rotations than along
    scales, and R turns t times as fast as it stretches. No step is too long for it: the determinant of R is positive.

    A layer with ``rank >= dim`` needs no rows: ``E = u^T`` is all of a (d, d) matrix, which any optimizer may train.

    Merge after each optimizer step (``every=1``): the next batch has other directions.

    Args:
        dim: width d.
        rank: number k of rows there is room for, those of all batches between merges; a batch that does not fit is
            folded into them with random signs, which keeps its gradient in the mean. No more than d are kept.
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or an invertible (d, d) tensor.
        turn: t.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from (None: torch's default
            generator).
        device: device of all tensors.
        dtype: float32 or float64.

    Attributes:
        track_for: number of merges for which the inverse is tracked after it was last asked for: at first d / 2k, which
            cost as much as a factorization (may be set at any time).
        factorizations: how often the inverse was asked for when it was not up to date.

    Raises:
        OptionError: dim, rank, init, turn out of range.
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

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE,)
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
        turn: float = TURN,
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 < turn < math.inf:
            raise OptionError(f"turn={turn!r}: expected a positive number, the speed of rotations to that of scales")
        super().__init__(dim, dim, rank, bias, "gaussian", seed, device, dtype)
        self.turn = turn
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
        if self.is_foreign():
            return F.linear(x, self._weight(), bias)
        matrix = self.frozen_weight if self._is_merged() else self._weight().detach()
        if not self.follows():
            return F.linear(x, matrix, bias)
        return self._followed(x, matrix, bias)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable; not finite where W is exactly singular.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        if self.is_foreign():
            return F.linear(r, self._weight_inverse())
        self._ask()
        matrix = self.frozen_inverse if self._is_merged() else self._weight_inverse().detach()
        if not self.follows():
            return F.linear(r, matrix)
        return self._followed(r, matrix, None, inverted=True)

    @full_precision
    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar in float64; -inf where W is exactly singular.

        Cost O(1) after a merge, else that of a merge. On devices without float64 (mps) it is float32.
        """
        if self.is_foreign():
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
        """The effective weights, shape (d, d), differentiable without rows. Cost as a merge."""
        return self.followed(self._weight())

    @property
    @full_precision
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable without rows. Cost as a merge."""
        return self.followed(self._weight_inverse(), inverted=True)

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def _absorb(self) -> Changes:
        changes = self._absorb_dense() if self.is_narrow or 2 * self._rows >= self.dim else self._absorb_rows()
        changes.assign(self, _stale=not self._is_tracked(), _idle=self._idle + 1)
        return changes

    def _absorb_rows(self) -> Changes:
        # Cost 3 k d^2 + O(k^2 d), and 4 k d^2 more while the inverse is tracked; no d x d temporary.
        a, x, u = self.frozen_weight, self.frozen_inverse, self.u
        rows = self._moves()
        # Rounded as A is: only its logarithm adds up over steps.
        ratio = rows.ratio.to(self.frozen_logabsdet.dtype)
        norm = torch.linalg.vector_norm
        report = self.judge((), size=norm(u) + norm(rows.ratio))
        changes, accepted = Changes(report), report.accepted
        # A batch that is not finite must leave A alone, and 0 times NaN is NaN.
        left, scale = torch.where(accepted, rows.left.t(), 0.0), torch.where(accepted, rows.scale, 1.0)
        if self._is_tracked():
            back = small_inverse(rows.ratio) @ rows.core @ rows.right / rows.scale.square()
            changes.scale(x, 1 / scale)
            changes.absorb_product(x, x @ left, torch.where(accepted, back, 0.0), alpha=-1)
        changes.scale(a, scale)
        changes.absorb_product(a, left, torch.where(accepted, rows.core @ self._right_of_a(rows), 0.0))
        grown = small_slogdet(ratio)[1] + self.dim * scale.to(ratio.dtype).log()
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + grown)
        return changes

    def _absorb_dense(self) -> Changes:
        # Cost O(d^3): where a batch has as many samples as there are directions, or nearly.
        step, kind = self._step(), self.u.dtype
        changes = Changes(self.judge((step,)))
        changes.absorb(self.frozen_weight, step.to(kind) @ self.frozen_weight)
        if self._is_tracked():
            changes.absorb(self.frozen_inverse, self.frozen_inverse @ small_inverse(step).to(kind))
        grown = small_slogdet(step)[1].to(self.frozen_logabsdet.dtype)
        changes.absorb(self.frozen_logabsdet, self.frozen_logabsdet + grown)
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

    def _followed(self, x: Tensor, matrix: Tensor, bias: Tensor | None, inverted: bool = False) -> Tensor:
        """Return ``matrix x + bias``, whose backward pass tells the layer of its batch: compilers leave it alone."""
        return cast(Tensor, Follow.apply(x, matrix, bias, self.u, self, inverted))

    # What torch.compiler.disable sets; that would import the compiler, which takes seconds.
    _followed._torchdynamo_disable = True  # type: ignore[attr-defined]

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
        place, (z, g, *more) = self.claim(z, g) if h is None else self.claim(z, g, h)
        norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
        with torch.no_grad():
            safe = norm.clamp_min(torch.finfo(norm.dtype).tiny)
            rows = [(self.q, z), (self.p, g / safe), (self.h, None if self.h is None else more[0] / safe)]
            for buffer, values in rows:
                if buffer is not None and values is not None:
                    # What is not finite is so in u's gradient, too; here it would outlive a step that is not taken.
                    torch.nan_to_num(values, 0.0, 0.0, 0.0, out=buffer[place])
        return F.pad(norm.flatten(), (place.start, self.rank + 1 - place.stop))

    @full_precision
    def _weight(self) -> Tensor:
        if self.is_narrow:
            return self._step().to(self.u.dtype) @ self.frozen_weight
        rows = self._moves()
        return rows.scale * self.frozen_weight + rows.left.t() @ (rows.core @ (rows.right @ self.frozen_weight))

    @full_precision
    def _weight_inverse(self) -> Tensor:
        self._ask()
        if self.is_narrow:
            return self.frozen_inverse @ small_inverse(self._step()).to(self.u.dtype)
        rows, x = self._moves(), self.frozen_inverse
        back = small_inverse(rows.ratio) @ rows.core @ rows.right
        return x / rows.scale - (x @ rows.left.t()) @ back / rows.scale.square()

    def _moves(self) -> Rows:
        """Return what the rows in use make of A. Cost O(k^2 d)."""
        n, s, u = self._rows, self.u[-1], self.u[: self._rows, None]
        q, p = cast(Tensor, self.q)[:n], cast(Tensor, self.p)[:n]
        a, b = (1 + self.turn) / 2, (1 - self.turn) / 2
        outputs, gradients, across = q @ q.t(), p @ p.t(), q @ p.t()
        twice = u * u.t()
        # |N|^2 = tr N^T N of N = s I + sum_i u_i (a p_i^T q_i + b q_i^T p_i)
        square = self.dim * s.square() + 2 * s * (u.flatten() * across.diagonal()).sum()
        square = square + (a**2 + b**2) * (twice * outputs * gradients).sum()
        square = square + 2 * a * b * (twice * across * across.t()).sum()
        shorter = (1 + square).rsqrt()
        u, s = u * shorter, s * shorter
        if b == 0:
            left, right, k = p, u * q, u * across
        else:
            straight, transposed = a * u, b * u
            left, right = torch.cat([p, q]), torch.cat([straight * q, transposed * p])
            k = torch.cat(
                [
                    torch.cat([straight * across, straight * outputs], 1),
                    torch.cat([transposed * gradients, transposed * across.t()], 1),
                ]
            )
        eye = torch.eye(len(k), dtype=k.dtype, device=k.device)
        core = torch.add((1 + s) * eye, k, alpha=0.5)
        scale = 1 + s + s.square() / 2
        return Rows(left, right, core, scale, torch.addmm(eye, core / scale, k), s, u)

    def _right_of_a(self, rows: Rows) -> Tensor:
        """Return ``right A``: what belongs to gradients is known."""
        product = (rows.u * ((1 + self.turn) / 2)) * (cast(Tensor, self.q)[: self._rows] @ self.frozen_weight)
        if self.h is None:
            return product
        return torch.cat([product, (rows.u * ((1 - self.turn) / 2)) * self.h[: self._rows]])

    def _step(self) -> Tensor:
        """Return R, in the wide dtype where it is cheap."""
        wide = self.frozen_logabsdet.dtype if self.is_narrow else self.u.dtype
        eye = torch.eye(self.dim, dtype=wide, device=self.u.device)
        if self.is_narrow:
            u = self.u.to(wide)
            m = torch.add(u.t() * ((1 + self.turn) / 2), u, alpha=(1 - self.turn) / 2)
            m = m * (1 + m.square().sum()).rsqrt()
        else:
            rows = self._moves()
            m = torch.addmm(rows.s * eye, rows.left.t(), rows.right)
        return torch.addmm(m, m, m, alpha=0.5) + eye

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

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Unless the state says otherwise.
        self._stale, self._idle = self._stale or prefix + "frozen_weight" in state, 0
        super()._load_from_state_dict(state, prefix, *rest)

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
        z, ctx.dtype = F.linear(x, matrix), x.dtype
        ctx.biased = bias is not None
        ctx.save_for_backward(x if inverted else z, matrix)
        # A tensor of its own, so that operations in place may follow.
        return z.clone() if bias is None else z + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, of the bias and of u; of a layer with rows, its batch becomes rows."""
        (arrived,), layer = gradients, ctx.layer
        check_order(layer, ctx.redraws)
        layer.check_backward()
        given, matrix = ctx.saved_tensors
        # Autocast may have made the output, and its gradient, narrower.
        given, arrived = given.to(matrix.dtype), arrived.reshape(-1, layer.dim).to(matrix.dtype)
        wanted = ctx.needs_input_grad[0]
        back = arrived @ matrix if ctx.inverted or wanted or layer.h is not None else None
        z, h = given.reshape(-1, layer.dim), back
        if ctx.inverted:
            # r is given, with W x = r: then G W^T is minus the gradient at r times r, and that gradient times A is the
            # one that arrived.
            g, h = -cast(Tensor, back), -arrived
        else:
            g = arrived
        coordinates = z.t() @ g if layer.is_narrow else layer.take_rows(z, g, h if ctx.at_rest else None)
        of_x = cast(Tensor, back).view_as(given).to(ctx.dtype) if wanted else None
        return of_x, None, arrived.sum(0) if ctx.biased else None, coordinates, None, None


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
        ctx.layer.check_backward()
        c = c.to(u.dtype)
        if ctx.layer.is_narrow:
            return None, c * torch.eye(len(u), dtype=u.dtype, device=u.device), None
        return None, F.pad(c.view(1), (len(u) - 1, 0)), None
