"""Run whole training steps on a fake GPU and print, for each case, what went wrong (JSON; null is nothing).

A program of its own, because torch cannot even fake a CUDA device where there is neither GPU nor driver: there, a
Python backend is registered in its place, which would change the process for all other tests. Under FakeTensorMode,
whatever needs a value on the host raises; copies from device to host, which a fake mode does not mind, are found by
`NoCopies`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from p4lab.p4 import MergeSchedule, P4Inv, P4Relative, penalty

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam-capturable": lambda p: torch.optim.Adam(p, capturable=True),
    "adam-fused": lambda p: torch.optim.Adam(p, fused=True),
}
RANKS, RESETS, TRAIN_V, DIRECTIONS = (1, 8), ("gaussian", "gradient"), (False, True), ("forward", "inverse")
INITS = ("identity", "reverse", "permutation", "orthogonal")
CAUGHT: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda loss: loss.item(),
    "if": lambda loss: bool(loss > 0),
    "nonzero": lambda loss: loss.view(1).nonzero(),
    "cpu": lambda loss: loss.cpu(),
    "tolist": lambda loss: loss.tolist(),
}


class NoCopies(TorchDispatchMode):
    """Refuses operations whose input is on the device and whose output is on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before, after = (
            {t.device.type for t in tree_leaves(x) if isinstance(t, torch.Tensor)} for x in ((args, kwargs), result)
        )
        if "cpu" in after and before - {"cpu"}:
            raise RuntimeError(f"{func} copies from {before} to the host")
        return result


def fake_gpu() -> str:
    if torch.cuda.is_available():
        return "cuda"
    from torch.utils import backend_registration

    backend_registration._setup_privateuseone_for_python_backend("fakegpu")
    return "fakegpu:0"


def train(
    device: str, optimizer: str, rank: int, reset: str, train_v: bool, direction: str, spy: Callable | None = None
) -> None:
    with FakeTensorMode():
        layer = P4Inv(8, rank=rank, reset=reset, train_v=train_v, seed=0, device=device)  # type: ignore[arg-type]
        model = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 8, device=device))
        steps = OPTIMIZERS[optimizer](model.parameters())
        merges = MergeSchedule(model, steps, every=1, refine_every=1)
        for _ in range(2):
            x = torch.randn(4, 8, device=device)
            with NoCopies():
                steps.zero_grad()
                y = model(x) if direction == "forward" else layer.inverse(x)
                loss = y.square().mean() - layer.logabsdet() + penalty(model) + layer.sign()
                loss.backward()
                if spy:
                    spy(loss.detach())
                steps.step()
                merges.step()


def train_relative(device: str, rank: int) -> None:
    """Both directions in every step, a batch that fits and one that is folded."""
    with FakeTensorMode():
        layer = P4Relative(8, rank=rank, seed=0, device=device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        merges = MergeSchedule(layer, optimizer, every=1, refine_every=1)
        for batch in (2, 9):
            x = torch.randn(batch, 8, device=device)
            with NoCopies():
                optimizer.zero_grad()
                (layer(x).square().mean() - layer.logabsdet() + layer.sign()).backward()
                optimizer.step()
                merges.step()
                optimizer.zero_grad()
                layer.inverse(x).square().mean().backward()
                optimizer.step()
                merges.step()


def construct(device: str, init: str) -> None:
    with FakeTensorMode():
        layer = P4Inv(8, init=init, seed=0, device=device)
        assert {t.device for t in layer.state_dict().values() if isinstance(t, torch.Tensor)} == {
            torch.empty(0, device=device).device
        }


def cases() -> Iterator[tuple[str, Callable[..., None], tuple]]:
    for options in itertools.product(OPTIMIZERS, RANKS, RESETS, TRAIN_V, DIRECTIONS):
        optimizer, rank, reset, train_v, direction = options
        yield f"{optimizer}-k{rank}-{reset}-{'v-trained' if train_v else 'v-fixed'}-{direction}", train, options
    for rank in (4, 8):
        yield f"relative-k{rank}", train_relative, (rank,)
    for init in INITS:
        yield f"init-{init}", construct, (init,)
    for name, spy in CAUGHT.items():
        yield f"caught-{name}", train, ("sgd-momentum", 1, "gaussian", False, "forward", spy)


def main() -> None:
    device, results = fake_gpu(), {}
    for name, run, options in cases():
        try:
            run(device, *options)
            results[name] = None
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results), flush=True)
    os._exit(0)  # autograd's thread for a fake device may abort an ordinary exit


if __name__ == "__main__":
    main()
