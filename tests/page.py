"""In place of a browser: a page that hears what a lab's widgets say, acknowledges it, and says what a person does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ipywidgets import Box

from p4lab.widgets import Channel, Dashboard

WAIT = 20.0


def channels(box: Box) -> Iterator[Channel]:
    """Yield the channels in a box, from the first to the last."""
    for child in box.children:
        if isinstance(child, Channel):
            yield child
        else:
            yield from channels(child)


def threads() -> list[str]:
    """Return the names of the threads of labs that are alive."""
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("p4lab"))


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until something holds, and fail if it never does."""
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Page:
    """A page that shows a lab.

    Attributes:
        downloads: name and content of every file that the browser was given.
    """

    def __init__(self, lab: Dashboard) -> None:
        self.lab = lab
        self.downloads: dict[str, bytes] = {}
        self._told: dict[str, dict[str, Any]] = {}
        self._widgets = list(channels(lab.root))
        for widget in self._widgets:
            self._attend(widget)
        for widget in self._widgets:
            widget.hear({"hello": 1})

    def _attend(self, widget: Channel) -> None:
        told = self._told.setdefault(widget.model_id, {})

        def send(message: dict[str, Any], buffers: Any = ()) -> None:
            told.update(message)
            if "download" in message:
                self.downloads[message["download"]] = bytes(buffers[0])
            if "frame" in message:
                widget.hear({"acks": {widget.model_id: [message["frame"], 0]}})

        widget.send = send

    def widget(self, css_class: str) -> Channel:
        """Return the widget with a CSS class."""
        return next(w for w in self._widgets if css_class in w.get_state("_dom_classes")["_dom_classes"])

    def told(self, css_class: str) -> dict[str, Any]:
        """Return what the widget with a CSS class shows."""
        return self._told[self.widget(css_class).model_id]

    def value(self, css_class: str, name: str) -> Any:
        """Return what a panel shows of an item (None: nothing yet)."""
        return self.told(css_class).get("values", {}).get(name)

    def message(self) -> dict[str, str]:
        """Return the message in the header."""
        return self.value("p4-head", "message") or {"level": "", "text": ""}

    def press(self, css_class: str, name: str, value: Any = True) -> None:
        """Touch a control of a panel."""
        self.widget(css_class).hear({"set": [name, value]})
