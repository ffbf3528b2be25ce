"""A user's own problem, model, optimizer and schedule in a lab."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p4lab.errors import OptionError
from p4lab.p4 import MergeSchedule, P4Inv
from p4lab.problems import density
from p4lab.widgets import Dashboard, train_live


class Mirror:
    """Learn to turn vectors around; the least that a problem must have."""

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.randn(size, 4, generator=generator)

    def loss(self, model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - x.flip(-1)).square().mean()


def parts(merges: bool = True) -> tuple[nn.Module, torch.optim.Optimizer, MergeSchedule | None]:
    model = nn.Sequential(P4Inv(4, seed=0) if merges else nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, MergeSchedule(model, optimizer, every=3) if merges else None


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Dashboard]:
    torch.manual_seed(0)
    model, optimizer, schedule = parts(getattr(request, "param", True))
    lab = train_live(Mirror(), model, optimizer, schedule, name="own")
    lab.given = (model, optimizer)
    yield lab
    lab.close()


def train(lab: Dashboard, steps: int) -> Any:
    for _ in range(steps):
        lab.player.step()
    return lab.player.frame(20)


@pytest.mark.parametrize("lab", [True, False], ids=["p4", "plain"], indirect=True)
def test_it_trains_a_copy_and_reset_comes_back(lab: Dashboard) -> None:
    model, optimizer = lab.given
    before = [parameter.clone() for parameter in model.parameters()]
    first = train(lab, 40)
    assert first.snapshot.last("loss") < 0.8 * first.snapshot.curves["loss"][1][0]
    assert (first.snapshot.counts["merge"] > 0) == isinstance(model[0], P4Inv)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    assert lab.model is not model
    lab.player.reset()
    again = train(lab, 40)
    assert again.snapshot.last("loss") == pytest.approx(first.snapshot.last("loss"), rel=1e-4)
    assert lab.error is None


def test_settings_are_those_of_what_was_given(lab: Dashboard) -> None:
    config = lab.config
    assert (config.learning_rate, config.merge_every, config.reset, config.optimizer) == (0.01, 3, "gaussian", "AdamW")
    lab.player.set(learning_rate=0.5, merge_every=7)
    train(lab, 1)
    engine = lab.player.engine
    assert (engine.optimizer.param_groups[0]["lr"], engine.schedule.every) == (0.5, 7)


def test_runs_can_be_branched_saved_and_loaded(lab: Dashboard, tmp_path: Any) -> None:
    train(lab, 10)
    lab.player.branch()
    lab.save(tmp_path / "own.p4run")
    lab.load(tmp_path / "own.p4run")
    assert list(lab.table()["step"]) == [10, 10, 10]


def test_what_is_missing_is_named() -> None:
    model, optimizer, _ = parts()
    with pytest.raises(OptionError, match="expected a method 'batch'"):
        train_live(object(), model, optimizer)
    with pytest.raises(OptionError, match=r"problem of type Rings: .* a density in the plane by DensityProblem"):
        train_live(density("rings"), model, optimizer)
    with pytest.raises(OptionError, match="give a MergeSchedule"):
        train_live(Mirror(), model, optimizer)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        pytest.param(
            lambda model, optimizer: (Mirror(), model, optimizer, parts()[2]),
            "merges other layers than those of Sequential: make it anew",
            id="schedule of another model",
        ),
        pytest.param(
            lambda model, optimizer: (Mirror(), model, optimizer, MergeSchedule(model, optimizer).attach()),
            r"attached to its optimizer, and a lab counts steps by itself: detach\(\) it",
            id="attached",
        ),
        pytest.param(
            lambda model, optimizer: (Mirror(), model, torch.optim.LBFGS(model.parameters()), MergeSchedule(model)),
            "LBFGS where the optimizer stands: .* without a closure",
            id="closure",
        ),
        pytest.param(
            lambda model, optimizer: (Mirror(), model, torch.optim.lr_scheduler.ConstantLR(optimizer), None),
            "ConstantLR where the optimizer stands",
            id="scheduler",
        ),
        pytest.param(
            lambda model, optimizer: (model, Mirror(), optimizer, None),
            "model=<.*Mirror.*expected a torch",
            id="swapped",
        ),
    ],
)
def test_what_a_lab_cannot_train_with_is_refused_before_the_first_step(given: Any, match: str) -> None:
    model, optimizer, _ = parts()
    with pytest.raises(OptionError, match=match):
        train_live(*given(model, optimizer)).close()
