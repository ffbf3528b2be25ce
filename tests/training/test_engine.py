"""The engine: the same numbers whoever looks, live settings, and losses that are not finite."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.training import CustomConfig, DigitsConfig, Engine
from p4lab.training.records import Event, Records, Table

SMALL = DigitsConfig(blocks=2, rank=2, batch_size=16, merge_every=5, measure_every=4, refine_every=2)


def losses(engine: Engine) -> list[float]:
    return list(engine.records.steps.columns["loss"])


def test_same_config_same_numbers() -> None:
    one, two = Engine(SMALL), Engine(SMALL)
    one.run(12)
    for _ in range(4):
        two.run(3)
    assert losses(one) == losses(two)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_seed_gives_other_numbers() -> None:
    one, two = Engine(SMALL), Engine(SMALL.replace(seed=1))
    one.run(2)
    two.run(2)
    assert losses(one) != losses(two)


def test_threads_are_the_configs_while_it_runs_and_the_users_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    engine, seen = Engine(SMALL.replace(threads=before + 1)), []
    batch = engine.problem.batch
    monkeypatch.setattr(engine.problem, "batch", lambda *args: seen.append(torch.get_num_threads()) or batch(*args))
    engine.run()
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_looking_changes_nothing() -> None:
    watched, alone = Engine(SMALL), Engine(SMALL)
    alone.run(10)
    for _ in range(10):
        watched.run()
        watched.snapshot()
        watched.frame()
        watched.model.sample(3, generator=torch.Generator())
        torch.randn(7)
    assert losses(watched) == losses(alone)


def test_snapshot_is_apart_from_the_run() -> None:
    engine = Engine(SMALL)
    engine.run(3)
    snapshot = engine.snapshot()
    engine.run(3)
    assert snapshot.step == 3
    assert len(snapshot.curves["loss"][0]) == 3
    assert snapshot.pictures["samples"].shape == (64, 8, 8)
    assert snapshot.last("loss") == losses(engine)[2]
    with pytest.raises(dataclasses.FrozenInstanceError):
        snapshot.step = 4  # type: ignore[misc]
    with pytest.raises(TypeError):
        snapshot.curves["loss"] = None  # type: ignore[index]


def test_events_and_frame() -> None:
    engine = Engine(SMALL)
    engine.run(10)
    events = [(event.step, event.kind, event.layers) for event in engine.snapshot().events]
    assert events == [(5, "merge", (0, 1, 2)), (10, "merge", (0, 1, 2)), (10, "refine", (0, 1, 2))]
    assert engine.records.counts == {"merge": 6, "skip": 0, "discard": 0, "refine": 3, "set": 0}
    frame = engine.frame()
    assert list(frame.index) == list(range(11))
    assert frame["test_loss"].notna().to_numpy().nonzero()[0].tolist() == [0, 4, 8]
    assert frame["loss_bits"].iloc[-1] == pytest.approx(losses(engine)[-1] / np.log(2))
    assert frame["logabsdet_error"].max() < 1e-4


def test_a_skipped_merge_is_an_event_with_its_reason() -> None:
    engine = Engine(SMALL)
    engine.run(4)
    layer = engine.model.linear_layers()[1]
    with torch.no_grad():  # the factor of the merge becomes 1e-4 along the first direction
        layer.u.zero_()
        layer.u[0] = (1e-4 - 1) * layer.v[0] / layer.v[0].square().sum()
    engine.optimizer.param_groups[0]["lr"] = 1e-12
    engine.run(1)
    ((_, skip),) = engine.records.events["skip"].items()
    assert skip.layers == (1,)
    assert "singular" in skip.text


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("learning_rate", 1e-4, lambda e: e.optimizer.param_groups[0]["lr"]),
        ("merge_every", 3, lambda e: e.schedule.every),
        ("refine_every", 7, lambda e: e.schedule.refine_every),
        ("refine_order", 7, lambda e: e.model.linear_layers()[0].refine_order),
        ("reset", "gaussian", lambda e: e.model.linear_layers()[0].reset_kind),
        ("penalty", True, lambda e: e.config.penalty),
        ("skip", False, lambda e: e.model.linear_layers()[-1].min_factor > 0),
    ],
)
def test_live_settings(name: str, value: object, read) -> None:
    engine = Engine(SMALL)
    engine.run(1)
    engine.set(name, value)
    assert read(engine) == value
    assert getattr(engine.config, name) == value
    engine.set(name, value)
    ((_, event),) = engine.records.events["set"].items()
    assert (event.step, event.kind) == (1, "set")
    assert event.text.startswith(f"{name} = ")
    engine.run(5)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("rank", 4, "applies at reset"), ("rnk", 4, "no such setting"), ("merge_every", 0, "expected a whole number")],
)
def test_refused_settings(name: str, value: object, text: str) -> None:
    engine = Engine(SMALL)
    with pytest.raises(ConfigError, match=text):
        engine.set(name, value)
    assert engine.config == SMALL
    assert engine.records.all_events() == ()


class PoisonedBatches:
    """The problem of another engine, with NaN in one batch."""

    def __init__(self, problem, at: int) -> None:
        self.problem, self.at, self.drawn = problem, at, 0
        self.dim = problem.dim

    def batch(self, size, generator):
        self.drawn += 1
        x = self.problem.batch(size, generator)
        return x * torch.nan if self.drawn == self.at else x

    def __getattr__(self, name):
        return getattr(self.problem, name)


def test_a_loss_that_is_not_finite_is_no_step() -> None:
    problem, model = SMALL.parts()
    engine = Engine(SMALL, PoisonedBatches(problem, at=4), model)
    engine.run(3)
    before = [p.detach().clone() for p in engine.model.parameters()]
    with pytest.raises(TrainingError, match="step 4: loss nan"):
        engine.run(5)
    assert engine.step == len(engine.records.steps) == engine.schedule.steps == 3
    assert all(torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True))
    engine.snapshot()
    engine.run(5)
    assert engine.step == 8
    assert np.isfinite(losses(engine)).all()


@pytest.mark.parametrize(
    "changes", [{"optimizer": "sgd"}, {"dtype": "float64"}, {"penalty": True}, {"blocks": 0}], ids=str
)
def test_other_configs_train(changes: dict) -> None:
    engine = Engine(SMALL.replace(**changes))
    engine.run(6)
    assert np.isfinite(losses(engine)).all()


def test_it_learns() -> None:
    engine = Engine(SMALL.replace(batch_size=64))
    engine.run(80)
    curve = engine.records.measures.columns["test_loss"]
    assert curve[-1] < curve[0] - 0.05


def test_curves_are_decimated_and_their_points_stay() -> None:
    table = Table({"a": "d"})
    for step in range(5000):
        table.append(step=step, a=2.0 * step)
    x, y = table.curve("a", limit=1000)
    assert len(x) <= 1000
    assert x[-1] == 4999
    assert np.array_equal(y, 2 * x)
    table.append(step=5000, a=0.0)
    assert set(x[:-1]) <= set(table.curve("a", limit=1000)[0])
    assert len(Table({"a": "d"}).curve("a")[0]) == 0


def test_events_are_thinned_per_kind() -> None:
    records = Records()
    for step in range(5000):
        records.add(Event(step, "merge", (0, 1)))
    records.add(Event(4000, "skip", (1,)))
    kept = records.all_events()
    assert len(kept) <= 301
    assert [event.step for event in kept] == sorted(event.step for event in kept)
    assert sum(event.kind == "skip" for event in kept) == 1
    assert records.counts["merge"] == 10_000


class Fit:
    """A problem whose loss, and whose parts, are given."""

    def __init__(self, loss: Callable[[Any, Any], Any]) -> None:
        self.loss = loss

    def batch(self, size: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(size, 1, generator=generator)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, x: None, "Fit.loss returned None: expected a scalar with a gradient"),
        (lambda model, x: 1.0, "Fit.loss returned 1.0"),
        (lambda model, x: model(x), r"Fit.loss returned a tensor of shape \(128, 1\)"),
        (lambda model, x: torch.zeros(()), r"Fit.loss returned a tensor of shape \(\)"),
    ],
)
def test_a_loss_that_is_none_is_named(loss: Callable[[Any, Any], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Engine(CustomConfig(), Fit(loss), nn.Linear(1, 1)).run()


@pytest.mark.parametrize("pictures", [None, {"line": "x"}, [torch.zeros(2)]])
def test_pictures_that_are_no_tensors_by_name_are_named(pictures: Any) -> None:
    problem: Any = Fit(lambda model, x: model(x).mean())
    problem.pictures = lambda model, z: pictures
    with pytest.raises(OptionError, match=r"Fit.pictures returned .*: expected tensors by name"):
        Engine(CustomConfig(), problem, nn.Linear(1, 1)).snapshot()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, r"parts\(\) returned None: expected \(problem, model\)"),
        (nn.Linear(1, 1), r"returned Linear.*: expected \(problem, model\)"),
        ((nn.Linear(1, 1), Fit(None)), r"expected \(problem, model\)"),  # type: ignore[arg-type]
        ((object(), nn.Linear(1, 1)), r"parts\(\): its problem, a object, has no method 'batch'"),
    ],
)
def test_parts_that_are_none_are_named(monkeypatch: pytest.MonkeyPatch, parts: Any, message: str) -> None:
    monkeypatch.setattr(CustomConfig, "parts", lambda self: parts)
    with pytest.raises(OptionError, match=message):
        Engine(CustomConfig())
