"""What every lab must do, whatever it shows: seen from a page and from Python, by public names alone."""

import gzip
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lab_tools import SMALL, train
from replay_page import Replay, looks_like
from simulated_page import WAIT, Page

from p4lab import widgets
from p4lab.errors import ConfigError
from p4lab.plots.layers import Images, Plot
from p4lab.training import State

SETTABLE = {"slider", "choice", "segments", "toggle", "number", "text"}
"""Kinds of controls that have a value."""
RACES = {"race", "rnn", "images", "characters"}
"""Labs whose steps are turns of some milliseconds, so that no two runs are the same."""
ANOTHER_VALUE = {
    ("swaps", "block"): "as many layers as the flow has, and not as many as can be chosen",
    ("race", "view"): "these curves know one view",
}
"""Controls that need not show what they were set to, and why."""
RUNS = Path(__file__).parent / "runs"
"""A saved run of each kind (but the molecule's, which are large) after three steps, written when format 1 was new."""

Opener = Callable[..., Any]


@pytest.fixture(params=SMALL)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(kind: str) -> Iterator[Opener]:
    """Return what opens a lab; at the end all of them are closed, must have been well, and leave no thread."""
    labs: list[Any] = []
    before = set(threading.enumerate())

    def opens(name: str = "contract", **changes: Any) -> Any:
        labs.append(getattr(widgets, f"{kind}_lab")(name=name, **{**SMALL[kind], **changes}))
        return labs[-1]

    yield opens
    for lab in labs:
        lab.close()
    assert [lab.error for lab in labs] == [None] * len(labs)
    assert set(threading.enumerate()) <= before


@pytest.fixture
def lab(opened: Opener) -> Any:
    return opened()


@pytest.fixture
def page(lab: Any, monkeypatch: pytest.MonkeyPatch) -> Page:
    return Page(lab, monkeypatch)


def losses(lab: Any) -> np.ndarray:
    """Return the losses of the active run's steps, of all lanes one after the other."""
    return lab.frame()["loss"].dropna().to_numpy()


# --- without widgets --------------------------------------------------------------------------------------------------


def test_its_trainer_gives_the_same_numbers(kind: str, lab: Any) -> None:
    train(lab, 3)
    engine = lab.lab.trainer(lab.config)
    engine.run(3)
    lanes = [
        frame["loss"].unstack(0) if frame.index.nlevels > 1 else frame["loss"]
        for frame in (lab.frame(), engine.frame())
    ]
    rows = lanes[0].index.intersection(lanes[1].index)  # in turns of some milliseconds, one may do more than the other
    shown, trained = (frame.loc[rows].to_numpy() for frame in lanes)
    both = np.isfinite(shown) & np.isfinite(trained)
    assert both.any()
    assert kind in RACES or np.array_equal(shown, trained, equal_nan=True)
    assert np.array_equal(shown[both], trained[both])


# --- controls ---------------------------------------------------------------------------------------------------------


def ends(item: dict[str, Any], value: Any) -> tuple[Any, ...]:
    """Return the values at both ends of a control; its own where there are no ends."""
    if item["kind"] == "toggle":
        return not value, value
    if item["kind"] == "number":
        return value + 1, 0
    return (item["choices"][0], item["choices"][-1]) if item["choices"] else (value,)


def test_every_control_can_be_touched_at_both_ends(kind: str, lab: Any, page: Page) -> None:
    page.steps(1)
    text = lab.config.to_text()
    settable = {name: item for name, item in page.items.items() if item["kind"] in SETTABLE and name != "config"}
    for name, item in settable.items():
        for value in ends(item, lab.values().get(name)):
            if name in page.disabled:
                continue
            if value == "drawing":
                with pytest.raises(ConfigError, match="there is no drawing yet"):
                    lab.touch(name, value)
                continue
            lab.touch(name, value)
            assert lab.values().get(name) == value or (kind, name) in ANOTHER_VALUE
            frame = lab.player.frame(WAIT)
            if frame.planned.to_dict().get(name) != frame.snapshot.config.to_dict().get(name):
                assert not item["live"], f"{name} waits for a reset, but does not say so"
    lab.touch("config", text)
    page.turn("below", "Runs and files")
    page.told("config", text)
    assert lab.player.frame(WAIT).pending == ()
    page.steps(1)


def test_every_button_can_be_pressed(lab: Any, page: Page) -> None:
    page.steps(1)
    for name in [name for name, item in page.items.items() if item["kind"] == "button"]:
        if name in page.disabled or name in ("download:html", "download:replay.html"):  # pages of some MB
            continue
        lab.touch(name)
        if name == "start":
            lab.touch(name)  # it is now the button that pauses
        page.wait(lambda: lab.player.frame(WAIT).state is not State.RUNNING)
    assert {name.rpartition(".")[2] for name in page.files} == {"p4run", "csv", "parquet"}
    assert all(page.files.values())


def test_every_thing_to_try_can_be_set_up(lab: Any, page: Page) -> None:
    page.steps(1)
    for number, one in enumerate(lab.lab.tries):
        lab.touch("try", number)
        assert len(one.text.split()) <= 60, f"{one.title}: too long for a card"
        controls = {name: value for name, value in one.changes.items() if name in lab.values()}
        assert {name: lab.values()[name] for name in controls} == controls


def test_a_control_that_does_not_exist_is_refused_by_name(lab: Any) -> None:
    with pytest.raises(ConfigError, match="sead"):
        lab.touch("sead", 1)
    lab.touch("seed", 1)


def test_what_a_control_refuses_is_raised_and_shown(lab: Any, page: Page) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="seed=-1"):
            lab.touch("seed", -1)
    page.wait(lambda: "seed=-1" in page.values.get("message", {"text": ""})["text"])
    assert isinstance(lab.error, ConfigError)
    lab.touch("seed", 1)
    assert lab.values()["seed"] == 1


def test_its_config_is_a_line_of_text(lab: Any, page: Page) -> None:
    page.turn("below", "Runs and files")
    page.told("config", lab.config.to_text())
    config = lab.config
    assert type(config).from_text(config.to_text()) == config
    changed = config.replace(seed=3)
    lab.touch("config", changed.to_text())
    assert lab.config == changed  # nothing was trained yet: it acts at once
    assert lab.values()["seed"] == 3


# --- the past, and other runs -----------------------------------------------------------------------------------------


def test_every_moment_is_drawn(kind: str, lab: Any, page: Page) -> None:
    page.steps(11)
    present = page.pictures()
    moments = lab.player.frame(WAIT).moments
    assert moments == (0, 5, 10)
    drawn = {}
    for step in moments:
        page.scrub(step)
        assert page.values["count"] == str(step)
        drawn[step] = page.pictures()
    page.now()
    assert page.pictures() == present
    # On a busy machine one step of a race may last for many turns.
    for step in (10,) if kind in RACES else (5, 10):
        one, other = drawn[0], drawn[step]
        assert any(one[picture] != other[picture] for picture in set(one) & set(other))


def test_a_branch_goes_the_same_way(kind: str, lab: Any, page: Page) -> None:
    page.steps(8)
    first = losses(lab)
    page.scrub(5)
    lab.touch("branch")
    page.steps(3)
    table = lab.table()
    assert list(table["step"]) == [8, 8]
    assert table["from"].iloc[1] == "run 1, step 5"
    if kind not in RACES:
        np.testing.assert_array_equal(losses(lab), first)
    lab.touch("runs", {"action": "select", "number": 1})
    lab.touch("runs", {"action": "remove", "number": 2})
    np.testing.assert_array_equal(losses(lab), first)


def test_two_labs_at_once_and_a_saved_run_in_the_other(
    kind: str, opened: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, other = opened("one"), opened("other", seed=1)
    page, other_page = Page(one, monkeypatch), Page(other, monkeypatch)
    page.steps(3)
    one.save(tmp_path / "one.p4run")
    other.load(tmp_path / "one.p4run")
    assert other.config == one.config
    np.testing.assert_array_equal(losses(other), losses(one))
    page.steps(2)
    one.close()
    other_page.steps(2)
    assert list(other.table()["step"]) == [0, 5]
    assert np.isfinite(losses(other)).all()


@pytest.mark.parametrize("kind", [kind for kind in SMALL if (RUNS / f"{kind}.p4run.gz").exists()], indirect=True)
def test_a_run_that_was_saved_long_ago_goes_on(kind: str, opened: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = opened("old", seed=1)
    page = Page(lab, monkeypatch)
    lab.load(gzip.decompress((RUNS / f"{kind}.p4run.gz").read_bytes()))
    page.steps(1)
    assert lab.player.frame(WAIT).snapshot.step == 4
    assert lab.table()["step"].tolist() == [0, 4]
    if kind not in RACES:
        again = opened("again", **{name: v for name, v in lab.config.to_dict().items() if name != "problem"})
        Page(again, monkeypatch).steps(4)
        np.testing.assert_allclose(losses(lab), losses(again), rtol=1e-3)


# --- a page without a kernel ------------------------------------------------------------------------------------------


def test_its_replay_is_a_page_that_shows_what_the_lab_shows(lab: Any, tmp_path: Path) -> None:
    train(lab, 12)
    frames = lab.player.recorded(3)
    lab.export(tmp_path / "run.replay.html")
    replay = Replay(tmp_path / "run.replay.html")
    assert replay.size <= 5_000_000
    assert replay.steps == [0, 5, 10, 12]
    assert replay.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in replay.policy
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", replay.text)
    drawings = {frame.snapshot.step: lab.drawings(frame) for frame in (frames[0], frames[-1])}
    compared = 0
    for step, areas in drawings.items():
        for area, drawing in areas.items():
            if area == "sample" or not isinstance(drawing, Plot | Images):  # a sample of a molecule moves by itself
                continue
            state = replay.state(f"picture {area}", replay.steps.index(step))
            assert state is not None
            if isinstance(drawing, Images):
                assert state["content"] == [tile.images.tobytes() for tile in drawing.tiles]
            else:
                pairs = list(zip(state["layers"], drawing.layers, strict=True))
                assert all(looks_like(told, layer) for told, layer in pairs), f"{area}, step {step}"
            compared += 1
    assert compared
    assert lab.player.frame(WAIT).shown is None
