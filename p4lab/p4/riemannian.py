"""P4Riemannian: orthogonal linear layers that follow the whole Riemannian gradient of a batch."""

import math
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.linalg import cayley_pairs_core, small_inverse
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.following import Following
from p4lab.p4.linear import NOT_FINITE, add_low_rank
from p4lab.p4.orthogonal import Orthogonal
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.watch import check_order, transformed

TOO_LONG = Check(
    MergeStatus.DISCARDED_SINGULAR,
    "rounding error that the step would bring to |Q^T Q - I|; it is too long, and is not taken; use a smaller "
    "learning rate",
)
"""A step that is too long is dropped: its directions belong to a batch that is gone."""


class P4Riemannian(Following, Orthogonal):
    r"""Linear layer with orthogonal weights that descends along the whole Riemannian gradient of a batch.

    .. math:: y = W x + b, \qquad W = R\,Q, \qquad R = (I - S/2)^{-1} (I + S/2), \qquad
              S = \sum_i u_i (\hat g_i^T z_i - z_i^T \hat g_i)

    The gradient of a batch at its outputs, g, has with ``z = Q x`` the skew gradient :math:`g^T z - z^T g` on the
    group, of rank 2 B at most for B samples. So each sample is a row, and turns its own plane: its output z_i and the
    direction of its gradient, :math:`\hat g_i = g_i / |g_i|`, are set by the backward pass, and u_i, the parameter, has
    the gradient |g_i|. With plain descent a step and its merge are then those of the Cayley retraction, exactly. Both
    rows are kept in the frame of the inputs, too: ``g_i Q`` is the gradient at the inputs, which backpropagation has
    anyway. (``z_i Q`` is x_i, but to rounding only, and the merges of many steps would amplify that: it is computed
    anew.) Whatever an optimizer makes of u, W stays orthogonal.

    A layer with ``rank >= dim`` needs no rows: u is all of a (d, d) matrix with the gradient :math:`z^T g`, which any
    optimizer may train, and

    .. math:: S = u^T - u

    Merge after each optimizer step (``every=1``): the next batch has other directions. The inverse is the transpose,
    log|det W| is 0, and the sign of det W never changes. Without a bias the output is kept for the backward pass, and
    must not be changed in place; nor may that of `inverse`.

    Args:
        dim: width d.
        rank: number k of rows there is room for, those of all batches between merges; a batch that does not fit is
            folded into them with random signs, which keeps its gradient in the mean. No more than d are kept.
        bias: whether there is an additive bias.
        init: "identity", "reverse", "permutation", "orthogonal" or an orthogonal (d, d) tensor.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from (None: torch's default
            generator).
        device: device of all tensors.
        dtype: float32 or float64.

    Raises:
        OptionError: dim, rank, init out of range, or a tensor that is not orthogonal.
        ShapeError, SingularMatrixError: ``init`` is a tensor that is not square, not finite or not invertible.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward and backward 3 B d^2, with or without an input gradient; merge 2 B d^2 + 8 B^2 d +
    O(B^3) without any d x d temporary. For ``rank >= dim``: forward and backward 2 B d^2 (3 B d^2 with an input
    gradient), merge 4/3 d^3. Correction 3 d^3. Memory d^2 + 4 k d, or 2 d^2.

    Source: the Cayley transform of low rank is Wen and Yin's (2013); perturbation and merge are arXiv:2010.07033; their
    combination, and the rows in both frames, are p4lab's.

    Example:
        >>> layer = P4Riemannian(3, seed=0)
        >>> x = torch.randn(5, 3)
        >>> (layer(x) - x.roll(1, 1)).square().mean().backward()
        >>> torch.optim.SGD(layer.parameters(), lr=0.1).step()
        >>> bool(layer.merge()), torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        (True, True)
    """

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE, TOO_LONG)
    samples: ClassVar[str] = "u has one number for each sample of a batch"
    instead: ClassVar[str] = "P4Orthogonal"

    outside: Tensor
    inside: Tensor
    scales: Tensor

    def __init__(
        self,
        dim: int,
        rank: int = 64,
        bias: bool = True,
        init: str | Tensor = "identity",
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, rank, bias, init, "gaussian", seed, device, dtype)
        kind, k = self.kind, self.rank
        self.u = nn.Parameter(torch.zeros(dim, dim, **kind) if self.is_narrow else torch.zeros(k, **kind))
        # Pairs of rows, gradient and output of each sample, in the frame of the outputs and in that of the inputs.
        for name in ("outside", "inside"):
            self.register_buffer(name, None if self.is_narrow else torch.zeros(k, 2, dim, **kind))
        self.register_buffer("scales", None if self.is_narrow else torch.zeros(k, **kind))
        self.reset()

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``R Q x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim)
        bias = self._parameters["bias"]
        if self.is_foreign():
            return self.turn(F.linear(x, self.frozen_weight), bias)
        merged = self._is_merged()
        z = cast(Tensor, Follow.apply(x, self.u, self, False)) if self.follows() else F.linear(x, self.frozen_weight)
        if not merged:
            z = self._turned(z, self.u.detach())
        return z if bias is None else z + bias.to(z.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``Q^T R^T (y - b)`` for y of shape (..., d), differentiable.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        if self.is_foreign():
            return F.linear(self.turn_back(r), self.frozen_weight.t())
        if not self._is_merged():
            r = self._turned(r, self.u.detach(), back=True)
        return (
            cast(Tensor, Follow.apply(r, self.u, self, True)) if self.follows() else F.linear(r, self.frozen_weight.t())
        )

    def turn(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``R z + bias`` for z of shape (..., d), differentiable by u itself. Cost O(B d k + d k^2), or d^3."""
        y = self._turned(z, self.u)
        return y if bias is None else y + bias.to(y.dtype)

    def turn_back(self, z: Tensor) -> Tensor:
        """Return ``R^T z`` for z of shape (..., d), differentiable by u itself. Cost as `turn`."""
        return self._turned(z, self.u, back=True)

    @property
    @full_precision
    def weight(self) -> Tensor:
        """The effective weights ``R Q``, shape (d, d), differentiable without rows. Cost as a merge."""
        return self.followed(super().weight)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _turned(self, z: Tensor, u: Tensor, back: bool = False) -> Tensor:
        """Return R z, or R^T z."""
        if self.is_narrow:
            r = self._rotation(u)
            return F.linear(z, r.t() if back else r)
        # Copied, for a backward pass writes more rows into the buffer.
        p = self.outside[: self._rows].clone().view(-1, self.dim)
        core, _ = self._core(p, u)
        return add_low_rank(z, F.linear(F.linear(z, p), core.t() if back else core), p)

    @full_precision
    def _rotation(self, u: Tensor) -> Tensor:
        """Return R of a layer with ``rank >= dim``."""
        return 2 * small_inverse(_system(u)) - torch.eye(self.dim, dtype=u.dtype, device=u.device)

    @full_precision
    def _core(self, p: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return K of a layer with rows P, ``R = I + P^T K P``, and its size (`p4lab.linalg.cayley_pairs_core`)."""
        return cayley_pairs_core(p, (u * self.scales)[: self._rows])

    def _absorb(self) -> Changes:
        return self._absorb_dense() if self.is_narrow else self._absorb_rows()

    def _absorb_rows(self) -> Changes:
        # Cost 2 k d^2 + 8 k^2 d, no d x d temporary.
        p, inside = (rows[: self._rows].view(-1, self.dim) for rows in (self.outside, self.inside))
        core, size = self._core(p, self.u)
        product = core @ inside
        report = self.judge((), torch.finfo(p.dtype).eps * size, size=size)
        changes = Changes(report)
        # A step that is not finite must leave Q alone, and 0 times NaN is NaN.
        changes.absorb_product(self.frozen_weight, p.t(), product.nan_to_num_(0.0, 0.0, 0.0).mul_(report.accepted))
        return changes

    def _absorb_dense(self) -> Changes:
        # R Q = 2 X - Q with (I - S/2) X = Q. Cost 4/3 d^3, for layers so narrow that a batch has as many samples.
        q, system = self.frozen_weight, _system(self.u)
        x = torch.linalg.solve_ex(system, q).result
        length = torch.linalg.vector_norm(system)
        report = self.judge((), torch.finfo(q.dtype).eps * math.sqrt(self.dim) * length, size=length)
        changes = Changes(report)
        changes.write(q, partial(q.lerp_, x.nan_to_num_(0.0, 0.0, 0.0), 2 * report.accepted.to(q.dtype)))
        return changes

    @full_precision
    def take(
        self, given: Tensor, made: Tensor, g: Tensor, inverted: bool, needed: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Make a batch rows of the layer, if it has rows, and return two gradients.

        Args:
            given: x of the forward pass, or z of the inverse, shape (B, d).
            made: z, or x.
            g: gradient at what was made.
            inverted: whether it was the inverse.
            needed: whether somebody wants the gradient at what was given.

        Returns:
            The gradient at what was given, shape (B, d), or None, and that of u.

        Raises:
            MergeOrderError: there is no room left since the last merge.
        """
        q = self.frozen_weight
        back = q.t() if inverted else q
        if made.dtype is not q.dtype:  # autocast made it
            given, g = given.to(q.dtype), g.to(q.dtype)
            made = given @ back.t()
        pulled = g @ back if needed else None
        if self.is_narrow:
            # Through the inverse x = W^T z a turn by S changes x by - W^T S z.
            return pulled, (g @ back if pulled is None else pulled).t() @ given if inverted else made.t() @ g
        batch = (given, made, g) if pulled is None else (given, made, g, pulled)
        place, claimed = self.claim(*batch)
        given, made, g, *rest = (t.detach() for t in claimed)
        outside, inside = self.outside[place], self.inside[place]
        if inverted:
            h = rest[0] if rest else g @ back
            torch.stack((h, given), 1, out=outside)
            torch.stack((h @ q, made), 1, out=inside)
        elif rest:
            torch.stack((g, made), 1, out=outside)
            torch.stack((rest[0], made @ q), 1, out=inside)
        else:
            torch.stack((g, made), 1, out=outside)
            torch.mm(outside.view(-1, self.dim), q, out=inside.view(-1, self.dim))
        lengths = torch.linalg.vector_norm(g, dim=1)
        scales = lengths.clamp_min(torch.finfo(g.dtype).tiny).reciprocal_()
        self.scales[place].copy_(scales.neg_() if inverted else scales)
        for rows in (outside, inside, self.scales[place]):
            rows.nan_to_num_(0.0, 0.0, 0.0)  # as it is in u's gradient; here it would outlive a step that is not taken
        full = len(lengths) == self.rank
        return pulled, lengths if full else F.pad(lengths, (place.start, self.rank - place.stop))

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"dim={self.dim}, rank={self.rank}, bias={self.bias is not None}"


class Follow(torch.autograd.Function):
    """``Q x``, or ``Q^T z``, whose backward pass makes the batch rows and gives u the lengths of its gradients."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, u: Tensor, layer: P4Riemannian, inverted: bool) -> Tensor:
        """Return what Q makes of the input."""
        q = layer.frozen_weight
        made = F.linear(given, q.t() if inverted else q)
        ctx.layer, ctx.inverted, ctx.redraws = layer, inverted, layer.redraws
        ctx.save_for_backward(given, made, q)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient at the input, and that of u; one that is vectorized must not escape into the layer."""
        (g,), layer, inverted = gradients, ctx.layer, ctx.inverted
        check_order(layer, ctx.redraws)
        layer.check_backward()
        given, made, q = ctx.saved_tensors
        if transformed(g):
            return g @ (q.t() if inverted else q), None, None, None
        if g.dim() == 2:
            return *layer.take(given, made, g, inverted, ctx.needs_input_grad[0]), None, None
        flat = (t.reshape(-1, layer.dim) for t in (given, made, g))
        pulled, coordinates = layer.take(*flat, inverted, ctx.needs_input_grad[0])
        return None if pulled is None else pulled.view_as(given), coordinates, None, None


def _system(u: Tensor) -> Tensor:
    """Return ``I - S/2`` with ``S = u^T - u``."""
    system = torch.sub(u, u.t()).mul_(0.5)
    system.diagonal().add_(1)
    return system
