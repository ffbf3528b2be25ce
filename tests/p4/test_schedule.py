"""The merge schedule: when it merges and refines, and what each optimizer forgets."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from p4.dense_twin import assert_bitwise, perturb, state_of
from torch import Tensor, nn
from torch.optim import lr_scheduler

from p4lab.errors import OptionError
from p4lab.p4 import MergeSchedule, MergeStatus, P4Inv, P4Orthogonal, convert

o = torch.optim
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: o.SGD(p, lr=0.01),
    "sgd-momentum": lambda p: o.SGD(p, lr=0.01, momentum=0.9),
    "sgd-nesterov": lambda p: o.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: o.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: o.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "adam": lambda p: o.Adam(p, lr=0.01),
    "adam-amsgrad": lambda p: o.Adam(p, lr=0.01, amsgrad=True),
    "adam-foreach": lambda p: o.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: o.Adam(p, lr=0.01, fused=True, amsgrad=True),
    "adamw": lambda p: o.AdamW(p, lr=0.01),
    "adamw-fused": lambda p: o.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: o.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: o.Adagrad(p, lr=0.01),
    "adadelta": lambda p: o.Adadelta(p, lr=0.1),
    "adamax": lambda p: o.Adamax(p, lr=0.01),
    "nadam": lambda p: o.NAdam(p, lr=0.01),
    "radam": lambda p: o.RAdam(p, lr=0.01),
}
optimizers = pytest.mark.parametrize("name", OPTIMIZERS)
DIRECTIONAL = {"momentum_buffer", "exp_avg", "grad_avg"}


class Scene:
    """Two P4 layers and a linear one after some steps; the first will merge, the second will be refused."""

    def __init__(self, name: str) -> None:
        self.merging, self.refused, self.linear = (
            P4Inv(5, rank=2, train_v=True, seed=1),
            P4Inv(5, train_v=True, seed=2),
            nn.Linear(5, 5),
        )
        self.model = nn.Sequential(self.merging, nn.Tanh(), self.refused, self.linear)
        self.optimizer = OPTIMIZERS[name](self.model.parameters())
        self.merges = MergeSchedule(self.model, self.optimizer)
        for _ in range(3):
            self.step()
        perturb(self.refused, -torch.eye(5)[:1], torch.eye(5)[:1])

    def step(self) -> None:
        x, y = torch.randn(2, 16, 5)
        self.optimizer.zero_grad()
        (self.model(x) - y).square().mean().backward()
        self.optimizer.step()

    def memory(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {k: t.clone() for k, t in self.optimizer.state[parameter].items() if torch.is_tensor(t)}


@optimizers
def test_a_merge_is_invisible_in_the_effective_weights(name: str) -> None:
    scene = Scene(name)
    before = scene.merging.weight.detach()
    assert [r.status for r in scene.merges.merge()] == [MergeStatus.MERGED, MergeStatus.SKIPPED_SINGULAR]
    torch.testing.assert_close(scene.merging.weight.detach(), before, rtol=0, atol=1e-6)


@optimizers
def test_the_state_of_u_is_kept(name: str) -> None:
    scene = Scene(name)
    before = scene.memory(scene.merging.u)
    scene.merges.merge()
    assert_bitwise(scene.memory(scene.merging.u), before)


@optimizers
def test_momentum_of_v_is_cleared_but_not_its_scale_or_step(name: str) -> None:
    scene = Scene(name)
    before = scene.memory(scene.merging.v)
    scene.merges.merge()
    assert_bitwise(scene.memory(scene.merging.v), {k: 0 * t if k in DIRECTIONAL else t for k, t in before.items()})
    assert all(t.any() for t in before.values())  # what was cleared was there, and what was kept is no accident


@optimizers
@pytest.mark.parametrize("part", ["refused", "linear"])
def test_what_did_not_merge_is_untouched(name: str, part: str) -> None:
    scene = Scene(name)
    module = getattr(scene, part)
    names = [n for n in state_of(module) if "_extra_state" not in n]
    before, memories = state_of(module), [scene.memory(p) for p in module.parameters()]
    scene.merges.merge()
    assert_bitwise({n: state_of(module)[n] for n in names}, {n: before[n] for n in names})
    for parameter, memory in zip(module.parameters(), memories, strict=True):
        assert_bitwise(scene.memory(parameter), memory)


@optimizers
def test_training_goes_on_after_merges(name: str) -> None:
    scene = Scene(name)
    scene.merges.every = 2
    for _ in range(20):
        scene.step()
        scene.merges.step()
    assert all(torch.isfinite(t).all() for t in state_of(scene.model).values())
    assert scene.merging.violation() < 1e-5


@optimizers
def test_no_optimizer_state_is_made_for_what_has_none(name: str) -> None:
    layer = P4Inv(5, train_v=True, seed=0)
    optimizer = OPTIMIZERS[name](layer.parameters())
    before = {p: set(s) for p, s in optimizer.state.items()}  # some optimizers have state before their first step
    MergeSchedule(layer, optimizer).merge()
    assert {p: set(s) for p, s in optimizer.state.items()} == before


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"], ids=str)
def test_lbfgs_forgets_its_history_only_if_something_merged(line_search: str | None) -> None:
    layer = P4Inv(5, rank=2, seed=0)
    optimizer = o.LBFGS(layer.parameters(), lr=0.1, max_iter=3, line_search_fn=line_search)
    merges = MergeSchedule(layer, optimizer, every=1)
    x, target = torch.randn(32, 5), torch.diag(torch.linspace(0.7, 1.4, 5))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - x @ target).square().mean()
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach())
    layer.min_factor = 0.999
    assert not merges.step()[0]
    assert optimizer.state
    layer.min_factor = 1e-3
    assert merges.step()[0].merged
    assert not optimizer.state
    for _ in range(60):
        optimizer.step(closure)
        merges.step()
    assert float(closure().detach()) < 0.01 * first


@pytest.mark.parametrize("name", ["sgd-momentum", "adam"])
def test_several_optimizers(name: str) -> None:
    a, b = P4Inv(5, train_v=True, seed=0), P4Inv(5, train_v=True, seed=1)
    both = [OPTIMIZERS[name](layer.parameters()) for layer in (a, b)]
    merges = MergeSchedule(nn.Sequential(a, b), both)
    b(a(torch.randn(7, 5))).square().sum().backward()
    for optimizer in both:
        optimizer.step()
    merges.merge()
    for layer, optimizer in zip((a, b), both, strict=True):
        memory = optimizer.state[layer.v]
        assert not any(memory[k].any() for k in DIRECTIONAL & set(memory))


@pytest.mark.parametrize(
    ("make", "tick"),
    [
        pytest.param(lambda opt: lr_scheduler.StepLR(opt, 3), lambda s: s.step(), id="StepLR"),
        pytest.param(
            lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=20), lambda s: s.step(), id="OneCycleLR"
        ),
        pytest.param(
            lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=2), lambda s: s.step(1.0), id="ReduceLROnPlateau"
        ),
    ],
)
def test_learning_rate_schedules_see_nothing_of_the_merges(make: Callable, tick: Callable) -> None:
    rates: list[list[float]] = []
    for every in (2, 1000):
        layer = P4Inv(5, train_v=True, seed=0)
        optimizer = o.SGD(layer.parameters(), lr=0.05, momentum=0.9)
        schedule, merges = make(optimizer), MergeSchedule(layer, optimizer, every=every)
        rates.append([])
        for _ in range(15):
            optimizer.zero_grad()
            layer(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
            tick(schedule)
            merges.step()
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]
    assert len(set(rates[0])) > 1


@pytest.mark.parametrize(("every", "refine_every"), [(1, 1), (3, 2), (4, 0), (10, 50)], ids=str)
def test_merges_and_refinements_are_counted(every: int, refine_every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, refined = P4Inv(3, seed=0), []
    for name in ("correct", "recompute"):
        monkeypatch.setattr(P4Inv, name, lambda self: refined.append(merges.attempts) or torch.zeros(()))
    merges = MergeSchedule(layer, every=every, refine_every=refine_every)
    merged = []
    for step in range(1, 25):
        due = merges.due
        assert bool(merges.step()) == due
        merged += [step] if due else []
    assert merged == list(range(every, 25, every))
    assert refined == (list(range(refine_every, len(merged) + 1, refine_every)) if refine_every else [])


def test_some_refinements_are_factorizations(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("correct", "recompute"):
        monkeypatch.setattr(
            P4Inv, name, lambda self, name=name: calls.append((name, merges.attempts)) or torch.zeros(())
        )
    merges = MergeSchedule(P4Inv(3, seed=0), every=1, refine_every=2, recompute_every=3)
    for _ in range(12):
        merges.step()
    merges.refine()
    exact = {6, 12}
    assert calls == [*((("recompute" if n in exact else "correct"), n) for n in range(2, 13, 2)), ("correct", 12)]


def test_a_merge_by_hand_starts_the_count_anew() -> None:
    merges = MergeSchedule(P4Inv(3, seed=0), every=3)
    pattern = []
    for step in range(8):
        if step == 1:
            merges.merge()
        pattern.append(bool(merges.step()))
    assert pattern == [False, False, False, True, False, False, True, False]


def test_a_schedule_says_what_it_does() -> None:
    model = nn.Sequential(P4Inv(3, seed=0), P4Inv(3, seed=1), P4Orthogonal(3, seed=2))
    merges = MergeSchedule(model, o.SGD(model.parameters(), lr=0.1), every=2)
    for _ in range(5):
        merges.step()
    text = "2 P4Inv, 1 P4Orthogonal; every=2, refine_every=50, recompute_every=20; 5 steps, 2 merges tried"
    assert repr(merges) == f"MergeSchedule({text})"
    assert "20, attached; 5 steps" in repr(merges.attach())
    decaying = MergeSchedule(model[0], o.SGD(model.parameters(), lr=0.1), weight_decay=0.01)
    assert "1 P4Inv; every=10" in repr(decaying)
    assert "weight_decay=0.01; 0 steps" in repr(decaying)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(lambda first: MergeSchedule(first.model, first.optimizers[0]).attach(), id="the same model"),
        pytest.param(lambda first: MergeSchedule(first.model[0], first.optimizers[0]).attach(), id="a part of it"),
        pytest.param(copy.copy, id="a copy of the schedule"),
    ],
)
def test_two_attached_schedules_would_merge_twice(second: Callable[[MergeSchedule], object]) -> None:
    model = nn.Sequential(P4Inv(3, seed=0), P4Inv(3, seed=1))
    optimizer = o.SGD(model.parameters(), lr=0.1)
    first = MergeSchedule(model, optimizer, every=7).attach()
    assert first.attach() is first
    with pytest.raises(OptionError, match=r"attached to this SGD already, every 7 steps.*detach\(\)"):
        second(first)
    first.detach()
    MergeSchedule(model, optimizer).attach()


def test_schedules_of_different_layers_share_an_optimizer() -> None:
    model = nn.Sequential(P4Inv(3, seed=0), P4Inv(3, seed=1))
    optimizer = o.SGD(model.parameters(), lr=0.1)
    often, seldom = (MergeSchedule(layer, optimizer, every=n).attach() for layer, n in zip(model, (1, 2), strict=True))
    for _ in range(4):
        optimizer.step()
    assert (often.attempts, seldom.attempts) == (4, 2)


@pytest.mark.parametrize("several", [False, True], ids=["one", "one of two"])
def test_an_optimizer_of_another_model_is_refused(several: bool) -> None:
    model = P4Inv(3, seed=0)
    mine, other = (o.Adam(m.parameters()) for m in (model, copy.deepcopy(model)))
    with pytest.raises(OptionError, match=r"this Adam steps none of the parameters of P4Inv.*model\.parameters\(\)"):
        MergeSchedule(model, [mine, other] if several else other)
    MergeSchedule(model, mine)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        pytest.param(
            lambda model: model.parameters(),
            r"a Parameter is no optimizer: expected a torch\.optim\.Optimizer",
            id="no",
        ),
        pytest.param(lambda model: torch.optim.Adam, "the class Adam is no optimizer", id="class"),
        pytest.param(
            lambda model: lr_scheduler.StepLR(torch.optim.Adam(model.parameters()), 1),
            r"a StepLR is no optimizer: .*scheduler\.optimizer",
            id="scheduler",
        ),
    ],
)
def test_what_is_no_optimizer_is_refused(given: Callable[[nn.Module], object], match: str) -> None:
    model = P4Inv(3, seed=0)
    with pytest.raises(OptionError, match=match):
        MergeSchedule(model, given(model))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(OptionError, match=r"model=\[P4Inv.*: expected a torch\.nn\.Module; nn\.ModuleList"):
        MergeSchedule([P4Inv(3, seed=0)])


@pytest.mark.parametrize(
    "options",
    [{"every": 2.5}, {"every": math.nan}, {"every": "3"}, {"refine_every": 0.5}, {"weight_decay": "0.1"}],
    ids=str,
)
def test_intervals_are_whole_numbers(options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(OptionError, match=rf"{name}={value!r}.*: expected every >= 1 .* intervals that are whole"):
        MergeSchedule(P4Inv(3, seed=0), **options)


def test_intervals_of_numpy_are_saved_as_plain_ones() -> None:
    merges = MergeSchedule(P4Inv(3, seed=0), every=np.int64(2), refine_every=np.int64(3))
    assert [type(merges.state_dict()[name]) for name in ("every", "refine_every")] == [int, int]


def test_a_shared_layer_is_merged_once() -> None:
    shared = P4Inv(3, seed=0)
    merges = MergeSchedule(nn.ModuleList([shared, nn.Sequential(shared, nn.ReLU(), shared), P4Inv(3, seed=1)]), every=1)
    assert len(merges.step()) == 2


def test_refinement_corrects_the_inverses_and_reports_what_is_left() -> None:
    layer = P4Inv(6, init="orthogonal", seed=0, dtype=torch.float64)
    layer.frozen_inverse.mul_(1.001)
    merges = MergeSchedule(layer, every=1, refine_every=1)
    merges.step()
    assert merges.violations[0] == layer.violation() < 1e-8


def test_a_loaded_schedule_goes_on_where_the_saved_one_was() -> None:
    saved = MergeSchedule(P4Inv(3, seed=0), every=3, refine_every=2)
    for _ in range(4):
        saved.step()
    loaded = MergeSchedule(P4Inv(3, seed=0))
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert [bool(loaded.step()) for _ in range(9)] == [bool(saved.step()) for _ in range(9)]
    assert loaded.state_dict() == saved.state_dict()


def test_an_optimizer_of_biases_alone_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = torch.optim.Adam(model.parameters())
    convert(model, "invertible", seed=0)  # biases stay the same parameters, weights have new ones
    with pytest.raises(OptionError, match=r"no optimizer steps the perturbation .*P4Inv\.u.*after convert"):
        MergeSchedule(model, before)
