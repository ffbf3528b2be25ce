"""Ten thousand random operations on every layer and flow, in any order: after each of them all promises hold.

What must keep the function keeps it, the inverse undoes it, log|det| is that of the weights, the property holds, and
the state goes into a model of another seed and is the same there.
"""

from __future__ import annotations

import copy
import functools
import io
import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from p4.interrupts import (
    Interruption,
    Run,
    States,
    Subject,
    beyond,
    cancellation,
    defects,
    different,
    failing_at,
    flat,
    interrupted_at,
    layers,
    merge,
    outputs,
    units,
    width,
)
from p4.rotations import ORTHOGONAL
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from p4lab.errors import P4Error
from p4lab.flows import Flow
from p4lab.p4 import P4Inv, P4Lipschitz, P4PositiveDefinite, P4SpecialLinear, P4Spectrum, P4Stiefel, p4_modules

SIZES = ((3, 1), (4, 2), (6, 3), (5, 4))  # widths and ranks
ZOOS = [layers(dim, rank) for dim, rank in SIZES]
STEPS = 50
OPERATIONS, FLOW_OPERATIONS = 10_000, 500
LIMITS = {torch.float64: 1e-8, torch.float32: 2e-3}
NARROW = 1e-4
"""Limit for what float32 once rounded, in a layer that is back in float64."""

Interrupt = Callable[[int, Callable[[], object]], Interruption]
INTERRUPTS: tuple[tuple[Interrupt, int], ...] = (  # each with about the number of its moments in a merge
    (interrupted_at, 250),
    (functools.partial(interrupted_at, by="opcode"), 2000),
    (functools.partial(failing_at, exception=torch.OutOfMemoryError), 200),
    (functools.partial(failing_at, mode=TorchDispatchMode), 150),
)
OF_RUN: dict[str, Callable[[Run], object]] = {
    "merge_all": lambda run: run.merges.merge(),
    "merge_one": lambda run: merge(units(run.model)[0]),
    "correct_all": lambda run: run.merges.refine(),
    "correct_one": lambda run: units(run.model)[-1].correct(),
    "recompute": lambda run: [layer.recompute() for layer in p4_modules(run.model) if isinstance(layer, P4Inv)],
}

seeds = st.integers(0, 2**32 - 1)


class Machine(RuleBasedStateMachine):
    """A model amid training, to which anything may happen."""

    make: ClassVar[Callable[[int], Callable[..., Any]]]
    resets: ClassVar[bool]
    done: ClassVar[Counter[str]]

    @initialize(seed=seeds)
    def start(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.make_model = type(self).make(seed)
        model = self.make_model(seed=seed % 1000, dtype=torch.float64)
        optimizer = torch.optim.Adam if isinstance(model, Flow) or seed % 3 else torch.optim.SGD
        self.run = Run(model, optimizer, refine_every=4)
        self.switch_resets(("gaussian", "gradient")[seed % 2])
        self.mirror: nn.Module = self.make_model(seed=1000, dtype=torch.float64)
        self.narrow = False
        self.x = torch.randn(4, width(model), dtype=torch.float64)
        self.note()

    # --- what keeps the function -------------------------------------------------------------------------------------

    @rule()
    def merge_all(self) -> None:
        self.count("merge_all")
        for report in self.run.merges.merge():
            self.merged(report)

    @rule(seed=seeds)
    def merge_one(self, seed: int) -> None:
        self.count("merge_one")
        layer = p4_modules(self.model)[seed % len(p4_modules(self.model))]
        self.merged(layer.merge())

    @rule(seed=seeds, name=st.sampled_from(["merge_all", "merge_one"]))
    def interrupt_merge(self, seed: int, name: str) -> None:
        self.interrupt(seed, name, 1)

    @rule(seed=seeds, name=st.sampled_from(["correct_all", "correct_one", "recompute"]))
    def interrupt_correction(self, seed: int, name: str) -> None:
        self.interrupt(seed, name, 5)

    def interrupt(self, seed: int, name: str, share: int) -> None:
        """Interrupt one of `OF_RUN`, which takes so many times less than a merge, at a random moment."""
        chance, operation = random.Random(seed), OF_RUN[name]
        interrupt, moments = chance.choice(INTERRUPTS)
        number, states = chance.randint(1, moments // share), States.of(self.run, operation)
        interruption = interrupt(number, functools.partial(operation, self.run))
        self.count("interrupt")
        self.count("interrupt.struck" if interruption else "interrupt.ended before")
        whole = states.whole(self.run.snapshot(), one_by_one=name != "merge_all")
        assert whole, f"{name} interrupted at {interruption.where}: neither before nor after"
        if interruption:
            assert "planted" in str(interruption.arrived), f"swallowed at {interruption.where}"
        else:
            assert whole == "after" or not different(states.before, states.after)

    @rule()
    def correct(self) -> None:
        self.count("correct")
        self.run.merges.refine()
        if self.narrow and self.dtype == torch.float64:
            self.holds()
            # What is left of float32 is log|det|, where it is carried along.
            self.narrow = not isinstance(self.model, (*ORTHOGONAL, P4SpecialLinear, P4Lipschitz, P4Stiefel, P4Spectrum))

    @rule()
    def recompute(self) -> None:
        self.count("recompute")
        OF_RUN["recompute"](self.run)

    @rule(dtype=st.sampled_from([torch.float32, torch.float64]))
    def cast(self, dtype: torch.dtype) -> None:
        self.count("cast")
        self.narrow |= dtype == torch.float32 or self.dtype == torch.float32
        self.adopt(self.model.to(dtype))
        self.x = self.x.to(dtype)
        self.mirror = self.make_model(seed=1000, dtype=dtype)

    @rule()
    def deepcopied(self) -> None:
        self.count("deepcopied")
        self.run = self.run.copy()

    @rule()
    def pickled(self) -> None:
        self.count("pickled")
        self.adopt(pickle.loads(pickle.dumps(self.model)))

    @rule(seed=seeds)
    def saved_and_loaded(self, seed: int) -> None:
        """Also: what is loaded draws the directions that the original would have drawn."""
        self.count("saved_and_loaded")
        file = io.BytesIO()
        torch.save(self.model.state_dict(), file)
        file.seek(0)
        model = self.make_model(seed=seed % 997, dtype=self.dtype)
        model.load_state_dict(torch.load(file, weights_only=True))
        pairs = list(zip(p4_modules(model), p4_modules(self.model), strict=True))
        for layer, original in pairs:
            layer.reset_kind = original.reset_kind
        twins = copy.deepcopy(pairs[seed % len(pairs)])
        for twin in twins:
            twin.reset_kind = "gaussian"  # there is no batch in a saved state
        assert twins[0].merge().status == twins[1].merge().status
        names = different(*(flat(twin.state_dict()) for twin in twins))
        assert not names, f"after loading, a merge comes to another {names}"
        self.adopt(model.train(self.model.training))

    @rule(training=st.booleans())
    def switch_mode(self, training: bool) -> None:
        self.count("switch_mode")
        self.model.train(training)

    @rule(kind=st.sampled_from(["gaussian", "gradient"]))
    def switch_reset(self, kind: Any) -> None:
        self.count("switch_reset")
        self.switch_resets(kind)

    @rule()
    def share_memory(self) -> None:
        self.count("share_memory")
        self.model.share_memory()
        assert all(p.is_shared() for p in self.model.parameters())

    @rule(seed=seeds)
    def transform(self, seed: int) -> None:
        """torch.func gives the derivatives that autograd gives, and leaves no trace."""
        self.count("transform")
        model, twin = self.model, self.run.copy()
        x, d = self.draw(seed), width(model)
        jacobians = vmap(jacrev(lambda t: outputs(model, t)))(x)
        parameters = dict(model.named_parameters())
        gradients = grad(lambda p: self.error(functional_call(model, p, (x,))))(parameters)
        single = vmap(grad(lambda p, t: self.error(functional_call(model, p, (t.unsqueeze(0),)))), in_dims=(None, 0))(
            parameters, x
        )
        if seed % 3 == 0:
            touched, untouched = self.run.copy(), twin.copy()
            for run in (touched, untouched):
                run.merges.merge()
            assert not different(touched.snapshot(), untouched.snapshot()), "transforms left a trace"
        expected = torch.autograd.grad(self.error(twin.model(x)), list(twin.model.parameters()))
        for (name, value), gradient in zip(gradients.items(), expected, strict=True):
            self.close(value, gradient, f"grad by {name}")
            self.close(single[name].mean(0), gradient, f"grads of samples by {name}")
        with torch.no_grad():
            if isinstance(model, Flow):
                logabsdet = torch.linalg.slogdet(jacobians[:, :d].double()).logabsdet
                self.close(logabsdet, model(x)[1].double(), "log|det| of the jacobian")
            else:
                self.close(jacobians, model.weight.expand_as(jacobians), "jacobian")

    @rule(seed=seeds)
    def merge_before_backward(self, seed: int) -> None:
        """A pending backward pass either gives the gradients of the model as it is now, or raises."""
        self.count("merge_before_backward")
        x = self.draw(seed).requires_grad_(bool(seed % 2))
        inputs = [*self.model.parameters(), *([x] if x.requires_grad else [])]
        pending = self.error(self.model(x))
        name = ("merge_all", "merge_one", "correct_all")[seed % 3]
        OF_RUN[name](self.run)
        expected = torch.autograd.grad(self.error(self.model(x)), inputs, allow_unused=True)
        gradients = None
        try:
            gradients = torch.autograd.grad(pending, inputs, allow_unused=True)
        except P4Error:
            self.count("merge_before_backward.raised")
        except RuntimeError:  # torch's own; a merge has a name for it
            if name != "correct_all":
                raise
        for value, gradient in zip(gradients or (), expected if gradients else (), strict=True):
            if gradient is not None:
                self.close(value, gradient, "gradient by a pass that a merge came into, unnoticed,")

    # --- what moves it -----------------------------------------------------------------------------------------------

    @rule(seed=seeds)
    def train(self, seed: int) -> None:
        self.count("train")
        self.run.train(1 + seed % 2, seed=seed)
        self.note()

    @rule(seed=seeds)
    def train_with_schedule(self, seed: int) -> None:
        for i in range(4):
            self.count("train_with_schedule")
            self.run.train(1, seed=seed + i)
            self.note()
            for report in self.run.merges.step():
                self.merged(report)
            self.holds()

    @rule()
    def reset(self) -> None:
        self.count("reset")
        for layer in p4_modules(self.model):
            layer.reset()
        self.note()

    # --- what holds --------------------------------------------------------------------------------------------------

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "y"):
            return
        with torch.no_grad():
            y = outputs(self.model, self.x)
        figures = defects(self.model, self.x)
        limit = LIMITS[self.dtype]
        limits = dict.fromkeys(figures, limit)
        if self.narrow:
            stored = isinstance(self.model, Flow | P4Inv | P4PositiveDefinite | P4SpecialLinear)
            narrow = [name for name in figures if not (stored and "inverse" in name)]
            limits |= dict.fromkeys(narrow, max(limit, NARROW))
        inverses = [name for name in figures if "inverse" in name]
        limits |= {name: max(limits[name], cancellation(self.model)) for name in inverses}
        wrong = [text for name, value in figures.items() for text in beyond({name: value}, limits[name])]
        assert not wrong, ", ".join(wrong)
        self.close(y, self.y, "function", self.narrow)
        self.y = y
        state = self.model.state_dict()
        self.mirror.load_state_dict(state)
        names = different(flat(self.mirror.state_dict()), flat(state))
        assert not names, f"a loaded state differs: {names}"
        with torch.no_grad():
            self.close(outputs(self.mirror, self.x), y, "function of a model with the same state")

    def teardown(self) -> None:
        torch.set_grad_enabled(True)

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        return self.run.model

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def count(self, name: str) -> None:
        type(self).done[name] += 1

    def note(self) -> None:
        """The function is allowed to have changed."""
        with torch.no_grad():
            self.y = outputs(self.model, self.x)

    def merged(self, report: Any) -> None:
        self.count(f"report.{report.status.name.lower()}")
        assert not report.discarded, report

    def adopt(self, model: nn.Module) -> None:
        """Go on with this model, and an optimizer and a schedule in the state of the present ones."""
        old = self.run
        self.run = Run(model, type(old.optimizer))
        self.run.optimizer.load_state_dict(old.optimizer.state_dict())
        self.run.merges.load_state_dict(old.merges.state_dict())

    def switch_resets(self, kind: Any) -> None:
        for layer in p4_modules(self.model) if self.resets else ():
            layer.reset_kind = kind

    def draw(self, seed: int) -> Tensor:
        """Inputs of three samples."""
        return torch.randn(3, width(self.model), dtype=self.dtype, generator=torch.Generator().manual_seed(seed))

    def error(self, y: Any) -> Tensor:
        return y[0].square().mean() + y[1].mean() if isinstance(y, tuple) else y.square().mean()

    def close(self, a: Tensor, b: Tensor, what: str, narrow: bool = False) -> None:
        a, b = a.detach(), b.detach()
        limit = max(LIMITS[self.dtype], NARROW if narrow else 0.0) * max(1.0, float(b.abs().max()))
        difference = float((a - b).abs().max())
        assert difference <= limit, f"{what} differs by {difference:.2g}"


def machine(make: Callable[[int], Callable[..., Any]], resets: bool) -> type[Machine]:
    """A machine for one kind of model, that counts what it has done."""
    return type("Machine", (Machine,), {"make": staticmethod(make), "resets": resets, "done": Counter()})


def perform(kind: type[Machine], operations: int) -> Counter[str]:
    """Perform so many operations at least, and return how many there were of each."""
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=operations * 9 // (8 * STEPS),  # some are cut short
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    total = sum(number for name, number in kind.done.items() if "." not in name)
    assert total >= operations
    print(f"{total} operations: {dict(kind.done)}", end="  ")
    return kind.done


def of_layer(index: int) -> type[Machine]:
    return machine(lambda seed: ZOOS[seed % len(ZOOS)][index].make, ZOOS[0][index].resets)


def of_flow(subject: Subject) -> type[Machine]:
    return machine(lambda seed: subject.make, subject.resets)


def check(done: Counter[str]) -> None:
    """It is the operations that pass, not their refusal."""
    reports = {name: number for name, number in done.items() if name.startswith("report")}
    assert done["report.merged"] >= 0.95 * sum(reports.values()), reports
    assert done["interrupt.struck"] >= done["interrupt"] // 8


layer_names = [subject.name.replace(f"rank{SIZES[0][1]}", "rank_k") for subject in ZOOS[0]]
layer_names[0] = "P4Inv-rank1"
times = pytest.mark.parametrize("times", [pytest.param(1, id="1"), pytest.param(10, id="10", marks=pytest.mark.long)])
"""Ten times as many operations in `make test-all`."""


def operations(index: int) -> int:
    """Return how many operations a kind of layer has to bear; the three of P4Inv share what one layer has."""
    return OPERATIONS * 4 // 10 if layer_names[index].startswith("P4Inv") else OPERATIONS
