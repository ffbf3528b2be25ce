"""Labs that somebody tries to break: they say what is wrong, and go on."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import opened, wait_until
from simulated_page import Page

from p4lab.errors import ConfigError, FileError, OptionError, RunFileError
from p4lab.labs import Axes, Board, Equations, Grid, Grids, Number, Picture, Sight
from p4lab.labs.density import DENSITIES_2D
from p4lab.labs.digits import DIGITS
from p4lab.labs.directions import DIRECTIONS, DirectionsConfig
from p4lab.labs.start import START
from p4lab.plots.layers import Images, Plot, Row, Rows
from p4lab.training import DigitsConfig, Engine, MatrixConfig, RunConfig, State
from p4lab.widgets import Dashboard

AXES = Axes("A")
SMALL: dict[str, Any] = {"blocks": 1, "rank": 2, "batch_size": 16, "merge_every": 5}


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    lab = Dashboard(DIGITS, **SMALL)
    yield lab
    lab.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("speed", value) for value in (1e-12, -1, "5")),
        *(("learning_rate", value) for value in (10**400, float("nan"), "x", None)),
        *(("device", value) for value in ("privateuseone", "meta", 3)),
        *(("problem", value) for value in ("directions", None)),
        ("preset", ["paper"]),
        ("runs", {"action": "rename", "number": 1, "name": 5}),
    ],
)
def test_what_is_refused_stops_nothing_and_is_forgotten(lab: Dashboard, name: str, value: Any) -> None:
    lab.player.start()
    with pytest.raises((ConfigError, AttributeError, OptionError)):
        lab.touch(name, value)
    assert lab.player.state is State.RUNNING
    assert lab.message()
    lab.touch("speed", 1000)
    assert lab.error is None
    assert type(lab.config) is DigitsConfig


def test_a_slow_speed_does_not_hold_up_commands(lab: Dashboard) -> None:
    lab.touch("speed", 1e-3)
    lab.touch("start")
    wait_until(lambda: lab.player.frame(20).snapshot.step == 1)
    lab.touch("learning_rate", 1e-4)
    assert lab.player.frame(20).snapshot.step == 1


def test_a_number_and_a_picture_that_fail_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_two(sight: Sight[Any, Any]) -> Any:
        if sight.snapshot.step == 2:
            raise ValueError("not at two")
        return DIGITS.pictures[0].draw(sight)

    number = Number("odd", "odd", lambda sight: str(1 // (sight.snapshot.step - 2)))
    picture = replace(DIGITS.pictures[0], draw=fails_at_two)
    with opened(replace(DIGITS, numbers=(*DIGITS.numbers, number), pictures=(picture,)), **SMALL) as lab:
        page = Page(lab, monkeypatch)
        page.steps(2)
        page.wait(lambda: page.message["level"] == "error")
        assert page.values["odd"] == "–"
        assert page.values["count"] == "2"
        page.steps(1)
        page.wait(lambda: page.message["level"] == "info")
        assert page.values["odd"] == "1"


def raises(error: BaseException) -> Any:
    def fails(sight: Sight[Any, Any]) -> Any:
        raise error

    return fails


def drawn(draw: Any, base: Any = AXES) -> dict[str, Any]:
    """What changes of a lab with a picture."""
    return {"pictures": (*DIGITS.pictures, Picture(base, draw, area="B"))}


def told(read: Any) -> dict[str, Any]:
    """What changes of a lab with a number more."""
    return {"numbers": (*DIGITS.numbers, Number("n", "n", read))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            (drawn(raises(error)), f"{type(error).__name__}.* .in the picture 'B' of the lab 'digits'.")
            for error in (KeyError("x"), KeyboardInterrupt(), SystemExit(3))
        ),
        *(
            (drawn(lambda sight, value=value: value), "draw returned .*: expected a Plot, or None .in the picture 'B'")
            for value in (5, "x", [1, 2], {"data": []}, Images([]))
        ),
        (drawn(lambda sight: 5, Board("b")), "draw returned 5: expected a Rows, or None"),
        (drawn(lambda sight: Images([]), Grids([Grid("g")], 4)), "draw returned 0 tiles: expected 1"),
        (drawn(lambda sight: Rows({"a": ""}, [Row(["1", "2"])]), Board("b")), "returned 2 cells of a row: expected 1"),
        (drawn(lambda sight: "x = 1", Equations()), "expected a sequence of rows of Term and text"),
        (drawn(lambda sight: Plot(["x"])), "Plane got a str.* .in the picture 'B'"),  # type: ignore[list-item]
        *((told(raises(error)), ".in the number 'n' of the lab") for error in (ValueError("x"), SystemExit())),
        *(
            (told(lambda sight, value=value: value), "read returned .*: expected text, a number.* .in the number 'n'")
            for value in (None, {1, 2}, object(), {"text": "1"}, torch.ones(2))
        ),
        ({"curves": raises(ValueError("x"))}, "ValueError: x .in the curves of the lab 'digits'."),
        ({"curves": lambda sight: {}}, "curves returned {}: expected a dict with 'data' and 'layout' .in the curves"),
        ({"curves": lambda sight: None}, "curves returned None"),
        ({"hint": raises(ValueError("x"))}, "ValueError: x .in the hint of the lab"),
        ({"hint": lambda sight: 5}, "hint returned 5: expected text or None"),
        ({"disabled": lambda planned: None}, "TypeError.* .in what is disabled of the lab"),
        ({"lanes": raises(ValueError("x"))}, "ValueError: x .in the lanes of the lab"),
    ],
)
def test_what_fails_is_named_and_the_page_goes_on(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    lab = Dashboard(replace(DIGITS, **changes), **SMALL)
    page = Page(lab, monkeypatch)
    page.press("step")
    page.wait(lambda: page.message["level"] == "error")
    assert re.search(message, page.message["text"])
    page.press("step")
    page.told("count", "2")
    lab.close()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.tensor(1.5), "1.5"),
        (np.array(2), "2"),
        (np.float32(0.5), "0.5"),
        (float("nan"), "nan"),
        (10**400, str(10**400)),
        ({"value": np.float64(0.25), "unit": "s"}, {"value": "0.25", "unit": "s"}),
    ],
)
def test_a_number_of_any_library_becomes_text(monkeypatch: pytest.MonkeyPatch, value: Any, text: Any) -> None:
    with opened(replace(DIGITS, **told(lambda sight: value)), **SMALL) as lab:
        page = Page(lab, monkeypatch)
        page.told("n", text)
        assert lab.numbers()["n"] == text


class Interrupted(Engine):
    """Raises KeyboardInterrupt at its third step, where it trains."""

    def run(self, n: int = 1) -> None:
        if self.step == 2:
            raise KeyboardInterrupt
        super().run(n)


def test_an_interrupt_where_it_trains_leaves_a_lab_that_starts_over() -> None:
    with opened(replace(DIGITS, trainer=Interrupted), **SMALL) as lab:
        lab.player.start()
        wait_until(lambda: lab.player.state is State.FAILED)
        assert "KeyboardInterrupt" in lab.message()
        lab.touch("restart")
        lab.touch("step")
        assert lab.player.frame(20).snapshot.step == 1


def test_pictures_of_a_problem_that_fail_leave_the_pages_thread_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(DIGITS, **SMALL) as lab:
        page = Page(lab, monkeypatch)
        page.steps(1)
        shows = lab.player.engine.problem.pictures
        lab.player.engine.problem.pictures = lambda model, z: torch.zeros(()).missing
        lab.player.poke()
        page.wait(lambda: isinstance(lab.error, AttributeError))
        lab.player.engine.problem.pictures = shows
        page.steps(1)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_damaged_file_is_refused(lab: Dashboard, tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.p4run"
    lab.save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 255
    with pytest.raises(RunFileError):
        lab.load(bytes(content))
    assert len(lab.table()) == 1


def interrupted(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[:3])
    raise KeyboardInterrupt


def full(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content[:3])
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("write", [interrupted, full])
@pytest.mark.parametrize("name", ["a.p4run", "a.csv", "a.html", "a.replay.html"])
def test_what_ends_a_file_early_leaves_the_one_before_and_no_part(
    lab: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any
) -> None:
    keep = lab.save if name.endswith("p4run") else lab.export
    keep(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(KeyboardInterrupt if write is interrupted else FileError):
        keep(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere/a.csv", "there is no folder .*nowhere; make it first"),
        ("folder.csv", "is a folder; add the name of a file"),
        ("l" * 300 + ".csv", "name too long"),
        ("a\0.csv", "cannot be written: .*null"),
        ("full.csv", "read-only, or no ordinary file"),
        ("~no-such-one/a.csv", "cannot be written: .*home"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_drawn(
    lab: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "full.csv").symlink_to("/dev/full")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab.player, "ask", pytest.fail)
    for keep in (lab.export, lab.save):
        with pytest.raises(FileError, match=message):
            keep(path)


def test_a_path_may_begin_with_the_home_or_be_a_link(
    lab: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lab.export("~/a.csv")
    (tmp_path / "b.csv").symlink_to("a.csv")
    lab.touch("step")
    lab.export("~/b.csv")
    assert (tmp_path / "b.csv").is_symlink()
    assert (tmp_path / "a.csv").read_text().count("\n") == 3
    lab.save("~/a.p4run")
    lab.load("~/a.p4run")


def test_one_run_too_many_is_said_where_it_is_loaded(lab: Dashboard, tmp_path: Path) -> None:
    lab.save(tmp_path / "a.p4run")
    for _ in range(7):
        lab.load(tmp_path / "a.p4run")
    with pytest.raises(ConfigError, match="8 is the most"):
        lab.load(tmp_path / "a.p4run")
    assert len(lab.table()) == 8
    lab.touch("runs", {"action": "remove", "number": 1})
    assert lab.error is None


def test_other_configs_are_refused_by_every_lab() -> None:
    for lab, config in ((DIRECTIONS, MatrixConfig()), (DENSITIES_2D, DigitsConfig()), (START, DirectionsConfig())):
        with pytest.raises(ConfigError, match=f"a run of '{config.problem}': this lab shows"):
            Dashboard(lab, config)


def test_a_refused_text_changes_nothing() -> None:
    with opened(START) as lab:
        lab.touch("step")
        with pytest.raises(OptionError, match="rows of 3"):
            lab.touch("config", lab.config.replace(learning_rate=0.4, target="1 0 0; 0 1 0; 0 0 1").to_text())
        assert lab.config.learning_rate == START.config.learning_rate
        assert lab.values()["learning_rate"] == START.config.learning_rate
        lab.touch("seed", 1)


def test_a_past_that_cannot_go_on_with_a_setting_stays_the_past() -> None:
    with opened(START) as lab:
        for _ in range(6):
            lab.touch("step")
        lab.touch("scrub", 5)
        lab.touch("target", "1 0 0; 0 1 0; 0 0 1")
        for _ in range(2):
            with pytest.raises(OptionError, match="rows of 3"):
                lab.touch("start")
        assert lab.player.frame(20).shown == 5
        lab.touch("target", "1 0; 0 1")
        lab.touch("now")


def test_a_class_without_a_name_of_its_own_does_not_take_anothers() -> None:
    class More(DigitsConfig):
        """Inherits the name."""

    assert type(RunConfig.from_text("digits")) is DigitsConfig
    assert type(More().replace(seed=1)) is More


def test_a_closed_lab_says_so_and_lanes_have_no_single_model() -> None:
    lab = Dashboard(DIRECTIONS, dim=16)
    with pytest.raises(OptionError, match="lanes k1, k4, k16, plain train side by side"):
        _ = lab.model
    lab.close()
    assert "closed" in lab._repr_mimebundle_()["text/plain"]


def test_runs_release_what_their_problem_holds(lab: Dashboard) -> None:
    released: list[int] = []
    lab.player.engine.problem.release = lambda: released.append(1)
    lab.touch("start")
    lab.touch("restart")
    assert released


def test_two_pictures_of_one_area_are_refused() -> None:
    picture: Picture = DIGITS.pictures[0]
    with pytest.raises(OptionError, match="an area of its own"):
        replace(DIGITS, pictures=(picture, picture))
