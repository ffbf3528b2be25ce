"""A notebook in a browser page, with what a user does to it (for the browser tests)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAIT = 60_000
"""Milliseconds until a test gives up waiting for the page."""

HAS_KERNEL = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    return panel?.context?.isReady && panel.sessionContext?.session?.kernel && true;
}"""


@dataclass
class Server:
    """A running JupyterLab: where it is, and the folder that it shows."""

    url: str
    token: str
    folder: Path
    settings: Path


@dataclass
class Notebook:
    """A notebook in a page, with what a user does to it."""

    page: Any
    server: Server
    errors: list[str] = field(default_factory=list)

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        self.page.goto(
            f"{self.server.url}/lab/tree/{name}?token={self.server.token}&reset", wait_until="domcontentloaded"
        )
        self.wait_until_live()

    def wait_until_live(self) -> None:
        """Wait until notebook and kernel are there."""
        self.page.wait_for_function(HAS_KERNEL, timeout=WAIT)
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")

    def command(self, name: str) -> None:
        """Execute a command of JupyterLab on the notebook and wait for its end."""
        self.page.evaluate("name => window.jupyterapp.commands.execute(name).then(() => null)", name)

    def run_all(self) -> None:
        """Run every cell."""
        self.command("notebook:run-all-cells")

    def ask(self, expression: str) -> str:
        """Return what the kernel prints for an expression (the code is not put into the notebook)."""
        return str(
            self.page.evaluate(
                """async (code) => {
                    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                    const future = kernel.requestExecute({ code, store_history: false, silent: false });
                    let text = "";
                    future.onIOPub = ({ header, content }) => {
                        if (header.msg_type === "stream") text += content.text;
                        if (header.msg_type === "error") text += content.evalue;
                    };
                    await future.done;
                    return text.trim();
                }""",
                f"print({expression})",
            )
        )

    def button(self, text: str) -> Any:
        """Find a button of the lab."""
        return self.page.locator("button.p4-button", has_text=text)

    def item(self, name: str) -> Any:
        """Find a control or readout of the lab."""
        return self.page.locator(f'.p4-item[data-name="{name}"]')

    def count(self) -> int:
        """Return the number of steps that the header shows."""
        return int(self.item("count").locator(".p4-value").inner_text().replace(",", ""))

    def state(self) -> str:
        """Return the run state that the header shows."""
        return str(self.item("state").inner_text()).strip()

    def wait_for_state(self, state: str) -> None:
        """Wait until the header shows a run state."""
        self.page.wait_for_selector(f'.p4-badge[data-state="{state}"]', timeout=WAIT)

    def points(self) -> int:
        """Return the number of points of the raw loss curve, as plotly has them."""
        return int(self.page.evaluate("() => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length"))

    def wait_for(self, condition: str, argument: Any = None) -> Any:
        """Wait until a JavaScript function returns something true."""
        return self.page.wait_for_function(condition, arg=argument, timeout=WAIT)

    def wait_for_count(self, comparison: str, steps: int) -> None:
        """Wait until the step that the header shows compares so with ``steps``, as in ``">", 10``."""
        shown = "+document.querySelector('[data-name=count] .p4-value').innerText.replaceAll(',', '')"
        self.wait_for(f"steps => {shown} {comparison} steps", steps)

    def picture(self) -> str:
        """Return the samples' canvas as a data URL."""
        return str(self.page.evaluate("() => document.querySelector('.p4-grid canvas').toDataURL()"))
