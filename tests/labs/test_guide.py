"""The example of the developer's guide, and what a lab refuses."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ipywidgets import Widget
from lab_tools import opened, threads
from torch import nn

from p4lab.errors import ConfigError, OptionError, RunFileError
from p4lab.labs import (
    BELOW,
    Axes,
    Bar,
    Button,
    Control,
    Equations,
    Grids,
    Lab,
    Number,
    Picture,
    Sight,
    Try,
    View,
)
from p4lab.labs.digits import DIGITS
from p4lab.labs.lab import HEADER
from p4lab.plots.layers import Plot
from p4lab.training import DigitsConfig, RunConfig
from p4lab.training.config import POSITIVE, Setting
from p4lab.widgets import Channel, Dashboard, swaps_lab, train_live
from p4lab.widgets.panels import header

AXES = Axes("A")
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "lab.md"


@pytest.fixture(scope="module")
def mine() -> Lab[Any, Any]:
    source, *_ = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": __name__}
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


def picture(base: Any = AXES, page: str = "", area: str = "a") -> dict[str, Any]:
    """What changes of a lab with one picture."""
    return {"pictures": (Picture(base, area=area, page=page),)}


def number(*names: str) -> dict[str, Any]:
    """What changes of a lab with numbers of some names."""
    return {"numbers": [Number(name, "n", lambda sight: "1") for name in names]}


def tries(changes: Any) -> dict[str, Any]:
    """What changes of a lab with a card."""
    return {"tries": (Try("T", "text", changes),)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": DigitsConfig}, r"config is the class DigitsConfig: give an instance, DigitsConfig\(\)"),
        ({"config": None}, "config is None: expected a RunConfig"),
        ({"view": View}, "view is the class View"),
        ({"title": None}, "title is None: expected a str"),
        ({"trainer": None}, "trainer is None: expected a function"),
        ({"groups": [("Data", ("noise",))]}, "groups is .*: expected a Mapping"),
        ({"groups": {"Data": "noise"}}, "'noise' among groups: expected names in a sequence"),
        ({"groups": {"Data": ("nois",)}}, "named 'nois'; did you mean 'noise'"),
        ({"offers": {"nois": {"label": "x"}}}, "offers: no setting, .* did you mean 'noise'"),
        ({"offers": {"noise": {"lable": "x"}}}, "offers 'noise': a Setting has no lable"),
        ({"buttons": {"noise": Button("B", lambda player: None)}}, "buttons and settings both have the names noise"),
        ({"name": "my lab"}, "lab 'my lab': expected a name of letters"),
        ({"name": ""}, "expected a name of letters"),
        *(({"share": share}, "share=.*: expected a number between 0 and 1") for share in (0, 1, 7, float("nan"), "x")),
        (number("n", "n"), "a number is named 'n', as another part of the header"),
        *((number(name), f"a number is named '{name}'") for name in ("message", "state", "start", "title")),
        *((picture(Axes(title), BELOW), "choose another title") for title in ("Loss", "Diagnostics", "Runs and files")),
        *((picture(base, BELOW), "page=BELOW is for what has") for base in (Axes(""), Grids([], 4), Equations())),
        (picture(Bar(("noise",)), BELOW), "page=BELOW is for what has a title, not for this Bar"),
        (picture(area="a b"), "area 'a b': expected letters"),
        (picture("axes"), "picture 'a' on 'axes': expected Axes"),
        ({"pictures": (picture,)}, "pictures holds <function picture"),
        *(
            ({"more": {"Run": ("seed",)}, "more_label": label, **tries({})}, "choose another title")
            for label in ("Settings", "Try", "")
        ),
        ({"tries": Try("a", "b")}, "tries is Try.*: expected a Sequence"),
        ({"tries": ("text",)}, "tries holds 'text': expected each to be a Try"),
        (tries([("noise", 0.3)]), "expected title and text, and changes as a mapping"),
        (tries({"nois": 1}), "the card 'T' cannot be tried: no setting, .* did you mean 'noise'"),
        (tries({"noise": 9}), "the card 'T' cannot be tried: noise=9.0: expected one of"),
        (tries({"speed": "fast"}), "the card 'T' cannot be tried: speed='fast'"),
        (tries({"try": 0}), "the card 'T' cannot be tried: no setting, control or button is named 'try'"),
        (tries({"page:below": "Nope"}), "page:below='Nope': there is no such page"),
    ],
)
def test_what_would_break_later_is_refused_when_the_lab_is_made(
    mine: Lab[Any, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        replace(mine, **changes)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"trainer": lambda config: None}, {}, "lab 'mine': its trainer returned None: expected an Engine or Lanes"),
        ({"trainer": lambda config: 1 // 0}, {}, "by zero"),
        ({"controls": {"size": Control(Setting("S", POSITIVE), lambda config: 1 // 0, dict)}}, {}, "by zero"),
        ({"pictures": (Picture(Axes("A"), area="a"), Picture(Grids((None,), 4), area="b"))}, {}, "no attribute"),
        ({}, {"config": 5}, r"config=5: expected MineConfig\(...\), or its text"),
        ({}, {"config": DigitsConfig}, "config=<class"),
    ],
)
def test_a_lab_that_cannot_be_shown_leaves_nothing_and_the_one_before(
    mine: Lab[Any, Any], changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    made: list[Any] = []
    with opened(mine) as before:
        alive = threads()
        broken = replace(mine, groups={"Data": ("noise", *changes.get("controls", ()))}, **changes)
        Widget.on_widget_constructed(made.append)
        with pytest.raises(Exception, match=message):
            Dashboard(broken, name="test of mine", **options)
        Widget.on_widget_constructed(None)
        assert threads() == alive
        assert all(widget.comm is None for widget in made if isinstance(widget, Channel))
        before.touch("step")


def test_a_card_stops_at_what_is_refused_and_says_so(mine: Lab[Any, Any]) -> None:
    def write(config: Any, value: Any) -> dict[str, Any]:
        return {"noise": 9 if config.seed else 0.3}

    control = Control(Setting("S", choices=(1, 2)), lambda config: 1, write)
    card = Try("T", "text", {"size": 2, "learning_rate": 0.5, "restart": True, "start": True})
    with opened(replace(mine, controls={"size": control}, tries=(card,))) as lab:
        lab.touch("try", 0)
        assert lab.values()["learning_rate"] == 0.5
        lab.touch("start")
        lab.touch("learning_rate", 0.1)
        lab.touch("seed", 1)
        with pytest.raises(ConfigError, match="noise=9"):
            lab.touch("try", 0)
        assert lab.values()["learning_rate"] == 0.1
        assert lab.player.state == "paused"
        assert "noise=9" in lab.message()
        for number in (1, -1, None):
            with pytest.raises(ConfigError, match="expected the number of a card"):
                lab.touch("try", number)
        lab.touch("seed", 0)


def test_what_is_no_lab_is_named() -> None:
    with pytest.raises(OptionError, match=r"lab=<function .*: expected a p4lab.labs.Lab"):
        Dashboard(swaps_lab)  # type: ignore[arg-type]


def test_the_names_of_the_header_are_known() -> None:
    assert {item.name for group in header("", "", ()) for item in group.items} == HEADER


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
