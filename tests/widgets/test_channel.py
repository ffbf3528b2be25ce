"""The kernel's side of the live widgets, without a browser."""

from typing import Any

import numpy as np
import pytest
from wire import Wire

from p4lab.errors import OptionError, ShapeError
from p4lab.plots import Shown, training_curves
from p4lab.widgets import BrowserError, ControlPanel, Group, ImageGrid, Item, LivePlot, Panel, channel
from p4lab.widgets.channel import packed
from p4lab.widgets.live_plot import library


def figure(n: int, color: str = "red", title: str = "t") -> dict[str, Any]:
    trace = {"type": "scatter", "x": np.arange(n), "y": np.ones(n), "text": ["a"] * n, "line": {"color": color}}
    return {"data": [trace], "layout": {"title": {"text": title}}}


# --- the protocol ---


def test_nothing_is_sent_before_a_page_says_hello(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    assert not plot.ready
    plot.show(figure(2))
    assert wire.sent == []
    wire.says(hello=1)
    message, buffers = wire.take()
    assert message["frame"] == 1
    assert message["figure"]["data"] == [{"type": "scatter", "line": {"color": "red"}}]
    assert len(buffers) == 2


def test_a_new_page_must_acknowledge_its_first_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    woken = []
    plot = LivePlot(on_ready=lambda: woken.append(1))
    wire = Wire(plot, monkeypatch)
    wire.says(hello=1)
    assert not plot.ready
    wire.acknowledge()
    assert plot.ready
    assert woken == [1]


@pytest.mark.parametrize(("slow", "ahead"), [(60.0, channel.AHEAD), (0.0, 1)], ids=["quick", "slow"])
def test_how_far_the_kernel_runs_ahead_of_a_browser(slow: float, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SLOW", slow)
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(hello=1)
    wire.acknowledge()
    for left in reversed(range(ahead)):
        plot.show(figure(left + 3))
        assert plot.ready == (left > 0)
    wire.says(acks={plot.model_id: [1, 0]})  # an old one
    assert not plot.ready
    wire.acknowledge()
    assert plot.ready


def test_an_acknowledgement_is_waited_for_when_half_of_what_may_be_under_way_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel, "SLOW", 60.0)
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(hello=1)
    wire.acknowledge()
    for n in range(channel.AHEAD):
        plot.show(figure(n + 3))
    awaited = [message["awaited"] for message, _ in wire.sent]
    half = channel.AHEAD // 2
    assert awaited == [True] + [False] * (half - 1) + [True] * (half + 1)


@pytest.mark.parametrize(("held", "ahead"), [(50_000, channel.AHEAD), (0, 1)], ids=["held", "slow"])
def test_time_that_an_acknowledgement_waits_for_others_is_not_slowness(
    held: float, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(channel.time, "monotonic", lambda: now[0])
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(hello=1)
    now[0] += 50.1
    wire.says(acks={plot.model_id: [1, held]})
    for left in reversed(range(ahead)):
        plot.show(figure(left + 3))
        assert plot.ready == (left > 0)


def test_a_lost_frame_does_not_stop_the_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(hello=1)
    monkeypatch.setattr(channel, "LOST", 0.0)
    assert plot.ready


def test_a_reloaded_page_gets_everything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(hello=1)
    plot.show(figure(2))
    plot.show(figure(4))
    wire.sent.clear()
    wire.says(hello=1)
    message, buffers = wire.take()
    assert "figure" in message
    assert [entry[3] for entry in message["arrays"]] == [(4,), (4,)]
    assert message["values"] == [[0, "text", ["a"] * 4]]
    assert len(buffers[0]) == 4 * 8


def test_an_error_in_the_browser_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(error="TypeError: x")
    wire.says(error="later")
    assert isinstance(plot.error, BrowserError)
    assert "LivePlot in the browser: TypeError: x" in str(plot.error)


# --- LivePlot ---


def test_only_what_changed_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    plot.show(figure(2))
    wire.says(hello=1)
    wire.sent.clear()

    changed = figure(2)
    changed["data"][0]["y"] = np.array([1.0, np.nan])
    plot.show(changed)
    message, buffers = wire.take()
    assert message == {"arrays": [[0, "y", "f8", (2,)]], "values": [], "frame": 2, "awaited": True}
    assert np.array_equal(np.frombuffer(buffers[0]), [1.0, np.nan], equal_nan=True)

    plot.show({**changed, "layout": {"title": {"text": "new"}}})
    message, _ = wire.take()
    assert (message["arrays"], message["layout"]) == ([], {"title": {"text": "new"}})

    plot.show(figure(2, color="blue"))
    assert "figure" in wire.take()[0]


def test_the_library_is_sent_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    wire.says(library=1)
    message, buffers = wire.take()
    assert message == {"library": 1}
    assert buffers == [library()]
    assert len(library()) < 2_000_000


def test_training_curves_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("loss", "smooth_loss", "test_loss", "logabsdet", "sign", "residual", "condition")
    plot = LivePlot()
    wire = Wire(plot, monkeypatch)
    for n in (1, 5):
        plot.show(training_curves([Shown("run", "red", {name: (np.arange(n), np.ones(n)) for name in names})]))
        if n == 1:
            wire.says(hello=1)
    assert "figure" in wire.sent[0][0]
    assert "figure" not in wire.sent[1][0]
    assert sum(len(b) for b in wire.sent[1][1]) < 2000


@pytest.mark.parametrize(
    ("dtype", "code"),
    [("int64", "f8"), ("int32", "i4"), ("uint8", "u1"), ("bool", "u1"), ("float32", "f4"), ("float16", "f8")],
)
def test_arrays_arrive_in_a_type_that_the_browser_has(dtype: str, code: str) -> None:
    found, array = packed(np.ones((2, 3), dtype=dtype)[:, ::2])
    assert found == code
    assert array.flags.c_contiguous


def test_text_is_no_array() -> None:
    with pytest.raises(TypeError, match="as a list"):
        packed(np.array(["a"]))


# --- ImageGrid ---


def test_only_the_grid_that_changed_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ImageGrid([Panel("a", "", 2), Panel("b", "", 2, np.ones((4, 3, 5), np.uint8))], top=16)
    wire = Wire(grid, monkeypatch)
    wire.says(hello=1)
    message, buffers = wire.take()
    assert [panel["shape"] for panel in message["panels"]] == [(0, 1, 1), (4, 3, 5)]
    assert [len(b) for b in buffers] == [0, 60]
    grid.show(0, np.full((1, 2, 2), 7, np.uint8))
    message, buffers = wire.take()
    assert [panel["index"] for panel in message["panels"]] == [0]
    assert bytes(buffers[0]) == b"\7" * 4


@pytest.mark.parametrize("images", [np.ones((2, 2), np.uint8), np.ones((1, 2, 2))], ids=["shape", "dtype"])
def test_grids_refuse_other_arrays(images: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="expected"):
        ImageGrid([Panel("a", "", 2)], top=16).show(0, images)


# --- ControlPanel ---


def test_a_touched_control_is_reported_and_nothing_is_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    touched = []
    panel = ControlPanel(
        [Group("g", [Item("slider", "rate", "Rate", choices=(0.1, 1.0))])], lambda *what: touched.append(what)
    )
    wire = Wire(panel, monkeypatch)
    wire.says(hello=1)
    item = wire.take()[0]["spec"]["groups"][0]["items"][0]
    assert item["texts"] == ("0.1", "1")
    wire.says(set=["rate", 0.1])
    assert touched == [("rate", 0.1)]
    for _ in range(2):
        panel.show({"rate": 0.1}, disabled=["rate"])
    assert wire.take()[0]["values"] == {"rate": 0.1}


def test_texts_must_fit_choices() -> None:
    with pytest.raises(OptionError, match="2 texts for 1 choices"):
        Item("choice", "a", choices=(1,), texts=("x", "y"))
