"""A browser that is not there: it says hello to a lab's widgets and acknowledges every frame at once."""

from typing import Any


def attend(lab: Any) -> None:
    for widget in (view.widget for view in lab._views):
        widget.send = lambda message, buffers=(), widget=widget: (
            widget._receive(widget, {"acks": {widget.model_id: message["frame"]}}, []) if "frame" in message else None
        )
        widget._receive(widget, {"hello": 1}, [])
