"""The tables of steps, merges, methods and races on an accelerator: ``python -m p4lab.bench gpu``.

Times are those between two events of the device, after a warm-up; races are timed by the clock, which waits for the
device. On CUDA steps are timed in float32 and in TF32, and ten of them with their merge are recorded as a CUDA graph.

No accelerator has run this yet. Without one it is tested that the contenders of steps are made on another device and
train there without asking for a value (on torch's meta device), that the timer reads its events (on a stand-in), and
that steps to be recorded neither wait for the device nor copy to or from it (on fake tensors). Not known is whether
CUDA can record what a merge calls of its libraries, and what any of it costs there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from p4lab.bench import methods, race, steps
from p4lab.bench.steps import EVERY, REFERENCE, batch_of, growth, training
from p4lab.errors import DeviceError
from p4lab.p4 import PAPER, RECOMMENDED, MergeSchedule, P4Inv, Preset
from p4lab.training import devices

PRECISIONS = {"float32": "highest", "TF32": "high"}
"""What products of float32 matrices are computed in, by the names that torch has for it."""
PRESETS = {"P4Inv paper": PAPER, "P4Inv recommended": RECOMMENDED}
"""Layers whose steps are recorded, besides `nn.Linear`."""
WARM_UP = 3
"""Calls before the one that is recorded: by then all buffers are there, and no refusals are counted on the host."""


def accelerator() -> str:
    """Return the name of the accelerator that torch finds.

    Raises:
        DeviceError: there is none.
    """
    found = [name for name in devices() if name != "cpu"]
    if not found:
        raise DeviceError(
            f"no accelerator: torch {torch.__version__} finds neither CUDA nor MPS nor XPU here. The benchmarks steps, "
            "methods and race print the same tables of the CPU"
        )
    return found[0]


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Compute products of float32 matrices as ``torch.set_float32_matmul_precision`` says, for a while."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def gpu_steps(sizes: Sequence[int], rounds: int) -> str:
    """Return `p4lab.bench.steps.steps` on the accelerator, for each precision that it has.

    Raises:
        DeviceError: there is no accelerator.
    """
    device = accelerator()
    names = PRECISIONS if device == "cuda" else ("float32",)
    parts = []
    for name in names:
        with products(PRECISIONS[name]):
            parts.append(f"**{name}**, {device}\n\n{steps.steps(sizes, rounds=rounds, device=device)}")
    return "\n\n".join(parts)


def gpu_methods(sizes: Sequence[int], names: Sequence[str], rounds: int) -> str:
    """Return `p4lab.bench.methods.methods` on the accelerator, in float32.

    Raises:
        DeviceError: there is no accelerator.
    """
    with products(PRECISIONS["float32"]):
        return methods.methods(sizes, names, rounds=rounds, device=accelerator())


def gpu_race(
    tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int], dim: int, tuning: float, limit: float
) -> Iterator[str]:
    """Yield what `p4lab.bench.race.race` does, on the accelerator, in float32, one run after the other in this process.

    Raises:
        DeviceError: there is no accelerator.
    """
    with products(PRECISIONS["float32"]):
        yield from race.race(tasks, methods, seeds, dim, tuning, limit, n_jobs=1, device=accelerator())


def gpu_graphs(sizes: Sequence[int], rounds: int) -> str:
    """Compare steps that are recorded and replayed with the same steps done one by one, in float32.

    Returns:
        Markdown, as `p4lab.bench.steps.growth`; or why there is nothing to compare.

    Raises:
        DeviceError: there is no accelerator, or it cannot record the steps.
    """
    device = accelerator()
    if device != "cuda":
        return f"torch records no graphs on {device}."

    def contenders(dim: int) -> list[dict[str, Callable[[], object]]]:
        layers: dict[str, Preset | None] = {REFERENCE: None, **PRESETS}
        one_by_one = {name: recordable(preset, dim) for name, preset in layers.items()}
        return [one_by_one, {f"{name}, graph": recorded(recordable(preset, dim)) for name, preset in layers.items()}]

    with products(PRECISIONS["float32"]):
        return growth(contenders, sizes, rounds, steps.LARGE, device)


class DrawnOnDevice(P4Inv):
    """P4Inv whose random directions are drawn on its device, by that device's generator.

    A replayed graph draws anew there; what the host draws would be the numbers of the recording for ever, copied from
    memory that is long gone.
    """

    def _noise(self, generator: torch.Generator, rows: int) -> Tensor:
        return torch.randn(rows, self.v.shape[1], dtype=self.u.dtype, device=self.u.device)


def recordable(preset: Preset | None, dim: int, batch: int = 512) -> Callable[[], object]:
    """Return ten training steps that a graph can record, the tenth with its merge, on torch's default device.

    Args:
        preset: of P4Inv (None: `nn.Linear`). Refinements are left to the host.
        dim: width d.
        batch: samples of a step.
    """
    x = batch_of(batch, dim)
    layer = nn.Linear(dim, dim) if preset is None else replace(preset, kind=DrawnOnDevice).layer(dim, seed=0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4, capturable=x.device.type != "cpu")
    schedule = None if preset is None else MergeSchedule(layer, optimizer, every=EVERY, refine_every=0)
    return training(lambda: layer(x).square().mean(), optimizer, x, schedule)


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """Return what replays a call from a CUDA graph, which is recorded after a warm-up.

    Raises:
        DeviceError: CUDA cannot record it.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError as error:
        raise DeviceError(f"the steps cannot be recorded as a CUDA graph: {error}") from error
    return graph.replay
