"""A whole stack of P4Inv layers and Bent identities as one node of the autograd graph.

A live flow of a few coordinates spends its step in the bookkeeping of some hundred tiny kernels. Here the weights of
all layers are formed together, the layers run without that bookkeeping, and the backward pass is written out.
`Flow.forward` takes this path by itself where `fusible` says so; values and gradients are those of the layers, to
rounding. So does `Flow.inverse` where nobody asks for gradients, as in pictures of samples while a run goes on.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from p4lab.flows.bent import BentIdentity
from p4lab.linalg import is_transforming
from p4lab.p4 import P4Inv
from p4lab.p4.watch import check_order, remember, transformed

WIDEST = 64
"""Wider layers run one by one, without the d x d weights of all of them at a time."""

Layered = Callable[[Tensor], tuple[Tensor, Tensor]]


def fusible(layers: Sequence[Any], x: Tensor, gradients: bool = True) -> bool:
    """Return whether these layers, and this input, may run as one node: else they run one by one.

    Args:
        layers: in order.
        x: what they are to be applied to, or undone from.
        gradients: whether the node is for inputs with gradients (`run`) or without (`undo`).
    """
    if torch.is_grad_enabled() != gradients or x.dim() != 2 or x.is_meta:
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    if is_transforming() or torch.compiler.is_compiling():
        return False
    first = None
    for layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
            return False
        if type(layer) is P4Inv:
            u, bias = layer._parameters["u"], layer._parameters["bias"]
            if layer.train_v or u is None or bias is None or not (u.requires_grad and bias.requires_grad):
                return False
            first = u if first is None else first
            if u.shape != first.shape:
                return False
        elif type(layer) is not BentIdentity:
            return False
    if first is None or not x.numel():
        return False
    width = first.shape[1]
    return width <= WIDEST and x.shape[1] == width and x.dtype == first.dtype and x.device == first.device


def run(layers: Sequence[Any], x: Tensor, layered: Layered) -> tuple[Tensor, Tensor]:
    """Return ``(z, log|det dz/dx|)`` of shapes (B, d) and (B,).

    Args:
        layers: what `fusible` accepted.
        x: shape (B, d).
        layered: computes the same, layer by layer: for derivatives of derivatives.
    """
    linear = [layer for layer in layers if type(layer) is P4Inv]
    parameters = [layer._parameters[name] for name in ("u", "bias") for layer in linear]
    return cast(tuple[Tensor, Tensor], _Stack.apply(layers, linear, layered, x, *parameters))


@torch.no_grad()
def undo(layers: Sequence[Any], z: Tensor) -> Tensor:
    r"""Return the x of shape (B, d) from which these layers make z, without gradients and log|det|.

    .. math:: W^{-1} = A^{-1} - A^{-1} u^T C^{-1} q, \qquad C = I + q u^T, \qquad q = v A^{-1}

    Args:
        layers: what `fusible` accepted.
        z: shape (B, d).

    Cost O(d^2 k) per layer for its inverse, then one product with z; about half the time of the layers one by one.
    """
    linear = [layer for layer in layers if type(layer) is P4Inv]
    u, biases = (torch.stack([layer._parameters[name] for layer in linear]) for name in ("u", "bias"))  # type: ignore[misc]
    q, inverses = (torch.stack([layer._buffers[name] for layer in linear]) for name in ("q", "frozen_inverse"))  # type: ignore[misc]
    inverses = torch.baddbmm(inverses, inverses @ u.mT, _small_inverse(_capacitance(q, u)) @ q, alpha=-1)
    transposed, shifts = inverses.mT.unbind(), (inverses @ biases.unsqueeze(-1)).squeeze(-1).unbind()
    i = len(linear)
    for layer in reversed(layers):
        if type(layer) is P4Inv:
            i -= 1
            z = torch.addmm(shifts[i], z, transposed[i], beta=-1)
        elif layer.inverted:
            square = z * z
            z = torch.addcdiv(z, square, (square + 1).sqrt_().add_(1), value=0.5)
        else:
            z = _unbent(z)[0]
    return z


class _Stack(torch.autograd.Function):
    r"""The stack, its derivatives in closed form.

    .. math:: W = A + u^T v, \quad \bar{u} = v \bar{W}^T + \bar{l}\, C^{-1} q, \qquad
              b'(x) = 1 + \frac{x r}{2}, \quad (\ln b')' = \frac{r^3}{2\, b'}, \quad r = (x^2 + 1)^{-1/2}

    where a bar marks the gradient of the loss, and l is log|det|.
    """

    @staticmethod
    def forward(
        ctx: Any, layers: Sequence[Any], linear: list[P4Inv], layered: Layered, x: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        u, biases = torch.stack(parameters[: len(linear)]), parameters[len(linear) :]
        v, q, a = (torch.stack([layer._buffers[name] for layer in linear]) for name in ("v", "q", "frozen_weight"))  # type: ignore[misc]
        stacked = torch.baddbmm(a, u.mT, v)
        weights = stacked.unbind()
        c_inverse, logabsdet = _inverse_and_logabsdet(q, u)
        frozen = torch.stack([layer._buffers["frozen_logabsdet"] for layer in linear])  # type: ignore[misc]
        logabsdet = (frozen.sum() + logabsdet.sum(dtype=frozen.dtype)).to(x.dtype)
        ctx.layers, ctx.linear, ctx.layered = layers, linear, layered
        ctx.redraws = [layer.redraws for layer in linear]
        kept: list[Tensor] = []
        log_slopes, h, i = torch.zeros_like(x), x.detach(), 0
        for layer in layers:
            if type(layer) is P4Inv:
                kept.append(h)
                h = torch.addmm(biases[i], h, weights[i].t())
                i += 1
            elif layer.inverted:
                h, half, r = _bent_inverse(h)
                log_slopes.sub_(half.log1p())
                kept += (half, r)
            else:
                h, half, r = _bent(h)
                log_slopes.add_(half.log1p())
                kept += (half, r)
        # All of it where autograd keeps what it saves, for activation checkpointing and offloading to see.
        ctx.save_for_backward(x, *parameters, stacked, v, c_inverse @ q, *kept)
        return h, log_slopes.sum(-1).add_(logabsdet)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        for layer, count in zip(ctx.linear, ctx.redraws, strict=True):
            check_order(layer, count)
        saved = ctx.saved_tensors  # torch raises here if an optimizer changed them since
        if torch.is_grad_enabled() or any(map(transformed, gradients)):
            return _again(ctx, *gradients)
        stacked, v, slope_of_logabsdet, *kept = saved[1 + 2 * len(ctx.linear) :]
        weights = stacked.unbind()
        g, g_log = gradients
        column = g_log.unsqueeze(-1)
        i, g_weights, g_biases = len(ctx.linear), [], []
        for left, layer in zip(reversed(range(len(ctx.layers))), ctx.layers[::-1], strict=True):
            if type(layer) is P4Inv:
                i -= 1
                h = kept.pop()
                remember(layer, h, g)
                g_weights.append(g.t() @ h)
                g_biases.append(g.sum(0))
                if left or ctx.needs_input_grad[3]:
                    g = g @ weights[i]
            else:
                r, half = kept.pop(), kept.pop()
                slope = half + 1
                change = (r * r).mul_(r).div_(slope)  # twice the derivative of log b'
                if layer.inverted:
                    g = torch.addcmul(g, column, change, value=-0.5).div_(slope)
                else:
                    g = torch.addcmul(slope.mul_(g), column, change, value=0.5)
        g_u = torch.baddbmm(g_log.sum() * slope_of_logabsdet, v, torch.stack(g_weights[::-1]).mT)
        return None, None, None, g if ctx.needs_input_grad[3] else None, *g_u.unbind(), *g_biases[::-1]


def _again(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the layers one by one: then gradients can be differentiated in turn, or vectorized."""
    x, *parameters = ctx.saved_tensors[: 1 + 2 * len(ctx.linear)]
    inputs = [x, *parameters] if ctx.needs_input_grad[3] else parameters
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        slopes = torch.autograd.grad(ctx.layered(x), inputs, gradients, create_graph=differentiable)
    return None, None, None, *(slopes if ctx.needs_input_grad[3] else (None, *slopes))


def _inverse_and_logabsdet(q: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inverses of ``I + q u^T``, shape (layers, k, k), and log|det| of each."""
    c = _capacitance(q, u)
    if u.shape[1] == 1:
        return c.reciprocal(), c.abs().log()
    return _small_inverse(c), torch.linalg.slogdet(c).logabsdet


def _capacitance(q: Tensor, u: Tensor) -> Tensor:
    if u.shape[1] == 1:
        return 1 + (q * u).sum(-1, keepdim=True)
    return torch.eye(u.shape[1], dtype=u.dtype, device=u.device) + q @ u.mT


def _small_inverse(c: Tensor) -> Tensor:
    return c.reciprocal() if c.shape[-1] == 1 else torch.linalg.inv_ex(c).inverse


def _bent(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return b(x), b'(x) - 1, and 1 / sqrt(x^2 + 1)."""
    square = x * x
    s = (square + 1).sqrt_()
    r = s.reciprocal()
    half = (x * r).mul_(0.5)
    return torch.addcdiv(x, square, s.add_(1), value=0.5), half, r


def _bent_inverse(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return x with b(x) = y, b'(x) - 1, and 1 / sqrt(x^2 + 1)."""
    x, c = _unbent(y)
    r = torch.sub(c, x, alpha=2).reciprocal_()
    return x, (x * r).mul_(0.5), r


def _unbent(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return x with b(x) = y, and c = 2 y + 1: see `p4lab.flows.bent_inverse`."""
    c = (2 * y).add_(1)
    t = torch.add((c * c).add_(3).sqrt_(), c.abs(), alpha=2)
    return torch.where(c > 0, (y + 1).mul_(y).mul_(4).div_(t), t * (-1 / 3)), c
