"""Tasks of memory: their shapes, what is right, what can be had without memory, errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.problems.sequences import KINDS, LENGTH, LONGEST, SYMBOLS, TASKS, TEST, Adding, CopyMemory, sequence_task


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Model:
    """States are the inputs; what is read of them is given."""

    def __init__(self, read: Any) -> None:
        self.read = read

    def states(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("delay", [1, 2, 30])
def test_copy_asks_for_what_it_showed(delay: int) -> None:
    task = CopyMemory(delay)
    x, y = task.batch(7, generator())
    assert (x.shape, y.shape, task.steps) == ((delay + 20, 7, SYMBOLS + 2), (delay + 20, 7), delay + 20)
    assert bool((x.sum(-1) == 1).all())
    symbols = x.argmax(-1)
    assert bool(((symbols[:LENGTH] >= 1) & (symbols[:LENGTH] <= SYMBOLS)).all())
    assert torch.equal(y[-LENGTH:], symbols[:LENGTH])
    assert not y[:-LENGTH].any()
    signs = (symbols == SYMBOLS + 1).nonzero()
    assert signs[:, 0].tolist() == [delay + LENGTH - 1] * 7
    assert not symbols[delay + LENGTH :].any()


def test_the_baseline_of_copy_is_what_chance_gets() -> None:
    task = CopyMemory(30)
    steps = torch.arange(task.steps).view(-1, 1, 1)

    def read(states: Tensor) -> Tensor:
        symbols = (steps >= task.steps - LENGTH) & (torch.arange(task.outputs) > 0)
        blank = (steps < task.steps - LENGTH) & (torch.arange(task.outputs) == 0)
        return torch.where(symbols | blank, 0.0, -1e9).expand(-1, states.shape[1], -1)

    assert float(task.test_loss(Model(read))) == pytest.approx(task.baseline, rel=1e-5)
    assert task.baseline == pytest.approx(LENGTH * math.log(SYMBOLS) / 50)


@pytest.mark.parametrize("delay", [2, 3, 40])
def test_adding_marks_one_number_of_each_half(delay: int) -> None:
    task = Adding(delay)
    x, y = task.batch(9, generator())
    assert (x.shape, y.shape, task.steps) == ((delay, 9, 2), (9,), delay)
    numbers, marks = x.unbind(-1)
    assert bool(((numbers >= 0) & (numbers < 1)).all())
    half = delay // 2
    assert marks[:half].sum(0).tolist() == marks[half:].sum(0).tolist() == [1.0] * 9
    torch.testing.assert_close((numbers * marks).sum(0), y)


def test_the_baseline_of_adding_is_the_variance_of_the_sum() -> None:
    task = Adding(20)
    batch = task.batch(20_000, generator(1))
    loss = float(task.loss(Model(lambda h: torch.ones(len(h), 1)), batch))
    assert loss == pytest.approx(task.baseline, rel=0.03)


def test_a_model_that_knows_has_no_loss() -> None:
    copy, adding = CopyMemory(5), Adding(6)
    x, y = copy.batch(4, generator())
    right = Model(lambda h: 40.0 * torch.nn.functional.one_hot(y if len(h) > LENGTH else y[-LENGTH:], 9).float())
    assert float(copy.loss(right, (x, y))) < 1e-6
    assert float(copy.recalled(right, (x, y))) == 1.0
    wrong = Model(lambda h: right.read(h).roll(1, -1))
    assert float(copy.recalled(wrong, (x, y))) == 0.0
    x, y = adding.batch(4, generator())
    knows = Model(lambda h: y.view(-1, 1))
    assert float(adding.loss(knows, (x, y))) == 0.0
    assert torch.equal(adding.answers(knows, x, x), y)


def test_answers_to_copy_are_probabilities() -> None:
    task = CopyMemory(5)
    x, _ = task.batch(3, generator())
    answers = task.answers(Model(lambda h: h[..., :9] * 3), x, x)
    assert answers.shape == (25, 3, 9)
    torch.testing.assert_close(answers.sum(-1), torch.ones(25, 3))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_batches_repeat_and_have_the_dtype_asked_for(name: str, dtype: torch.dtype) -> None:
    task, same = (sequence_task(name, 12, 3, dtype=dtype) for _ in range(2))
    assert isinstance(task, KINDS[name])
    assert task.test[0].shape[1] == TEST
    assert task.test[0].dtype == dtype
    for one, other in zip(task.test, same.test, strict=True):
        assert torch.equal(one, other)
    first, second = (task.batch(4, generator(seed))[0] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "delay", "message"),
    [
        ("copy", 0, f"delay=0: expected a whole number from 1 to {LONGEST}"),
        ("adding", 1, "delay=1: expected a whole number from 2"),
        ("copy", LONGEST + 1, "delay=10001"),
        ("adding", 2.5, "delay=2.5"),
        ("parity", 5, "sequence task 'parity' is not known"),
    ],
)
def test_bad_arguments_are_named(name: str, delay: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        sequence_task(name, delay)
