"""Modes of torch, entered so that an interrupt cannot leave the process in them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_gradients(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function as `torch.no_grad` does, with gradients on again afterwards whatever interrupts it, and when."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        enabled = torch.is_grad_enabled()
        try:
            try:
                torch._C._set_grad_enabled(False)
                return function(*args, **kwargs)
            finally:
                torch._C._set_grad_enabled(enabled)
        finally:  # twice, for an interrupt may strike just before it is done
            torch._C._set_grad_enabled(enabled)

    return run


def outside_inference() -> AbstractContextManager[Any]:
    """Return a context for tensors that are written to outside of `torch.inference_mode`, too.

    Elsewhere it does nothing: were that mode interrupted as it ends, torch would switch gradients off whenever the
    exception is forgotten.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
