"""Write the notebooks' outputs anew, as a browser shows them: ``make notebooks``.

Each notebook is opened in a real JupyterLab and run; its labs do a number of steps (`STEPS`), and the pictures that
they leave, and what the cells print, become the outputs that are committed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from browser_page import Notebook, opened
from browser_server import BrowserSetupError, chromium, jupyterlab

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
STEPS = {
    "00_start_here": 60,
    "01_p4inv_live": 600,
    "02_parameter_space": 120,
    "03_break_it": 300,
    "04_linear_problems": 300,
    "05_race": 100,
    "06_densities_2d": 400,
    "07_swaps": 300,
    "08_properties": 200,
    "09_orthogonal_rnn": 100,
    "10_boltzmann_2d": 300,
    "11_alanine_dipeptide": 60,
    "12_temperature": 200,
    "13_directions": 300,
    "14_images": 60,
    "15_your_model": 40,
}
"""Steps that each lab of a notebook does before its picture is taken."""
WIDGET = "application/vnd.jupyter.widget-view+json"
# The labs of a notebook, under whatever names, in the order in which they were made.
TRAIN = """
from p4lab.widgets import Dashboard
labs = {{id(value): value for value in list(globals().values()) if isinstance(value, Dashboard)}}
for lab_ in labs.values():
    for _ in range({steps}):
        lab_.touch("step")
print([str(lab_.error) for lab_ in labs.values() if lab_.error])
"""
# Labs whose picture is missing.
WITHOUT_PICTURE = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .flatMap((cell) => cell.model.type === "code" ? [cell.model.outputs.toJSON()] : [])
    .flatMap((outputs) => outputs.filter((output, i) => (
        output.data?.['application/vnd.jupyter.widget-view+json'] && !outputs[i - 1]?.data?.['image/png']))).length"""
SETTLED = 5_000
"""Milliseconds after the last step until the picture is of that step."""


def slimmed(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a notebook as it is committed: without widgets' ids, empty outputs, and what differs by machine."""
    cells = []
    for cell in notebook["cells"]:
        cell = {**cell, "metadata": {key: value for key, value in cell["metadata"].items() if key == "tags"}}
        if cell["cell_type"] == "code":
            outputs = [
                {**output, "data": {mime: value for mime, value in output["data"].items() if mime != WIDGET}}
                if "data" in output
                else output
                for output in cell["outputs"]
            ]
            cell["outputs"] = [output for output in outputs if output.get("data", True)]
        cells.append(cell)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {**notebook, "cells": cells, "metadata": metadata}


def make(page: Notebook, name: str) -> None:
    """Run a notebook, let its labs train, wait for their pictures, and save it.

    Raises:
        AssertionError: a cell or a lab failed.
    """
    page.open(f"{name}.ipynb")
    page.run_all()
    page.page.wait_for_selector(".p4-plot .main-svg")
    errors = page.execute(TRAIN.format(steps=STEPS[name]))
    assert errors == "[]", errors
    page.page.wait_for_timeout(SETTLED)
    page.wait_for(f"() => ({WITHOUT_PICTURE})() === 0")
    page.command("docmanager:save")


def main(names: list[str]) -> None:
    """Make these notebooks, or all of them."""
    unknown = set(names) - set(STEPS)
    if unknown:
        raise SystemExit(f"no such notebook: {', '.join(sorted(unknown))}. Choose of {', '.join(STEPS)}")
    with tempfile.TemporaryDirectory() as home, jupyterlab(FOLDER, Path(home)) as server, chromium() as browser:
        for name in names or STEPS:
            with opened(browser, server) as page:
                make(page, name)
            content = slimmed(json.loads((server.folder / f"{name}.ipynb").read_text()))
            nbformat.write(nbformat.from_dict(content), FOLDER / f"{name}.ipynb")
            print(f"{name}: {(FOLDER / f'{name}.ipynb').stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrowserSetupError as error:
        raise SystemExit(str(error)) from error
