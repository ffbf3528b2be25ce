"""What the live benchmark runs inside the kernel, next to the lab."""

import gc
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from p4lab.training import Frame, Player


def rate(player: Player, seconds: float) -> float:
    """Return the steps per second of a player, which is started before and paused after."""
    player.start()
    time.sleep(0.5)
    first, start = player.engine.step, time.perf_counter()
    time.sleep(seconds)
    last, end = player.engine.step, time.perf_counter()
    player.pause()
    player.frame(timeout=30.0)  # answered between two steps: the engine is at rest now
    return (last - first) / (end - start)


class Throughput:
    """Time the same engine with the lab's player, which the page watches, and with a player that nobody watches.

    Both train it in a thread of the kernel, in turn, so that settings, weights and process are the same. The timing has
    a thread of its own, so that the kernel can answer the browser meanwhile.

    Args:
        lab: a dashboard that is shown and paused.
        rounds: how often each player is timed.
        seconds: how long.

    Attributes:
        done: whether all is timed.
        watched: steps per second with the page, one value per round.
        alone: steps per second without, one value per round.
    """

    def __init__(self, lab: Any, rounds: int, seconds: float) -> None:
        self.done = False
        self.watched: list[float] = []
        self.alone: list[float] = []
        self._lab, self._rounds, self._seconds = lab, rounds, seconds

    def start(self) -> None:
        """Begin; ``done`` tells the end."""
        threading.Thread(target=self._run, name="p4bench-throughput", daemon=True).start()

    def _run(self) -> None:
        engine = self._lab.player.engine
        alone = Player(lambda config: engine, engine.config)
        try:
            for turn in range(self._rounds):
                players = ((self._lab.player, self.watched), (alone, self.alone))
                for player, rates in players if turn % 2 else reversed(players):
                    rates.append(rate(player, self._seconds))
        finally:
            alone.close()
            self.done = True

    def result(self) -> list[float]:
        """Return medians: steps per second watched, alone, and the ratio of a round."""
        ratios = [watched / alone for watched, alone in zip(self.watched, self.alone, strict=True)]
        return [statistics.median(values) for values in (self.watched, self.alone, ratios)]


class Log:
    """Note with which learning rate each frame of the fast pictures was made, from now on.

    Args:
        views: the views of a lab's pump.

    Attributes:
        frames: number of a frame, as the page shows it in ``data-frames``, and learning rate, in the order of sending.
    """

    def __init__(self, views: Sequence[Any]) -> None:
        self.frames: list[list[float]] = []
        pictures = [view for view in views if type(view.widget).__name__ not in ("ControlPanel", "LivePlot")]
        pictures[0].draw = self._noting(pictures[0].widget, pictures[0].draw)

    def _noting(self, widget: Any, draw: Callable[[Frame], None]) -> Callable[[Frame], None]:
        def noting(frame: Frame) -> None:
            draw(frame)
            self.frames.append([widget.sent, frame.snapshot.config.learning_rate])

        return noting


def learning_rates(lab: Any) -> list[float]:
    """Return the learning rates that were set while the run went on, in order."""
    texts = [event.text for event in lab.player.frame(timeout=30.0).snapshot.events if event.kind == "set"]
    return [float(text.split("=")[1]) for text in texts if text.startswith("learning_rate")]


def resident() -> int:
    """Return the bytes of memory that this process holds (its resident set), after a garbage collection."""
    import psutil  # type: ignore[import-untyped]  # comes with ipykernel

    gc.collect()
    return int(psutil.Process().memory_info().rss)
