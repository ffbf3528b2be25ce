"""A browser page for labs, by public names alone: it hears what their widgets send, and says what a browser would."""

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from p4lab.widgets import Channel, LivePlot

WAIT = 60.0
PAGE = re.compile(r"p4-(pictures|below)-\d")
MOVES_BY_ITSELF = {"A sample"}
"""Pictures that are not the same twice, even if the lab rests."""


def channels(widget: Any) -> Iterator[Channel]:
    """Return the widgets in a layout that are sent frames, from left to right and from top to bottom."""
    if isinstance(widget, Channel):
        yield widget
    for child in getattr(widget, "children", ()):
        yield from channels(child)


class Page:
    """What the page of a lab hears.

    Args:
        lab: shown on the page from now on.
        monkeypatch: takes the place of the connection.

    Attributes:
        items: what is in the lab's panels, by name: kind, label, choices and so on.
        values: what the panels have told last, by the item's name.
        pending: names of what waits for a reset.
        files: what the page was asked to save, by name.
    """

    def __init__(self, lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lab = lab
        self.items: dict[str, dict[str, Any]] = {}
        self.values: dict[str, Any] = {}
        self._places: dict[str, Channel] = {}
        self._disabled: dict[Channel, list[str]] = {}
        self.pending: set[str] = set()
        self.files: dict[str, bytes] = {}
        self._last: dict[Channel, tuple[dict[str, Any], list[bytes]]] = {}
        self._channels = list(channels(lab.root))
        for channel in self._channels:
            monkeypatch.setattr(channel, "send", partial(self._hear, channel))
        self._drawn: dict[int, int] = {}
        for number, screen in enumerate(lab.screens):
            monkeypatch.setattr(screen, "draw", partial(self._draw, number, screen.draw))
        for channel in self._channels:
            self.say(channel, hello=1)

    def _draw(self, number: int, draw: Callable[[Any], None], frame: Any) -> None:
        draw(frame)
        self._drawn[number] = frame.version

    def say(self, channel: Channel, buffers: tuple[bytes, ...] = (), **message: Any) -> None:
        """Send a message to a widget, as its JavaScript does."""
        memory = [memoryview(buffer) for buffer in buffers]
        channel.comm.handle_msg({"content": {"data": {"method": "custom", "content": message}}, "buffers": memory})

    def press(self, name: str, value: Any = True) -> None:
        """Touch a control, wherever it stands."""
        self.say(self._places[name], set=[name, value])

    def upload(self, content: bytes) -> None:
        """Choose a file where runs are loaded."""
        self.say(self._places["upload"], (content,), upload="upload")

    def widget(self, css_class: str) -> Channel:
        """Return the widget with a CSS class."""
        return next(c for c in self._channels if css_class in c.get_state("_dom_classes")["_dom_classes"])

    @property
    def message(self) -> dict[str, str]:
        """The message in the header."""
        return self.values.get("message", {"level": "", "text": ""})

    def _hear(self, channel: Channel, message: dict[str, Any], buffers: Any = ()) -> None:
        if "download" in message:
            self.files[message["download"]] = bytes(buffers[0])
        if "spec" in message:
            items = {item["name"]: item for group in message["spec"]["groups"] for item in group["items"]}
            self.items |= items
            self._places |= dict.fromkeys(items, channel)
        if "disabled" in message:
            self.values |= message["values"]
            self._disabled[channel] = message["disabled"]
            here = {name for name, place in self._places.items() if place is channel}
            self.pending = (self.pending - here) | set(message["pending"])
        if "frame" in message:
            self._last[channel] = message, [bytes(buffer) for buffer in buffers]
            self.say(channel, acks={channel.model_id: [message["frame"], 0]})

    @property
    def disabled(self) -> set[str]:
        """Names of the items that cannot be touched."""
        return {name for names in self._disabled.values() for name in names}

    def wait(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        end = time.monotonic() + WAIT
        while not holds():
            assert time.monotonic() < end, f"waited in vain; the lab's error is {self.lab.error}"
            time.sleep(0.002)

    def told(self, name: str, value: Any) -> None:
        """Wait until a panel has told this value of an item; a frame reaches the pictures before the panels."""
        self.wait(lambda: self.values.get(name) == value)

    def turn(self, place: str, page: str) -> None:
        """Turn to a page, and wait until it is drawn."""
        if len(self.lab.pages[place]) > 1:
            self.lab.touch(f"page:{place}", page)
            self.drawn()

    def drawn(self) -> None:
        """Wait until everything that can be seen shows the newest frame."""
        version = self.lab.player.frame(WAIT).version
        self.wait(
            lambda: all(self._drawn.get(n, -1) >= version or not s.shown() for n, s in enumerate(self.lab.screens))
        )

    def steps(self, number: int) -> None:
        """Do so many steps, and wait until all pictures and the header show the last one."""
        goal = self.lab.player.frame(WAIT).snapshot.step + number
        for _ in range(number):
            self.lab.touch("step")
        self.told("count", f"{goal:,}")

    def scrub(self, step: int) -> None:
        """Look at a moment, and wait until the header, and with it all pictures, show it."""
        self.lab.touch("scrub", step)
        self.wait(lambda: self.values["scrub"]["shown"] == step)

    def now(self) -> None:
        """Look at the present, and wait until the header, and with it all pictures, show it."""
        self.lab.touch("now")
        self.wait(lambda: self.values["scrub"]["shown"] is None)

    def pictures(self) -> dict[str, Any]:
        """Return what a page that is opened now would get of every picture that is displayed; none may be empty."""
        shown: dict[str, Any] = {}
        for place in ("pictures", "below"):
            pages = self.lab.pages[place]
            for number, page in reversed(list(enumerate(pages))):  # the first page stays
                self.turn(place, page)
                shown |= self._pictures(f"p4-{place}-{number}")
            if not pages:
                shown |= self._pictures("")
        return shown

    def _pictures(self, page: str) -> dict[str, Any]:
        """Return the pictures on a page, and those that are on all pages of their place."""
        shown: dict[str, Any] = {}
        for channel in self._channels:
            on = [name for name in channel.get_state("_dom_classes")["_dom_classes"] if PAGE.fullmatch(name)]
            if isinstance(channel, LivePlot) or channel.layout.display == "none" or on not in ([], [page]):
                continue
            self.say(channel, hello=1)
            message, buffers = self._last[channel]
            if "spec" in message and not any(self.items[name]["kind"] == "table" for name in message.get("values", ())):
                continue
            title = message.get("view", {}).get("title", "")
            content = next(message[key] for key in ("layers", "panels", "rows", "values", "view") if key in message)
            assert content, f"{type(channel).__name__} {title} shows nothing"
            if title not in MOVES_BY_ITSELF:
                shown[channel.model_id] = content, message.get("bounds"), buffers
        return shown
