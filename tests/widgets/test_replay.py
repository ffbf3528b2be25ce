"""Replays: what goes into the page of a run, and what happens to runs that are odd."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_tools import SMALL, break_lane, opened, threads, train, wait_until
from replay_page import Replay, looks_like
from simulated_page import Page

from p4lab.errors import ReplayError
from p4lab.labs.density import DENSITIES_2D
from p4lab.labs.lab import Axes, Grid, Grids, Lab, Picture
from p4lab.labs.start import START
from p4lab.plots.layers import Arrow, Heatmap, Images, Plot, Points, Tile
from p4lab.plots.layers import Path as Line
from p4lab.training import State
from p4lab.widgets import Dashboard
from p4lab.widgets.replay import plain, rounded

WAIT = 30


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    with opened(START, merge_every=4) as lab:
        yield lab


def exported(lab: Dashboard, folder: Path) -> Replay:
    lab.export(folder / "run.replay.html")
    return Replay(folder / "run.replay.html")


def with_picture(draw: Any, base: Any = None, **changes: Any) -> Lab[Any, Any]:
    """Return a lab that has one picture."""
    return dataclasses.replace(START, pictures=(Picture(base or Axes("One"), draw, area="one"),), **changes)


def test_a_run_that_has_not_begun_is_a_page_of_one_moment(lab: Dashboard, tmp_path: Path) -> None:
    replay = exported(lab, tmp_path)
    assert replay.steps == [0]
    assert replay.state("picture plane", 0) is not None
    assert replay.story["config"] == lab.config.to_text()


def test_what_is_new_leads_from_each_moment_to_the_next(lab: Dashboard, tmp_path: Path) -> None:
    train(lab, 23)
    replay = exported(lab, tmp_path)
    widget = replay.widgets["picture plane"]
    frames = lab.player.recorded(60)
    assert replay.steps == [frame.snapshot.step for frame in frames] == [0, 5, 10, 15, 20, 23]
    state = replay.state("picture plane", 0)
    kept = 0
    for moment, frame in enumerate(frames):
        if moment:
            (news,) = map(replay.read, widget["news"][moment])
            layers = [new or state["layers"][k] for k, new in enumerate(news["layers"])]
            kept += sum(layer is None for layer in news["layers"])
            state = {**state, **news, "layers": layers}
        drawing: Any = lab.drawings(frame)["plane"]
        jumped = replay.state("picture plane", moment)
        for told, also, layer in zip(state["layers"], jumped["layers"], drawing.layers, strict=True):
            assert looks_like(told, layer)
            assert looks_like(also, layer)
    assert kept, "what stays as it is does not travel again"


def test_curves_mark_the_moment_and_share_their_numbers(lab: Dashboard, tmp_path: Path) -> None:
    train(lab, 20)
    replay = exported(lab, tmp_path)
    states = [replay.state("curves", moment) for moment in range(len(replay.steps))]
    assert len({str(state["figure"]["layout"]["shapes"]) for state in states}) == len(states)
    assert all(state["content"][:4] == states[0]["content"][:4] for state in states)


def test_nothing_of_the_lab_changes_while_it_trains_and_is_recorded(lab: Dashboard, tmp_path: Path) -> None:
    before = threads()
    lab.touch("start")
    wait_until(lambda: lab.player.frame(WAIT).snapshot.step > 20)
    replay = exported(lab, tmp_path)
    frame = lab.player.frame(WAIT)
    assert frame.state is State.RUNNING
    assert frame.shown is None
    assert replay.steps[0] == 0
    assert len(replay.steps) > 3
    assert threads() == before
    lab.touch("start")


def test_the_button_makes_it_while_the_lab_goes_on(lab: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(lab, monkeypatch)
    page.steps(6)
    page.turn("below", "Runs and files")
    lab.touch("download:replay.html")
    page.wait(lambda: bool(page.files))
    ((name, content),) = page.files.items()
    assert name == "freeze-perturb-merge.replay.html"
    assert content.startswith(b"<!doctype html>")
    page.told("download:replay.html", {"label": "Replay"})
    assert "download:replay.html" not in page.disabled


def test_what_the_button_cannot_make_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_in_the_past(sight: Any) -> Plot:
        if sight.frame.shown is not None:
            raise ValueError("no past here")
        return Plot([Points([[0, 0]])])

    with opened(with_picture(fails_in_the_past)) as lab:
        page = Page(lab, monkeypatch)
        page.steps(6)
        page.press("download:replay.html")
        page.wait(lambda: "no past here" in page.message["text"])
        with pytest.raises(ValueError, match="no past here") as caught:
            lab.export("never.replay.html")
        assert caught.value.__notes__ == [
            "in the picture 'one' of the lab 'start'",
            "at step 0, for the replay",
        ]
        lab.touch("seed", 1)


def test_a_lane_that_stopped_is_told_and_its_moments_are_kept(tmp_path: Path) -> None:
    with opened(DENSITIES_2D, **SMALL["density"]) as lab:
        train(lab, 11)
        break_lane(lab, next(iter(lab.player.engine.engines)))
        train(lab, 5)
        replay = exported(lab, tmp_path)
        assert replay.steps[-1] == 17
        assert "stopped" in replay.story["note"]
        assert replay.state("curves", 0) is not None


def test_an_interrupted_run_and_the_same_run_loaded_from_a_file(lab: Dashboard, tmp_path: Path) -> None:
    lab.touch("start")
    wait_until(lambda: lab.player.frame(WAIT).snapshot.step > 12)
    lab.touch("start")
    first = exported(lab, tmp_path)
    lab.save(tmp_path / "run.p4run")
    with opened(dataclasses.replace(START, name="other"), seed=5) as other:
        other.load(tmp_path / "run.p4run")
        again = exported(other, tmp_path)
        assert again.steps == first.steps[-1:], "moments are not saved"
        assert again.story["config"] == first.story["config"]
        train(other, 5)
        assert exported(other, tmp_path).steps == [*again.steps, 5 * (again.steps[0] // 5 + 1), again.steps[0] + 5]


def test_numbers_that_are_not_finite_are_no_obstacle(tmp_path: Path) -> None:
    nan = math.nan

    def draw(sight: Any) -> Plot:
        values = np.full((3, 3), nan)
        values[1, 1] = sight.snapshot.step
        return Plot(
            [
                Heatmap(values, (0, 1, 0, 1)),
                Line([[0, 0], [nan, 1], [math.inf, 2]]),
                Points([[nan, nan]], labels=("gone",)),
                Arrow((0, 0), (nan, -math.inf)),
            ]
        )

    with opened(with_picture(draw)) as lab:
        train(lab, 6)
        replay = exported(lab, tmp_path)
        for moment, frame in enumerate(lab.player.recorded(60)):
            layers = replay.state("picture one", moment)["layers"]
            assert all(map(looks_like, layers, draw(lab.sight(frame)).layers))


def test_plain_values_are_what_json_can_hold() -> None:
    value = {
        "a": (np.float32(1.5), np.int64(2), np.array([1.0, nan := math.nan])),
        3: -math.inf,
        "b": [True, None, nan],
    }
    assert plain(value) == {"a": [1.5, 2, [1.0, None]], "3": None, "b": [True, None, None]}


def test_titles_are_text(tmp_path: Path) -> None:
    title = """</title></script><script>alert("1")</script> & 'so'"""
    with opened(with_picture(lambda sight: Plot([Points([[0, 0]])]), Axes(title, title), title=title)) as lab:
        replay = exported(lab, tmp_path)
        assert replay.story["title"] == title
        assert replay.text.count("<script") == replay.text.count("</script>") == 4
        assert "<title>&lt;/title&gt;&lt;/script&gt;&lt;script&gt;alert(&quot;1&quot;)" in replay.text


def noise(side: int) -> Lab[Any, Any]:
    """Return a lab whose picture can hardly be compressed."""
    generator = np.random.default_rng(0)

    def draw(sight: Any) -> Images:
        return Images([Tile(generator.integers(0, 256, (1, side, side), dtype=np.uint8))])

    return with_picture(draw, Grids([Grid("Noise")], 255))


def test_a_run_that_is_too_large_has_fewer_moments_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    with opened(noise(512)) as lab:
        train(lab, 52)
        replay = exported(lab, tmp_path)
        assert replay.size <= 5_000_000
        assert (replay.steps[0], replay.steps[-1]) == (0, 52)
        assert 4 < len(replay.steps) < 12


def test_two_moments_that_are_too_large_are_refused(tmp_path: Path) -> None:
    with opened(noise(2000)) as lab:
        train(lab, 6)
        with pytest.raises(ReplayError, match="first and last moment alone: expected 5,000,000 at most"):
            lab.export(tmp_path / "run.replay.html")
        assert not list(tmp_path.iterdir())


def test_a_picture_that_is_not_always_there(tmp_path: Path) -> None:
    def draw(sight: Any) -> Plot | None:
        return None if sight.snapshot.step in (0, 10) else Plot([Points([[0, 0]])])

    with opened(with_picture(draw)) as lab:
        train(lab, 20)
        assert exported(lab, tmp_path).widgets["picture one"]["at"] == [None, 0, None, 0, 0]
    with opened(with_picture(lambda sight: None)) as lab:
        assert "picture one" not in exported(lab, tmp_path).widgets


def test_what_stays_as_it_is_is_told_once(tmp_path: Path) -> None:
    with opened(with_picture(lambda sight: Plot([Points([[0, 0]])]))) as lab:
        figure = START.curves(lab.sight())
    lab = dataclasses.replace(with_picture(lambda sight: Plot([Points([[0, 0]])])), curves=lambda sight: figure)
    with opened(lab) as still:
        train(still, 20)
        for place in ("picture one", "curves"):
            told = exported(still, tmp_path).widgets[place]
            assert (told["at"], len(told["states"]), told["news"][1:]) == ([0] * 5, 1, [[]] * 4)


def test_rounding_cannot_be_seen() -> None:
    values = np.random.default_rng(0).standard_normal((8, 8))
    drawing = rounded(Plot([Heatmap(values, (0, 1, 0, 1)), Points(values[:, :2] + 100)]))
    heat, points = drawing.layers
    np.testing.assert_allclose(heat.values, values, rtol=2**-10)
    np.testing.assert_allclose(points.points, values[:, :2] + 100, rtol=2**-18)
    rows = object()
    assert rounded(rows) is rows
