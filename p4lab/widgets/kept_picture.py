"""The picture of a lab that stays in a saved notebook, for those who read it without a kernel."""

import base64
from collections.abc import Sequence
from typing import Any

from IPython import get_ipython

from p4lab.training import State
from p4lab.widgets.channel import FOLDER, STATIC, BrowserError, Channel

EVERY = 20.0
"""Seconds between two pictures while a run goes on."""
LIMIT = 60_000
"""Bytes of a picture at most."""
PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG file begins."""


class KeptPicture(Channel):
    """Let the browser send a small PNG of what a lab shows, and publish it in an output of its own beside the lab's.

    The output is there, empty, as soon as the lab is displayed (`place`), and becomes the picture when a run pauses or
    fails, and now and then while it runs. The living lab next to it hides it; who opens the saved notebook without the
    kernel sees it. A page that was loaded anew while the kernel went on keeps the picture that it has: JupyterLab
    brings new ones to the pages that have run the cell themselves.

    Cost: in the browser some 0.2 s per picture; in the kernel one message of at most 60 kB.

    Attributes:
        png: the last picture, None before the first.
    """

    _esm = STATIC / "kept_picture.js"
    _css = FOLDER / "kept_picture.css"

    def __init__(self, **options: Any) -> None:
        self.png: bytes | None = None
        self._state = State.IDLE
        super().__init__(**options)
        self.display(False)

    def place(self) -> bool:
        """Publish the output for the picture in the cell that is being run; False if no notebook is there."""
        if getattr(get_ipython(), "kernel", None) is None:
            return False
        self._publish(update=False)
        return True

    def show(self, state: State) -> None:
        """Tell the page what the run does; the page knows when to take a picture."""
        self._state = state
        self._post({"state": str(state)})

    def hear(self, message: dict[str, Any], buffers: Sequence[Any] = ()) -> None:
        """Take in what the browser says; anything but a PNG of at most `LIMIT` bytes becomes the lab's `error`."""
        if "picture" not in message:
            super().hear(message, buffers)
            return
        png = bytes(buffers[0])
        if not png.startswith(PNG) or len(png) > LIMIT:
            self.error = self.error or BrowserError(
                f"the page sent {len(png)} bytes that begin with {png[:8]!r} as the picture of the lab: expected a PNG "
                f"of at most {LIMIT} bytes. Load the page again"
            )
        elif png != self.png:
            self.png = png
            self._publish(update=True)

    def _greeting(self) -> tuple[dict[str, Any], list[memoryview]]:
        return {"state": str(self._state), "limit": LIMIT}, []

    def _publish(self, update: bool) -> None:
        shell = get_ipython()
        data = {} if self.png is None else {"image/png": base64.b64encode(self.png).decode()}
        shell.display_pub.publish(data, transient={"display_id": f"p4lab-{self.model_id}"}, update=update)
