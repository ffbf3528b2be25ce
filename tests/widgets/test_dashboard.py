"""The dashboard and its page: what touches do, what is shown, and what is left when it closes."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_tools import threads
from simulated_page import Page

from p4lab.errors import ConfigError, OptionError, TrainingError
from p4lab.labs import Lab
from p4lab.labs.density import DENSITIES_2D
from p4lab.labs.digits import DIGITS
from p4lab.labs.swaps import SWAPS
from p4lab.training import DigitsConfig, Engine, Frame, State
from p4lab.training.race import RaceConfig
from p4lab.widgets import Dashboard, digits_lab
from p4lab.widgets.dashboard import item_of, own_sheet

SMALL = DigitsConfig(blocks=1, rank=2, batch_size=16, merge_every=5)


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    lab = digits_lab(SMALL, name="test")
    yield lab
    lab.close()
    assert threads() == []


@pytest.fixture
def page(lab: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(lab, monkeypatch)


def now(lab: Dashboard) -> Frame:
    return lab.player.frame(timeout=20)


def test_buttons(lab: Dashboard, page: Page) -> None:
    lab.touch("step")
    assert now(lab).snapshot.step == 1
    lab.touch("merge")
    page.wait(lambda: now(lab).state is State.PAUSED)
    assert now(lab).snapshot.step == 5
    lab.touch("start")
    assert now(lab).state is State.RUNNING
    lab.touch("start")
    assert now(lab).state is State.PAUSED
    lab.touch("restart")
    assert now(lab).snapshot.step == 0
    assert lab.error is None


def test_a_moment_of_the_past_says_what_a_branch_takes_along(lab: Dashboard, page: Page) -> None:
    for _ in range(3):
        lab.touch("step")
    lab.touch("scrub", 1)
    lab.touch("learning_rate", 0.01)
    lab.touch("rank", 3)
    page.wait(lambda: "Only Reset will apply: Rank." in lab.message())
    assert "Press Branch here to go on with: Learning rate." in lab.message()
    lab.touch("now")
    page.wait(lambda: lab.message() == "Press Reset to apply: Rank.")


def test_a_menu_tells_the_unit_of_its_choices() -> None:
    config = RaceConfig()
    assert item_of("budget", config.settings["budget"], config, 20.0).texts[:2] == ("2 s", "5 s")
    assert item_of("merge_every", config.settings["merge_every"], config, 4).unit == "steps"


def test_header_shows_the_run(lab: Dashboard, page: Page) -> None:
    page.press("step")
    page.wait(lambda: page.values.get("count") == "1")
    assert page.values.get("state") == "paused"
    assert page.values.get("train")["unit"].endswith("bits")
    assert "step" not in page.disabled
    page.press("rank", 1)
    page.wait(lambda: page.message["level"] == "notice" and page.pending == {"rank"})


def test_preset_and_speed(lab: Dashboard) -> None:
    lab.touch("preset", "paper")
    lab.touch("speed", 5)
    frame = now(lab)
    assert (frame.planned.rank, frame.planned.reset, frame.speed) == (1, "gaussian", 5)
    assert (lab.values()["preset"], lab.values()["speed"]) == ("paper", 5)


def test_errors_are_shown_and_kept(lab: Dashboard, page: Page) -> None:
    page.press("seed", -1)
    page.wait(lambda: page.message["level"] == "error")
    assert "seed=-1" in page.message["text"]
    assert isinstance(lab.error, ConfigError)
    with pytest.raises(ConfigError, match="seed=-2"):
        lab.touch("seed", -2)


def test_pictures_and_curves_follow(lab: Dashboard, page: Page) -> None:
    page.press("step")
    page.told("count", "1")
    assert len(page.pictures()) == 3
    assert lab.drawings()["samples"].tiles[0].images.shape == (64, 8, 8)


def test_a_second_lab_replaces_the_first_of_its_name(lab: Dashboard) -> None:
    again = digits_lab(SMALL, name="test")
    assert lab.player.state is State.CLOSED
    assert threads() == ["p4lab-pump", "p4lab-trainer"]
    other = digits_lab(SMALL, name="other")
    assert threads() == ["p4lab-pump", "p4lab-pump", "p4lab-trainer", "p4lab-trainer"]
    again.close()
    other.close()


def test_time_travel(lab: Dashboard, page: Page) -> None:
    for _ in range(6):
        lab.touch("step")
    page.press("scrub", 5)
    page.wait(lambda: (page.values.get("scrub") or {}).get("shown") == 5)
    page.wait(lambda: page.values.get("count") == "5")
    assert "This is step 5" in page.message["text"]
    assert not page.disabled & {"scrub", "now", "branch", "keep"}
    lab.touch("learning_rate", 1e-4)
    page.press("branch")
    page.turn("below", "Runs and files")
    page.wait(lambda: len((page.values.get("runs") or {"rows": ()})["rows"]) == 2)
    first, second = page.values.get("runs")["rows"]
    assert (first["cells"][0], first["cells"][-1]) == ("6", "learning rate 0.002")
    assert (second["active"], second["origin"], second["cells"][0]) == (True, "run 1, step 5", "5")
    names = [trace.get("name") for trace in DIGITS.curves(lab.sight())["data"]]
    assert "run 1" in names
    assert "run 2: test" in names
    lab.touch("runs", {"action": "rename", "number": 1, "name": "before"})
    lab.touch("runs", {"action": "select", "number": 1})
    assert [run.name for run in now(lab).runs if run.active] == ["before"]
    lab.touch("runs", {"action": "remove", "number": 2})
    assert len(now(lab).runs) == 1


def test_the_past_has_its_line_in_the_curves(lab: Dashboard) -> None:
    for _ in range(6):
        lab.touch("step")
    shapes = len(DIGITS.curves(lab.sight())["layout"]["shapes"])
    lab.touch("scrub", 5)
    lines = DIGITS.curves(lab.sight())["layout"]["shapes"]
    assert len(lines) == shapes + 2
    assert lines[-1]["x0"] == 5
    lab.touch("now")
    assert len(DIGITS.curves(lab.sight())["layout"]["shapes"]) == shapes


def test_diagnostics_can_be_chosen(lab: Dashboard) -> None:
    lab.touch("view", "training")
    assert lab.values()["view"] == "training"
    headings = [note["text"] for note in DIGITS.curves(lab.sight())["layout"]["annotations"]]
    assert "norm of the gradient" in headings
    with pytest.raises(ConfigError, match="view='nonsense': expected one of inverse"):
        lab.touch("view", "nonsense")


def test_save_load_and_export(lab: Dashboard, page: Page, tmp_path: Path) -> None:
    for _ in range(3):
        lab.touch("step")
    for kind in ("p4run", "csv", "parquet", "html"):
        page.press(f"download:{kind}")
    sent = page.files
    name = "p4inv-flow-on-handwritten-digits"
    assert list(sent) == [f"{name}.{kind}" for kind in ("p4run", "csv", "parquet", "html")]
    assert sent[f"{name}.csv"].count(b"\n") == 5
    assert b"<html>" in sent[f"{name}.html"][:100]
    page.upload(sent[f"{name}.p4run"])
    assert [(run.name, run.active) for run in now(lab).runs] == [("run 1", False), ("run 1 (2)", True)]
    lab.export(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == sent[f"{name}.csv"]
    lab.save(tmp_path / "a.p4run")
    lab.load(tmp_path / "a.p4run")
    assert list(lab.table()["step"]) == [3, 3, 3]
    assert len(lab.frame()) == 4
    assert lab.figure().layout.title.text == "P4Inv flow on handwritten digits"
    assert lab.error is None


def test_a_broken_file_is_said_and_changes_nothing(lab: Dashboard, page: Page) -> None:
    page.upload(b"nonsense")
    page.wait(lambda: "damaged or something else" in page.message["text"])
    assert (now(lab).state, len(now(lab).runs)) == (State.IDLE, 1)
    lab.touch("step")
    page.wait(lambda: page.values.get("count") == "1")
    assert page.message["level"] == "info"


def test_a_config_can_be_pasted(lab: Dashboard) -> None:
    lab.touch("config", "digits?blocks=2&rank=3&batch_size=16")
    assert now(lab).snapshot.config == DigitsConfig(blocks=2, rank=3, batch_size=16)
    with pytest.raises(ConfigError, match="expected digits"):
        lab.touch("config", "matrix?dim=3")
    assert "expected digits" in lab.message()
    assert now(lab).planned.rank == 3


def test_display_text_is_plain(lab: Dashboard) -> None:
    bundle = lab._repr_mimebundle_()
    assert bundle["text/plain"] == "P4Inv flow on handwritten digits: run this cell in JupyterLab to see it live."
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    before = threads()
    with pytest.raises(ConfigError, match="rnk"):
        digits_lab(rnk=3)
    assert threads() == before


def make(**changes: Any) -> Lab[Any, Any]:
    lab: dict[str, Any] = {"name": "x", "title": "", "subtitle": "", "trainer": Engine, "numbers": (), "groups": {}}
    return Lab(config=SMALL, curves=DIGITS.curves, **{**lab, **changes})


def test_a_setting_called_like_a_button_is_refused() -> None:
    button = DIGITS.controls["preset"]
    before = threads()
    with pytest.raises(OptionError, match="settings named start: buttons have these names"):
        Dashboard(make(controls={"start": button}, groups={"Flow": ("start",)}))
    assert threads() == before


def test_a_lab_names_what_it_does_not_have() -> None:
    with pytest.raises(OptionError, match="lab 'x': no setting, control or button is named 'blocs'"):
        make(groups={"Flow": ("blocs",)})


def test_labs_on_one_page_have_styles_of_their_own_that_weigh_more_than_the_general_one() -> None:
    sheets = [own_sheet(lab) for lab in (SWAPS, DENSITIES_2D)]
    assert len({sheet["_anywidget_id"] for sheet in sheets}) == 2
    for lab, sheet in zip((SWAPS, DENSITIES_2D), sheets, strict=True):
        assert sheet["_css"].startswith(".p4-lab" + 4 * f".p4-{lab.name}")
        assert lab.style in sheet["_css"]


def test_more_pages_than_the_sheet_has_rules_for_are_refused() -> None:
    pictures = tuple(dataclasses.replace(DIGITS.pictures[0], area=f"{k}", page=f"page {k}") for k in range(10))
    with pytest.raises(OptionError, match="more than 9 pages of pictures"):
        Dashboard(dataclasses.replace(DIGITS, pictures=pictures), SMALL, name="crowded")
    assert threads() == []


@pytest.mark.parametrize("skip", [True, False])
def test_why_a_run_stopped_is_told_in_its_present_and_not_in_its_past(lab: Dashboard, skip: bool) -> None:
    lab.touch("skip", skip)
    lab.touch("step")
    lab.player.ask(lambda runs: next(runs.active.engine.model.parameters()).data.fill_(float("nan")), 10)
    with pytest.raises(TrainingError):
        lab.touch("step")
    advice = lab.message()
    assert "lower the learning rate, switch penalty on" in advice if skip else "switch skip or penalty on" in advice
    lab.touch("scrub", now(lab).moments[0])
    assert lab.message().startswith("This is step")
    lab.touch("now")
    assert lab.message() == advice
