"""What `make notebooks` keeps of a notebook, and of which."""

from __future__ import annotations

from pathlib import Path

import nbformat
from make_notebooks import FOLDER, STEPS, WIDGET, slimmed


def test_every_notebook_has_its_number_of_steps() -> None:
    assert sorted(STEPS) == sorted(path.stem for path in Path(FOLDER).glob("*.ipynb"))


def test_a_notebook_keeps_what_a_reader_sees_and_nothing_of_the_machine() -> None:
    v4 = nbformat.v4
    outputs = [
        v4.new_output("display_data", data={}),
        v4.new_output("display_data", data={"image/png": "iVBOR"}),
        v4.new_output("execute_result", data={WIDGET: {"model_id": "1"}, "text/plain": "a lab"}, execution_count=2),
        v4.new_output("stream", text="1\n"),
    ]
    cell = v4.new_code_cell("lab", outputs=outputs, execution_count=2, metadata={"scrolled": True, "tags": ["a"]})
    kernel = {"name": "my-env", "display_name": "Mine"}
    metadata = {"widgets": {"state": {}}, "language_info": {"name": "python", "version": "3.99"}, "kernelspec": kernel}
    (kept,) = slimmed(v4.new_notebook(cells=[cell], metadata=metadata))["cells"]
    assert [output["output_type"] for output in kept["outputs"]] == ["display_data", "execute_result", "stream"]
    assert kept["outputs"][0]["data"] == {"image/png": "iVBOR"}
    assert kept["outputs"][1]["data"] == {"text/plain": "a lab"}
    assert kept["metadata"] == {"tags": ["a"]}
    assert (kept["source"], kept["execution_count"]) == ("lab", 2)


def test_a_notebook_knows_its_kernel_and_language_alone() -> None:
    metadata = slimmed(nbformat.v4.new_notebook(metadata={"widgets": {"state": {}}}))["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"] == {"name": "python"}
    assert set(metadata) == {"kernelspec", "language_info"}
