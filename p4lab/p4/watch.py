"""What a layer's backward pass does beside its gradients: it refuses to run after a merge, and remembers the batch.

The input is kept where autograd keeps what it saves, so that activation checkpointing, offloading and version checks
see it; a compiled backward pass writes samples into tensors of fixed size, which compilers can follow.
"""

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import MergeOrderError
from p4lab.p4.changes import Changes

Batch = tuple[Tensor, Tensor, bool]
"""A batch is inputs x, gradients g at the outputs, shape (batch, dim) each, and whether these belong to the inverse."""
FEWEST_SLOTS = 32
"""A compiled backward pass remembers so many samples of a batch, or 2 k if that is more."""


def check_order(layer: Any, redraws: int, gradient: Tensor | None = None) -> None:
    """Raise if a layer was merged or reset since a forward pass, of which the backward pass begins now.

    Raises:
        MergeOrderError: it was.
    """
    if layer.redraws != redraws:
        raise MergeOrderError(
            f"{type(layer).__name__} was merged or reset between a forward pass and its backward pass, so that the "
            "gradients would belong to a perturbation that is gone: merge after optimizer.step(), and run the forward "
            "pass again before the next backward()"
        )


def remember(layer: Any, x: Tensor, g: Tensor, inverted: bool = False) -> None:
    """Hand a batch (see `Batch`) to a layer for its next directions, if it draws them by the gradient."""
    if layer.training and layer.reset_kind == "gradient":
        layer.__dict__["batch"] = (x, g, inverted)


def tie_to(y: Tensor, layer: Any) -> None:
    """Let the backward pass of a layer's new output begin with `check_order`.

    Written out instead of ``y.register_hook``, which also makes a handle to remove the hook: that would be half of what
    it costs, 3 % of a step of a narrow layer.
    """
    y._backward_hooks = OrderedDict(p4lab=partial(check_order, layer, layer.redraws))
    y.grad_fn._register_hook_dict(y)  # type: ignore[union-attr]


def transformed(gradient: Tensor) -> bool:
    """Return whether a gradient belongs to a transform of torch.func, or to a vectorized backward pass."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


class Watch(torch.autograd.Function):
    """The output of a layer, untouched; its backward pass checks the order and hands the batch to the layer."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, layer: Any, inverted: bool) -> Tensor:
        """Return y itself, not a view of it, so that operations in place may follow."""
        ctx.layer, ctx.inverted, ctx.redraws = layer, inverted, layer.redraws
        ctx.save_for_backward(x)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient on. One that a transform of torch.func wraps must not escape into the layer."""
        (g,) = gradients
        check_order(ctx.layer, ctx.redraws)
        if not transformed(g):
            (x,), gradient = ctx.saved_tensors, g.detach()
            if x.dim() != 2:
                x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
            ctx.layer.__dict__["batch"] = (x, gradient, ctx.inverted)
        return g, None, None, None


class CompiledWatch(torch.autograd.Function):
    """The same for compilers: evenly spaced samples of the batch are written into tensors of fixed size."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, x_slots: Tensor, g_slots: Tensor) -> Tensor:
        """Return y."""
        ctx.save_for_backward(x, x_slots, g_slots)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient on."""
        (g,) = gradients
        x, x_slots, g_slots = ctx.saved_tensors
        rows, length = x.reshape(-1, x.shape[-1]), len(x_slots)
        every = max(1, rows.shape[0] // length)
        for slots, all_rows in ((x_slots, rows), (g_slots, g.reshape(-1, g.shape[-1]))):
            samples = all_rows[::every][:length]
            slots[: samples.shape[0]].copy_(samples)
            slots[samples.shape[0] :].zero_()
        return g, None, None, None


class Slots:
    """Room for samples of the last batch of a compiled backward pass; zero rows tell a sketch nothing.

    Args:
        rank: number k of directions.
        dim_in: length of an input.
        dim_out: length of an output.
        like: a tensor with the layer's device and dtype.

    Attributes:
        x, g: inputs and gradients, shape (2 k or more, dim).
        inverted: whether they belong to the inverse.
    """

    def __init__(self, rank: int, dim_in: int, dim_out: int, like: Tensor) -> None:
        length = max(FEWEST_SLOTS, 2 * rank)
        self.x, self.g = (torch.zeros(length, dim, dtype=like.dtype, device=like.device) for dim in (dim_in, dim_out))
        self.inverted = False

    def fit(self, like: Tensor) -> bool:
        """Return whether device and dtype are those of a tensor."""
        return self.x.device == like.device and self.x.dtype == like.dtype

    def batch(self) -> Batch:
        """Return the samples as a batch."""
        return self.x, self.g, self.inverted

    def clear(self, changes: Changes) -> None:
        """Plan to forget the samples."""
        for slots in (self.x, self.g):
            changes.write(slots, partial(slots.zero_))
