"""Cost of a training step (forward, backward, Adam, merge every 10) against layers that know less, or pay more."""

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from p4lab.bench.tables import table
from p4lab.bench.timing import exponent, interleaved, median_ratio, timer_of
from p4lab.command import say
from p4lab.fit import Schedule, fit
from p4lab.p4 import PAPER, RECOMMENDED, MergeSchedule, P4Inv
from p4lab.p4.watch import remember
from p4lab.packages import require

SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Widths that are timed."""
LARGE = 256
"""Widths from which the growth of times is fitted."""
EVERY = 10
"""Steps that are timed together, the last one with a merge."""
REFERENCE = "nn.Linear"
"""What times are ratios to."""


def training(
    loss: Callable[[], Tensor], optimizer: Optimizer, x: Tensor, schedule: Schedule | None = None, steps: int = EVERY
) -> Callable[[], object]:
    """Return what does some training steps: forward, backward (to the input, too), optimizer, merges.

    Args:
        loss: of the batch x.
        optimizer: what trains.
        x: the batch; its gradient is dropped before each step.
        schedule: of merges.
        steps: that are done at a time.
    """

    def fresh() -> Tensor:
        x.grad = None
        return loss()

    return lambda: fit(fresh, optimizer, steps, schedules=[schedule])


def batch_of(size: int, dim: int, seed: int = 0, gradient: bool = True) -> Tensor:
    """Return standard normal samples, shape (size, dim), that want a gradient, as inside of a network.

    They are on torch's default device, and the same ones on each.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    samples = torch.randn(size, dim, generator=generator, device="cpu")
    return samples.to(torch.empty(0).device).requires_grad_(gradient)


class LinearSlogdet(nn.Linear):
    """A plain linear layer whose log|det| is factorized anew in each step: the O(d^3) truth."""

    def logabsdet(self) -> Tensor:
        """Return log|det W|. Cost O(d^3)."""
        return torch.linalg.slogdet(self.weight).logabsdet


def steps(
    sizes: Sequence[int] = SIZES, batch: int = 512, rounds: int = 9, input_gradient: bool = True, device: str = "cpu"
) -> str:
    """Measure training steps and merges for each width.

    Args:
        sizes: widths d.
        batch: samples per step.
        rounds: interleaved rounds; medians are reported.
        input_gradient: whether the input needs a gradient, as in every layer of a network but the first.
        device: where all of it happens.

    Returns:
        Markdown: step time as a ratio to `nn.Linear`, merge time as a ratio to one of its steps, growth exponents.
    """
    return growth(lambda dim: _contenders(dim, batch, input_gradient), sizes, rounds, LARGE, device)


def first_layer(sizes: Sequence[int] = SIZES, rounds: int = 9) -> str:
    """Measure the same for the first layer of a network, at large widths if there are any."""
    return steps([dim for dim in sizes if dim >= LARGE] or sizes, rounds=rounds, input_gradient=False)


def growth(
    contenders: Callable[[int], Sequence[Mapping[str, Callable[[], object]]]],
    sizes: Sequence[int],
    rounds: int,
    large: int,
    device: str = "cpu",
) -> str:
    """Time contenders at each width.

    Args:
        contenders: from a width to groups of contenders, by name; the first of the first group is the reference. Each
            call of any does `EVERY` steps, merges, or whatever is compared. They are made on torch's default device,
            which is ``device`` meanwhile (and no longer when they are timed: that costs time in each operation).
        sizes: widths d.
        rounds: interleaved rounds.
        large: width from which growth is fitted.
        device: where they run.

    Returns:
        Markdown: a table of ratios to the reference for each group, and one of growth exponents.
    """
    seconds: dict[str, list[float]] = {}
    rows: list[list[list[object]]] = []
    for dim in sizes:
        with torch.device(device):
            groups = contenders(dim)
        every = {name: call for group in groups for name, call in group.items()}
        times = interleaved(every, rounds, timer=timer_of(device))
        reference = next(iter(times.values()))
        for name, values in times.items():
            seconds.setdefault(name, []).append(statistics.median(values))
        ratios = {name: median_ratio(values, reference) for name, values in times.items()}
        micro = f"{statistics.median(reference) / EVERY * 1e6:.0f}"
        rows.append([[dim, *(micro if times[n] is reference else ratios[n] for n in group)] for group in groups])
        say(f"d = {dim} done")
    parts = [
        table(["d", *(f"{name} [us]" if name == next(iter(seconds)) else name for name in group)], body)
        for group, body in zip(groups, zip(*rows, strict=True), strict=True)
    ]
    places = [i for i, dim in enumerate(sizes) if dim >= large]
    if len(places) >= 2:
        slopes = [[n, exponent([sizes[i] for i in places], [t[i] for i in places])] for n, t in seconds.items()]
        parts.append(table([f"time ~ d^p, d >= {large}", "p"], slopes))
    return "\n\n".join(parts)


def _contenders(dim: int, batch: int, input_gradient: bool) -> list[dict[str, Callable[[], object]]]:
    lu_linear = require("nflows.transforms.lu", "baselines").LULinear
    x = batch_of(batch, dim, gradient=input_gradient)
    linear, slogdet, lu = nn.Linear(dim, dim), LinearSlogdet(dim, dim), lu_linear(dim, identity_init=True)
    for layer in (linear, slogdet):
        nn.init.eye_(layer.weight)

    def lu_loss() -> Tensor:
        y, logabsdet = lu(x)
        return y.square().mean() - logabsdet.mean() / dim

    nll = P4Inv(dim, seed=0)
    layers = {
        "P4Inv": P4Inv(dim, seed=0),
        "P4Inv paper": PAPER.layer(dim, seed=0),
        "P4Inv recommended": RECOMMENDED.layer(dim, seed=0),
    }
    contenders = {
        REFERENCE: _ten_steps(linear, x, lambda: linear(x).square().mean()),
        "linear + slogdet": _ten_steps(slogdet, x, lambda: slogdet(x).square().mean() - slogdet.logabsdet() / dim),
        "nflows LULinear": _ten_steps(lu, x, lu_loss),
        **{name: _ten_steps(p4, x, lambda p4=p4: p4(x).square().mean()) for name, p4 in layers.items()},  # type: ignore[misc]
        "P4Inv + logdet": _ten_steps(nll, x, lambda: nll(x).square().mean() - nll.logabsdet() / dim),
    }
    return [contenders, {f"merge {name}": _ten_merges(layer, x) for name, layer in layers.items()}]


def _ten_steps(layer: nn.Module, x: Tensor, loss: Callable[[], Tensor]) -> Callable[[], object]:
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    merges = MergeSchedule(layer, optimizer, every=EVERY, refine_every=50) if isinstance(layer, P4Inv) else None
    return training(loss, optimizer, x, merges)


def _ten_merges(layer: P4Inv, x: Tensor) -> Callable[[], object]:
    """Time merges of a layer that remembers a batch, as in training (without one, a gradient reset has less to do)."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-4)
    schedule = MergeSchedule(layer, optimizer, refine_every=0)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.square().mean(), y, retain_graph=True)
    y.backward(gradient)
    optimizer.step()

    def ten_merges() -> None:
        # Ten, as the steps are timed by ten.
        for _ in range(EVERY):
            remember(layer, x, gradient)
            schedule.merge()

    return ten_merges
