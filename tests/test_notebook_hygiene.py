"""Notebooks are prose with a few short cells, saved small, clean and with something to see."""

from __future__ import annotations

import ast
import base64
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from p4lab.widgets.kept_picture import LIMIT

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(path for path in FOLDER.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
MAX_BYTES = 300_000
MAX_FUNCTION_LINES = 10
WIDGET = "application/vnd.jupyter.widget-view+json"
# An absolute path of somebody's machine, but not the path part of a web address.
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|mnt|opt|private|root|tmp|Users|usr|var|work)/\w|\b[A-Z]:\\\w")

Notebook = dict[str, Any]


def source_tree(cell: Notebook) -> ast.Module:
    """The cell's Python, without lines that only IPython understands."""
    lines = ["" if line.startswith(("%", "!")) else line for line in "".join(cell["source"]).splitlines()]
    return ast.parse("\n".join(lines))


def output_text(output: Notebook) -> str:
    """All that an output says in text; pictures are left out."""
    data = {mime: value for mime, value in output.get("data", {}).items() if not mime.startswith("image/")}
    # Joined as plain strings: JSON would escape the backslashes of a Windows path.
    parts = [output.get("text", ""), *(v if isinstance(v, str | list) else json.dumps(v) for v in data.values())]
    return "\n".join("".join(map(str, part)) for part in parts)


def complaints(notebook: Notebook, size: int) -> Iterator[str]:
    """Everything that is wrong with a saved notebook of `size` bytes."""
    if size > MAX_BYTES:
        yield f"size: {size} bytes, at most {MAX_BYTES} are allowed: clear large outputs"
    if "widgets" in notebook["metadata"]:
        yield "widget state: saved in the metadata"
    kernel = notebook["metadata"].get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"kernel: {kernel}, not python3"
    if not notebook["cells"] or notebook["cells"][0]["cell_type"] != "markdown":
        yield "first cell: not markdown"

    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    nodes = [list(ast.walk(source_tree(cell))) for cell in code]
    importing = sum(any(isinstance(node, ast.Import | ast.ImportFrom) for node in cell) for cell in nodes)
    if importing > 1:
        yield f"imports: in {importing} cells, not in one"
    for node in (node for cell in nodes for node in cell):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"function: {node.name} has {lines} lines: it belongs in the package"

    outputs = [output for cell in code for output in cell["outputs"]]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    for picture in pictures:
        if (length := len(base64.b64decode("".join(picture)))) > LIMIT:
            yield f"picture: {length} bytes, at most {LIMIT} are allowed"
    if any(WIDGET in output.get("data", {}) for output in outputs):
        yield "widget view: saved as an output, though its widget is gone (make notebooks leaves it out)"
    if not outputs:
        yield "outputs: none saved, so a reader sees nothing"
    for output in outputs:
        if output["output_type"] == "error":
            yield f"error: {output['ename']} is saved as an output"
        elif match := MACHINE_PATH.search(output_text(output)):
            yield f"machine path: {match.group()}... in an output"


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS, f"no notebooks in {FOLDER}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_notebook_is_clean(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    found = list(complaints(notebook, path.stat().st_size))
    assert not found


# --- the check itself ---


def clean_notebook() -> Notebook:
    v4 = nbformat.v4
    cell = v4.new_code_cell("import numpy as np\n\nnp.ones(1)", outputs=[v4.new_output("stream", text="see /docs/a")])
    cells = [v4.new_markdown_cell("# Title"), cell, v4.new_code_cell("%time\ndef f():\n    return 1")]
    return dict(v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python"}}))


def printing(text: str) -> Callable[[Notebook], None]:
    return lambda notebook: notebook["cells"][1]["outputs"].append(nbformat.v4.new_output("stream", text=text))


def displaying(mime: str, value: Any) -> Callable[[Notebook], None]:
    output = nbformat.v4.new_output("display_data", data={mime: value})
    return lambda notebook: notebook["cells"][1]["outputs"].append(output)


def adding(source: str) -> Callable[[Notebook], None]:
    return lambda notebook: notebook["cells"].append(nbformat.v4.new_code_cell(source))


HOME = "/" + "home/ada/p4lab/x.py"
BAD = {
    "widget state": lambda notebook: notebook["metadata"].update(widgets={"state": {}}),
    "kernel": lambda notebook: notebook["metadata"]["kernelspec"].update(name="my-env"),
    "first cell": lambda notebook: notebook["cells"].pop(0),
    "imports": adding("from math import pi"),
    "function": adding("def long():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    "outputs": lambda notebook: notebook["cells"][1].update(outputs=[]),
    "error": lambda notebook: notebook["cells"][1]["outputs"].append(
        nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])
    ),
    "picture": displaying("image/png", base64.b64encode(bytes(LIMIT + 1)).decode()),
    "widget view": displaying(WIDGET, {"model_id": "1"}),
    "machine path": printing(f"File {HOME}:3"),
    "machine path (Windows)": printing("C:" + "\\Users\\ada"),
    "machine path (html)": displaying("text/html", f"<a href='{HOME}'>"),
    "machine path (json)": displaying("application/json", {"path": HOME}),
}


def test_a_clean_notebook_passes() -> None:
    notebook = clean_notebook()
    displaying("image/png", f"abc{HOME}==")(notebook)
    displaying("image/png", base64.b64encode(bytes(LIMIT)).decode())(notebook)
    printing("https://example.org/home/page")(notebook)
    assert not list(complaints(notebook, MAX_BYTES))


@pytest.mark.parametrize("rule", BAD)
def test_a_bad_notebook_is_found(rule: str) -> None:
    notebook = copy.deepcopy(clean_notebook())
    BAD[rule](notebook)
    (complaint,) = complaints(notebook, MAX_BYTES)
    assert complaint.startswith(rule.split(" (")[0])


def test_a_large_notebook_is_found() -> None:
    (complaint,) = complaints(clean_notebook(), MAX_BYTES + 1)
    assert complaint.startswith("size")
