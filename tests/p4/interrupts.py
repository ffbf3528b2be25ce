"""Exceptions at a chosen line, opcode or torch operation, and what must hold of a model afterwards.

`interrupted_at`, `failing_at` and `struck_within` make the exception; `Run` is a model amid training, all of whose
state `snapshot` reads; `wrong_after` judges an interrupted run by the runs that were not interrupted.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from p4.dense_twin import well_conditioned
from p4.property_zoo import CASES, ITEMS, Sets, make_spectrum, width_in
from p4.rotations import KINDS, ORTHOGONAL, WITH_DIRECTIONS, orthogonal, unimodular
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import p4lab
from p4lab import flows
from p4lab.p4 import (
    MergeSchedule,
    P4Circulant,
    P4Inv,
    P4Lipschitz,
    P4Module,
    P4PositiveDefinite,
    P4Relative,
    P4Riemannian,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
    p4_modules,
)

Files = Callable[[str], bool]
DUE = "schedule.refinement_due"
"""The part of a state that says whether a schedule still has to refine what has merged."""
P4LAB, TORCH, STANDARD = (str(Path(m.__file__).parent) + os.sep for m in (p4lab, torch, os))


# --- exceptions at a chosen moment -----------------------------------------------------------------------------------


@dataclass
class Interruption:
    """What became of an attempt to interrupt; true if the exception was raised.

    Attributes:
        where: file and line, or the operation, at which it was raised; empty if the function ended before.
        arrived: the exception that came out of the function.
    """

    where: str = ""
    arrived: BaseException | None = None

    def __bool__(self) -> bool:
        return bool(self.where)


def in_p4lab(file: str) -> bool:
    """Whether a file is part of p4lab."""
    return file.startswith(P4LAB)


def outside_of_torch(file: str) -> bool:
    """Whether a file is neither torch's, nor the standard library's, nor generated."""
    standard = file.startswith((STANDARD, "<")) and "site-packages" not in file
    return not standard and not file.startswith(TORCH)


def interrupted_at(
    number: int,
    function: Callable[[], object],
    exception: type[BaseException] = KeyboardInterrupt,
    files: Files = in_p4lab,
    by: str = "line",
) -> Interruption:
    """Run a function, and raise once before the n-th line that it executes in some files.

    The grad mode is restored: no ``with torch.no_grad()`` can do so if it is struck just before it ends.

    Args:
        number: n, from 1.
        function: what to run.
        exception: what to raise.
        files: the files whose lines count, p4lab's own by default.
        by: "line", or "opcode" for a finer grain.
    """
    interruption, count, chosen = Interruption(), 0, functools.cache(files)

    def local(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        nonlocal count
        if event == by:
            count += 1
            if count == number:
                sys.settrace(None)
                interruption.where = f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"
                raise exception(f"planted at {interruption.where}")
        return local

    def tracer(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if not chosen(frame.f_code.co_filename):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = by == "opcode", by == "line"
        return local

    previous = sys.gettrace()  # a debugger's, or that of a coverage tool
    with _caught(interruption):
        sys.settrace(tracer)
        try:
            function()
        finally:
            sys.settrace(previous)
    return interruption


def failing_at(
    number: int,
    function: Callable[[], object],
    exception: type[BaseException] = RuntimeError,
    mode: type[TorchFunctionMode] | type[TorchDispatchMode] = TorchFunctionMode,
) -> Interruption:
    """Run a function, and raise once instead of its n-th torch operation.

    Args:
        number: n, from 1.
        function: what to run.
        exception: what to raise.
        mode: `TorchFunctionMode` counts calls from Python (but those that switch the grad mode, which torch itself
            could not undo), `TorchDispatchMode` what these come down to.
    """
    interruption, count = Interruption(), 0

    def perform(self: object, func: Any, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        nonlocal count
        count += func is not torch._C._set_grad_enabled
        if count == number and not interruption:
            interruption.where = f"{getattr(func, '__qualname__', func)}, operation {number}"
            raise exception(f"planted at {interruption.where}")
        return func(*args, **(kwargs or {}))

    method = "__torch_function__" if mode is TorchFunctionMode else "__torch_dispatch__"
    with _caught(interruption), type("Failing", (mode,), {method: perform})():
        function()
    return interruption


class Struck(KeyboardInterrupt):
    """A KeyboardInterrupt that came from our own timer."""


def struck_within(seconds: float, function: Callable[[], object]) -> Struck | None:
    """Run a function (in the main thread), and interrupt it by a signal after some time, as Ctrl-C does.

    Returns:
        The interrupt; None if the function ended before, or if Python dropped it, as it does within a destructor.
    """
    armed = False

    def handler(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Struck

    mode, hook, start = torch.is_grad_enabled(), sys.unraisablehook, time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # pytest's own time limit
    previous = signal.signal(signal.SIGALRM, handler)
    sys.unraisablehook = lambda u: None if isinstance(u.exc_value, Struck) else hook(u)
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)
        function()
        armed = False
    except Struck as struck:
        return struck
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - start)) if left else 0)
        sys.unraisablehook = hook
        torch.set_grad_enabled(mode)
    return None


@contextlib.contextmanager
def _caught(interruption: Interruption) -> Iterator[None]:
    mode = torch.is_grad_enabled()
    try:
        yield
    except BaseException as error:
        if not interruption:
            raise
        interruption.arrived = error
    finally:
        torch.set_grad_enabled(mode)


def _short(file: str) -> str:
    return os.path.relpath(file, Path(P4LAB).parent) if file.startswith(P4LAB) else Path(file).name


# --- what is interrupted ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A kind of layer, or of flow.

    Attributes:
        name: test id.
        make: from keyword arguments seed, dtype and (if ``resets``) reset to a new one.
        resets: whether it has directions to redraw.
    """

    name: str
    make: Callable[..., Any]
    resets: bool = True

    def variants(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """One for each kind of reset, with a test id."""
        for reset in ("gaussian", "gradient") if self.resets else ():
            yield f"{self.name}-{reset}", functools.partial(self.make, reset=reset)
        if not self.resets:
            yield self.name, self.make


def layers(dim: int, rank: int) -> tuple[Subject, ...]:
    """Every P4 layer, of about this width, with a frozen tensor of no special structure."""

    cases = {case.name: case for case in CASES}

    def inv(rank: int, train_v: bool) -> Callable[..., Any]:
        return lambda **options: P4Inv(dim, rank=rank, init=well_conditioned(dim), train_v=train_v, **options)

    def rotation(kind: Any) -> Callable[..., Any]:
        init = unimodular if kind is P4SpecialLinear else orthogonal
        return lambda **options: kind(dim, rank=rank, init=init(dim), **options)

    def circulant(**options: Any) -> Any:
        options.pop("seed", None)  # it draws nothing
        return cases["circulant"].make(dim, rank, **options)

    def case(name: str, width: int) -> Callable[..., Any]:
        return lambda **options: cases[name].make(width, rank, **options)

    return (
        Subject("P4Inv-rank1", inv(1, False)),
        Subject(f"P4Inv-rank{rank}", inv(rank, False)),
        Subject("P4Inv-train_v", inv(rank, True)),
        *(Subject(kind.__name__, rotation(kind), kind in WITH_DIRECTIONS) for kind in KINDS),
        Subject("P4PositiveDefinite", case("positive-definite", dim)),
        Subject("P4Lipschitz", case("lipschitz", dim)),
        Subject("P4Stiefel", functools.partial(P4Stiefel, dim, dim, rank)),
        Subject("P4Spectrum", functools.partial(make_spectrum, dim, rank, more=0)),
        Subject("P4Circulant", circulant, resets=False),
        Subject("P4Permutation", case("permutation", max(2, dim // 2))),
    )


def relative(dim: int, **options: Any) -> P4Relative:
    """A layer that keeps its inverse up to date, whoever has looked at it."""
    layer = P4Relative(dim, init="orthogonal", **options)
    layer.track_for = sys.maxsize
    return layer


WHOLE = (
    Subject("P4Relative-rows", functools.partial(relative, 40, rank=32), resets=False),
    Subject("P4Relative-dense", functools.partial(relative, 8, turn=3.0), resets=False),
    Subject("P4Riemannian-rows", functools.partial(P4Riemannian, 40, rank=32, init="orthogonal"), resets=False),
    Subject("P4Riemannian-dense", functools.partial(P4Riemannian, 8, init="orthogonal"), resets=False),
)
"""Layers that follow the whole gradient of a batch."""
FLOWS = (
    Subject("p4inv_bent", functools.partial(flows.p4inv_bent, 3, blocks=4)),
    *(
        Subject(f"realnvp-{mixing}", functools.partial(flows.realnvp, 4, blocks=3, mixing=mixing, hidden=8))
        for mixing in ("p4inv", "p4orthogonal")
    ),
)
"""Their resets are those of the recommended preset, by the gradient."""


def units(model: nn.Module) -> list[Any]:
    """What merges, corrects and has a property of its own: the layer itself, or the P4 layers of a flow."""
    return [model.layer] if isinstance(model, Sets) else p4_modules(model)


def merge(unit: Any) -> bool:
    """Merge one layer and return whether all of it merged."""
    report = unit.merge()
    return all(map(bool, report)) if isinstance(report, list) else bool(report)


def width(model: nn.Module) -> int:
    """Length of the model's input."""
    return width_in(model)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """What a model computes, with log|det| as a last column if it is a flow."""
    y = model(x)
    return torch.cat([y[0], y[1].unsqueeze(-1)], -1) if isinstance(y, tuple) else y


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """The negative log-likelihood of a flow, or the error of a layer that should shift its input by one.

    The determinant of a layer, if it has one, takes part.
    """
    if isinstance(model, flows.Flow):
        return -model.log_prob(x).mean()
    y = model(x)
    error = (y - x.roll(1, -1)[..., :1]).square().mean()
    return error - 0.1 * model.logabsdet() if hasattr(model, "logabsdet") else error


class Run:
    """A model amid training."""

    def __init__(
        self, model: nn.Module, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD, **intervals: int
    ) -> None:
        self.model = model
        options = {"lr": 0.02, "momentum": 0.9} if optimizer is torch.optim.SGD else {"lr": 0.02}
        self.optimizer = optimizer(model.parameters(), **options)
        self.merges = MergeSchedule(model, self.optimizer, **({"every": 3, "refine_every": 1} | intervals))

    def train(self, steps: int, seed: int = 0) -> Run:
        """Take some steps; merges are left to the caller."""
        generator, like = torch.Generator().manual_seed(seed), next(self.model.parameters())
        for _ in range(steps):
            x = torch.randn(8, width(self.model), generator=generator, dtype=like.dtype)
            self.optimizer.zero_grad()
            loss(self.model, x).backward()
            self.optimizer.step()
        return self

    def copy(self) -> Run:
        """An independent run in the same state."""
        twin = Run(copy.deepcopy(self.model), type(self.optimizer))
        twin.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        twin.merges.load_state_dict(copy.deepcopy(self.merges.state_dict()))
        return twin

    def snapshot(self) -> dict[str, Any]:
        """A copy of the complete state: tensors, generators, optimizer, counters."""
        state = {
            "model": self.model.state_dict(),
            "buffers": dict(self.model.named_buffers()),  # those that are not saved, too
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.merges.state_dict(),
        }
        return flat(state)


def flat(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dictionaries and lists as a single dictionary."""
    return dict(_flat("", state))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), part)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            yield from _flat(f"{name}.{i}", part)
    else:
        yield name, value.detach().clone() if torch.is_tensor(value) else value


def different(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of what is not equal to the last bit in two flat dictionaries."""
    return [
        name for name in sorted(a.keys() | b.keys()) if name not in a or name not in b or not _same(a[name], b[name])
    ]


def _same(a: Any, b: Any) -> bool:
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


# --- what must hold --------------------------------------------------------------------------------------------------


def defects(model: nn.Module, x: Tensor) -> dict[str, float]:
    """How far a model is from what it promises of itself; references are computed anew, in float64.

    The inverse undoes the function, log|det| and sign are those of the weights, the property holds of the weights and
    of the frozen tensor, and everything is finite. Relative to the size of what is compared.
    """
    with torch.no_grad():
        figures = _whole(model, x)
        for unit in [model] if isinstance(model, Sets) else units(model):
            for name, value in _of_layer(unit).items():
                figures[name] = max(figures.get(name, 0.0), value)
    return {name: math.inf if math.isnan(value) else value for name, value in figures.items()}


def _whole(model: nn.Module, x: Tensor) -> dict[str, float]:
    tensors = itertools.chain(model.parameters(), model.buffers())
    finite = all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point() and t.numel())
    figures = {"finite": 0.0 if finite else math.inf}
    if hasattr(model, "inverse"):
        y = model(x)
        back = model.inverse(y[0] if isinstance(y, tuple) else y)
        figures["inverse"] = float((back - x).abs().max())
    return figures


def _of_layer(layer: Any) -> dict[str, float]:
    weight = layer.weight.double()
    figures = {"violation": float((layer.layer if isinstance(layer, Sets) else layer).violation())}
    if hasattr(layer, "logabsdet"):
        sign, logabsdet = torch.linalg.slogdet(weight)
        stored = layer.layer.sign(ITEMS) if isinstance(layer, Sets) else layer.sign()
        figures["logabsdet"] = float((logabsdet - layer.logabsdet()).abs())
        figures["sign"] = float(sign != stored)
        eye = torch.eye(len(weight), dtype=weight.dtype)
        figures["weight_inverse"] = float((layer.weight_inverse.double() @ weight - eye).abs().max())
    return figures | {f"property: {name}": value for name, value in _property(layer, weight).items()}


def _property(layer: nn.Module, weight: Tensor) -> dict[str, float]:
    if isinstance(layer, (*ORTHOGONAL, P4Riemannian)):
        return {"orthogonal": float((weight @ weight.T - torch.eye(len(weight)).double()).abs().max())}
    if isinstance(layer, P4PositiveDefinite):
        smallest = float(torch.linalg.eigvalsh(weight)[0])
        return {"symmetric": float((weight - weight.T).abs().max()), "definite": 0.0 if smallest > 0 else math.inf}
    if isinstance(layer, P4Lipschitz):
        return {"norm": max(0.0, float(torch.linalg.matrix_norm(weight, 2)) / layer.bound - 1)}
    if isinstance(layer, P4Stiefel):
        return {"orthonormal": float((weight @ weight.T - torch.eye(len(weight)).double()).abs().max())}
    if isinstance(layer, P4Spectrum):
        values = layer.singular_values
        return {"spectrum": float((torch.linalg.svdvals(weight) - values).abs().max() / values[0])}
    if isinstance(layer, P4Circulant):
        return {"circulant": float((weight.roll((1, 1), (0, 1)) - weight).abs().max())}
    if isinstance(layer, Sets):
        channels = layer.layer.channels
        shifted = weight.roll((channels, channels), (0, 1))
        return {"equivariant": float((shifted - weight).abs().max())}
    return {}


def cancellation(model: nn.Module) -> float:
    """What an inverse loses where u takes a nearly singular frozen A back to a good one: ``10 eps cond(A)^2``.

    Both terms of Sherman and Morrison's formula are as large as ``A^-1`` then, and their difference is small; the next
    merge refines it away.
    """
    frozen = [layer.frozen_weight for layer in p4_modules(model) if hasattr(layer, "frozen_weight")]
    return max((10 * torch.finfo(a.dtype).eps * float(torch.linalg.cond(a.double())) ** 2 for a in frozen), default=0.0)


def beyond(figures: dict[str, float], limit: float) -> list[str]:
    """Say which figures are above a limit."""
    return [f"{name} = {value:.2g}" for name, value in figures.items() if not value <= limit]


@dataclass
class States:
    """The states that an operation may lead to, interrupted or not.

    Attributes:
        before: the state before the operation.
        after: the state after it.
        merged: the state after it if no refinement followed.
        refined: the state before it with its layers refined, if an earlier interrupt has left that to do.
        layers: names of the parts of a state that belong to one layer each.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    merged: dict[str, Any]
    refined: dict[str, Any]
    layers: list[list[str]]

    @classmethod
    def of(cls, run: Run, operation: Callable[[Run], object]) -> States:
        """Perform the operation on copies of a run."""
        done, before = run.copy(), run.snapshot()
        operation(done)
        merged = refined = after = done.snapshot()
        if before["schedule.attempts"] != after["schedule.attempts"]:
            twin = run.copy()
            twin.merges.refine_every = 0
            operation(twin)
            merged = twin.snapshot()
        if before.get(DUE) is True:
            twin = run.copy()
            twin.merges.refine()
            refined = twin.snapshot()
        modules = [f"{name}." if name else "" for name, m in run.model.named_modules() if isinstance(m, P4Module)]
        layers = [[key for key in before if key.startswith((f"model.{m}", f"buffers.{m}"))] for m in modules]
        return cls(before, after, merged, refined, layers)

    def whole(self, state: dict[str, Any], one_by_one: bool = False) -> str:
        """Say whether a state is "before", "after", "refining" or "between layers"; nothing if it is none of them.

        While refining, everything has merged, or nothing has yet; each layer is refined or not as a whole, and the
        schedule knows that refinements are still due. Between layers (if they go one by one) each is before or after.
        """
        if not different(state, self.before):
            return "before"
        changed = set(different(state, self.after))
        if not changed:
            return "after"
        if state.get(DUE) is True and not self._but_for_layers(state, changed, self.merged) - {DUE}:
            return "refining"
        not_yet = set(different(state, self.before))
        if self.before.get(DUE) is True and not self._but_for_layers(state, not_yet, self.refined) - {DUE}:
            return "refining"
        return "between layers" if one_by_one and not self._but_for_layers(state, changed, self.before) else ""

    def _but_for_layers(self, state: dict[str, Any], changed: set[str], other: dict[str, Any]) -> set[str]:
        """What of the changed parts does not belong to layers that are in another state as a whole."""
        alike = [names for names in self.layers if all(_same(state[name], other[name]) for name in names)]
        return changed.difference(*alike)


@dataclass
class Reference:
    """What uninterrupted copies of a run come to.

    Attributes:
        states: by the operation.
        later: what another merge makes of the states before and after.
        x, y: inputs, and what the model makes of them.
    """

    states: States
    later: dict[str, dict[str, Any]]
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, run: Run, operation: Callable[[Run], object], tolerance: float = 1e-9) -> Reference:
        """Perform the operation, and merge, on copies of the run, which must go well."""
        x = torch.randn(5, width(run.model), dtype=next(run.model.parameters()).dtype)
        reference = cls(States.of(run, operation), {}, x, outputs(run.model, x).detach())
        done, at_once = run.copy(), run.copy()
        operation(done)
        for name, twin in {"before": at_once, "after": done}.items():
            reports = twin.merges.merge()
            assert all(map(bool, reports)), reports
            reference.later[name] = twin.snapshot()
        for twin in (run, at_once, done):
            assert not list(_problems(twin.model, reference, tolerance))
        return reference


def wrong_after(
    run: Run,
    reference: Reference,
    interruption: Interruption,
    one_by_one: bool = False,
    tolerance: float = 1e-9,
    go_on: bool = True,
) -> tuple[list[str], str]:
    """Judge a run of which an operation was interrupted: all of it must be as before, or all of it as after.

    If it shall go on, the next merge must work, keep the function, and come to the very state that it would have come
    to; the run is used up then.

    Returns:
        What is wrong, and what `States.whole` says.
    """
    wrong = []
    if interruption.arrived is None:
        wrong.append("the exception was swallowed")
    elif "planted" not in str(interruption.arrived):
        wrong.append(f"{type(interruption.arrived).__name__} took its place")
    whole = reference.states.whole(run.snapshot(), one_by_one)
    if not whole:
        wrong.append("neither before nor after")
    exact = whole in reference.later
    wrong += [f"{problem} at once" for problem in _problems(run.model, reference, tolerance, not exact)]
    if not go_on:
        return wrong, whole
    if not all(map(bool, run.merges.merge())):
        wrong.append("the next merge is refused")
    later = run.snapshot()
    if not exact:
        wrong += [f"{problem} after the next merge" for problem in _problems(run.model, reference, tolerance)]
    elif different(later, reference.later[whole]):
        wrong.append("the next merge comes to something else")
    if later.get(DUE):
        wrong.append("refinements are due for ever")
    return wrong, whole


def _problems(model: nn.Module, reference: Reference, tolerance: float, thorough: bool = True) -> Iterator[str]:
    with torch.no_grad():
        change = float((outputs(model, reference.x) - reference.y).abs().max())
        figures = defects(model, reference.x) if thorough else _whole(model, reference.x)
    for name, value in figures.items() | {"function": change}.items():
        if not value <= tolerance:  # NaN is not, either
            yield name
