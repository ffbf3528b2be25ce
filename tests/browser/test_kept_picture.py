"""The picture of a lab that stays in the notebook, in a real JupyterLab."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from live_notebook import Notebook, start_lab

from p4lab.widgets.kept_picture import LIMIT, PNG

NAME = "00_start_here.ipynb"
# Of each output of the notebook: what kinds of data it has, and its picture.
OUTPUTS = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .flatMap((cell) => cell.model.type === "code" ? cell.model.outputs.toJSON() : [])
    .filter((output) => output.data)"""
HAS_PICTURE = f"(before) => ({OUTPUTS})().some((o) => o.data['image/png'] && o.data['image/png'] !== before)"
# What of the pictures is seen, and where the lab stands.
SEEN = "() => [...document.querySelectorAll('.jp-RenderedImage')].filter((node) => node.offsetParent).length"
MARK = "() => { document.querySelector('.p4-lab canvas').marked = true; }"
MARKED = "() => document.querySelector('.p4-lab canvas').marked === true"
PLACE = """() => {
    const lab = document.querySelector('.p4-lab');
    return lab.getBoundingClientRect().top - lab.closest('.jp-Notebook-cell').getBoundingClientRect().top;
}"""
RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart()"


def pictures(outputs: list[dict[str, Any]]) -> list[str]:
    return ["".join(output["data"]["image/png"]).strip() for output in outputs if "image/png" in output["data"]]


def saved(notebook: Notebook, name: str = NAME) -> list[dict[str, Any]]:
    """The outputs in the notebook's file, once it has been saved."""
    notebook.command("docmanager:save")
    content = json.loads((notebook.server.folder / name).read_text())
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    return [output for output in outputs if "data" in output]


def kept(notebook: Notebook, before: str = "") -> str:
    """Wait for a picture other than the one before."""
    notebook.wait_for(HAS_PICTURE, before)
    (picture,) = pictures(notebook.page.evaluate(OUTPUTS))
    return picture


@pytest.mark.browser
def test_a_picture_arrives_is_hidden_while_the_lab_lives_and_stays_in_the_file(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    assert pictures(saved(notebook)) == []
    notebook.page.evaluate(MARK)
    place = notebook.page.evaluate(PLACE)
    notebook.train(5)
    notebook.pause()
    first = kept(notebook)
    # Neither the lab nor the page around it takes notice.
    assert notebook.page.evaluate(MARKED)
    assert notebook.page.evaluate(PLACE) == place
    assert notebook.page.evaluate(SEEN) == 0

    (picture,) = pictures(saved(notebook))
    content = base64.b64decode(picture)
    assert picture == first
    assert content.startswith(PNG)
    assert 5_000 < len(content) <= LIMIT
    assert int.from_bytes(content[16:20], "big") == 800
    Path(notebook.pictures / "kept.png").write_bytes(content)

    notebook.button("Step").click()
    kept(notebook, first)
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_nothing_piles_up_when_cells_kernels_and_pages_come_and_go(notebook: Notebook) -> None:
    start_lab(notebook, NAME, whole=False)
    notebook.train(2)
    notebook.pause()
    first = kept(notebook)

    notebook.page.evaluate(RESTART)
    notebook.command("notebook:clear-all-cell-outputs")
    notebook.wait_for(f"() => ({OUTPUTS})().length === 0")
    notebook.wait_until_live()
    notebook.run_all()
    notebook.wait_for_state("idle")
    notebook.train(4)
    notebook.pause()
    second = kept(notebook, first)
    notebook.check_clean()

    # The page is loaded anew: the living lab is there again, the picture hidden behind it.
    notebook.command("docmanager:save")
    notebook.page.reload(wait_until="domcontentloaded")
    notebook.wait_until_live()
    notebook.wait_for_state("paused")
    assert notebook.page.evaluate(SEEN) == 0
    assert pictures(saved(notebook)) == [second]

    # Opened with another kernel, which knows nothing of the lab, the notebook shows the picture.
    notebook.server.end_kernels()
    notebook.open(NAME)
    notebook.page.wait_for_selector(".jp-RenderedImage img")
    assert notebook.page.evaluate(SEEN) == 1
    notebook.screenshot("reopened")

    notebook.command("notebook:clear-all-cell-outputs")
    assert saved(notebook) == []
