"""Cost of a training step of layers that are not square: orthonormal columns, or all singular values kept."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim import Adam, Optimizer

from p4lab.baselines.poet import PoetLinear, PoetSchedule
from p4lab.bench.steps import EVERY, REFERENCE, batch_of, growth, training
from p4lab.fit import Schedule
from p4lab.p4 import FAMILIES, MergeSchedule, P4Spectrum, P4Stiefel
from p4lab.packages import require

SIZES = (64, 128, 256, 512)
"""Widths d of the inputs that are timed."""
TIMES = 4
"""Outputs are so many times as many, as in the networks of a transformer."""
LARGE = 128
"""Widths from which the growth of times is fitted."""
RATE = 1e-4

Trained = tuple[nn.Module, Optimizer, Schedule | None]
"""A contender is a layer, without a bias, with what trains it."""


def _linear(dim: int) -> nn.Linear:
    return nn.Linear(dim, TIMES * dim, bias=False)


def _by_adam(layer: nn.Module) -> Trained:
    return layer, Adam(layer.parameters(), lr=RATE), None


def _p4(kind: Callable[..., nn.Module], dim: int) -> Trained:
    layer = kind(dim, TIMES * dim, bias=False, seed=0, **FAMILIES["spectrum"].settings(dim))
    optimizer = Adam(layer.parameters(), lr=RATE)
    return layer, optimizer, MergeSchedule(layer, optimizer, every=EVERY, refine_every=50)


def _torch(name: Any, dim: int) -> Trained:
    layer = _linear(dim)
    parametrizations.orthogonal(layer, orthogonal_map=name, use_trivialization=False)
    return _by_adam(layer)


def _geotorch(dim: int) -> Trained:
    layer = _linear(dim)
    require("geotorch", "baselines").orthogonal(layer, "weight")
    return _by_adam(layer)


def _pogo(dim: int) -> Trained:
    layer = _linear(dim)
    nn.init.orthogonal_(layer.weight)
    rule = require("pogo.base", "baselines").VectorAdam()
    turn = require("pogo", "baselines").POGO([layer.weight], rule, RATE, rows=False, flatten_fn=lambda w: w[None])
    return layer, turn, None


def _poet(dim: int) -> Trained:
    layer = PoetLinear(dim, TIMES * dim, block=64, bias=False)
    optimizer = Adam(layer.parameters(), lr=RATE)
    return layer, optimizer, PoetSchedule(layer, optimizer)


CONTENDERS: Mapping[str, Callable[[int], Trained]] = {
    "p4stiefel": partial(_p4, P4Stiefel),
    "pogo": _pogo,
    "torch_householder": partial(_torch, "householder"),
    "torch_cayley": partial(_torch, "cayley"),
    "torch_matrix_exp": partial(_torch, "matrix_exp"),
    "geotorch": _geotorch,
    "p4spectrum": partial(_p4, P4Spectrum),
    "poet": _poet,
}
"""These are compared: on the Stiefel manifold, then with all singular values kept."""


def rectangular(
    sizes: Sequence[int] = SIZES, batch: int = 512, rounds: int = 5, names: Sequence[str] = tuple(CONTENDERS)
) -> str:
    """Time training steps (forward, backward with input gradient, Adam, merges) of layers from d to 4 d numbers.

    Args:
        sizes: widths d.
        batch: samples per step.
        rounds: interleaved rounds; medians are reported.
        names: of `CONTENDERS`.

    Returns:
        Markdown: step time as a ratio to `nn.Linear`, and growth exponents for large widths.
    """

    def contenders(dim: int) -> Mapping[str, Callable[[], object]]:
        x = batch_of(batch, dim)
        linear = _by_adam(_linear(dim))
        return {REFERENCE: _steps(linear, x), **{name: _steps(CONTENDERS[name](dim), x) for name in names}}

    return growth(lambda dim: [contenders(dim)], sizes, rounds, LARGE)


def _steps(trained: Trained, x: torch.Tensor) -> Callable[[], object]:
    layer, optimizer, schedule = trained
    return training(lambda: layer(x).square().mean(), optimizer, x, schedule)
