"""Whatever stops a merge, wherever: everything is as it was before it, or everything as it is after it.

Everything is the layers with their generators, the optimizer's state and the schedule's counters, to the last bit. A
merge that also refines is two things in a row: between them, and between the layers, the schedule knows what is due.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.interrupts import (
    FLOWS,
    WHOLE,
    Interruption,
    Reference,
    Run,
    different,
    failing_at,
    interrupted_at,
    layers,
    merge,
    outside_of_torch,
    units,
    wrong_after,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from p4lab.p4 import P4Circulant, P4Inv

Make = Callable[..., Any]
Operation = Callable[[Run], object]
Interrupt = Callable[[int, Callable[[], object]], Interruption]

OPERATIONS: dict[str, Operation] = {
    "schedule": lambda run: run.merges.merge(),  # all layers at once; it refines, too
    "merge": lambda run: [merge(unit) for unit in units(run.model)],  # one layer after the other
    "correct": lambda run: [unit.correct() for unit in units(run.model)],
}
OF_P4INV: dict[str, Operation] = {
    "refine": lambda run: run.model.refine(7),
    "recompute": lambda run: run.model.recompute(),
}
SHOWN = 4
STRIDE = 5
"""Of a flow with five layers alike, each line has its turn in one of them, or nearly so."""

SUBJECTS = (*layers(8, 3), *WHOLE)
variants = pytest.mark.parametrize("make", [pytest.param(m, id=n) for s in SUBJECTS for n, m in s.variants()])
by_gradient = pytest.mark.parametrize(
    "make", [pytest.param(m, id=n) for s in SUBJECTS for n, m in s.variants() if not n.endswith("gaussian")]
)
flows = pytest.mark.parametrize("make", [pytest.param(s.make, id=s.name) for s in FLOWS])
operations = pytest.mark.parametrize("operation", [pytest.param(o, id=n) for n, o in OPERATIONS.items()])
some_or_all = pytest.mark.parametrize(
    "stride", [pytest.param(STRIDE, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)]
)
failures = pytest.mark.parametrize(
    ("mode", "exception"),
    [
        pytest.param(TorchFunctionMode, torch.OutOfMemoryError, id="function-OutOfMemoryError"),
        pytest.param(TorchDispatchMode, RuntimeError, id="dispatch-RuntimeError"),
    ],
)


def amid_training(make: Make, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD) -> Run:
    """A run with momentum, a frozen tensor that has merged before, and a perturbation that a merge will accept."""
    run = Run(make(seed=1, dtype=torch.float64), optimizer).train(3)
    assert all(map(bool, run.merges.merge()))
    return run.train(2, seed=1)


def at_every_moment(run: Run, operation: Operation, interrupt: Interrupt, go_on: int = 3, stride: int = 1) -> None:
    """Interrupt an operation on a copy of the run at its first moment, at its second one, and so on.

    Every ``go_on``-th time the copy merges once more, to see what became of it, and a new one takes its place; one that
    is as before goes on to the next interrupt. With a stride only some moments have their turn.
    """
    reference, one_by_one = Reference.of(run, operation), operation is not OPERATIONS["schedule"]
    wrong: dict[str, list[str]] = {}
    twin = run.copy()
    for tried in itertools.count():
        number = 1 + tried * stride
        interruption = interrupt(number, functools.partial(operation, twin))
        if not interruption:
            break
        problems, whole = wrong_after(twin, reference, interruption, one_by_one, go_on=tried % go_on == 0)
        for problem in problems:
            wrong.setdefault(problem, []).append(f"{number} ({interruption.where})")
        if whole != "before" or tried % go_on == 0:
            twin = run.copy()
    assert not different(twin.snapshot(), reference.states.after), "copies of a run do not do the same"
    assert tried, "nothing was interrupted"
    moments = set(itertools.chain.from_iterable(wrong.values()))
    lines = [
        f"{problem}: {len(where)} of them, {', '.join(where[:SHOWN])}{', ...' * (len(where) > SHOWN)}"
        for problem, where in wrong.items()
    ]
    assert not wrong, "\n".join([f"wrong after {len(moments)} of {tried} interrupts", *lines])


# --- the harness itself ----------------------------------------------------------------------------------------------


class Careless(P4Circulant):
    """Merges as one would at first."""

    @torch.no_grad()
    def merge(self) -> bool:
        self.frozen_kernel.add_(self.u)
        self.u.zero_()
        return True


class Careful(P4Circulant):
    """Takes back what it had written when it is stopped."""

    @torch.no_grad()
    def merge(self) -> bool:
        kernel, u = self.frozen_kernel.clone(), self.u.clone()
        try:
            self.frozen_kernel.add_(self.u)
            self.u.zero_()
        except BaseException:
            self.frozen_kernel.copy_(kernel)
            self.u.copy_(u)
            raise
        return True


class Silent(Careful):
    """Keeps the interrupt for itself."""

    def merge(self) -> bool:
        with contextlib.suppress(BaseException):
            super().merge()
        return True


def of_toy(kind: type[P4Circulant]) -> Run:
    return amid_training(lambda seed, dtype: kind(8, dtype=dtype))


def by_lines_of_this_file(by: str = "line") -> Interrupt:
    return functools.partial(interrupted_at, files=lambda file: file == __file__, by=by)


TOY_INTERRUPTS = [
    pytest.param(by_lines_of_this_file(), id="line"),
    pytest.param(by_lines_of_this_file("opcode"), id="opcode"),
    pytest.param(functools.partial(failing_at, mode=TorchFunctionMode), id="function"),
    pytest.param(functools.partial(failing_at, mode=TorchDispatchMode), id="dispatch"),
]


@pytest.mark.parametrize("interrupt", TOY_INTERRUPTS)
def test_a_merge_in_two_steps_is_found_out(interrupt: Interrupt) -> None:
    with pytest.raises(AssertionError, match=r"neither before nor after: .*\n.*function at once"):
        at_every_moment(of_toy(Careless), OPERATIONS["merge"], interrupt)


@pytest.mark.parametrize("interrupt", TOY_INTERRUPTS)
def test_a_merge_that_takes_itself_back_passes(interrupt: Interrupt) -> None:
    at_every_moment(of_toy(Careful), OPERATIONS["merge"], interrupt)


def test_a_merge_that_swallows_the_interrupt_is_found_out() -> None:
    with pytest.raises(AssertionError, match="the exception was swallowed"):
        at_every_moment(of_toy(Silent), OPERATIONS["merge"], by_lines_of_this_file())


def test_interrupts_strike_where_they_should_and_leave_no_trace() -> None:
    lines: list[int] = []

    def function() -> None:
        lines.append(1)
        with torch.no_grad():
            lines.append(2)
            lines.append(3)

    previous, events = sys.gettrace(), []
    debugger = lambda frame, event, arg: events.append(event)  # noqa: E731
    try:
        sys.settrace(debugger)
        interruption = by_lines_of_this_file()(3, function)
        restored = sys.gettrace()
    finally:
        sys.settrace(previous)
    assert restored is debugger
    assert interruption.where.startswith("test_interrupts.py:")
    assert isinstance(interruption.arrived, KeyboardInterrupt)
    assert lines == [1]
    assert torch.is_grad_enabled()
    assert not interrupted_at(1, function)  # none of these lines is p4lab's
    assert not by_lines_of_this_file()(100, function)


# --- layers ----------------------------------------------------------------------------------------------------------


@variants
def test_at_every_line(make: Make) -> None:
    at_every_moment(amid_training(make), OPERATIONS["schedule"], interrupted_at)


@pytest.mark.parametrize("name", ["merge", "correct"])
@by_gradient
def test_at_every_line_without_a_schedule(make: Make, name: str) -> None:
    at_every_moment(amid_training(make), OPERATIONS[name], interrupted_at)


@pytest.mark.parametrize("operation", [pytest.param(o, id=n) for n, o in OF_P4INV.items()])
@pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
def test_at_every_line_of_a_refinement(train_v: bool, operation: Operation) -> None:
    make = functools.partial(P4Inv, 8, rank=3, init="orthogonal", train_v=train_v)
    at_every_moment(amid_training(make), operation, interrupted_at)


@failures
@by_gradient
def test_at_every_torch_operation(make: Make, mode: type, exception: type[BaseException]) -> None:
    interrupt = functools.partial(failing_at, exception=exception, mode=mode)
    at_every_moment(amid_training(make), OPERATIONS["schedule"], interrupt)


@pytest.mark.long
@operations
@variants
def test_at_every_opcode(make: Make, operation: Operation) -> None:
    interrupt = functools.partial(interrupted_at, files=outside_of_torch, by="opcode")
    at_every_moment(amid_training(make), operation, interrupt)


# --- flows: all of their layers, or none -----------------------------------------------------------------------------


@flows
@some_or_all
def test_flows_at_every_line(make: Make, stride: int) -> None:
    at_every_moment(
        amid_training(make, torch.optim.Adam), OPERATIONS["schedule"], interrupted_at, go_on=5, stride=stride
    )


@failures
@flows
@some_or_all
def test_flows_at_every_torch_operation(make: Make, mode: type, exception: type[BaseException], stride: int) -> None:
    interrupt = functools.partial(failing_at, exception=exception, mode=mode)
    at_every_moment(amid_training(make, torch.optim.Adam), OPERATIONS["schedule"], interrupt, go_on=5, stride=stride)


@pytest.mark.long
@flows
def test_flows_at_every_opcode(make: Make) -> None:
    interrupt = functools.partial(interrupted_at, files=outside_of_torch, by="opcode")
    at_every_moment(amid_training(make, torch.optim.Adam), OPERATIONS["schedule"], interrupt, go_on=5)
