"""The training loop: its order, its ends, and what it looks at."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from p4lab.fit import Fit, fit
from p4lab.p4 import MergeSchedule, P4Inv


def weight_of(*values: float) -> Tensor:
    return torch.tensor(values, requires_grad=True)


class Noted:
    """A loss, an optimizer and a schedule that note when they are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.weight = weight_of(1.0)
        self.optimizer = SGD([self.weight], lr=0.1)
        self.optimizer.register_step_post_hook(lambda *_: self.calls.append("optimizer"))

    def loss(self) -> Tensor:
        self.calls.append("loss")
        return self.weight.square().sum()

    def step(self) -> None:
        self.calls.append("schedule")


def test_a_step_is_loss_optimizer_schedule_and_after() -> None:
    noted = Noted()
    fit(noted.loss, noted.optimizer, 2, schedules=[None, noted], after=lambda now: noted.calls.append("after"))
    assert noted.calls == ["loss", "optimizer", "schedule", "after"] * 2


def test_it_is_the_loop_that_one_would_write() -> None:
    def parts() -> tuple[P4Inv, Adam, MergeSchedule, CosineAnnealingLR, Tensor]:
        layer = P4Inv(4, rank=2, reset="gradient", seed=0)
        optimizer = Adam(layer.parameters(), lr=0.1)
        merges = MergeSchedule(layer, optimizer, every=3)
        return (
            layer,
            optimizer,
            merges,
            CosineAnnealingLR(optimizer, 10),
            torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        )

    layer, optimizer, merges, rate, x = parts()
    fit(lambda: layer(x).square().mean(), optimizer, 10, schedules=[merges, rate], clip=0.5)
    own, optimizer, merges, rate, x = parts()
    for _ in range(10):
        optimizer.zero_grad()
        own(x).square().mean().backward()
        nn.utils.clip_grad_norm_(own.parameters(), 0.5)
        optimizer.step()
        merges.step()
        rate.step()
    assert torch.equal(layer.weight, own.weight)
    assert merges.attempts == 3


def test_the_rate_belongs_to_the_next_step_and_knows_how_far_training_is() -> None:
    weight = weight_of(1.0)
    shares: list[float] = []

    def rate(now: Fit) -> float:
        shares.append(now.progress)
        return 0.25 if now.step == 0 else 0.0

    fit(lambda: weight.square().sum(), SGD([weight], lr=9.0), 4, rate=rate)
    assert shares == [0.0, 0.25, 0.5, 0.75]
    assert weight.item() == 0.5


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param({"steps": 0}, 0, id="no-steps"),
        pytest.param({"steps": 3}, 3, id="steps"),
        pytest.param({"seconds": 2.0}, 2, id="seconds"),
        pytest.param({"steps": 5, "seconds": 2.0}, 2, id="whichever-is-first"),
        pytest.param({"steps": 5, "after": lambda now: now.step == 4}, 4, id="after"),
    ],
)
def test_where_training_ends(options: dict[str, Any], steps: int) -> None:
    weight, ticks = weight_of(1.0), iter(range(100))
    end = fit(lambda: weight.square().sum(), SGD([weight], lr=0.1), clock=lambda: float(next(ticks)), **options)
    assert (end.step, end.elapsed) == (steps, steps)


def test_the_norm_is_that_before_clipping() -> None:
    weight = weight_of(3.0, 4.0)
    end = fit(lambda: 0.5 * weight.square().sum(), SGD([weight], lr=1.0), 1, clip=lambda: 1.0)
    assert float(end.norm) == 5.0
    assert weight.tolist() == pytest.approx([3 - 0.6, 4 - 0.8])


def losses(weight: Tensor, *factors: float) -> Callable[[], Tensor]:
    rest = iter(factors)
    return lambda: next(rest) * weight.sum()


def test_a_step_that_is_not_finite_is_skipped_or_ends_training() -> None:
    weight, notes = weight_of(0.0), Noted()
    taken: list[bool] = []
    sum_of = losses(weight, 1.0, math.nan, math.inf, 1.0)
    end = fit(
        sum_of,
        SGD([weight], lr=1.0),
        4,
        schedules=[notes],
        not_finite="skip",
        after=lambda now: taken.append(now.taken),
    )
    assert taken == [True, False, False, True]
    assert (end.step, weight.item(), notes.calls) == (4, -2.0, ["schedule", "schedule"])
    end = fit(losses(weight, 1.0, math.nan, 1.0), SGD([weight], lr=1.0), 3, not_finite="stop")
    assert (end.step, end.taken, weight.item()) == (1, False, -3.0)


def test_nobody_waits_for_the_device_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda self, *a, name=name, original=original: reads.append(name) or original(self, *a)
        )
    weight = weight_of(1.0)
    loss, optimizer = lambda: weight.square().sum(), SGD([weight], lr=0.1)
    fit(loss, optimizer, 5, clip=1.0)
    assert reads == []
    fit(loss, optimizer, 5, clip=1.0, not_finite="stop")
    assert reads == ["tolist"] * 5
