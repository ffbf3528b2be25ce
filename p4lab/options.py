"""Options that one function hands on to another: an unknown name is refused, and known ones are read from signatures.

Python refuses a misspelt argument by itself, except where a function takes ``**options``. Such functions ask here.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar, cast

from p4lab.errors import OptionError

F = TypeVar("F", bound=Callable[..., Any])
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def named_options(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a function or constructor has, and takes by keyword.

    Example:
        >>> sorted(named_options(lambda x, y=0, **options: x + y))
        ['x', 'y']
    """
    parameters = inspect.signature(function).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind in _NAMED)


def options_of(function: Callable[..., Any]) -> frozenset[str] | None:
    """Return `named_options`, or None if a function takes any name besides: its ``**options`` are somebody else's.

    Example:
        >>> options_of(lambda x, y=0, **options: x + y)
    """
    return _names(inspect.signature(function))


def check_known(what: str, names: Iterable[str], *sets: Iterable[str] | None) -> None:
    """Raise unless all names of options are known.

    Args:
        what: who was given them, for the message.
        names: those of the options.
        sets: known names; None among them stands for all names there are.

    Raises:
        OptionError: an unknown name; the message lists the known ones and says which of them is the closest.

    Example:
        >>> check_known("realnvp", ["hiden"], ["hidden", "depth"])
        Traceback (most recent call last):
        ...
        p4lab.errors.OptionError: realnvp has no option 'hiden' (did you mean 'hidden'?): it knows depth, hidden
    """
    vocabulary = {name for some in sets if some is not None for name in some}
    unknown = [name for name in names if name not in vocabulary]
    if unknown and None not in sets:
        raise OptionError(
            f"{what} has no option {', '.join(_with_closest(name, vocabulary) for name in unknown)}: it knows "
            f"{', '.join(sorted(vocabulary)) or 'none'}"
        )


def refusing(what: str, function: F) -> F:
    """Return a function or constructor that refuses unknown options with an `OptionError` instead of a TypeError.

    Args:
        what: what the message calls it.
        function: what is called; it is the result's ``__wrapped__``.
    """
    return _checked(what, function, options_of(function))


def takes_options_of(target: Callable[..., Any], *fixed: str) -> Callable[[F], F]:
    """Return a decorator for a function whose ``**options`` are those of another function or constructor.

    The function gets a signature that names them (without their defaults, which may be its own), and refuses others
    with an `OptionError`.

    Args:
        target: what the options are handed on to.
        fixed: names of its arguments that the function sets by itself.

    Example:
        >>> @takes_options_of(lambda x, y=0, z=0: x, "z")
        ... def hand_on(x, **options): ...
        >>> print(inspect.signature(hand_on))
        (x, *, y=Ellipsis)
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        own_names = {parameter.name for parameter in named} | set(fixed)
        handed = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=...)
            if parameter.kind in _NAMED
            else parameter
            for parameter in inspect.signature(target).parameters.values()
            if parameter.name not in own_names and parameter.kind in (*_NAMED, inspect.Parameter.VAR_KEYWORD)
        ]
        signature = own.replace(parameters=[*named, *handed])
        checked = _checked(function.__qualname__.removesuffix(".__init__"), function, _names(signature))
        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate


def _checked(what: str, function: F, names: frozenset[str] | None) -> F:
    @wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        check_known(what, options, names)
        return function(*arguments, **options)

    return cast(F, checked)


def _names(signature: inspect.Signature) -> frozenset[str] | None:
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return None
    return frozenset(parameter.name for parameter in signature.parameters.values() if parameter.kind in _NAMED)


def _with_closest(name: str, vocabulary: Iterable[str]) -> str:
    closest = difflib.get_close_matches(name, vocabulary, n=1)
    return f"{name!r} (did you mean {closest[0]!r}?)" if closest else repr(name)
