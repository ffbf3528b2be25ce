"""The example of the developer's guide, and what a lab refuses."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lab_tools import opened
from torch import nn

from p4lab.errors import ConfigError, OptionError, RunFileError
from p4lab.labs import Axes, Control, Lab, Picture, Sight, numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.digits import DIGITS
from p4lab.plots import Loss
from p4lab.plots.layers import Path as Line
from p4lab.plots.layers import Plot
from p4lab.training import Engine, RunConfig
from p4lab.training.config import POSITIVE, Setting, setting
from p4lab.widgets import Dashboard, swaps_lab, train_live

GUIDE = Path(__file__).resolve().parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def mine() -> Lab[Any, Any]:
    (source,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {
        **{kind.__name__: kind for kind in (RunConfig, Plot, Axes, Picture, Lab, Loss, Engine)},
        **{"dataclass": dataclass, "ClassVar": ClassVar, "setting": setting, "torch": torch, "nn": nn, "Path": Line},
        **{"numbers": numbers, "training_figure": training_figure, "__name__": __name__},
    }
    exec(compile(source, str(GUIDE), "exec"), names)  # the guide's own code
    return names["MINE"]


def test_the_example_trains_draws_and_hands_live_settings_on(mine: Lab[Any, Any], tmp_path: Path) -> None:
    with opened(mine) as lab:
        for _ in range(3):
            lab.touch("step")
        lab.touch("noise", np.float64(0.3))  # what arithmetic gives is a number like any other
        assert lab.player.engine.problem.noise == 0.3
        drawing: Any = lab.drawings()["line"]
        assert np.isfinite(drawing.layers[0].points).all()
        lab.save(tmp_path / "mine.p4run")
        lab.load(tmp_path / "mine.p4run")
        assert list(lab.table()["step"]) == [3, 3]
        with pytest.raises(ConfigError, match="no P4 layers: there is nothing to merge"):
            lab.touch("merge")
        with pytest.raises(ConfigError, match=r"nois=1: there is no such setting; did you mean 'noise'\?"):
            lab.touch("nois", 1)
        with pytest.raises(ConfigError, match="scrub='x': expected a step"):
            lab.touch("scrub", "x")
        with pytest.raises(ConfigError, match=r"expected a name that ends in \.csv"):
            lab.export(tmp_path / "a.png")
        lab.touch("step")


def test_a_control_that_fails_refuses_its_value_and_nothing_else(mine: Lab[Any, Any]) -> None:
    control = Control(Setting("Size", POSITIVE), lambda config: 1.0, lambda config, value: {"noise": value + 1.0})
    with opened(replace(mine, controls={"size": control}, groups={"Data": ("size",)})) as lab:
        lab.touch("step")
        with pytest.raises(ConfigError, match="TypeError"):
            lab.touch("size", "large")
        lab.touch("seed", 1)
        assert lab.player.state == "paused"
        assert "TypeError" not in lab.message()


def test_a_lab_of_the_same_kind_does_not_close_another_outside_of_notebooks(mine: Lab[Any, Any]) -> None:
    one, other = Dashboard(mine), Dashboard(mine)
    one.touch("step")
    one.close()
    with pytest.raises(TimeoutError, match=r"closed: by close\(\), or by a newer lab"):
        one.touch("step")
    other.touch("step")
    other.close()


def test_a_picture_that_fails_is_named(mine: Lab[Any, Any]) -> None:
    def fails(sight: Sight[Any, Any]) -> Plot:
        raise KeyError("x")

    lab = Dashboard(replace(mine, pictures=(Picture(Axes("A"), fails, area="broken"),)))
    with pytest.raises(KeyError) as failure:
        lab.drawings()
    lab.close()
    assert failure.value.__notes__ == ["in the picture 'broken' of the lab 'mine'"]


def test_what_a_lab_lacks_is_named(mine: Lab[Any, Any]) -> None:
    with pytest.raises(OptionError, match="each needs an area of its own"):
        replace(mine, pictures=(Picture(Axes("A"), area="a"), Picture(Axes("B"), area="a")))

    @dataclass(frozen=True)
    class Nameless(RunConfig):
        """Without a name."""

    with pytest.raises(OptionError, match="Nameless has no name"):
        replace(mine, config=Nameless())


def test_a_run_and_a_text_of_another_lab_are_refused(mine: Lab[Any, Any], tmp_path: Path) -> None:
    with opened(mine) as lab:
        lab.save(tmp_path / "mine.p4run")
    with opened(DIGITS, blocks=0) as lab, pytest.raises(RunFileError, match="a run of 'mine': this lab shows"):
        lab.load(tmp_path / "mine.p4run")
    with pytest.raises(ConfigError, match="problem='two_moons': expected swaps"):
        swaps_lab("two_moons")
    lab = swaps_lab("swaps?data=two_moons&blocks=2")
    assert lab.config.to_dict()["data"] == "two_moons"
    lab.close()


def test_train_live_refuses_what_cannot_train() -> None:
    class Problem:
        def batch(self, size: int, generator: torch.Generator) -> torch.Tensor:
            return torch.randn(size, 2, generator=generator)

        def loss(self, model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return model(x).square().mean()

    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(OptionError, match="SGD holds none of the parameters of Linear"):
        train_live(Problem(), model, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(OptionError, match=r"give an instance, Problem\(\)"):
        train_live(Problem, model, torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]
    lab = train_live(Problem(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="rank=1: the model was given with"):
        lab.touch("rank", 1)
    lab.close()
