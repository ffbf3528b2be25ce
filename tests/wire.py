"""In place of a connection to a browser: what one widget sends, and what it is told."""

from typing import Any

import pytest

from p4lab.widgets.channel import Channel


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
