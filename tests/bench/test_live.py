"""The parts of the live benchmark that need no browser."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser_server
import live_benchmark
import pytest
from browser_server import BrowserSetupError, chromium, find_chromium
from live_benchmark import QUICK, Plan, growth, latencies, latency
from live_probe import Log, Throughput

from p4lab.bench import live
from p4lab.bench.__main__ import main

# --- statistics ---


@pytest.mark.parametrize(
    ("keys", "redraws", "values", "made_with", "expected"),
    [
        pytest.param([10.0], [(5.0, 1), (30.0, 2), (60.0, 3)], [None], {}, [20.0], id="the-first-redraw-after-it"),
        pytest.param([10.0], [(30.0, 2), (60.0, 3)], [0.1], {2: 0.2, 3: 0.1}, [50.0], id="not-the-frame-under-way"),
        pytest.param([10.0], [(30.0, 2)], [0.1], {}, [math.inf], id="a-frame-of-unknown-making-does-not-count"),
        pytest.param([10.0, 50.0], [(60.0, 2)], [None, None], {}, [math.inf, 10.0], id="another-press-came-first"),
        pytest.param([10.0, 50.0], [(20.0, 1), (55.0, 2)], [None, None], {}, [10.0, 5.0], id="each-its-own"),
    ],
)
def test_latency(
    keys: list[float],
    redraws: list[tuple[float, int]],
    values: list[float | None],
    made_with: dict[int, float],
    expected: list[float],
) -> None:
    assert latencies(keys, redraws, values, made_with) == expected


def test_a_press_that_was_not_seen_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        latencies([1.0], [], [None, None], {})


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param([5, 5, 5, 5, 5, 5], 0, id="flat"),
        pytest.param([1, 1, 99, 4, 4, 99], 3, id="one-outlier-at-either-end"),
        pytest.param([9, 9, 9, 2, 2, 2], -7, id="shrinks"),
    ],
)
def test_growth(samples: list[float], expected: float) -> None:
    assert growth(samples) == expected


@pytest.mark.parametrize(("median", "met"), [(120.0, True), (121.0, False)])
def test_a_target_is_judged_by_the_median(median: float, met: bool) -> None:
    row = latency("key", [1.0, median, 1e9])
    assert row.met is met
    assert row.outcome.startswith(f"{median:.0f} ms (1 to 1e+09 ms)")


# --- the command line ---


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        pytest.param([], Plan(), id="default"),
        pytest.param(["--quick"], QUICK, id="quick"),
        pytest.param(["--minutes", "2"], Plan(minutes=2.0), id="minutes"),
    ],
)
def test_plan(arguments: list[str], plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Plan]] = []
    monkeypatch.setattr(live_benchmark, "measure", lambda *what: asked.append(what) or "")
    main(["live", *arguments])
    assert asked == [(live.CHECKOUT / "notebooks" / live.DEFAULT, plan)]


def test_a_notebook_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.ipynb"
    own.write_text("{}")
    asked: list[Path] = []
    monkeypatch.setattr(live_benchmark, "measure", lambda path, plan: asked.append(path) or "")
    main(["live", "--notebook", str(own)])
    assert asked == [own]


def test_an_unknown_notebook_is_refused_before_anything_starts() -> None:
    with pytest.raises(SystemExit, match=r"no notebook .*nothing\.ipynb: name a file"):
        main(["live", "--notebook", "nothing.ipynb"])


def test_without_a_checkout_the_error_says_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(live, "CHECKOUT", tmp_path)
    with pytest.raises(SystemExit, match="needs a checkout of p4lab"):
        main(["live"])


# --- Chromium ---


@pytest.fixture
def program(tmp_path: Path) -> Any:
    """Makes an executable that ends with a code."""

    def make(name: str, code: int) -> Path:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\nraise SystemExit({code})\n")
        path.chmod(0o755)
        return path

    return make


def test_the_named_chromium_is_taken(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program("my-chrome", 0)
    monkeypatch.setenv("P4LAB_CHROMIUM", str(path))
    assert find_chromium() == str(path)


@pytest.mark.parametrize("named", ["/nowhere/chromium", "broken"])
def test_a_named_chromium_that_does_not_start_is_not_replaced(
    named: str, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program("broken", 1)
    monkeypatch.setenv("P4LAB_CHROMIUM", str(broken) if named == "broken" else named)
    assert find_chromium() is None


def test_the_first_chromium_on_the_path_that_starts_is_taken(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program("chromium", 1)
    good = program("google-chrome", 0)
    monkeypatch.delenv("P4LAB_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(good.parent) + os.pathsep)
    assert find_chromium() == str(good)


def test_without_chromium_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_server, "find_chromium", lambda: None)
    with pytest.raises(BrowserSetupError, match="P4LAB_CHROMIUM"), chromium():
        pass


def test_without_playwright_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(BrowserSetupError, match=r"p4lab\[test\]"), chromium():
        pass


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(browser_server, "LAB_FLAGS", ("--no-such-flag-of-jupyterlab",))
    monkeypatch.setattr(browser_server.sys, "executable", "/bin/false")
    with (
        pytest.raises(BrowserSetupError, match="did not start"),
        browser_server.jupyterlab(tmp_path / "notebooks", tmp_path / "home"),
    ):
        pass


# --- in the kernel ---


def test_the_log_knows_what_a_frame_was_made_with() -> None:
    class ImageGrid:
        sent = 6

    class LivePlot:
        sent = 1

    def draw(frame: Any) -> None:
        ImageGrid.sent += 1

    pictures = SimpleNamespace(widget=ImageGrid(), draw=draw)
    log = Log([SimpleNamespace(widget=LivePlot(), draw=None), pictures])
    pictures.draw(SimpleNamespace(snapshot=SimpleNamespace(config=SimpleNamespace(learning_rate=0.5))))
    assert log.frames == [[7, 0.5]]


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    timed = Throughput(None, 3, 0.0)
    timed.watched, timed.alone = [50.0, 40.0, 10.0], [100.0, 50.0, 10.0]
    assert timed.result() == [40.0, 50.0, 0.8]
