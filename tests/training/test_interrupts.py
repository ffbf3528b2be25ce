"""An interrupt of a run waits for the end of the step: whoever goes on gets the numbers of an uninterrupted run."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from p4lab.errors import TrainingError
from p4lab.training import DigitsConfig, Engine, Lanes, MatrixConfig

SMALL = DigitsConfig(blocks=1, rank=2, batch_size=16, merge_every=3, measure_every=2)
STEPS = 6
PARTS: dict[str, Callable[[Engine], tuple[Any, str]]] = {
    "batch": lambda engine: (engine.problem, "batch"),
    "loss": lambda engine: (engine.problem, "loss"),
    "optimizer": lambda engine: (engine.optimizer, "step"),
    "merge": lambda engine: (engine.schedule, "step"),
    "test_loss": lambda engine: (engine.problem, "test_loss"),
}
"""Parts of a step: whose function does it."""


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    """The handler that Python starts with, afterwards as before."""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def strike(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, times: int = 1) -> None:
    """Have a function be interrupted at its second call from now, after its work."""
    function, calls = getattr(owner, name), []

    def struck(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        calls.append(name)
        for _ in range(times if len(calls) == 2 else 0):
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(owner, name, struck)


def losses(engine: Engine) -> list[float]:
    return list(engine.records.steps.columns["loss"])


@pytest.mark.parametrize("part", PARTS)
def test_a_run_that_was_interrupted_goes_on_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    alone, engine = Engine(SMALL), Engine(SMALL)
    alone.run(STEPS)
    strike(monkeypatch, *PARTS[part](engine))
    with pytest.raises(KeyboardInterrupt):
        engine.run(STEPS)
    assert 0 < engine.step == len(engine.records.steps) < STEPS
    engine.run(STEPS - engine.step)
    assert losses(engine) == losses(alone)
    assert list(engine.records.measures.columns["test_loss"]) == list(alone.records.measures.columns["test_loss"])
    for a, b in zip(engine.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_interrupt_in_the_last_step_is_raised_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(SMALL)
    strike(monkeypatch, engine.problem, "batch")
    with pytest.raises(KeyboardInterrupt):
        engine.run(2)
    assert engine.step == 2


def test_lanes_that_were_interrupted_stay_in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, lanes = (Lanes(MatrixConfig(), "route", ("p4inv", "plain")) for _ in range(2))
    alone.run(STEPS)
    strike(monkeypatch, lanes.engines["p4inv"].optimizer, "step")
    with pytest.raises(KeyboardInterrupt):
        lanes.run(STEPS)
    assert [engine.step for engine in lanes.engines.values()] == [lanes.step] * 2 == [2] * 2
    lanes.run(STEPS - lanes.step)
    for name, engine in lanes.engines.items():
        assert losses(engine) == losses(alone.engines[name])


def test_a_second_interrupt_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(SMALL)
    strike(monkeypatch, engine.problem, "loss", times=2)
    with pytest.raises(KeyboardInterrupt):
        engine.run(STEPS)
    assert engine.step == 1


def test_an_interrupt_of_a_step_that_fails_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(SMALL)
    loss = engine.problem.loss
    monkeypatch.setattr(engine.problem, "loss", lambda model, x: loss(model, x) * torch.nan)
    strike(monkeypatch, engine.problem, "loss")
    with pytest.raises(TrainingError):
        engine.run()
    with pytest.raises(KeyboardInterrupt):
        engine.run()


def test_the_handler_of_somebody_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, heard = Engine(SMALL), []
    strike(monkeypatch, engine.problem, "batch")
    own = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        engine.run(3)
    finally:
        signal.signal(signal.SIGINT, own)
    assert heard == [signal.SIGINT]
    assert engine.step == 3


def test_other_threads_train_as_ever() -> None:
    engine = Engine(SMALL)
    thread = threading.Thread(target=engine.run, args=(2,))
    thread.start()
    thread.join()
    assert engine.step == 2
