"""Optimizers and trainers of other people: state over merges, decay, averages, and loops that nobody edits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from p4.interrupts import interrupted_at, layers, units, width
from torch import Tensor, nn

from p4lab.errors import OptionError, SingularMatrixError, TrainingError
from p4lab.p4 import (
    AveragedWeights,
    MergeSchedule,
    P4Circulant,
    P4Givens,
    P4Inv,
    P4Lipschitz,
    P4Orthogonal,
    P4Permutation,
    P4PositiveDefinite,
    P4Reflections,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
    p4_modules,
)
from p4lab.p4.examples import P4Triangular

F64 = torch.float64


class BeliefAdam(torch.optim.Optimizer):
    """An optimizer as people write them: a second moment with a name of its own, and a copy of the weights."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"], state["exp_avg_var"] = torch.zeros_like(p), torch.zeros_like(p)
                    state["slow"] = p.detach().clone()
                state["exp_avg"].lerp_(p.grad, 0.1)
                state["exp_avg_var"].lerp_((p.grad - state["exp_avg"]).square(), 0.01)
                state["slow"].lerp_(p, 0.1)
                p.addcdiv_(state["exp_avg"], state["exp_avg_var"].sqrt() + 1e-8, value=-group["lr"])


def fit(layer: nn.Module, optimizer: torch.optim.Optimizer, merges: MergeSchedule, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(16, width(layer), dtype=next(layer.parameters()).dtype)
        optimizer.zero_grad()
        (layer(x) - x.roll(1, -1)).square().mean().backward()
        optimizer.step()
        merges.step()


@pytest.mark.parametrize("rank", [1, 3])
def test_state_of_unknown_optimizers_is_left_alone(rank: int) -> None:
    layer = P4Inv(4, rank=rank, reset="gradient", seed=0)
    optimizer = BeliefAdam(layer.parameters())
    merges = MergeSchedule(layer, optimizer, every=1000)
    fit(layer, optimizer, merges, 5)
    before = {name: t.clone() for name, t in optimizer.state[layer.u].items()}
    assert merges.merge()[0]
    after = optimizer.state[layer.u]
    assert not torch.equal(after["exp_avg"], before["exp_avg"])
    for name in ("exp_avg_var", "slow"):
        assert torch.equal(after[name], before[name])
    merges.every = 3
    fit(layer, optimizer, merges, 60)
    assert all(bool(merges.merge()[0]) for _ in range(3))


@pytest.mark.parametrize("rank", [1, 2])
def test_factored_second_moments_stay_positive(rank: int) -> None:
    layer = P4Inv(4, rank=rank, reset="gradient", seed=0)
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=1e-2)
    merges = MergeSchedule(layer, optimizer, every=2)
    reports = []
    for _ in range(40):
        fit(layer, optimizer, merges, 1)
        for state in optimizer.state.values():
            assert all(bool((t >= 0).all()) for name, t in state.items() if name.endswith("_var"))
    reports = merges.merge()
    assert all(map(bool, reports))


@pytest.mark.parametrize("kind", [BeliefAdam, torch.optim.Adam, torch.optim.Adafactor], ids=lambda k: k.__name__)
def test_training_goes_on_after_a_gradient_that_is_not_finite(kind: type[torch.optim.Optimizer]) -> None:
    layer = P4Inv(4, rank=2, reset="gradient", seed=0)
    optimizer = kind(layer.parameters(), lr=1e-2)  # type: ignore[call-arg]
    merges = MergeSchedule(layer, optimizer, every=1)
    fit(layer, optimizer, merges, 5)
    optimizer.zero_grad()
    layer(torch.full((2, 4), torch.nan)).sum().backward()
    optimizer.step()
    assert bool(merges.step()[0].discarded)
    for state in optimizer.state.values():
        assert all(bool(torch.isfinite(t).all()) for t in state.values() if torch.is_tensor(t))
    fit(layer, optimizer, merges, 5)
    assert all(bool(torch.isfinite(t).all()) for t in state_of(layer).values())


# --- weight decay ---


def decaying(make: Callable[..., nn.Module]) -> bool:
    return all(
        type(layer) not in (P4Orthogonal, P4Reflections, P4Givens, P4SpecialLinear, P4Lipschitz, P4Stiefel, P4Spectrum)
        for layer in p4_modules(make(seed=0, dtype=F64))
    )


LAYERS = [(n, make) for subject in layers(5, 2) for n, make in subject.variants()]
every_layer = pytest.mark.parametrize("make", [make for _, make in LAYERS], ids=[name for name, _ in LAYERS])


@every_layer
def test_effective_weights_decay_where_the_property_allows_it(make: Callable[..., Any]) -> None:
    model = make(seed=0, dtype=F64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if not decaying(make):
        with pytest.raises(OptionError, match="cannot decay, for its property fixes their size"):
            MergeSchedule(model, optimizer, weight_decay=0.5)
        return
    merges = MergeSchedule(model, optimizer, every=3, weight_decay=0.5)
    with torch.no_grad():
        for layer in p4_modules(model):
            layer.u.normal_(std=0.1)
    expected = [layer.weight.detach() * (1 - 0.1 * 0.5) ** 6 for layer in p4_modules(model)]
    for _ in range(6):  # no gradients: nothing but decay
        merges.step()
    for layer, weight in zip(p4_modules(model), expected, strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight)
        if hasattr(layer, "weight_inverse"):
            eye = torch.eye(len(weight), dtype=F64)
            torch.testing.assert_close(layer.weight_inverse @ weight, eye, rtol=0, atol=1e-9)
            torch.testing.assert_close(layer.logabsdet(), torch.linalg.slogdet(weight).logabsdet, rtol=0, atol=1e-9)


@every_layer
def test_weights_decay_where_a_merge_is_refused(make: Callable[..., Any]) -> None:
    if not decaying(make):
        return
    model = make(seed=0, dtype=F64)
    merges = MergeSchedule(model, torch.optim.SGD(model.parameters(), lr=0.1), every=2, weight_decay=1.0)
    with torch.no_grad():
        for layer in p4_modules(model):
            layer.u.normal_(std=0.1)
            layer.min_factor = 1 - 1e-9  # refuses every merge that takes anything away
    before = [layer.weight.detach() for layer in p4_modules(model)]
    merges.step()
    merges.step()
    for layer, weight in zip(p4_modules(model), before, strict=True):
        torch.testing.assert_close(layer.weight.detach(), 0.81 * weight)


def test_decay_is_that_of_a_linear_layer() -> None:
    """With a loss that pulls, P4Inv under decay ends where decayed dense weights do."""
    weights = []
    target = torch.linalg.qr(torch.randn(4, 4)).Q * 3
    for layer in (P4Inv(4, rank=4, bias=False, reset="gradient", seed=0), nn.Linear(4, 4, bias=False)):
        p4 = isinstance(layer, P4Inv)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, weight_decay=0.0 if p4 else 0.5)
        merges = MergeSchedule(layer, optimizer, every=1, weight_decay=0.5) if p4 else None
        for _ in range(400):
            x = torch.randn(64, 4)
            optimizer.zero_grad()
            (layer(x) - x @ target.T).square().sum(-1).mean().mul(0.25).backward()
            optimizer.step()
            if merges is not None:
                merges.step()
        weights.append(layer.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=0.1, atol=0.1)
    assert weights[0].norm() < 0.8 * target.norm()


def test_decay_needs_a_learning_rate_and_leaves_something() -> None:
    layer = P4Inv(3)
    with pytest.raises(OptionError, match="needs the learning rate of P4Inv: pass the optimizer"):
        MergeSchedule(layer, weight_decay=0.1)
    with pytest.raises(OptionError, match="expected less than 1"):
        MergeSchedule(layer, torch.optim.SGD(layer.parameters(), lr=2.0), weight_decay=0.5)


def test_a_property_of_ones_own_says_what_it_lacks() -> None:
    layer = P4Triangular(3)
    with pytest.raises(OptionError, match=r"has no method shrink\(changes, factor\)"):
        MergeSchedule(layer, torch.optim.SGD(layer.parameters(), lr=0.1), weight_decay=0.1)
    with pytest.raises(OptionError, match=r"needs a property weight and a method start_at\(weight\)"):
        AveragedWeights(layer)


@pytest.mark.parametrize(
    ("state", "lacks"),
    [({"every": 1}, "refine_every, steps"), ("decaying", "2 layers decay in it, 0 here"), ({}, "attempts, every")],
    ids=["part", "decay", "nothing"],
)
def test_a_schedule_refuses_a_state_that_is_not_its_own(state: dict[str, Any] | str, lacks: str) -> None:
    merges = MergeSchedule(P4Inv(3))
    before = merges.state_dict()
    if isinstance(state, str):
        two = nn.Sequential(P4Inv(3), P4Inv(3))
        state = MergeSchedule(two, torch.optim.SGD(two.parameters(), lr=0.1), weight_decay=0.1).state_dict()
    with pytest.raises(OptionError, match=lacks):
        merges.load_state_dict(state)
    assert merges.state_dict() == before


def test_a_state_of_version_0_1_is_taken() -> None:
    merges, layer = MergeSchedule(P4Inv(3, seed=0)), P4Inv(3, seed=1)
    merges.load_state_dict({"every": 3, "refine_every": 4, "steps": 5, "attempts": 1, "steps_at_merge": 3})
    assert (merges.every, merges.steps) == (3, 5)
    state = layer.state_dict()
    del state["_extra_state"]["refusals"]
    P4Inv(3, seed=0).load_state_dict(state)


def test_an_interrupted_merge_leaves_gradients_on() -> None:
    """Even if what switches them off is stopped as it ends: the schedule switches them on itself."""
    merges = MergeSchedule(P4Inv(3, seed=0))
    enabled: list[bool] = []

    def merge() -> None:
        try:
            merges.merge()
        finally:
            enabled.append(torch.is_grad_enabled())

    number = 1
    while interrupted_at(number, merge, files=lambda file: "torch" in file or "p4lab" in file):
        number += 1
    assert all(enabled)
    assert number > 100


def test_decay_is_resumed_between_merges() -> None:
    layer = P4Inv(3, dtype=F64, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    merges = MergeSchedule(layer, optimizer, every=4, weight_decay=1.0)
    merges.step()
    merges.step()
    resumed = copy.deepcopy(layer)
    again = MergeSchedule(resumed, torch.optim.SGD(resumed.parameters(), lr=0.1), every=4, weight_decay=1.0)
    again.load_state_dict(merges.state_dict())
    for schedule in (merges, again):
        schedule.step()
        schedule.step()
    assert_bitwise(state_of(resumed), state_of(layer))
    torch.testing.assert_close(layer.weight.detach(), 0.9**4 * torch.eye(3, dtype=F64))


# --- averages ---


@pytest.mark.parametrize("decay", [None, 0.9])
@every_layer
def test_averages_are_those_of_the_effective_weights(make: Callable[..., Any], decay: float | None) -> None:
    model = make(seed=0, dtype=F64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    merges, average = MergeSchedule(model, optimizer, every=2), AveragedWeights(model, decay)
    history: list[list[Tensor]] = []
    for _ in range(7):
        fit(model, optimizer, merges, 1)
        average.update()
        history.append([layer.weight.detach() for layer in p4_modules(model)])
    twin = average.model()
    for i, layer in enumerate(p4_modules(twin)):
        mean = history[0][i]
        for n, weights in enumerate(history[1:], 2):
            beta = 1 - 1 / n if decay is None else min(1 - 1 / n, decay)
            mean = beta * mean + (1 - beta) * weights[i]
        torch.testing.assert_close(layer.weight.detach(), mean, rtol=0, atol=1e-4)
        assert layer.violation() < 1e-10
        assert not layer.u.any()
    for unit in units(twin):
        assert unit.merge()


def test_averages_go_on_after_loading() -> None:
    layer = P4Inv(3, seed=0, dtype=F64)
    average, other = AveragedWeights(layer), AveragedWeights(copy.deepcopy(layer))
    average.update()
    other.load_state_dict(average.state_dict())
    for a in (average, other):
        a.update()
    assert torch.equal(average.model().weight, other.model().weight)
    with pytest.raises(OptionError, match="of another model"):
        AveragedWeights(nn.Sequential(layer)).load_state_dict(average.state_dict())
    with pytest.raises(OptionError, match="no state of an average: means, updates is missing"):
        other.load_state_dict(layer.state_dict())


def test_averages_without_a_property_are_refused_by_name() -> None:
    layer = P4Inv(2, init=torch.eye(2), seed=0)
    average = AveragedWeights(layer, decay=None)
    with pytest.raises(TrainingError, match="no average yet"):
        average.model()
    average.update()
    layer.start_at(torch.diag(torch.tensor([-1.0, 1.0])))
    average.update()
    with pytest.raises(SingularMatrixError):
        average.model()
    half_turn = P4Orthogonal(2, seed=0)
    average = AveragedWeights(half_turn, decay=None)
    average.update()
    half_turn.start_at(-torch.eye(2))
    average.update()
    with pytest.raises(SingularMatrixError, match="no orthogonal matrix is nearest"):
        average.model()
    with pytest.raises(OptionError, match="expected 0 <= decay < 1"):
        AveragedWeights(layer, decay=1.0)


# --- starts ---


@every_layer
def test_a_layer_starts_at_what_has_its_property_and_nowhere_else(make: Callable[..., Any]) -> None:
    model, other = make(seed=0, dtype=F64), make(seed=1, dtype=F64)
    for layer, goal in zip(p4_modules(model), p4_modules(other), strict=True):
        nn.init.normal_(layer.u, std=0.1)
        nn.init.normal_(goal.u, std=0.1)
        weight = goal.weight.detach()
        layer.start_at(weight)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=0, atol=1e-10)
        before = state_of(layer)
        for bad in (torch.full_like(weight, torch.nan), weight[:-1], torch.zeros_like(weight)):
            if type(layer) is P4Lipschitz and not bad.any():
                continue  # zero is within the bound
            with pytest.raises((SingularMatrixError, OptionError, ValueError)):
                layer.start_at(bad)
            assert_bitwise(state_of(layer), before)


# --- loops that nobody edits ---


def test_an_attached_schedule_counts_the_optimizers_steps() -> None:
    layer = P4Inv(3, seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    merges = MergeSchedule(layer, optimizer, every=2).attach()
    assert merges.attach() is merges  # twice is once
    for _ in range(4):
        layer(torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert (merges.steps, merges.attempts) == (4, 2)
    with pytest.raises(OptionError, match="attached to its optimizer"):
        merges.step()
    merges.detach()
    optimizer.step()
    assert merges.steps == 4
    merges.step()
    assert merges.steps == 5


def test_of_several_optimizers_the_last_one_counts() -> None:
    layer = P4Inv(3, seed=0)
    first, last = (torch.optim.SGD([p], lr=0.01) for p in layer.parameters())
    merges = MergeSchedule(layer, [first, last]).attach()
    first.step()
    last.step()
    assert merges.steps == 1


def test_there_must_be_something_to_attach_to() -> None:
    with pytest.raises(OptionError, match="no optimizer to attach to"):
        MergeSchedule(P4Inv(2)).attach()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_trains_with_merges() -> None:
    """A trainer whose loop nobody can edit: the schedule is attached where the optimizer is made."""
    import pytorch_lightning as lightning

    class Fit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = P4Inv(4, rank=2, reset="gradient", seed=0)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            (x,) = batch
            return (self.layer(x) - x.roll(1, -1)).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(self.parameters(), lr=3e-2)
            self.merges = MergeSchedule(self, optimizer, every=4, refine_every=2).attach()
            return optimizer

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(256, 4)), batch_size=32)
    model = Fit()
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    assert (model.merges.steps, model.merges.attempts) == (160, 40)
    target = torch.eye(4).roll(1, 0)
    assert (model.layer.weight.detach() - target).abs().max() < 0.1
    assert model.layer.violation() < 1e-5


def test_permutations_decay_and_average_by_their_parts() -> None:
    assert len(p4_modules(P4Permutation(3))) == 2
    assert isinstance(p4_modules(P4Permutation(3))[0], P4Inv)
    assert (
        P4PositiveDefinite(2)
        .nearest(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
        .allclose(torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=F64))
    )


@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
def test_a_layer_without_directions_keeps_its_momentum(reset: Any) -> None:
    layer = P4Circulant(8, bias=False)
    layer.reset_kind = reset  # as a lab sets it for all layers of a model
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    merges = MergeSchedule(layer, optimizer, every=2)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        before = optimizer.state[layer.u]["exp_avg"].clone()
        merges.step()
        torch.testing.assert_close(optimizer.state[layer.u]["exp_avg"], before)
    assert layer.u.eq(0).all()
