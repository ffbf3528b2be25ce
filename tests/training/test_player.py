"""Player and pump, with views that need no browser."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
import torch
from lab_tools import threads, wait_until

from p4lab.errors import ConfigError, TrainingError
from p4lab.training import DigitsConfig, Engine, Frame, Player, Pump, State

SMALL = DigitsConfig(blocks=1, rank=2, batch_size=16, merge_every=5)


@pytest.fixture
def player() -> Iterator[Player]:
    with closing(Player(Engine, SMALL)) as player:
        yield player
    assert "p4lab-trainer" not in threads()


def now(player: Player) -> Frame:
    """Return a frame; it comes after all commands so far."""
    return player.frame(timeout=20)


def test_life_of_a_run(player: Player) -> None:
    frame = now(player)
    assert (frame.state, frame.snapshot.step, frame.run, frame.message) == (State.IDLE, 0, 0, "")
    player.start()
    wait_until(lambda: now(player).snapshot.step > 3)
    assert now(player).state is State.RUNNING
    assert now(player).steps_per_second > 0
    player.pause()
    frame = now(player)
    assert frame.state is State.PAUSED
    time.sleep(0.05)
    assert now(player).snapshot.step == frame.snapshot.step
    player.step()
    assert now(player).snapshot.step == frame.snapshot.step + 1
    player.reset()
    frame = now(player)
    assert (frame.state, frame.snapshot.step, frame.run) == (State.IDLE, 0, 1)


def test_step_to_merge_stops_after_the_merge(player: Player) -> None:
    player.step()
    for merged in (5, 10):
        player.step_to_merge()
        wait_until(lambda: now(player).state is State.PAUSED)
        assert now(player).snapshot.step == merged


def test_played_numbers_are_those_of_the_engine(player: Player) -> None:
    alone = Engine(SMALL)
    alone.run(7)
    player.limit(200.0)
    player.step_to_merge()
    wait_until(lambda: now(player).state is State.PAUSED)
    player.step()
    player.step()
    assert now(player).snapshot.curves["loss"][1].tolist() == list(alone.records.steps.columns["loss"])


def test_settings_wait_only_if_they_must(player: Player) -> None:
    player.set(rank=3)
    frame = now(player)
    assert (frame.snapshot.config.rank, frame.pending, frame.run) == (3, (), 0)
    player.step()
    player.set(rank=1, learning_rate=1e-4)
    frame = now(player)
    assert frame.snapshot.config.learning_rate == 1e-4
    assert (frame.snapshot.config.rank, frame.planned.rank, frame.pending) == (3, 1, ("rank",))
    player.reset()
    frame = now(player)
    assert (frame.snapshot.config.rank, frame.pending) == (1, ())


def test_a_refused_setting_is_said_and_changes_nothing(player: Player) -> None:
    player.start()
    player.set(rank=0)
    wait_until(lambda: "rank=0" in now(player).message)
    assert now(player).state is State.RUNNING
    assert isinstance(player.error, ConfigError)
    player.set(learning_rate=1e-4)
    frame = now(player)
    assert (frame.message, frame.planned.rank) == ("", 2)
    player.limit(-1.0)
    assert "speed=-1.0" in now(player).message


def test_slow_motion(player: Player) -> None:
    player.limit(20.0)
    player.start()
    time.sleep(0.5)
    player.pause()
    assert 5 <= now(player).snapshot.step <= 15


def test_looking_back_pauses_and_going_on_applies_what_was_set_meanwhile(player: Player) -> None:
    player.limit(200.0)
    player.start()
    wait_until(lambda: now(player).snapshot.step >= 12)
    player.scrub(7)
    frame = now(player)
    assert (frame.state, frame.shown, frame.snapshot.step) == (State.PAUSED, 5, 5)
    assert {0, 5, 10} <= set(frame.moments)
    player.set(learning_rate=1e-4)
    frame = now(player)
    assert (frame.snapshot.config.learning_rate, frame.pending) == (2e-3, ("learning_rate",))
    player.scrub(None)
    frame = now(player)
    assert (frame.shown, frame.snapshot.config.learning_rate, frame.pending) == (None, 1e-4, ())


def test_branch_keep_select_and_remove(player: Player) -> None:
    for _ in range(7):
        player.step()
    player.scrub(5)
    player.set(learning_rate=1e-4)
    player.branch("slow")
    frame = now(player)
    assert [(run.name, run.active, run.snapshot.step) for run in frame.runs] == [("run 1", False, 7), ("slow", True, 5)]
    assert (frame.state, frame.snapshot.config.learning_rate, frame.run) == (State.PAUSED, 1e-4, 1)
    player.keep()
    frame = now(player)
    assert (frame.state, frame.snapshot.step, len(frame.runs)) == (State.IDLE, 0, 3)
    player.select(1)
    player.rename(1, "first")
    player.remove(2)
    frame = now(player)
    assert [(run.name, run.active) for run in frame.runs] == [("first", True), ("run 3", False)]
    assert frame.planned.learning_rate == 2e-3
    player.remove(1)
    assert "this one is active" in now(player).message
    assert now(player).state is State.PAUSED


def test_a_question_that_fails_is_the_askers_trouble(player: Player) -> None:
    with pytest.raises(ZeroDivisionError):
        player.ask(lambda runs: 1 / 0, 5)
    assert player.error is None
    assert player.ask(lambda runs: len(runs.runs), 5) == 1


class Explodes(Engine):
    """An engine whose fourth step fails once."""

    exploded = False

    def _step(self) -> None:
        if self.step == 3 and not self.exploded:
            self.exploded = True
            raise TrainingError("step 4: loss nan")
        super()._step()


def test_a_failed_run_says_why_and_can_go_on() -> None:
    with closing(Player(Explodes, SMALL)) as player:
        player.start()
        wait_until(lambda: now(player).state is State.FAILED)
        frame = now(player)
        assert (frame.snapshot.step, frame.message) == (3, "step 4: loss nan")
        assert isinstance(player.error, TrainingError)
        player.start()
        wait_until(lambda: now(player).snapshot.step > 5)
        assert now(player).message == ""
        assert player.error is None


def test_a_bug_in_the_engine_is_shown_with_its_type() -> None:
    class Broken(Engine):
        def _step(self) -> None:
            raise ZeroDivisionError("no")

    with closing(Player(Broken, SMALL)) as player:
        player.start()
        wait_until(lambda: now(player).state is State.FAILED)
        assert now(player).message == "ZeroDivisionError: no"


def test_a_closed_player_gives_no_frames() -> None:
    player = Player(Engine, SMALL)
    player.close()
    assert player.state is State.CLOSED
    with pytest.raises(TimeoutError):
        player.frame(timeout=0.2)


# --- the pump ---


@pytest.fixture
def pump(player: Player) -> Iterator[Callable[..., Pump]]:
    """Start the player's pump on views; it is ended before the player, however the test ends."""
    with ExitStack() as stack:
        yield lambda *views: stack.enter_context(closing(Pump(player, views)))


class FakeView:
    """A view that acknowledges when the test says so."""

    def __init__(self, interval: float = 0.0, obedient: bool = True) -> None:
        self.interval, self.obedient = interval, obedient
        self.frames: list[Frame] = []
        self.times: list[float] = []
        self.ready = True

    def draw(self, frame: Frame) -> None:
        assert threading.current_thread().name == "p4lab-pump"
        self.frames.append(frame)
        self.times.append(time.monotonic())
        self.ready = self.obedient


def test_the_last_frame_is_always_drawn(player: Player, pump: Callable[..., Pump]) -> None:
    fast, slow = FakeView(), FakeView(interval=0.6)  # longer than what is drawn at once when somebody asks
    pump(fast, slow)
    player.start()
    wait_until(lambda: len(slow.frames) > 2)
    drawn = list(slow.times)
    player.pause()
    last = now(player)
    for view in (fast, slow):
        wait_until(lambda view=view: bool(view.frames) and view.frames[-1].version == last.version)
        assert view.frames[-1].snapshot.step == last.snapshot.step
    assert len(fast.frames) > len(slow.frames)
    assert min(b - a for a, b in itertools.pairwise(drawn)) > 0.5


def test_a_fast_view_does_not_wait_for_one_that_rests(player: Player, pump: Callable[..., Pump]) -> None:
    fast, slow = FakeView(interval=0.02), FakeView(interval=60.0)
    pump(fast, slow)
    wait_until(lambda: bool(slow.frames))
    player.start()
    drawn, rested = len(fast.frames), len(slow.frames)
    wait_until(lambda: len(fast.frames) > drawn + 5)
    assert len(slow.frames) == rested


def test_back_pressure(player: Player, pump: Callable[..., Pump]) -> None:
    view = FakeView(obedient=False)
    pumping = pump(view)
    player.start()
    wait_until(lambda: now(player).snapshot.step > 20)
    assert len(view.frames) == 1
    view.ready = True
    pumping.wake()
    wait_until(lambda: len(view.frames) == 2)


def test_nothing_is_drawn_while_nothing_happens(player: Player, pump: Callable[..., Pump]) -> None:
    view = FakeView()
    pumping = pump(view)
    wait_until(lambda: len(view.frames) == 1)
    time.sleep(0.1)
    assert len(view.frames) == 1
    pumping.close()
    assert "p4lab-pump" not in threads()


def test_a_view_that_fails_is_reported_and_the_others_go_on(player: Player, pump: Callable[..., Pump]) -> None:
    class Broken(FakeView):
        def draw(self, frame: Frame) -> None:
            raise ValueError("cannot draw")

    view = FakeView()
    pumping = pump(Broken(), view)
    player.start()
    wait_until(lambda: len(view.frames) > 3)
    assert isinstance(pumping.error, ValueError)


def test_closing_leaves_no_threads() -> None:
    before = set(threading.enumerate())
    with closing(Player(Engine, SMALL)) as player, closing(Pump(player, [FakeView()])):
        player.start()
    assert set(threading.enumerate()) <= before
    assert torch.is_grad_enabled()
