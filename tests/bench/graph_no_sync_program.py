"""Do the steps that a graph records on a fake GPU, and print what waited or copied (JSON): see p4/no_sync_program.py.

A graph allows less than a training step: no copy between host and device in either direction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from p4.no_sync_program import fake_gpu
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from p4lab.bench.gpu import PRESETS, WARM_UP, recordable
from p4lab.p4 import Preset

STEPS: dict[str, Preset | None] = {"nn.Linear": None, **PRESETS}
CAUGHT: dict[str, Callable[[str], object]] = {
    "caught-to-device": lambda device: torch.ones(3, device="cpu").to(device),
    "caught-to-host": lambda device: torch.ones(3, device=device).cpu(),
    "caught-value": lambda device: torch.ones((), device=device).item(),
}


class NoTransfers(TorchDispatchMode):
    """Refuses operations whose tensors come from one device and whose results are on another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before, after = (
            {t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)} for x in ((args, kwargs), result)
        )
        if before and after - before:
            raise RuntimeError(f"{func} copies from {before} to {after}")
        return result


def check(name: str, device: str) -> None:
    with FakeTensorMode():
        with torch.device(device):
            call = recordable(STEPS.get(name), 8, batch=4)
        for _ in range(WARM_UP):
            call()
        with NoTransfers():
            call()
            CAUGHT.get(name, lambda device: None)(device)


def main() -> None:
    device, results = fake_gpu(), {}
    for name in (*STEPS, *CAUGHT):
        try:
            check(name, device)
            results[name] = None
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results), flush=True)
    os._exit(0)  # autograd's thread for a fake device may abort an ordinary exit


if __name__ == "__main__":
    main()
