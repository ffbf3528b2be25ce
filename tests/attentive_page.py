"""In place of a browser: what a page would hear, say and see of a lab and its widgets."""

import dataclasses
from typing import Any

import pytest

from p4lab.training import Frame, State
from p4lab.widgets.channel import Channel


def attend(lab: Any) -> None:
    """Say hello to a lab's widgets, and acknowledge every frame at once."""
    for widget in (view.widget for view in lab._views):
        widget.send = lambda message, buffers=(), widget=widget: (
            widget.hear({"acks": {widget.model_id: [message["frame"], 0]}}, []) if "frame" in message else None
        )
        widget.hear({"hello": 1}, [])


def train_watched(lab: Any, steps: int = 10) -> None:
    """Train while a page looks, until so many steps are done; fail if they are not."""
    attend(lab)
    lab.player.start()
    try:
        for _ in range(400):
            if lab.player.frame(30).snapshot.step >= steps:
                break
    finally:
        lab.player.pause()
    assert lab.player.frame(30).snapshot.step >= steps


class Wire:
    """What a widget sends, and what it is told."""

    def __init__(self, widget: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.widget = widget
        self.sent: list[tuple[dict[str, Any], list[memoryview]]] = []
        monkeypatch.setattr(widget, "send", lambda message, buffers=(): self.sent.append((message, list(buffers))))

    def says(self, **message: Any) -> None:
        self.widget.hear(message)

    def acknowledge(self) -> None:
        self.says(acks={self.widget.model_id: [self.sent[-1][0]["frame"], 0]})

    def take(self) -> tuple[dict[str, Any], list[memoryview]]:
        assert len(self.sent) == 1
        return self.sent.pop()


def drawn(lab: Any, state: State | None = None, fails: bool = False) -> Frame:
    """Draw everything in a lab, and return the frame that was drawn.

    Args:
        lab: a dashboard.
        state: what the frame's run state is taken for (None: what it is).
        fails: whether the lab is expected to have an error to show.
    """
    frame: Frame = lab.player.frame(30)
    frame = frame if state is None else dataclasses.replace(frame, state=state)
    for view in lab._views:
        view.draw(frame)
    assert (lab.error is not None) == fails
    return frame


def layers(lab: Any, index: int, kind: type) -> list[Any]:
    """Return the layers of a kind in one of a lab's pictures."""
    return [layer for layer in lab._views[index].widget._layers if isinstance(layer, kind)]


def items(lab: Any) -> list[dict[str, Any]]:
    """Return the settings that a lab offers, as the page gets them."""
    return [item for group in lab._side._spec["groups"] for item in group["items"]]
