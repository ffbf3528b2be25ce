"""A notebook in a browser page, for the tests."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from browser_page import RUNS, WAIT, Notebook
from browser_server import Server

__all__ = [
    "CANVAS",
    "NOTEBOOKS",
    "RUNS",
    "WAIT",
    "Notebook",
    "Server",
    "becomes",
    "branch_with",
    "check_fit",
    "count_beyond",
    "download",
    "drag_handle",
    "drawn",
    "redrawn",
    "restored",
    "start_lab",
    "still",
    "to_now",
    "touch_all",
]

NOTEBOOKS = (
    "00_start_here",
    "01_p4inv_live",
    "02_parameter_space",
    "03_break_it",
    "04_linear_problems",
    "05_race",
    "06_densities_2d",
    "07_swaps",
    "08_properties",
    "09_orthogonal_rnn",
    "10_boltzmann_2d",
    "11_alanine_dipeptide",
    "12_temperature",
    "14_images",
)
"""Notebooks whose labs have to bear everything."""
# The first picture of a lab.
CANVAS = ".p4-lab canvas"
# The settings at the side, and the rows of controls among the pictures where a lab has some.
PANELS = (
    "[panel for part in lab.root.children[0].children for panel in (part, *getattr(part, 'children', ()))"
    " if {'p4-side', 'p4-bar'} & {*panel._dom_classes}]"
)
# Whether a canvas shows more than a new one of its size.
DRAWN = """s => {
    const canvas = document.querySelector(s), blank = document.createElement("canvas");
    Object.assign(blank, { width: canvas?.width, height: canvas?.height });
    return canvas && canvas.toDataURL() !== blank.toDataURL();
}"""
# What a quick machine shows: numbers have to fit there, too.
FAST = "() => document.querySelectorAll('[data-name=rate] .p4-value').forEach(node => { node.textContent = '1,234'; })"


def start_lab(notebook: Notebook, name: str, whole: bool = True) -> None:
    """Open a notebook, run it, and wait until its lab is idle and has drawn curves and pictures.

    Args:
        notebook: a fresh page.
        name: of the file.
        whole: whether the cells after the lab are run, too: in some notebooks they take a minute.
    """
    notebook.open(name)
    if whole:
        notebook.run_all()
    else:
        notebook.run_to_lab()
    notebook.wait_for_state("idle")
    notebook.page.wait_for_selector(".p4-plot .main-svg")
    notebook.wait_for_picture()


def becomes(notebook: Notebook, expression: str, value: Any) -> None:
    """Wait until an expression in the kernel has a value."""
    for _ in range(200):
        found = notebook.ask(expression)
        if found == str(value):
            return
        notebook.page.wait_for_timeout(100)
    raise AssertionError(f"{expression} is {found}, not {value}")


def drawn(notebook: Notebook, selector: str) -> str:
    """Wait until something has been drawn on a canvas, and return what it shows, as a data URL."""
    notebook.wait_for(DRAWN, selector)
    return str(notebook.page.evaluate("s => document.querySelector(s).toDataURL()", selector))


def redrawn(notebook: Notebook, selector: str, before: str) -> str:
    """Wait until a canvas shows something else than before, and return that."""
    notebook.wait_for("([s, before]) => document.querySelector(s).toDataURL() !== before", [selector, before])
    return drawn(notebook, selector)


def restored(notebook: Notebook, selector: str, before: str) -> None:
    """Wait until a canvas shows again what it did."""
    notebook.wait_for("([s, before]) => document.querySelector(s).toDataURL() === before", [selector, before])


def to_now(notebook: Notebook, last: int) -> None:
    """Press Now, and wait until the header and the slider of time are back there: before, Home would not move it."""
    notebook.button("Now").click()
    notebook.wait_for_count("===", last)
    notebook.wait_for(
        "() => (slider => slider.value === slider.max)(document.querySelector('[data-name=scrub] input'))"
    )


def branch_with(notebook: Notebook, setting: str) -> None:
    """Branch at a moment of the past, once the message says that the branch will take a setting that was changed."""
    notebook.wait_for_message(f"Press Branch here to go on with: {setting}")
    notebook.button("Branch here").click()
    notebook.wait_for_runs(2)


def still(notebook: Notebook, selector: str) -> str:
    """Wait until a canvas has not changed for a second and a half, and return what it shows."""
    for _ in range(40):
        before = drawn(notebook, selector)
        notebook.page.wait_for_timeout(1500)
        if drawn(notebook, selector) == before:
            return before
    raise AssertionError(f"{selector} never stands still")


def drag_handle(notebook: Notebook, name: str, dx: float, dy: float) -> None:
    """Drag a picture's handle by so many pixels: to the right, and down."""
    handle = notebook.page.locator(f'.p4-handle[data-name="{name}"]')
    notebook.bring(handle)
    box, mouse = handle.bounding_box(), notebook.page.mouse
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + dx, y + dy, steps=12)
    mouse.up()


def download(notebook: Notebook, label: str, to: Path) -> Path:
    """Press a button beside the table of runs, and return the file that the browser saves."""
    notebook.turn("below", RUNS)
    with notebook.page.expect_download() as waiting:
        notebook.item("runs").locator("xpath=../..").get_by_role("button", name=label, exact=True).click()
    path = to / str(waiting.value.suggested_filename)
    waiting.value.save_as(path)
    return path


def check_fit(notebook: Notebook) -> None:
    """Fail if a part of the lab does not fit into its place, or one covers another, and stays so."""
    notebook.page.evaluate(FAST)
    notebook.bring(notebook.page.locator(".p4-lab").first)
    misfits: list[str] = []
    for _ in range(10):  # curves of a new size are laid out in several steps, slowly on a busy machine
        look = notebook.look()
        misfits = look["cut"] + look["covered"]
        if not misfits:
            return
        notebook.page.wait_for_timeout(300)
    raise AssertionError("\n".join(misfits))


def count_beyond(notebook: Notebook, steps: int = 1) -> None:
    """Wait until so many more steps have been done."""
    notebook.wait_for_count(">=", notebook.count() + steps)


def offered(notebook: Notebook) -> list[dict[str, Any]]:
    """Return the settings that a lab offers and allows now: kind, name, choices, texts."""
    each = f'[i for panel in {PANELS} for g in panel._spec["groups"] for i in g["items"]]'
    items = notebook.ask(f'__import__("json").dumps({each})')
    off = notebook.ask(f"[name for panel in {PANELS} for name in panel._state['disabled']]")
    return [item for item in json.loads(items) if f"'{item['name']}'" not in off]


def planned(notebook: Notebook, name: str, value: Any) -> None:
    """Wait until a setting has arrived in the kernel, and the panel has been told so."""
    becomes(notebook, f"all(p._state['values'].get({name!r}, {value!r}) == {value!r} for p in {PANELS})", True)


def touch_all(notebook: Notebook, leave: Container[str] = ()) -> None:
    """Move, choose, press and switch every setting to both of its ends, and back.

    Args:
        notebook: with a lab, in whatever state.
        leave: names of settings that are left alone.
    """
    touch = {"slider": _slide, "choice": _choose, "segments": _press, "toggle": _switch, "number": _count}
    for item in offered(notebook):
        if item["kind"] in touch and item["name"] not in leave:
            touch[item["kind"]](notebook, item)


def _slide(notebook: Notebook, item: dict[str, Any]) -> None:
    slider, last = notebook.reach(item["name"]).locator("input"), len(item["choices"]) - 1
    before = int(slider.input_value())
    for end, index in (("max", last), ("min", 0)):
        assert notebook.drag_to(item["name"], end).startswith(item["texts"][index])
        planned(notebook, item["name"], item["choices"][index])
    notebook.drag_by(item["name"], before)
    planned(notebook, item["name"], item["choices"][before])


def _choose(notebook: Notebook, item: dict[str, Any]) -> None:
    select = notebook.reach(item["name"]).locator("select")
    before = select.input_value()
    for index in (len(item["choices"]) - 1, 0, int(before or 0)):
        select.select_option(index=index)
        planned(notebook, item["name"], item["choices"][index])


def _press(notebook: Notebook, item: dict[str, Any]) -> None:
    pressed = notebook.reach(item["name"]).locator("button[aria-pressed=true]").all_inner_texts()
    for text in [item["texts"][-1], item["texts"][0], *pressed]:
        notebook.item(item["name"]).get_by_role("button", name=text, exact=True).click()
        planned(notebook, item["name"], item["choices"][item["texts"].index(text)])


def _switch(notebook: Notebook, item: dict[str, Any]) -> None:
    switch = notebook.reach(item["name"]).locator("input")
    before = switch.is_checked()
    for value in (not before, before):
        switch.click()
        planned(notebook, item["name"], value)


def _count(notebook: Notebook, item: dict[str, Any]) -> None:
    before = notebook.reach(item["name"]).locator("input").input_value()
    for text in ("0", "123456", before):
        notebook.write(item["name"], text)
        planned(notebook, item["name"], int(text))
