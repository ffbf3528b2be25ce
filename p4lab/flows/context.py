"""What points depend on beside themselves: how a context is checked, and laid beside points."""

from typing import Any

import torch
from torch import Tensor

from p4lab.errors import DeviceError, DtypeError, OptionError, ShapeError
from p4lab.linalg import autocasts
from p4lab.p4.validate import no_tensor


def length_of(layer: Any) -> int:
    """Return how many numbers of a context a layer reads, 0 for one that reads none and is called without."""
    return int(getattr(layer, "context", 0))


def check_length(context: object) -> int:
    """Return the length of a context.

    Raises:
        OptionError: not a whole number of at least 0.
    """
    if not isinstance(context, int) or isinstance(context, bool) or context < 0:
        raise OptionError(f"context={context!r}: expected how many numbers it has, 0 for none")
    return context


def check_context(what: str, length: int, like: Tensor, context: object) -> None:
    """Raise unless a context is what a flow or layer takes.

    Args:
        what: who takes it.
        length: c, 0 if nothing is taken.
        like: has the dtype (autocast apart) and the device that are expected.
        context: shape (..., c), or None.

    Raises:
        OptionError: there is none where one is needed, or one where none is taken.
        DtypeError, ShapeError, DeviceError: it does not fit.
    """
    if context is None:
        if length:
            raise OptionError(f"{what} takes a context and got none: pass context=..., of shape (..., {length})")
        return
    if isinstance(context, torch.Generator | int | float):
        raise DtypeError(
            f"{what} got {context!r} where the context stands: say generator=... or temperature=... by name"
        )
    if not isinstance(context, Tensor):
        raise no_tensor(f"the context of {what}", context, like)
    shape = tuple(context.shape)
    if not length:
        raise OptionError(
            f"{what} takes no context and got one of shape {shape}: leave it out, or build couplings with context=c"
        )
    if shape[-1:] != (length,):
        raise ShapeError(f"{what} got a context of shape {shape}: expected (..., {length})")
    if context.dtype != like.dtype and not autocasts(context.device.type):
        raise DtypeError(
            f"{what} got a context of {context.dtype} and expected {like.dtype}: convert it with .to({like.dtype}) "
            "(classes: first torch.nn.functional.one_hot)"
        )
    if context.device != like.device:
        raise DeviceError(
            f"{what} got a context on {context.device}, expected {like.device}: move one with .to(device)"
        )


def paired(what: str, length: int, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return points and their context with one batch shape, to which both are broadcast.

    Args:
        what: who takes them.
        length: c, 0 if no context is taken.
        x: shape (..., d).
        context: shape (..., c), or None.

    Raises:
        OptionError, DtypeError, ShapeError, DeviceError: as `check_context`, or batch shapes that do not broadcast.
    """
    check_context(what, length, x, context)
    if context is None or x.shape[:-1] == context.shape[:-1]:
        return x, context
    ours, theirs = x.shape[:-1], context.shape[:-1]
    if not x.dim() or any(m != n and 1 not in (m, n) for m, n in zip(reversed(ours), reversed(theirs), strict=False)):
        raise ShapeError(
            f"{what} got points of shape {tuple(x.shape)} with a context of shape {tuple(context.shape)}: expected "
            "batch shapes (all but the last dimension) that broadcast"
        )
    batch = torch.broadcast_shapes(ours, theirs)
    return x.expand(batch + x.shape[-1:]), context.expand(batch + context.shape[-1:])
