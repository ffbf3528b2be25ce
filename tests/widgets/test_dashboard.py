"""The lab without a browser: what touches do, and what is left when it closes."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attentive_page import attend

from p4lab.errors import ConfigError, OptionError
from p4lab.training import DigitsConfig, Engine, Frame, State
from p4lab.widgets import ControlPanel, Dashboard, Group, Item, digits_lab

SMALL = DigitsConfig(blocks=1, rank=2, batch_size=16, merge_every=5)


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("p4lab"))


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    lab = digits_lab(SMALL, name="test")
    attend(lab)
    yield lab
    lab.close()
    assert threads() == []


def now(lab: Dashboard) -> Frame:
    return lab.player.frame(timeout=20)


def shown(panel: ControlPanel, name: str) -> Any:
    return panel._state.get("values", {}).get(name)


def header(lab: Dashboard, name: str) -> Any:
    return shown(lab._head, name)


def message(lab: Dashboard) -> str:
    return (header(lab, "message") or {"text": ""})["text"]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_buttons(lab: Dashboard) -> None:
    lab._touched("step", True)
    assert now(lab).snapshot.step == 1
    lab._touched("merge", True)
    wait_until(lambda: now(lab).state is State.PAUSED)
    assert now(lab).snapshot.step == 5
    lab._touched("start", True)
    assert now(lab).state is State.RUNNING
    lab._touched("start", True)
    assert now(lab).state is State.PAUSED
    lab._touched("restart", True)
    assert now(lab).snapshot.step == 0
    assert lab.error is None


def test_header_shows_the_run(lab: Dashboard) -> None:
    lab._touched("step", True)
    wait_until(lambda: header(lab, "count") == "1")
    state = lab._head._state
    assert state["values"]["state"] == "paused"
    assert state["values"]["train"]["unit"].endswith("bits")
    assert state["disabled"] == []
    lab._touched("rank", 1)
    wait_until(lambda: header(lab, "message")["level"] == "notice")
    assert lab._side._state["pending"] == ["rank"]


def test_preset_and_speed(lab: Dashboard) -> None:
    lab._touched("preset", "paper")
    lab._touched("speed", 5)
    frame = now(lab)
    assert (frame.planned.rank, frame.planned.reset, frame.speed) == (1, "gaussian", 5)
    wait_until(lambda: lab._side._state.get("values", {}).get("preset") == "paper")
    assert lab._side._state["values"]["speed"] == 5


def test_errors_are_shown_and_kept(lab: Dashboard) -> None:
    lab._touched("seed", -1)
    wait_until(lambda: (header(lab, "message") or {}).get("level") == "error")
    assert "seed=-1" in header(lab, "message")["text"]
    assert isinstance(lab.error, ConfigError)


def test_pictures_and_curves_follow(lab: Dashboard) -> None:
    lab._touched("step", True)
    wait_until(lambda: (0, "x") in lab._plot._arrays and len(lab._plot._arrays[0, "x"]) == 1)
    assert lab._views[0].widget._panels[0].images.shape == (64, 8, 8)


def test_a_second_lab_replaces_the_first_of_its_name(lab: Dashboard) -> None:
    again = digits_lab(SMALL, name="test")
    assert lab.player.state is State.CLOSED
    assert threads() == ["p4lab-pump", "p4lab-trainer"]
    other = digits_lab(SMALL, name="other")
    assert threads() == ["p4lab-pump", "p4lab-pump", "p4lab-trainer", "p4lab-trainer"]
    again.close()
    other.close()


def test_time_travel(lab: Dashboard) -> None:
    for _ in range(6):
        lab._touched("step", True)
    lab._touched("scrub", 5)
    wait_until(lambda: (shown(lab._time, "scrub") or {}).get("shown") == 5)
    assert header(lab, "count") == "5"
    assert "This is step 5" in message(lab)
    assert lab._time._state["disabled"] == []
    lab._touched("learning_rate", 1e-4)
    lab._touched("branch", True)
    wait_until(lambda: len((shown(lab._runs, "runs") or {"rows": ()})["rows"]) == 2)
    first, second = shown(lab._runs, "runs")["rows"]
    assert (first["cells"][0], first["cells"][-1]) == ("6", "learning rate 0.002")
    assert (second["active"], second["origin"], second["cells"][0]) == (True, "run 1, step 5", "5")
    names = [trace.get("name") for trace in lab._curves(now(lab))["data"]]
    assert "run 1" in names
    assert "run 2: test" in names
    lab._touched("runs", {"action": "rename", "number": 1, "name": "before"})
    lab._touched("runs", {"action": "select", "number": 1})
    assert [run.name for run in now(lab).runs if run.active] == ["before"]
    lab._touched("runs", {"action": "remove", "number": 2})
    assert len(now(lab).runs) == 1


def test_the_past_has_its_line_in_the_curves(lab: Dashboard) -> None:
    for _ in range(6):
        lab._touched("step", True)
    shapes = len(lab._curves(now(lab))["layout"]["shapes"])
    lab._touched("scrub", 5)
    lines = lab._curves(now(lab))["layout"]["shapes"]
    assert len(lines) == shapes + 2
    assert lines[-1]["x0"] == 5
    lab._touched("now", True)
    assert len(lab._curves(now(lab))["layout"]["shapes"]) == shapes


def test_diagnostics_can_be_chosen(lab: Dashboard) -> None:
    lab._touched("view", "training")
    wait_until(lambda: shown(lab._side, "view") == "training")
    headings = [note["text"] for note in lab._curves(now(lab))["layout"]["annotations"]]
    assert "norm of the gradient" in headings
    lab._touched("view", "nonsense")
    assert "view='nonsense': expected one of inverse" in str(lab._refused)


def test_save_load_and_export(lab: Dashboard, tmp_path: Path) -> None:
    for _ in range(3):
        lab._touched("step", True)
    sent: dict[str, bytes] = {}
    lab._runs.download = lambda name, content: sent.update({name: content})
    for kind in ("p4run", "csv", "parquet", "html"):
        lab._touched(f"download:{kind}", True)
    name = "p4inv-flow-on-handwritten-digits"
    assert list(sent) == [f"{name}.{kind}" for kind in ("p4run", "csv", "parquet", "html")]
    assert sent[f"{name}.csv"].count(b"\n") == 5
    assert b"<html>" in sent[f"{name}.html"][:100]
    lab._runs._receive(lab._runs, {"upload": "upload"}, [memoryview(sent[f"{name}.p4run"])])
    assert [(run.name, run.active) for run in now(lab).runs] == [("run 1", False), ("run 1 (2)", True)]
    lab.export(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == sent[f"{name}.csv"]
    lab.save(tmp_path / "a.p4run")
    lab.load(tmp_path / "a.p4run")
    assert list(lab.table()["step"]) == [3, 3, 3]
    assert len(lab.frame()) == 4
    assert lab.figure().layout.title.text == "P4Inv flow on handwritten digits"
    assert lab.error is None


def test_a_broken_file_is_said_and_changes_nothing(lab: Dashboard) -> None:
    lab._runs._receive(lab._runs, {"upload": "upload"}, [memoryview(b"nonsense")])
    wait_until(lambda: "damaged or something else" in message(lab))
    assert (now(lab).state, len(now(lab).runs)) == (State.IDLE, 1)
    lab._touched("step", True)
    wait_until(lambda: header(lab, "count") == "1")
    assert header(lab, "message")["level"] == "info"


def test_a_config_can_be_pasted(lab: Dashboard) -> None:
    lab._touched("config", "digits?blocks=2&rank=3&batch_size=16")
    assert now(lab).snapshot.config == DigitsConfig(blocks=2, rank=3, batch_size=16)
    lab._touched("config", "matrix?dim=3")
    wait_until(lambda: "expected digits" in message(lab))
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


def test_a_setting_called_like_a_button_is_refused() -> None:
    threads = threading.active_count()
    settings = [Group("Flow", [Item("segments", "start", "Start", choices=("new", "old"))])]
    with pytest.raises(OptionError, match="settings named start: buttons have these names"):
        Dashboard(DigitsConfig(), Engine, "Lab", "", settings)
    assert threading.active_count() == threads
