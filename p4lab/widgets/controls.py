"""Controls and readouts as plain data, and the panel that shows them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from p4lab.errors import OptionError
from p4lab.labs.lab import MOST_PAGES, PLACES
from p4lab.training.config import value_text
from p4lab.widgets.channel import FOLDER, STATIC, Channel

Kind = Literal[
    "title",
    "tabs",
    "button",
    "badge",
    "readout",
    "message",
    "slider",
    "choice",
    "segments",
    "toggle",
    "number",
    "text",
    "scrubber",
    "runs",
    "table",
    "upload",
    "cards",
]


def _one_page(hidden: str, place: str, pages: Sequence[int]) -> str:
    """Return the rule that hides what is on some pages while the lab's number for the place is another."""
    others = "".join(f':not([data-{place}="{page}"])' for page in pages)
    # Before anything was chosen there is no number, and the first page is seen.
    return f".p4-lab{f'[data-{place}]' if 0 in pages else ''}{others} {hidden} {{ display: none !important; }}"


STYLE = "\n".join(
    [
        (FOLDER / "dashboard.css").read_text(encoding="utf-8"),
        *(_one_page(f".p4-{place}-{page}", place, [page]) for place in PLACES for page in range(MOST_PAGES)),
        _one_page(".p4-curves", "below", [0, 1]),
    ]
)
"""How all labs look; of each place with pages the one is seen whose number stands on the lab."""


@dataclass(frozen=True)
class Item:
    """A control or a readout.

    Attributes:
        kind: what it looks like.
        name: what it is called in messages.
        label: what people read.
        unit: behind its value.
        help: shown when the pointer rests on it.
        choices: values to choose from (slider: ascending; choice; segments; tabs); file endings (upload); of cards the
            title and the text of each, and whether it can be set up.
        texts: how they read (empty: as they are).
        live: whether it acts at once; if not, it is labelled so.
        look: of a button: "plain", "primary" or "attention"; of a text: "copy" adds a button that copies it; of a
            slider: "play" adds a button that moves it to its end, notch by notch; of a toggle: "chip" makes it a word
            to click on; of any control in a column: "wide" gives it a line of its own.
        color: of the line beside a readout.
    """

    kind: Kind
    name: str
    label: str = ""
    unit: str = ""
    help: str = ""
    choices: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    live: bool = True
    look: str = "plain"
    color: str = ""

    def __post_init__(self) -> None:
        if not self.texts:
            object.__setattr__(self, "texts", tuple(map(value_text, self.choices)))
        if len(self.texts) != len(self.choices):
            raise OptionError(f"{self.name}: {len(self.texts)} texts for {len(self.choices)} choices")


@dataclass(frozen=True)
class Group:
    """Items under one heading; of a panel with tabs, on one of its pages."""

    label: str
    items: Sequence[Item] = field(default_factory=tuple)
    page: int | None = None


class ControlPanel(Channel):
    """Show controls and readouts, and report what was touched.

    Args:
        groups: what to show.
        touched: called with name and new value, in a thread of the kernel: put a command on a queue and return. The
            value of an "upload" is the file's content, that of a "runs" table ``{"action": ..., "number": ...}`` with
            the action "select", "remove" or "rename" (then with "name").
        direction: "row" or "column".
    """

    _esm = STATIC / "panel.js"
    _css = STYLE

    def __init__(
        self,
        groups: Sequence[Group],
        touched: Callable[[str, Any], None],
        direction: Literal["row", "column"] = "column",
        **options: Any,
    ) -> None:
        self._spec = {"direction": direction, "groups": [dataclasses.asdict(group) for group in groups]}
        self._touched = touched
        self._state: dict[str, Any] = {}
        super().__init__(**options)

    def show(self, values: dict[str, Any], disabled: Sequence[str] = (), pending: Sequence[str] = ()) -> None:
        """Show values by name, and which items are disabled or wait for a reset; sends nothing if all is as before."""
        state = {"values": values, "disabled": list(disabled), "pending": list(pending)}
        with self._lock:
            if state != self._state:
                self._state = state
                self._post(state)

    def download(self, name: str, content: bytes) -> None:
        """Let the browser save a file."""
        self.send({"download": name}, [memoryview(content)])

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        return {"spec": self._spec, **self._state}, []

    def hear(self, message: dict[str, Any], buffers: Sequence[Any] = ()) -> None:
        """Take in what the browser says."""
        if "upload" in message:
            self._touched(message["upload"], bytes(buffers[0]))
        else:
            super().hear(message, buffers)

    def _heard(self, message: dict[str, Any]) -> None:
        if "set" in message:
            name, value = message["set"]
            self._touched(name, value)
