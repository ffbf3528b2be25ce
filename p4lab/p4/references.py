"""References to modules and parameters of a model that torch's own books do not have."""

from collections import deque
from collections.abc import Iterator
from types import MethodType

from torch import nn

BOOKS = ("_modules", "_parameters")
"""Modules keep what torch knows of in these attributes."""
DEPTH = 3
"""Containers are looked into to this depth: that of the parameter groups of an optimizer."""


def references_in(model: nn.Module) -> dict[int, str]:
    """Return where a model refers to modules and parameters besides its ``_modules`` and ``_parameters``.

    Looked at are the attributes of all modules: lists, tuples, sets and dictionaries, one inside of another, and the
    objects of bound methods. A module that only such a reference leads to is looked into as well.

    Returns:
        A place, such as ``decoder.steps[0]``, by the id of what stands there.

    Cost: one look at each element.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model.steps = [model[0]]
        >>> references_in(model)[id(model[0])]
        'steps[0]'
    """
    places: dict[int, str] = {}
    waiting = list(model.named_modules())
    inside = {module for _, module in waiting}
    seen = set(inside)
    for path, module in waiting:  # which grows meanwhile
        for name, value in vars(module).items():
            if module in inside and name in BOOKS:
                continue
            if isinstance(module, nn.RNNBase) and name == "_flat_weights":  # which follows its parameters
                continue
            for place, target in _targets(value, f"{path}.{name}" if path else name, DEPTH):
                places.setdefault(id(target), place)
                if isinstance(target, nn.Module) and target not in seen:
                    seen.add(target)
                    waiting.append((place, target))
    return places


def _targets(value: object, place: str, depth: int) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    if isinstance(value, MethodType):
        value = value.__self__
    if isinstance(value, (nn.Module, nn.Parameter)):
        yield place, value
    elif depth:
        items: Iterator[tuple[object, object]] = iter(())
        if isinstance(value, dict):
            items = iter(value.items())
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            items = iter(enumerate(value))
        for key, item in items:
            yield from _targets(item, f"{place}[{key!r}]", depth - 1)
