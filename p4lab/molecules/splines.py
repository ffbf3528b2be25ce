"""Monotonic rational-quadratic splines, one for each number of a batch, on an interval or on the circle.

The parameters have their bins first, shape (P, ...) for numbers of shape (...): every operation then runs over
contiguous memory. Pure functions; both directions are differentiable.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from p4lab.errors import OptionError, ShapeError

SMALLEST = 1e-3
"""Least share of the interval that a bin takes, in each direction."""
STEEPEST = 4.0
"""Largest |log slope| at a knot."""


def linear_tails(x: Tensor, parameters: Tensor, bound: float, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""Return a spline of x within [-B, B], and x itself outside, with the logarithm of the slope.

    .. math:: y = y_k + h_k \frac{s \xi^2 + \delta_k \xi (1 - \xi)}{s + (\delta_k + \delta_{k+1} - 2 s) \xi (1 - \xi)},
              \qquad \xi = \frac{x - x_k}{w_k}, \quad s = \frac{h_k}{w_k}

    Widths w and heights h of the bins are softmaxes of K parameters each, logarithms of the slopes
    :math:`\delta` at the K - 1 inner knots are the other parameters; at -B and B the slope is 1. Parameters of 0 are
    the identity.

    Args:
        x: any shape (...).
        parameters: shape (3 K - 1, ...), with K at least 2.
        bound: B, above 0.
        inverse: whether to go from y to x.

    Returns:
        ``(y, log dy/dx)``, or ``(x, log dx/dy)`` for the inverse, of the shape of x.

    Raises:
        ShapeError: the parameters do not fit.
        OptionError: B not above 0.

    Cost O(K) per number. Source: Durkan et al., arXiv:1906.04032.

    Example:
        >>> linear_tails(torch.tensor([0.5, 7.0]), torch.zeros(8, 2), bound=5.0)[0]
        tensor([0.5000, 7.0000])
    """
    bins = _bins(x, parameters, 1)
    if not bound > 0:
        raise OptionError(f"bound={bound}: expected above 0")
    inside = x.abs() < bound
    y, log_slope = _spline(torch.where(inside, x, 0.0), parameters, bins, bound, False, inverse)
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def circular(x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    r"""Return a spline of angles onto angles, with the logarithm of the slope.

    As `linear_tails` on :math:`[-\pi, \pi)`, but the slope at the knot :math:`\pm\pi` is a parameter, too. That knot
    stays where it is: rotate before or after.

    Args:
        x: any shape (...), radians; wrapped into [-pi, pi).
        parameters: shape (3 K, ...), with K at least 2.
        inverse: whether to go from y to x.

    Returns:
        ``(y, log dy/dx)``, or ``(x, log dx/dy)`` for the inverse, of the shape of x.

    Raises:
        ShapeError: the parameters do not fit.

    Cost O(K) per number. Source: Rezende et al., arXiv:2002.02428.
    """
    bins = _bins(x, parameters, 0)
    return _spline(wrap(x), parameters, bins, math.pi, True, inverse)


def wrap(x: Tensor) -> Tensor:
    """Return angles (radians) brought into [-pi, pi)."""
    return torch.remainder(x + math.pi, 2 * math.pi) - math.pi


def _bins(x: Tensor, parameters: Tensor, fixed: int) -> int:
    bins, rest = divmod(len(parameters) + fixed, 3) if parameters.ndim else (0, 1)
    if rest or bins < 2 or parameters.shape[1:] != x.shape:
        raise ShapeError(
            f"parameters of shape {tuple(parameters.shape)} for x of {tuple(x.shape)}: expected "
            f"({'3 K - 1' if fixed else '3 K'}, *x.shape) with K >= 2"
        )
    return bins


def _spline(
    v: Tensor, parameters: Tensor, bins: int, bound: float, closed: bool, inverse: bool
) -> tuple[Tensor, Tensor]:
    x0, w, y0, h, left, right = _Bin.apply(v.detach(), parameters, bins, bound, closed, inverse)
    d0, d1 = _slope(left), _slope(right)
    s = h / w
    bend = d0 + d1 - 2 * s
    if inverse:
        # xi solves a xi^2 + b xi + c = 0; this form of the root does not cancel
        r = v - y0
        t = r * bend
        b = h * d0 - t
        a = h * s - b
        c = -(s * r)
        xi = -2 * c / (b + (b * b - 4 * a * c).clamp_min(0.0).sqrt())
    else:
        xi = (v - x0) / w
    rest = 1 - xi
    both = xi * rest
    below = s + bend * both
    log_slope = (s * s * (d1 * xi * xi + 2 * s * both + d0 * rest * rest) / (below * below)).log()
    if inverse:
        return x0 + xi * w, -log_slope
    return y0 + h * (s * xi * xi + d0 * both) / below, log_slope


def _slope(raw: Tensor) -> Tensor:
    return (STEEPEST * torch.tanh(raw / STEEPEST)).exp()


class _Bin(torch.autograd.Function):
    """Find each number's bin, and return that bin's corner, sides and end slopes.

    By hand, because this is where arrays with an axis of bins are: what autograd would keep and sum over the bins is
    known in closed form. With shares S = softmax, cumulated below bin k to C_k, the gradient of ``g C_k + f S_k`` with
    respect to the logits is ``S_j (g [j < k] + f [j = k] - g C_k - f S_k)``.
    """

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, parameters: Tensor, bins: int, bound: float, closed: bool, inverse: bool
    ) -> tuple[Tensor, ...]:
        shape = v.shape
        p = parameters.reshape(len(parameters), -1)
        shares = p[: 2 * bins].view(2, bins, -1).softmax(1)
        span, kept = 2 * bound, 1 - SMALLEST * bins
        below = shares[:, :-1].cumsum(1)
        axis = 1 if inverse else 0
        # the number's place, in the units of the cumulated shares; each bin also takes the least share
        floor = torch.arange(1, bins, dtype=p.dtype, device=p.device).mul_(SMALLEST).unsqueeze(1)
        place = (v.reshape(1, -1) + bound) / span
        k = (below[axis] * kept + floor <= place).sum(0, keepdim=True)
        first = k == 0
        at = k.expand(2, 1, -1)
        share = shares.gather(1, at)
        start = below.gather(1, (at - 1).clamp_min_(0)).masked_fill_(first, 0.0)
        side = (share * kept + SMALLEST) * span
        corner = (start * kept + k.to(p.dtype) * SMALLEST) * span - bound
        slopes = p[2 * bins :]
        if closed:
            k_left, k_right = k, (k + 1) % bins
            ends = (slopes.gather(0, k_left), slopes.gather(0, k_right))
            outer: tuple[Tensor, ...] = ()
        else:
            last = k == bins - 1
            k_left, k_right = (k - 1).clamp_min_(0), k.clamp_max(bins - 2)
            ends = (
                slopes.gather(0, k_left).masked_fill_(first, 0.0),
                slopes.gather(0, k_right).masked_fill_(last, 0.0),
            )
            outer = (first, last)
        ctx.save_for_backward(shares, share, start, k, k_left, k_right, *outer)
        ctx.bins, ctx.scale, ctx.closed, ctx.shape = bins, span * kept, closed, parameters.shape
        return tuple(t.reshape(shape) for t in (corner[0], side[0], corner[1], side[1], *ends))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        shares, share, start, k, k_left, k_right, *outer = ctx.saved_tensors
        bins = ctx.bins
        g = torch.stack([t.reshape(1, -1) for t in gradients])
        corner, side = g[0:4:2] * ctx.scale, g[1:4:2] * ctx.scale
        slope_of_parameters = g.new_empty((ctx.shape[0], g.shape[-1]))
        logits = slope_of_parameters[: 2 * bins].view(2, bins, -1)
        index = torch.arange(bins, device=g.device).unsqueeze(1)
        torch.where(index < k, corner, torch.zeros_like(corner), out=logits)
        logits.scatter_(1, k.expand(2, 1, -1), side)
        logits.sub_(corner * start + side * share).mul_(shares)
        slopes = slope_of_parameters[2 * bins :].zero_()
        left, right = g[4], g[5]
        if outer:
            left, right = left.masked_fill(outer[0], 0.0), right.masked_fill(outer[1], 0.0)
        slopes.scatter_add_(0, k_left, left).scatter_add_(0, k_right, right)
        return None, slope_of_parameters.view(ctx.shape), None, None, None, None
