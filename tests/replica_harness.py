"""What a test of replicas has in each process: a process group, comparisons, counts of collectives, and one report."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import time
import types
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from p4lab.errors import P4Error

TIMEOUT, START = timedelta(seconds=60), timedelta(seconds=300)
"""After so long, a process that waits for another gives up, and the next case begins; they may start less evenly."""
COLLECTIVES = [
    name
    for name, value in vars(dist.distributed_c10d).items()
    if type(value) is types.FunctionType
    and re.fullmatch(r"(i?send|i?recv|.*(gather|reduce|broadcast|scatter).*)", name)
]


class Processes:
    """Where a case runs.

    Attributes:
        rank: of this process.
        size: how many there are.
        group: the process group of this case, so that one that leaves the others waiting does not take along the next.
        folder: what the processes leave to the test, and to the next run.
        problems: what went wrong in a part of the case, by its name; a case without parts raises.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.group = folder, dist.new_group(timeout=TIMEOUT)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.problems: dict[str, str | None] = {}

    def wrap(self, model: nn.Module, **settings: Any) -> DistributedDataParallel:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            return DistributedDataParallel(model, process_group=self.group, **settings)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values


Case = Callable[[Processes], None]


def run(folder: Path, rank: int, size: int, cases: dict[str, Case]) -> None:
    """Run all cases, and write after each what became of it."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    meeting = f"file://{folder}/meeting-{size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=START)
    results: dict[str, str | None] = {}
    seconds: dict[str, float] = {}
    for name, case in cases.items():
        began = time.perf_counter()
        at = Processes(folder)
        try:
            case(at)
            results[name] = None
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
        results |= {f"{name}: {part}": problem for part, problem in at.problems.items()}
        seconds[name] = time.perf_counter() - began
        (folder / f"results-{size}-{rank}.json").write_text(json.dumps({"results": results, "seconds": seconds}))
        del at
    gc.collect()  # gloo's threads end with the last model that uses them, and must do so before Python does
    dist.destroy_process_group()


def difference(at: Processes, model: nn.Module, *optimizers: Optimizer) -> str | None:
    """Which tensor is not finite or not bit-equal in all processes, found without `p4lab.distributed`."""
    tensors: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
    for path, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            tensors |= {f"{key} of {path}": value for key, value in module.get_extra_state().items()}
    mine = {name: tensor.detach().clone() for name, tensor in tensors.items() if torch.is_tensor(tensor)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            if id(parameter) in names:
                mine |= {
                    f"{key} of {names[id(parameter)]}": torch.as_tensor(value).clone() for key, value in state.items()
                }
    everybody = at.gather(mine)
    for name, tensor in mine.items():
        if not torch.isfinite(tensor.double()).all():
            return f"{name} is not finite"
        for rank, others in enumerate(everybody):
            if name not in others:
                return f"{name} is missing in rank {rank}"
            if (
                tensor.contiguous().view(-1).view(torch.uint8).tolist()
                != others[name].view(-1).view(torch.uint8).tolist()
            ):
                apart = (tensor.double() - others[name].double()).abs().max().item()
                return f"{name} of ranks {at.rank} and {rank} differs by {apart:.3g}"
    return None


def require(problem: str | None) -> None:
    if problem is not None:
        raise AssertionError(problem)


@contextlib.contextmanager
def raises(kind: type[P4Error], text: str) -> Iterator[None]:
    try:
        yield
    except kind as error:
        if not re.search(text, str(error)):
            raise AssertionError(f"{kind.__name__} does not say {text!r}: {error}") from error
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextlib.contextmanager
def traffic() -> Iterator[list[tuple[str, int]]]:
    """Record each collective that is called by way of torch.distributed: its name, and how many numbers it is about."""
    calls: list[tuple[str, int]] = []

    def counted(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [value for value in (*arguments, *options.values()) if isinstance(value, Tensor)]
            calls.append((name, sum(tensor.numel() for tensor in tensors)))
            return collective(*arguments, **options)

        return call

    collectives = {name: vars(dist)[name] for name in COLLECTIVES if name in vars(dist)}
    try:
        for name, collective in collectives.items():
            setattr(dist, name, counted(name, collective))
        yield calls
    finally:
        for name, collective in collectives.items():
            setattr(dist, name, collective)
