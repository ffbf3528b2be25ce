"""Going back in a run, branching, comparing, saving and loading, in a real JupyterLab."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from live_notebook import CANVAS, RUNS, Notebook, branch_with, download, drawn, redrawn, restored, start_lab, to_now

NAME = "01_p4inv_live.ipynb"


def train(notebook: Notebook, steps: int) -> None:
    start_lab(notebook, NAME)
    notebook.train(steps)


def scrub(notebook: Notebook, share: float) -> int:
    """Drag the scrubber to a share of the run and return the step that it then shows."""
    slider = notebook.item("scrub").locator("input")
    notebook._drag(slider, share)
    text = notebook.item("scrub").locator("output")
    text.filter(has_text="step").wait_for()
    return int(text.inner_text().removeprefix("step ").replace(",", ""))


def rows(notebook: Notebook) -> list[str]:
    return [str(text) for text in notebook.item("runs").locator("input").evaluate_all("all => all.map(i => i.value)")]


@pytest.mark.browser
def test_scrub_branch_rename_and_remove(notebook: Notebook) -> None:
    train(notebook, 60)
    last = notebook.pause()
    present = drawn(notebook, CANVAS)

    step = scrub(notebook, 0.0)
    assert step < last / 2
    notebook.wait_for_count("===", step)  # the header is in the past, too
    redrawn(notebook, CANVAS, present)
    notebook.screenshot("past")
    to_now(notebook, last)
    restored(notebook, CANVAS, present)

    step = scrub(notebook, 0.5)
    rate = float(notebook.drag_by("learning_rate", 3))
    branch_with(notebook, "Learning rate")
    notebook.wait_for_count("===", step)
    assert notebook.ask("lab.player.engine.config.learning_rate") == str(rate)
    notebook.train(step + 20)
    notebook.pause()
    notebook.turn("below", "Loss")
    curves = "() => document.querySelector('.p4-plot .js-plotly-plot').data.map(d => d.name ?? '').join('|')"
    notebook.wait_for(f"names => names.every((name) => ({curves})().includes(name))", rows(notebook))
    notebook.screenshot("branched")

    notebook.turn("below", RUNS)
    name = notebook.item("runs").locator("input").last
    name.fill("my branch")
    name.press("Enter")
    assert rows(notebook)[1] == "my branch"
    assert "my branch" in notebook.ask("list(lab.table().index)")

    notebook.page.get_by_role("button", name="Make this the active run").first.click()
    notebook.wait_for_count("===", last)
    notebook.page.get_by_role("button", name="Remove this run").first.click()
    notebook.wait_for_runs(1)
    notebook.check_clean()


@pytest.mark.browser
def test_save_load_and_export(notebook: Notebook, tmp_path: Path) -> None:
    train(notebook, 30)
    last = notebook.pause()
    saved = download(notebook, "Save run", tmp_path)
    table = pd.read_csv(download(notebook, "CSV", tmp_path))
    columns = pd.read_parquet(download(notebook, "Parquet", tmp_path))
    assert len(table) == len(columns) > last
    page = download(notebook, "HTML", tmp_path).read_text()
    assert "plotly" in page
    assert len(page) > 100_000
    assert download(notebook, "PNG", tmp_path).read_bytes().startswith(b"\x89PNG")

    notebook.reset()
    upload = notebook.item("upload").locator("input")
    upload.set_input_files(saved)
    notebook.wait_for_runs(2)
    notebook.wait_for_count("===", last)
    notebook.train(last + 10)
    notebook.pause()

    broken = tmp_path / "broken.p4run"
    broken.write_bytes(saved.read_bytes()[:1000])
    upload.set_input_files(broken)
    notebook.wait_for_message("damaged or something else")
    assert notebook.count() >= last + 10
    notebook.screenshot("broken_file")
    notebook.train(last + 20)
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_a_config_is_pasted(notebook: Notebook) -> None:
    train(notebook, 5)
    notebook.pause()
    notebook.reach("config")
    notebook.wait_for("() => document.querySelector('[data-name=config] input').value.startsWith('digits')")
    notebook.write("config", "digits?blocks=4&rank=2&seed=7")
    notebook.wait_for_message("Press Reset to apply")
    notebook.reset()
    asked = "(lambda c: (c.blocks, c.rank, c.seed))(lab.player.engine.config)"
    assert notebook.ask(asked) == "(4, 2, 7)"
    notebook.write("config", "digits?colour=blue")
    notebook.wait_for_message("colour")
    assert notebook.ask(asked) == "(4, 2, 7)"
    notebook.train(5)
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_every_control_to_both_ends_while_it_trains(notebook: Notebook) -> None:
    train(notebook, 10)
    notebook.choose("speed", "1 step/s")  # the highest rate may rightly end a run in some 13 steps
    for name in ("learning_rate", "merge_every", "refine_every"):
        for end in ("max", "min"):
            value = notebook.drag_to(name, end).split()[0]
            notebook.wait_for_count(">", notebook.count() + 5)
            assert float(notebook.ask(f"lab.player.engine.config.{name}")) == float(value)
    for name in ("skip", "penalty"):
        before = notebook.ask(f"lab.player.engine.config.{name}")
        for expected in (str(before != "True"), before):
            notebook.reach(name).locator("input").click()
            notebook.wait_for_count(">", notebook.count() + 2)
            assert notebook.ask(f"lab.player.engine.config.{name}") == expected
    choices = {"reset", "speed", "optimizer", "rank", "blocks", "device", "dtype"}
    for name in sorted(choices):
        select = notebook.reach(name).locator("select")
        for index in (0, select.locator("option").count() - 1):
            select.select_option(index=index)
            notebook.page.wait_for_timeout(300)
            assert select.input_value() == str(index)
    assert notebook.state() == "running"
    notebook.pause()
    notebook.check_clean()


@pytest.mark.browser
@pytest.mark.long
def test_two_labs_in_one_notebook(notebook: Notebook) -> None:
    content = json.loads((notebook.server.folder / NAME).read_text())
    lab = next(cell for cell in content["cells"] if "lab = digits_lab()" in "".join(cell["source"]))
    second = {**lab, "id": "second-lab", "source": ["other = digits_lab(learning_rate=1e-3)\n", "other"]}
    content["cells"] = [content["cells"][1], lab, second]
    (notebook.server.folder / "two.ipynb").write_text(json.dumps(content))
    notebook.open("two.ipynb")
    notebook.run_all()
    other = dataclasses.replace(notebook, lab=1)
    for one in (notebook, other):
        one.wait_for_state("idle")
    other.train(10)
    assert notebook.count() == 0
    notebook.train(10)
    assert other.state() == "running"
    for one in (notebook, other):
        assert one.pause() == int(one.ask(f"(lab, other)[{one.lab}].player.engine.step"))
    assert notebook.ask("other.config.learning_rate") == "0.001"
    assert notebook.ask("lab.config.learning_rate") == "0.002"
    notebook.check_clean("lab", "other")
