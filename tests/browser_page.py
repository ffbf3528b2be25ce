"""A notebook in a browser page, with what a user does to it and sees of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from browser_server import Server
from layout import LOOK

WAIT = 120_000
"""Milliseconds until the page is given up."""

HAS_KERNEL = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    return panel?.context?.isReady && panel.sessionContext?.session?.kernel && true;
}"""
EXECUTE = """async (code) => {
    const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const future = kernel.requestExecute({ code, store_history: false, silent: false });
    let text = "";
    future.onIOPub = ({ header, content }) => {
        if (header.msg_type === "stream") text += content.text;
        if (header.msg_type === "error") text += content.evalue;
    };
    await future.done;
    return text.trim();
}"""
CELLS = "() => window.jupyterapp.shell.currentWidget.content.widgets.length"
SHOWS_WIDGET = """(index) => window.jupyterapp.shell.currentWidget.content.widgets[index].model.outputs?.toJSON()
    .some(({ data }) => data && 'application/vnd.jupyter.widget-view+json' in data)"""
FAILED_CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .flatMap((cell) => cell.model.type === "code" ? cell.model.outputs.toJSON() : [])
    .filter((output) => output.output_type === "error")
    .map((output) => `${output.ename}: ${output.evalue}`)"""
COUNT = "+{lab}.querySelector('[data-name=count] .p4-value').innerText.replaceAll(',', '')"
SLIDER = "node => [+node.value, node.parentElement.querySelector('output').innerText]"
RUNS = "Runs and files"
"""Title of the page with the table of runs."""
# On which page of which place an item stands: the place, and the number of its page; null if it is on all of them.
PAGE_OF = """item => {
    for (let node = item; !node.matches('.p4-lab'); node = node.parentElement) {
        const found = node.className.match(/\\bp4-(side|pictures|below)-(\\d)\\b/);
        if (found) return found.slice(1);
    }
    return null;
}"""
DRAWN = """() => [...document.querySelectorAll('.p4-lab .p4-pictures > :not(.p4-panel)')]
    .every((node) => !node.checkVisibility() || node.dataset.frames)"""
THREADS = "sorted(t.name for t in __import__('threading').enumerate() if t.name.startswith('p4lab'))"
# JupyterLab's widget manager logs these while it restores what a reloaded page showed before; then it shows it again.
HARMLESS = ("widget model not found",)


@dataclass
class Notebook:
    """A notebook in a page.

    Attributes:
        page: Playwright's `Page`.
        server: the JupyterLab behind it.
        pictures: where `screenshot` puts its files.
        lab: which of the notebook's labs is meant, counted from 0.
        errors: what the page's JavaScript raised or logged as an error.
    """

    page: Any
    server: Server
    pictures: Path = Path()
    lab: int = 0
    errors: list[str] = field(default_factory=list)

    PICTURE: ClassVar[str] = ".p4-lab [data-frames]:not(.p4-plot)"
    """The fast pictures: their ``data-frames`` is the number of the newest frame from the kernel that was drawn."""

    # --- the notebook ---

    def open(self, name: str) -> None:
        """Open a notebook and wait for its kernel."""
        address = f"{self.server.url}/lab/tree/{name}?token={self.server.token}&reset"
        self.page.goto(address, wait_until="domcontentloaded")
        self.wait_until_live()

    def wait_until_live(self) -> None:
        """Wait until notebook and kernel are there."""
        self.page.wait_for_function(HAS_KERNEL, timeout=WAIT)
        self.page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.ready")

    def command(self, name: str, **arguments: Any) -> None:
        """Execute a command of JupyterLab and wait for its end."""
        execute = "([name, args]) => window.jupyterapp.commands.execute(name, args).then(() => null)"
        self.page.evaluate(execute, [name, arguments])

    def run_all(self) -> None:
        """Run every cell.

        Raises:
            AssertionError: a cell failed, with what it says.
        """
        self.command("notebook:run-all-cells")
        self._check_cells()

    def run_to_lab(self) -> None:
        """Run the cells from the first to the one that shows a lab, and no more.

        Raises:
            AssertionError: a cell failed, or there is no lab.
        """
        for index in range(int(self.page.evaluate(CELLS))):
            self.command("notebook:run-cell-and-select-next")
            self._check_cells()
            if self.page.evaluate(SHOWS_WIDGET, index):
                return
        raise AssertionError("none of the cells shows a lab")

    def _check_cells(self) -> None:
        if failed := self.page.evaluate(FAILED_CELLS):
            raise AssertionError("\n".join(failed))

    def execute(self, code: str) -> str:
        """Return what the kernel prints for some code, which is not put into the notebook."""
        return str(self.page.evaluate(EXECUTE, code))

    def ask(self, expression: str) -> str:
        """Return what the kernel prints for an expression."""
        return self.execute(f"print({expression})")

    def set_theme(self, theme: Literal["light", "dark"]) -> None:
        """Switch JupyterLab's theme and wait until the page wears it."""
        self.command("apputils:change-theme", theme=f"JupyterLab {theme.title()}")
        self.wait_for("light => document.body.dataset.jpThemeLight === light", str(theme == "light").lower())

    # --- the lab's parts ---

    def button(self, text: str) -> Any:
        """Find a button of the lab."""
        return self._lab().locator("button.p4-button", has_text=text)

    def item(self, name: str) -> Any:
        """Find a control or readout of the lab."""
        return self._lab().locator(f'.p4-item[data-name="{name}"]')

    def reach(self, name: str) -> Any:
        """Turn to the page that a control stands on, as a user does who looks for it, and return the control."""
        item = self.item(name)
        item.wait_for(state="attached")
        if found := item.evaluate(PAGE_OF):
            tabs = self.item(f"page:{found[0]}").get_by_role("tab")
            if tabs.count():  # a place with one page has no tabs
                self._turn(tabs.nth(int(found[1])))
        return item

    def bring(self, part: Any) -> None:
        """Scroll to a part of a lab for the mouse: not under the header, which stays in sight and may cover it."""
        part.evaluate("node => node.closest('.p4-lab').scrollIntoView({ block: 'start' })")
        part.scroll_into_view_if_needed()
        self.page.wait_for_timeout(100)

    def turn(self, place: str, page: str) -> None:
        """Turn to a page of a place ("side", "pictures", "below"), by its title."""
        self._turn(self.item(f"page:{place}").get_by_role("tab", name=page, exact=True))

    def _turn(self, tab: Any) -> None:
        if tab.get_attribute("aria-selected") != "true":
            tab.click()

    def _lab(self) -> Any:
        return self.page.locator(".p4-lab").nth(self.lab)

    def count(self) -> int:
        """Return the number of steps that the header shows."""
        return int(self.item("count").locator(".p4-value").inner_text().replace(",", ""))

    def state(self) -> str:
        """Return the run state that the header shows."""
        return str(self.item("state").inner_text()).strip()

    def told(self, name: str) -> str:
        """Return what a number in the header says, without its unit."""
        return str(self.item(name).locator(".p4-value").inner_text())

    def points(self) -> int:
        """Return the number of points of the raw loss curve, as plotly has them."""
        return int(self.page.evaluate("() => document.querySelector('.p4-plot .js-plotly-plot').data[0].x.length"))

    # --- what a user does ---

    def train(self, steps: int = 1) -> None:
        """Press Start and wait until the header shows this many steps."""
        self.button("Start").click()
        self.wait_for_state("running")
        self.wait_for_count(">=", steps)

    def pause(self) -> int:
        """Press Pause, wait until the last frames are there, and return the number of steps."""
        self.button("Pause").click()
        self.wait_for_state("paused")
        self.page.wait_for_timeout(700)
        return self.count()

    def reset(self) -> None:
        """Press Reset and wait until the run stands at step 0."""
        self.button("Reset").click()
        self.wait_for_state("idle")
        self.wait_for_count("===", 0)

    def choose(self, name: str, text: str) -> None:
        """Choose from a menu by what is read there."""
        self.reach(name).locator("select").select_option(label=text)

    def write(self, name: str, text: str) -> None:
        """Write into a field, in place of what stands there, and press Enter."""
        field = self.reach(name).locator("input")
        field.fill(text)
        field.press("Enter")

    def press(self, name: str, key: str) -> None:
        """Press a key on a control, as in ``press("learning_rate", "ArrowRight")``."""
        control = self.reach(name).locator("input, select, button").first
        control.focus()
        control.press(key)

    def drag_to(self, name: str, to: Literal["min", "max"]) -> str:
        """Drag a slider to one of its ends with the mouse, and return the value that it then shows."""
        slider = self.reach(name).locator("input")
        return self._drag(slider, 0.0 if to == "min" else 1.0)

    def drag_by(self, name: str, notches: int) -> str:
        """Drag a slider by some notches with the mouse, and return the value that it then shows."""
        slider = self.reach(name).locator("input")
        return self._drag(slider, _share(slider) + notches / float(slider.get_attribute("max")))

    def _drag(self, slider: Any, share: float) -> str:
        self.bring(slider)
        box = slider.bounding_box()
        thumb = 16
        y, width = box["y"] + box["height"] / 2, box["width"] - thumb
        mouse, left = self.page.mouse, box["x"] + thumb / 2
        mouse.move(left + width * _share(slider), y)
        mouse.down()
        mouse.move(left + width * min(1.0, max(0.0, share)), y, steps=8)
        mouse.up()
        # On a slow page an older value, which was on its way from the kernel, may be seen for a moment.
        goal, text = round(min(1.0, max(0.0, share)) * float(slider.get_attribute("max"))), ""
        for _ in range(50):
            value, text = slider.evaluate(SLIDER)
            if value == goal:
                break
            self.page.wait_for_timeout(100)
        return str(text)

    # --- waiting ---

    def wait_for(self, condition: str, argument: Any = None) -> Any:
        """Wait until a JavaScript function returns something true."""
        return self.page.wait_for_function(condition, arg=argument, timeout=WAIT)

    def wait_for_state(self, state: str) -> None:
        """Wait until the header shows a run state."""
        self._lab().locator(f'.p4-badge[data-state="{state}"]').wait_for(timeout=WAIT)

    def wait_for_count(self, comparison: str, steps: int) -> None:
        """Wait until the step that the header shows compares so with ``steps``, as in ``">", 10``."""
        count = COUNT.format(lab=f"document.querySelectorAll('.p4-lab')[{self.lab}]")
        self.wait_for(f"steps => {count} {comparison} steps", steps)

    def wait_for_message(self, part: str) -> None:
        """Wait until the message below the header contains a text."""
        self.wait_for("part => document.querySelector('.p4-message').innerText.includes(part)", part)

    def wait_for_runs(self, number: int) -> None:
        """Turn to the table of runs, and wait until it lists so many."""
        self.turn("below", RUNS)
        self.wait_for("n => document.querySelectorAll('[data-name=runs] input').length === n", number)

    def wait_for_picture(self) -> None:
        """Wait until a frame from the kernel has been drawn on every picture that is shown."""
        self.wait_for(DRAWN)

    # --- looking ---

    def screenshot(self, name: str) -> Path:
        """Save what the page shows as a PNG, and return where."""
        path = self.pictures / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def look(self) -> dict[str, Any]:
        """Return where the parts of the lab are, and what of them is cut off or covered, as `layout.LOOK` finds it."""
        found: dict[str, Any] = self.page.evaluate(LOOK)
        return found

    def problems(self, *labs: str) -> list[str]:
        """Return what went wrong: page, kernel, and the labs of these names in the notebook ("lab" if none is given).

        That is JavaScript errors, output on stderr, a lab's error, or other threads than one trainer and one pump for
        each lab.
        """
        names = labs or ("lab",)
        found = [f"page: {error}" for error in self.errors]
        stderr = self.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')
        found += [f"stderr: {text}" for text in stderr.all_inner_texts()]
        for name in names:
            error = self.ask(f"{name}.error")
            found += [] if error == "None" else [f"{name}: {error}"]
        threads, expected = self.ask(THREADS), str(["p4lab-pump"] * len(names) + ["p4lab-trainer"] * len(names))
        return found + ([] if threads == expected else [f"threads: {threads}, expected {expected}"])

    def check_clean(self, *labs: str) -> None:
        """Fail if `problems` finds any.

        Raises:
            AssertionError: with all of them.
        """
        found = self.problems(*labs)
        if found:
            raise AssertionError("\n".join(found))


@contextmanager
def opened(browser: Any, server: Server, width: int = 1440, height: int = 1000) -> Iterator[Notebook]:
    """Open a fresh page that notes its errors; close it and end the kernels afterwards.

    Args:
        browser: Playwright's `Browser`.
        server: the JupyterLab to look at.
        width: of the window in CSS pixels.
        height: of the window in CSS pixels.
    """
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    notebook = Notebook(page, server)
    page.on("pageerror", lambda error: notebook.errors.append(str(error)))
    page.on("console", lambda message: notebook.errors.extend(_complaints(message)))
    try:
        yield notebook
    finally:
        context.close()
        server.end_kernels()


def _complaints(message: Any) -> list[str]:
    # Failed requests of JupyterLab itself are not ours.
    serious = message.type == "error" and "Error" in message.text
    return [message.text] if serious and not any(text in message.text for text in HARMLESS) else []


def _share(slider: Any) -> float:
    return float(slider.input_value()) / float(slider.get_attribute("max"))
