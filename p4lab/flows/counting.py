"""How many parameters a flow has, and flows with equally many."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from p4lab.baselines import Baseline, OrthogonalBaseline
from p4lab.errors import OptionError
from p4lab.p4 import P4Inv, P4Module
from p4lab.p4.orthogonal import Orthogonal

WIDEST = 2**16
"""The largest hidden width that `matched` tries."""


def matched(builder: Callable[[int], nn.Module], target: int) -> Any:
    """Return the model whose hidden width brings its number of parameters nearest to a target.

    The paper compares flows with the same number of trainable parameters. What counts is `effective_parameters`, on
    both sides: of a P4Inv layer the optimizer sees rank * d + d numbers at a time, but merges let all d^2 + d move.

    Args:
        builder: makes the model from a hidden width; more width must not mean fewer parameters.
        target: number to come near to; of two widths that are equally near, the smaller one is taken.

    Raises:
        OptionError: target < 1.

    Cost: O(log(width)) models are built.

    Example:
        >>> from p4lab.flows import p4inv_bent, realnvp
        >>> flow = p4inv_bent(2, blocks=100)
        >>> twin = matched(lambda hidden: realnvp(2, 8, hidden=hidden, depth=1), effective_parameters(flow))
        >>> effective_parameters(flow), effective_parameters(twin), twin.layers[0].hidden
        (606, 592, 18)
    """
    if target < 1:
        raise OptionError(f"target={target}: expected at least 1 parameter")

    def build(width: int) -> tuple[nn.Module, int]:
        model = builder(width)
        return model, effective_parameters(model)

    low, high = 1, 2
    below, above = build(low), build(high)
    while above[1] < target and high < WIDEST:
        low, below, high = high, above, 2 * high
        above = build(high)
    while high - low > 1:
        middle = (low + high) // 2
        candidate = build(middle)
        if candidate[1] <= target:
            low, below = middle, candidate
        else:
            high, above = middle, candidate
    return min((below, above), key=lambda candidate: abs(candidate[1] - target))[0]


def trainable(model: nn.Module) -> int:
    """Return the number of parameters that an optimizer sees."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def effective_parameters(model: nn.Module) -> int:
    """Return the number of parameters that training moves in the long run.

    As `trainable`, but a linear layer whose weights live in a family counts the dimension of that family: d^2 for
    P4Inv (merges let all of A move) and at most that for the baselines (PLU stores two d x d triangles, but uses half
    of each), d (d - 1) / 2 for orthogonal ones; and d for a bias. Other layers, P4 modules of other properties among
    them, may tell theirs by an attribute or method ``degrees_of_freedom``; else what the optimizer sees counts. So do
    the weights that the masks of zuko's autoregressive networks let through, and no others.

    Example:
        >>> from p4lab.flows import p4inv_bent
        >>> flow = p4inv_bent(2, blocks=8)
        >>> trainable(flow), effective_parameters(flow)
        (36, 54)
    """
    family = [module for module in model.modules() if isinstance(module, P4Module | Baseline)]
    inside = {id(parameter) for module in family for parameter in module.parameters()}
    rest = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) not in inside)
    masks = [getattr(module, "mask", None) for module in model.modules() if isinstance(module, nn.Linear)]
    masked = sum(int((mask == 0).sum()) for mask in masks if isinstance(mask, Tensor))
    return rest - masked + sum(_degrees_of_freedom(module) for module in family)


def _degrees_of_freedom(module: Any) -> int:
    own = getattr(module, "degrees_of_freedom", None)
    if own is not None:
        return int(own() if callable(own) else own)
    seen = trainable(module)
    if not seen or (isinstance(module, P4Module) and not isinstance(module, P4Inv | Orthogonal)):
        return seen
    d: int = module.dim
    bias = 0 if module.bias is None else d
    if isinstance(module, OrthogonalBaseline | Orthogonal):
        return d * (d - 1) // 2 + bias
    return d * d + bias if isinstance(module, P4Inv) else min(seen, d * d + bias)
