"""A replay taken apart: what its page holds."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from p4lab.plots.layers import Layer


class Replay:
    """What a page holds.

    Args:
        path: the file.

    Attributes:
        text: of the whole file.
        story: title, settings and so on.
        steps: of its moments.
        widgets: what each widget is told, by place.
    """

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        self.text = path.read_text(encoding="utf-8")
        self.story: dict[str, Any] = json.loads(gzip.decompress(self._block("story")))
        recording = gzip.decompress(self._block("recording"))
        (length,) = struct.unpack("<I", recording[:4])
        told = json.loads(recording[4 : 4 + length], parse_constant=lambda name: 1 / 0)
        self.steps: list[int] = told["steps"]
        self.widgets: dict[str, dict[str, Any]] = {widget["place"]: widget for widget in told["widgets"]}
        self.buffers, at = [], 4 + length
        for size, width in told["buffers"]:
            planes = np.frombuffer(recording[at : at + size], np.uint8)
            self.buffers.append(planes.reshape(width, -1).T.tobytes())
            at += size
        assert at == len(recording)

    def _block(self, name: str) -> bytes:
        (content,) = re.findall(f'<script type="text/plain" id="p4-{name}">([^<]*)</script>', self.text)
        return base64.b64decode(content)

    @property
    def policy(self) -> str:
        """What the page allows itself to load."""
        (policy,) = re.findall('<meta http-equiv="Content-Security-Policy" content="([^"]*)">', self.text)
        return html.unescape(policy)

    def state(self, place: str, moment: int) -> dict[str, Any] | None:
        """Return what a widget shows at a moment, the arrays of layers in the place of their numbers."""
        widget = self.widgets[place]
        return None if widget["at"][moment] is None else self.read(widget["states"][widget["at"][moment]])

    def read(self, said: list[Any]) -> dict[str, Any]:
        """Return a message with its arrays."""
        message, places = said
        buffers = [self.buffers[place] for place in places]
        layers = [layer and self._layer(layer, buffers) for layer in message.get("layers", [])]
        return {**message, "layers": layers, "content": buffers}

    @staticmethod
    def _layer(parcel: dict[str, Any], buffers: list[bytes]) -> dict[str, Any]:
        arrays = {
            name: np.frombuffer(buffers[place], np.float32).reshape(shape)
            for name, (place, shape) in parcel["arrays"].items()
        }
        return {**parcel, **arrays}


def looks_like(told: dict[str, Any], layer: Layer) -> bool:
    """Whether a layer in a replay is one of a drawing, but for digits that nobody sees."""
    plain, arrays = layer.described()
    bits = 10 if plain["kind"] == "Heatmap" else 18
    texts = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
    return all(told[name] == text for name, text in texts.items()) and all(
        np.allclose(told[name], array, rtol=2.0**-bits, atol=1e-30, equal_nan=True) for name, array in arrays.items()
    )
