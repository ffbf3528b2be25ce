"""Cost of a training step (forward, backward, Adam, merge every 10) against layers that know less, or pay more."""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from p4lab.bench.timing import exponent, interleaved, median_ratio, table
from p4lab.p4 import PAPER, RECOMMENDED, MergeSchedule, P4Inv

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
EVERY = 10
REFERENCE = "nn.Linear"


class LinearSlogdet(nn.Linear):
    """A plain linear layer whose log|det| is factorized anew in each step: the O(d^3) truth."""

    def logabsdet(self) -> Tensor:
        """Return log|det W|. Cost O(d^3)."""
        return torch.linalg.slogdet(self.weight).logabsdet


def steps(sizes: Sequence[int] = SIZES, batch: int = 512, rounds: int = 9, input_gradient: bool = True) -> str:
    """Measure training steps and merges for each width.

    Args:
        sizes: widths d.
        batch: samples per step.
        rounds: interleaved rounds; medians are reported.
        input_gradient: whether the input needs a gradient, as in every layer of a network but the first.

    Returns:
        Markdown: step time as a ratio to `nn.Linear`, merge time as a ratio to one of its steps, growth exponents.
    """
    seconds: dict[str, list[float]] = {}
    ratios: list[list[object]] = []
    merge_ratios: list[list[object]] = []
    for dim in sizes:
        contenders, merges = _contenders(dim, batch, input_gradient)
        times = interleaved({**contenders, **merges}, rounds)
        reference = times[REFERENCE]
        for name, values in times.items():
            seconds.setdefault(name, []).append(statistics.median(values))
        microseconds = statistics.median(reference) / EVERY * 1e6
        ratios.append(
            [dim, f"{microseconds:.0f}", *(median_ratio(times[n], reference) for n in contenders if n != REFERENCE)]
        )
        merge_ratios.append([dim, *(median_ratio(times[n], reference) for n in merges)])
        print(f"  d = {dim} done", flush=True)

    names = [n for n in contenders if n != REFERENCE]
    large = [i for i, dim in enumerate(sizes) if dim >= 256]
    parts = [table(["d", f"{REFERENCE} [us]", *names], ratios), table(["d", *merges], merge_ratios)]
    if len(large) >= 2:
        slopes = [[n, exponent([sizes[i] for i in large], [t[i] for i in large])] for n, t in seconds.items()]
        parts.append(table(["time ~ d^p, d >= 256", "p"], slopes))
    return "\n\n".join(parts)


def _contenders(
    dim: int, batch: int, input_gradient: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    x = torch.randn(batch, dim, generator=torch.Generator().manual_seed(0)).requires_grad_(input_gradient)
    linear, slogdet = nn.Linear(dim, dim), LinearSlogdet(dim, dim)
    for layer in (linear, slogdet):
        nn.init.eye_(layer.weight)
    contenders: dict[str, Callable[[], object]] = {
        REFERENCE: _step(linear, x, lambda: linear(x).square().mean()),
        "linear + slogdet": _step(slogdet, x, lambda: slogdet(x).square().mean() - slogdet.logabsdet() / dim),
        "nflows LULinear": _lu_step(dim, x),
    }
    merges: dict[str, Callable[[], object]] = {}
    p4_layers = {
        "P4Inv": P4Inv(dim, seed=0),
        "P4Inv paper": PAPER.layer(dim, seed=0),
        "P4Inv recommended": RECOMMENDED.layer(dim, seed=0),
    }
    for name, p4_layer in p4_layers.items():
        contenders[name] = _p4_step(p4_layer, x, with_logabsdet=False)
        merges[f"merge {name}"] = _merge(p4_layer, x)
    contenders["P4Inv + logdet"] = _p4_step(P4Inv(dim, seed=0), x, with_logabsdet=True)
    return contenders, merges


def _step(
    layer: nn.Module, x: Tensor, loss: Callable[[], Tensor], schedule_of: Callable[..., MergeSchedule] | None = None
) -> Callable[[], None]:
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    schedule = None if schedule_of is None else schedule_of(layer, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        loss().backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()

    def ten_steps() -> None:
        for _ in range(EVERY):
            step()

    return ten_steps


def _p4_step(layer: P4Inv, x: Tensor, with_logabsdet: bool) -> Callable[[], None]:
    def loss() -> Tensor:
        squares = layer(x).square().mean()
        return squares - layer.logabsdet() / layer.dim if with_logabsdet else squares

    return _step(layer, x, loss, lambda model, optimizer: MergeSchedule(model, optimizer, every=EVERY, refine_every=50))


def _lu_step(dim: int, x: Tensor) -> Callable[[], None]:
    from nflows.transforms.lu import LULinear

    layer = LULinear(dim, identity_init=True)

    def loss() -> Tensor:
        y, logabsdet = layer(x)
        return y.square().mean() - logabsdet.mean() / dim

    return _step(layer, x, loss)


def _merge(layer: P4Inv, x: Tensor) -> Callable[[], None]:
    """Time merges of a layer that remembers a batch, as in training (without one, a gradient reset has less to do)."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    schedule = MergeSchedule(layer, optimizer, refine_every=0)
    layer(x).square().mean().backward()
    optimizer.step()
    batch = layer._batch

    def ten_merges() -> None:
        # Ten, as the steps are timed by ten.
        for _ in range(EVERY):
            layer._batch = batch
            schedule.merge()

    return ten_merges
