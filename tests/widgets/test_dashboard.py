"""The lab without a browser: what touches do, and what is left when it closes."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from p4lab.errors import ConfigError
from p4lab.training import Frame, RunConfig, State
from p4lab.widgets import Dashboard, digits_lab

SMALL = RunConfig(blocks=1, rank=2, batch_size=16, merge_every=5)


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("p4lab"))


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    lab = digits_lab(SMALL, name="test")
    for widget in lab._widgets.values():  # a page that shows everything at once
        widget.send = lambda message, buffers=(), widget=widget: (
            widget._receive(widget, {"ack": message["frame"]}, []) if "frame" in message else None
        )
        widget._receive(widget, {"hello": 1}, [])
    yield lab
    lab.close()
    assert threads() == []


def now(lab: Dashboard) -> Frame:
    return lab.player.frame(timeout=20)


def header(lab: Dashboard, name: str) -> object:
    return lab._head._state.get("values", {}).get(name)


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
    lab._touched("reset", True)
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
    assert lab._pictures._panels[0].images.shape == (64, 8, 8)


def test_a_second_lab_replaces_the_first_of_its_name(lab: Dashboard) -> None:
    again = digits_lab(SMALL, name="test")
    assert lab.player.state is State.CLOSED
    assert threads() == ["p4lab-pump", "p4lab-trainer"]
    other = digits_lab(SMALL, name="other")
    assert threads() == ["p4lab-pump", "p4lab-pump", "p4lab-trainer", "p4lab-trainer"]
    again.close()
    other.close()


def test_display_text_is_plain(lab: Dashboard) -> None:
    bundle = lab._repr_mimebundle_()
    assert bundle["text/plain"] == "P4Inv flow on handwritten digits: run this cell in JupyterLab to see it live."
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    before = threads()
    with pytest.raises(ConfigError, match="rnk"):
        digits_lab(rnk=3)
    assert threads() == before
