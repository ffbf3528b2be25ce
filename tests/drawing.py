"""Default devices other than the CPU: what a program that calls `torch.set_default_device("cuda")` would meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class NamedDraws(TorchFunctionMode):
    """Fails where a CPU generator draws on the default device: on a GPU torch refuses that, on "meta" it does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(found, torch.Tensor):
            assert found.device == generator.device, f"{func.__name__} drew on {found.device}: say device='cpu'"
        return found


@contextmanager
def default_device(device: str = "meta") -> Iterator[None]:
    """Set another default device for a while, and see that CPU generators draw on the CPU all the same."""
    with torch.device(device), NamedDraws():
        yield


def devices(module: nn.Module) -> set[str]:
    """Return the kinds of device that a module's tensors are on."""
    return {tensor.device.type for tensor in [*module.parameters(), *module.buffers()]}
