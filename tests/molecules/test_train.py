"""Training flows of molecules: losses with forces, stages, failures."""

import copy
import math
from itertools import pairwise
from statistics import median
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, TrainingError
from p4lab.molecules.average import Average
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.losses import LARGEST_WEIGHT, by_energy, by_forces
from p4lab.molecules.splines import wrap
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.molecules.train import MOST_SKIPPED, Record, Stage, train
from p4lab.p4 import MergeSchedule, p4_modules

DIM, CIRCULAR = 7, 2
SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8}
NAMES = pytest.mark.parametrize("name", ["spline", "spline_p4", "realnvp"])


class Toy:
    """A target with a score: von Mises angles, and normal numbers whose mean depends on the first angle."""

    def log_p(self, y: Tensor) -> Tensor:
        angles, numbers = y[:, :CIRCULAR], y[:, CIRCULAR:]
        centre = angles[:, :1].sin()
        return 2 * angles.cos().sum(-1) - 2 * (numbers - centre).square().sum(-1)

    def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            value = self.log_p(at)
            (score,) = torch.autograd.grad(value.sum(), at)
        return -value.detach().double(), score

    def sample(self, n: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        tries = 2 * math.pi * torch.rand(40 * n, CIRCULAR, generator=generator) - math.pi
        keep = torch.rand(40 * n, generator=generator).log() < 2 * tries.cos().sum(-1) - 2 * CIRCULAR
        angles = tries[keep][:n]
        numbers = 0.5 * torch.randn(n, DIM - CIRCULAR, generator=generator)
        return torch.cat([angles, numbers + angles[:, :1].sin()], -1)


TOY = cast(InternalEnergy, Toy())


def examples(n: int = 1000) -> Examples:
    y = Toy().sample(n)
    score = Toy().value_and_score(y)[1]
    return Examples(y[:, None].repeat(1, 3, 1), score[:, None].repeat(1, 3, 1), torch.zeros(DIM, dtype=torch.long))


def flow_of(name: str = "spline", seed: int = 0) -> MoleculeFlow:
    options = {"hidden": 6} if name == "realnvp" else SMALL
    return molecule_flow(name, Toy().sample(300), seed, CIRCULAR, **options)


def away(flow: MoleculeFlow, size: float = 0.1) -> MoleculeFlow:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return flow


def gradients(flow: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None])


# --- losses -----------------------------------------------------------------------------------------------------------


class Itself:
    """The flow as its own target."""

    def __init__(self, flow: MoleculeFlow) -> None:
        self.flow = flow

    def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            value = self.flow.log_prob(at)
            (score,) = torch.autograd.grad(value.sum(), at)
        return -value.detach(), score


@NAMES
def test_path_gradients_vanish_where_the_flow_is_the_target(name: str) -> None:
    flow = away(flow_of(name).double())
    itself = Itself(flow)
    y = wrap(flow.sample(16, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(0)
    for make in (
        lambda: by_forces(flow, y, itself.value_and_score(y)[1]),
        lambda: by_energy(flow, cast(InternalEnergy, itself), 16, generator),
    ):
        loss = make()
        flow.zero_grad()  # the target's own gradients are not wanted
        loss.backward()
        assert float(gradients(flow).abs().max()) < 1e-7
    flow.zero_grad()
    (-flow.log_prob(y).mean()).backward()
    assert float(gradients(flow).abs().max()) > 1e-2


def test_examples_with_forces_pull_as_likelihood_does() -> None:
    flow, toy = away(flow_of().double(), 0.05), Toy()
    y = toy.sample(20_000).double()
    slopes = []
    for loss in (by_forces(flow, y, toy.value_and_score(y)[1]), -flow.log_prob(y).mean()):
        flow.zero_grad()
        loss.backward()
        slopes.append(gradients(flow))
    assert float(torch.cosine_similarity(*slopes, dim=0)) > 0.98
    assert float((slopes[0] - slopes[1]).norm() / slopes[1].norm()) < 0.2


def test_by_forces_has_the_value_of_the_likelihood() -> None:
    flow, y = away(flow_of()), Toy().sample(20)
    loss = by_forces(flow, y, torch.zeros_like(y))
    torch.testing.assert_close(loss, -flow.log_prob(y).mean(), rtol=0, atol=1e-4)


def test_samples_without_energy_are_left_out() -> None:
    flow = away(flow_of().double())

    class Holes(Toy):
        def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
            value, score = super().value_and_score(y)
            value[::2], score[1::4] = math.inf, math.nan
            return value, score

    loss = by_energy(flow, cast(InternalEnergy, Holes()), 40, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(gradients(flow)).all()
    assert float(gradients(flow).abs().max()) > 0


def test_weights_move_probability_between_basins() -> None:
    class Sides(Toy):
        """As the flow itself, but the side of positive first angles is e times as likely: no score tells."""

        def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
            value, score = Itself(flow).value_and_score(y)
            return value - (y[:, 0] > 0).double(), score

    flow = away(flow_of().double())
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    before = float((flow.sample(2000, generator=torch.Generator().manual_seed(5))[:, 0] > 0).double().mean())
    for _ in range(20):
        optimizer.zero_grad()
        loss = by_energy(flow, cast(InternalEnergy, Sides()), 200, generator)
        loss.backward()
        optimizer.step()
    after = float((flow.sample(2000, generator=torch.Generator().manual_seed(5))[:, 0] > 0).double().mean())
    assert after > before + 0.03


def test_angles_follow_the_weights_alone() -> None:
    """Not the reverse divergence, which takes probability from where the numbers are not learnt yet."""
    flow = away(flow_of().double())
    near = cast(InternalEnergy, Itself(away(copy.deepcopy(flow), 0.03)))
    by_energy(flow, near, 300, torch.Generator().manual_seed(0)).backward()
    y, log_q = flow.sample_with_log_prob(300, generator=torch.Generator().manual_seed(0))
    log_w = (near.value_and_score(y.detach())[0] + log_q.detach()).neg()
    w = (torch.softmax(log_w, 0) * 300).clamp(max=LARGEST_WEIGHT)
    expected = ((w.mean() - w) * flow.log_prob_of_angles(y[:, :CIRCULAR].detach())).mean()
    parameters = list(flow.angles.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert gradients(flow.numbers).norm() > 1e-3


# --- stages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["spline", "spline_p4"])
@pytest.mark.parametrize("kind", ["example", "forces", "energy", "mixed"])
def test_every_kind_of_stage_learns(name: str, kind: str) -> None:
    flow, test = flow_of(name), Toy().sample(500, seed=7)
    with torch.no_grad():
        before = -float(flow.log_prob(test).mean())
    stage = Stage(kind, steps=40, examples=64, samples=64, rate=2e-2, average=0.9)
    done = train(flow, examples(), TOY, [stage], seed=1)
    with torch.no_grad():
        after = -float(done.flow.log_prob(test).mean())
    assert after < before - 0.2
    assert len(done.records) == 40
    assert done.reason == ""
    assert not p4_modules(done.flow)


def test_training_repeats_and_depends_on_the_seed() -> None:
    stages = [Stage("example", steps=4, examples=16), Stage("mixed", steps=4, examples=16, samples=16)]
    losses = [[r.loss for r in train(flow_of(), examples(), TOY, stages, seed=seed).records] for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_records_come_one_by_one() -> None:
    seen: list[Record] = []
    done = train(
        flow_of(), examples(), None, [Stage("forces", steps=3), Stage("example", steps=2)], on_record=seen.append
    )
    assert seen == done.records
    assert [(r.stage, r.step) for r in seen] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5)]
    assert all(b.minutes >= a.minutes for a, b in pairwise(seen))
    assert done.minutes >= seen[-1].minutes


def test_time_can_end_a_stage() -> None:
    done = train(flow_of(), examples(), None, [Stage("example", minutes=0.005)])
    assert 0.005 <= done.minutes < 0.1
    assert done.records


def test_the_best_validation_is_kept() -> None:
    validation = Toy().sample(200, seed=5)
    stage = Stage("example", steps=400, examples=32, rate=3e-2, average=0.0, patience=2)
    done = train(flow_of(), examples(8), None, [stage], validation)
    with torch.no_grad():
        nll = -float(done.flow.log_prob(validation).mean())
    values = [value for _, value in done.validation]
    assert len(done.records) < 400, "eight examples are overfitted at once"
    assert nll == pytest.approx(min(values), abs=1e-5)
    assert values[-1] > min(values)


def test_the_average_stands_for_merged_weights() -> None:
    flow = away(flow_of("spline_p4").double(), 0.05)
    average = Average(flow)
    before = average.kept()
    MergeSchedule(flow, every=1).merge()
    average.update(0.5)
    for old, new in zip(before, average.kept(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-9)
    y = Toy().sample(10).double()
    torch.testing.assert_close(average.flow().log_prob(y), flow.log_prob(y), rtol=0, atol=1e-7)


# --- failures ---------------------------------------------------------------------------------------------------------


class Failing(Toy):
    """Fails from the given call on, or answers with NaN."""

    def __init__(self, good: int, error: bool) -> None:
        self.good, self.error = good, error

    def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        self.good -= 1
        value, score = super().value_and_score(y)
        if self.good >= 0:
            return value, score
        if self.error:
            raise TrainingError("OpenMM failed")
        return value * math.nan, score * math.nan


@pytest.mark.parametrize(
    ("error", "steps", "reason"),
    [
        pytest.param(True, 5, "OpenMM failed", id="error"),
        pytest.param(False, 5 + MOST_SKIPPED, "no finite gradient", id="nan"),
    ],
)
def test_a_failed_energy_leaves_flow_and_records(error: bool, steps: int, reason: str) -> None:
    flow = flow_of("spline_p4")
    done = train(flow, examples(), cast(InternalEnergy, Failing(5, error)), [Stage("energy", steps=200, samples=8)])
    assert reason in done.reason
    assert len(done.records) == steps
    assert [record.taken for record in done.records[:5]] == [True] * 5
    for usable in (flow, done.flow):
        assert torch.isfinite(usable.log_prob(Toy().sample(10))).all()


def test_a_single_nan_is_skipped() -> None:
    class Once(Toy):
        calls = 0

        def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            value, score = super().value_and_score(y)
            return (value * math.nan, score) if self.calls == 2 else (value, score)

    done = train(flow_of(), examples(), cast(InternalEnergy, Once()), [Stage("energy", steps=4, samples=8)])
    assert [record.taken for record in done.records] == [True, False, True, True]
    assert done.reason == ""


def test_one_clash_moves_the_flow_no_further_than_other_steps() -> None:
    class Clash(Toy):
        calls = 0

        def value_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            value, score = super().value_and_score(y)
            return value, score * (1e6 if self.calls == 15 else 1)

    def moves(clip: float) -> tuple[list[float], list[float]]:
        flow, at = flow_of(), []
        stage = Stage("energy", steps=25, samples=16, clip=clip)
        parameters = nn.utils.parameters_to_vector
        look = lambda record: at.append(parameters(flow.numbers.parameters()).detach())  # noqa: E731
        done = train(flow, examples(), cast(InternalEnergy, Clash()), [stage], on_record=look)
        return [float((b - a).norm()) for a, b in pairwise(at)], [record.gradient for record in done.records]

    clipped, norms = moves(3.0)
    free, _ = moves(1e9)
    assert norms[14] > 1e4 * median(norms[:14])
    assert clipped[:13] == free[:13]
    assert sum(clipped[14:]) > 1.5 * sum(free[14:])  # without clipping Adam hardly moves for long after it


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"kind": "luck", "steps": 1}, id="kind"),
        pytest.param({"kind": "example"}, id="no-budget"),
        pytest.param({"kind": "example", "steps": 1, "minutes": 1.0}, id="two-budgets"),
        pytest.param({"kind": "example", "steps": 1, "examples": 0}, id="examples"),
        pytest.param({"kind": "example", "steps": 1, "rate": math.nan}, id="rate"),
        pytest.param({"kind": "example", "steps": 1, "rate": math.inf}, id="infinite-rate"),
        pytest.param({"kind": "example", "steps": 1.5}, id="part-of-a-step"),
    ],
)
def test_bad_stages_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"expected|choose"):
        Stage(**options)


def test_energy_needs_a_target() -> None:
    with pytest.raises(OptionError, match="need a target"):
        train(flow_of(), examples(), None, [Stage("energy", steps=1)])
