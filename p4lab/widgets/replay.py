"""A recorded run as one page that plays by itself: no kernel, no Python, no request to anywhere.

A page of a lab is what its widgets were told. So a replay is what they would be told at each of some moments, and the
same modules of js/ draw it. js/replay.ts takes the kernel's place.
"""

import base64
import dataclasses
import gzip
import hashlib
import html
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import ipywidgets
import numpy as np
from comm.base_comm import BaseComm
from numpy.typing import NDArray

from p4lab.errors import ReplayError
from p4lab.labs.lab import Bar, Board, Canvas, Lab, Number, Picture, Sight, View, noted
from p4lab.plots.format import DASH
from p4lab.plots.layers import Heatmap, Plot
from p4lab.training import Frame
from p4lab.training.config import value_text
from p4lab.training.player import spread
from p4lab.widgets.channel import FOLDER, STATIC, Channel
from p4lab.widgets.controls import ControlPanel
from p4lab.widgets.live_plot import LivePlot, library
from p4lab.widgets.panels import readouts, stopped_lanes
from p4lab.widgets.pictures import picture_widget

WIDTHS = (1, 4, 8)
"""Bytes of a number, as travels."""
MOMENTS = 60
"""Most moments of a replay; a run keeps 64."""
LARGEST = 5_000_000
"""Bytes that a replay may have."""
SHEETS = ("dashboard.css", "pictures.css", "formula.css", "replay.css")
QUIET = {"speed", "view"}
"""Settings of the live lab that mean nothing in a replay: how fast it goes, which curves are chosen."""

Said = list[Any]
"""A message, and the numbers of its buffers."""


class Tape(BaseComm):
    """In place of the connection between a widget and a page: keeps what is said."""

    def __init__(self) -> None:
        self.said: list[tuple[dict[str, Any], list[memoryview]]] = []
        super().__init__(target_name="p4lab.replay")

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **_: Any) -> None:
        """Keep a message to the page, leave out what Jupyter says besides."""
        if data and data.get("method") == "custom":
            self.said.append((data["content"], list(buffers or ())))

    def take(self) -> list[tuple[dict[str, Any], list[memoryview]]]:
        """Return what was said since this was asked last."""
        said, self.said = self.said, []
        return said


class Buffers:
    """Binary buffers, each kept once.

    Attributes:
        contents: their bytes; where that is shorter once it is compressed, those of numbers stand in planes: all first
            bytes, all second ones and so on.
        widths: of how many bytes the numbers are that were taken apart so (1: none were).
    """

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.contents: list[bytes] = []
        self.widths: list[int] = []

    def number(self, buffer: memoryview) -> int:
        """Return the number of a buffer with this content."""
        content = bytes(buffer)
        key = hashlib.sha256(content).digest()
        if key not in self._numbers:
            self._numbers[key] = len(self.contents)
            forms = {width: _planes(content, width) for width in WIDTHS if len(content) % width == 0}
            sizes = {width: len(zlib.compress(form, 1)) * (1 if width == 1 else 1.1) for width, form in forms.items()}
            width = min(sizes, key=sizes.__getitem__)
            self.contents.append(forms[width])
            self.widths.append(width)
        return self._numbers[key]


def _planes(content: bytes, width: int) -> bytes:
    return np.frombuffer(content, np.uint8).reshape(-1, width).T.tobytes()


def rounded(drawing: Any) -> Any:
    """Return a drawing of layers with as many digits as can be seen: half the bytes, once compressed.

    Colours of a heat map keep 10 significant bits (there are 256 shades), everything else 18.
    """
    if not isinstance(drawing, Plot):
        return drawing
    layers = [
        dataclasses.replace(
            layer,
            **{
                name: _rounded(array, 10 if isinstance(layer, Heatmap) else 18)
                for name, array in layer.described()[1].items()
            },
        )
        for layer in drawing.layers
    ]
    return dataclasses.replace(drawing, layers=layers)


def _rounded(array: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    fraction, exponent = np.frexp(array)
    return np.where(np.isfinite(array), np.ldexp(np.round(np.ldexp(fraction, bits)), exponent - bits), array)


@dataclasses.dataclass
class Drawn:
    """What one widget shows: what it is, its place, and at each moment what is to be shown (None: nothing)."""

    widget: Callable[..., tuple[Channel, Callable[[Any], None]]]
    place: str
    shows: list[Any]


def replay(lab: Lab[Any, Any], frames: Sequence[Frame], view: View) -> bytes:
    """Return a page (HTML, at most 5 MB) that shows these moments of a run, with a slider and a button that plays.

    Pictures and curves are those of the lab, and can be turned and looked at as there; what would need the kernel (rows
    of controls, a square to paint on) is left out, and settings are told as facts. If the page gets too large, it has
    fewer moments.

    Args:
        lab: what is shown.
        frames: the moments, the present last, as `p4lab.training.Player.recorded` gives them.
        view: what is chosen to look at.

    Raises:
        ReplayError: two moments are more than 5 MB.

    Cost: every picture is made once for every moment, as fine as when the run rests.
    """
    drawn = _draw(lab, frames, view)
    story = _story(lab, frames[-1], view)
    chosen = list(range(len(frames)))
    bare = len(_page(lab, story, b""))
    while len(page := _page(lab, story, _record(frames, drawn, chosen))) > LARGEST:
        if len(chosen) <= 2:
            raise ReplayError(
                f"the replay of {lab.title!r} has {len(page):,} bytes with its first and last moment alone: expected "
                f"{LARGEST:,} at most; make its pictures smaller"
            )
        fitting = int(0.97 * len(chosen) * (LARGEST - bare) / (len(page) - bare))
        chosen = spread(range(len(frames)), max(2, fitting))
    return page


def _draw(lab: Lab[Any, Any], frames: Sequence[Frame], view: View) -> list[Drawn]:
    """Make all pictures of all moments."""
    looked = [picture for picture in lab.pictures if not isinstance(picture.base, Bar | Canvas)]
    pictures: dict[str, list[Any]] = {picture.area: [] for picture in looked}
    numbers: list[dict[str, Any]] = []
    curves: list[Any] = []
    memory: dict[str, Any] = {}  # of its own: the living pictures keep theirs
    try:
        for frame in frames:
            sight: Sight[Any, Any] = Sight(frame, view, memory)
            with noted(f"at step {frame.snapshot.step}, for the replay"):
                for picture in looked:
                    pictures[picture.area].append(rounded(lab.draw(picture, sight)))
                numbers.append({number.name: lab.read(number, sight) for number in lab.numbers})
                curves.append(lab.figure(sight))
    finally:
        for _, held in memory.values():
            if hasattr(held, "close"):
                held.close()
    # What nobody ever sees is left out: a picture that is not for this run, the speed of a run that rests.
    looked = [picture for picture in looked if any(drawing is not None for drawing in pictures[picture.area])]
    told = [number for number in lab.numbers if any(values[number.name] != DASH for values in numbers)]
    return [
        Drawn(lambda **options: _readouts(told, **options), "numbers", numbers),
        *(Drawn(_widget_of(picture), _place_of(picture), pictures[picture.area]) for picture in looked),
        Drawn(_plot, "curves", curves),
    ]


def _widget_of(picture: Picture) -> Callable[..., tuple[Channel, Callable[[Any], None]]]:
    base: Any = picture.base
    return lambda **options: picture_widget(base, **options)


def _place_of(picture: Picture) -> str:
    return f"{'board' if isinstance(picture.base, Board) else 'picture'} {picture.area}"


def _plot(**options: Any) -> tuple[Channel, Callable[[Any], None]]:
    plot = LivePlot(**options)
    return plot, plot.show


def _readouts(numbers: Sequence[Number], **options: Any) -> tuple[Channel, Callable[[Any], None]]:
    panel = ControlPanel([readouts(numbers)], lambda name, value: None, direction="row", **options)
    return panel, panel.show


# --- what the widgets are told ----------------------------------------------------------------------------------------


@contextmanager
def _taped(drawn: Drawn) -> Iterator[tuple[Channel, Callable[[Any], None], Tape]]:
    """Make a widget that talks to a tape, and close it in the end."""
    tape = Tape()
    layout = ipywidgets.Layout(comm=Tape())
    widget, show = drawn.widget(comm=tape, layout=layout)
    try:
        yield widget, show, tape
    finally:
        widget.close()
        layout.close()


def _record(frames: Sequence[Frame], drawn: Sequence[Drawn], chosen: Sequence[int]) -> bytes:
    """Return what all widgets are told at the chosen moments: the text's length, the text, and all buffers."""
    buffers = Buffers()
    widgets = [_told(one, chosen, buffers) for one in drawn]
    steps = [frames[k].snapshot.step for k in chosen]
    sizes = [[len(content), width] for content, width in zip(buffers.contents, buffers.widths, strict=True)]
    text = json.dumps(plain({"steps": steps, "widgets": widgets, "buffers": sizes}), separators=(",", ":"))
    encoded = text.encode()
    return struct.pack("<I", len(encoded)) + encoded + b"".join(buffers.contents)


def _told(drawn: Drawn, chosen: Sequence[int], buffers: Buffers) -> dict[str, Any]:
    """Return what a widget is told.

    That is, for each moment: the number of its state, which holds all that a page needs that comes to this moment from
    anywhere (null: it is not shown), and what a page is told that comes from the moment before.
    """
    states: list[Said] = []
    at: list[int | None] = []
    news: list[list[Said]] = []

    def said(message: dict[str, Any], content: Iterable[memoryview]) -> Said:
        kept = {key: value for key, value in message.items() if key not in ("frame", "awaited", "channel")}
        return [kept, [buffers.number(buffer) for buffer in content]]

    with _taped(drawn) as (widget, show, tape):
        widget.hear({"hello": 1})
        tape.take()
        for k in chosen:
            if drawn.shows[k] is None:
                at.append(None)
                news.append([])
                continue
            with noted(f"in the {drawn.place}, for the replay"):
                show(drawn.shows[k])
            news.append([said(*heard) for heard in tape.take()])
            if news[-1] or not states:
                widget.hear({"hello": 1})
                state = said(*tape.take()[0])
                if state not in states[-1:]:
                    states.append(state)
                else:  # something was said that changes nothing
                    news[-1] = []
            at.append(len(states) - 1)
        return {"kind": type(widget).__name__, "place": drawn.place, "states": states, "at": at, "news": news}


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite are null, what can be gone through is a list."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return [plain(item) for item in (value.tolist() if hasattr(value, "tolist") else value)]


# --- the page ---------------------------------------------------------------------------------------------------------


def _story(lab: Lab[Any, Any], present: Frame, view: View) -> dict[str, Any]:
    """Return what is told of the run as a whole."""
    config = present.snapshot.config
    stopped = stopped_lanes(present, lab.lane_names(config))
    return {
        "lab": lab.name,
        "title": lab.title,
        "subtitle": lab.subtitle,
        "run": next(run.name for run in present.runs if run.active),
        "config": config.to_text(),
        "note": present.message or stopped,
        "facts": [[heading, facts] for heading, names in _headings(lab) if (facts := _facts(lab, names, config, view))],
    }


def _headings(lab: Lab[Any, Any]) -> Iterator[tuple[str, Sequence[str]]]:
    yield from (*lab.groups.items(), *lab.more.items())
    for picture in lab.pictures:
        if isinstance(picture.base, Bar):
            yield "Pictures", picture.base.items


def _facts(lab: Lab[Any, Any], names: Iterable[str], config: Any, view: View) -> list[list[str]]:
    """Return labels and values of settings; of nothing but switches only those that are on."""
    values, facts, switches = lab.values(config, view), [], 0
    for name in names:
        setting, value = lab.setting(name), values.get(name)
        if setting is None or not setting.label or name in QUIET:
            continue
        text = setting.offered(config, value).get(value)
        if isinstance(value, bool):
            text = text or ("yes" if value else "no")
            switches += 1
        elif value is None:
            text = text or DASH
        facts.append([setting.label, f"{text or value_text(value)} {setting.unit}".rstrip()])
    return [fact for fact in facts if fact[1] != "no"] if 1 < switches == len(facts) else facts


def _page(lab: Lab[Any, Any], story: dict[str, Any], recording: bytes) -> bytes:
    script = (STATIC / "replay.js").read_text(encoding="utf-8")
    sheet = "\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SHEETS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )

    def block(name: str, content: bytes) -> str:
        return f'<script type="text/plain" id="p4-{name}">{base64.b64encode(content).decode()}</script>\n'

    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="p4lab">\n'
        f"<title>{html.escape(lab.title)}</title>\n<style>\n{sheet}</style>\n</head>\n"
        "<body>\n<noscript>This page draws with JavaScript, which is turned off here.</noscript>\n"
        + block("story", gzip.compress(json.dumps(story).encode(), mtime=0))
        + block("recording", gzip.compress(recording, 6, mtime=0))
        + block("library", library())
        + f'<script type="module">{script}</script>\n</body>\n</html>\n'
    ).encode()
