"""The lab of molecules in a real JupyterLab: alanine dipeptide, a file, and what is no molecule."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from live_notebook import Notebook, Server, becomes, check_fit, drawn, redrawn, start_lab

from p4lab.molecules.molecule import Molecule

NAME = "11_alanine_dipeptide.ipynb"
PLOT = ".p4-molecule-map canvas"
OWN = """from p4lab.molecules.dataset import simulate
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.replica_exchange import Settings
from p4lab.widgets import molecule_lab

molecule = Molecule.from_pdb("own.pdb")
frames = simulate(molecule, 0.003, settings=Settings(replicas=2, sweep=5, equilibration=50, chunk=20))
lab = molecule_lab(molecule, frames, batch_size=64)
lab"""


def write(server: Server, name: str, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, server.folder / name)


@pytest.mark.browser
def test_trains_by_energy(notebook: Notebook) -> None:
    start_lab(notebook, NAME)
    before = drawn(notebook, PLOT)
    notebook.train(5)
    assert notebook.drag_to("by_energy", "max").startswith("1")
    becomes(notebook, "lab.player.engine.config.by_energy", "1.0")
    redrawn(notebook, PLOT, before)
    assert notebook.state() == "running"
    notebook.pause()
    becomes(notebook, "lab.player.engine.problem.energy.contexts", "[]")
    notebook.check_clean()


@pytest.mark.browser
def test_a_file_is_simulated_trained_and_looked_at_by_residue_and_temperature(
    notebook: Notebook, server: Server
) -> None:
    molecule = Molecule.from_sequence("GS")
    Path(server.folder, "own.pdb").write_text(molecule.pdb_text(molecule.start))
    write(server, "own.ipynb", OWN)
    start_lab(notebook, "own.ipynb")
    assert notebook.page.get_by_text("ACE-GLY-SER-NME").first.is_visible()
    notebook.train(3)
    notebook.pause()
    before = drawn(notebook, PLOT)
    notebook.item("pair").get_by_role("button", name="Ser", exact=True).click()
    serine = redrawn(notebook, PLOT, before)
    assert notebook.drag_by("temperature", 3).startswith("330 K")
    redrawn(notebook, PLOT, serine)
    notebook.wait_for_message("At 330 K, ")
    notebook.turn("below", "Energy by term")
    notebook.page.get_by_role("cell", name="solvent").wait_for()
    check_fit(notebook)
    notebook.check_clean()


@pytest.mark.browser
def test_what_is_no_molecule_is_told_in_the_cell_without_a_long_way_to_it(notebook: Notebook, server: Server) -> None:
    write(server, "bad.ipynb", 'from p4lab.widgets import molecule_lab\n\nmolecule_lab("AXA")')
    notebook.open("bad.ipynb")
    with pytest.raises(AssertionError, match="MoleculeError: sequence 'AXA': 'X' not known"):
        notebook.run_all()
    error = notebook.page.locator('[data-mime-type="application/vnd.jupyter.error"], .jp-OutputArea-output pre')
    lines = error.last.inner_text().strip().splitlines()
    assert lines[-1].startswith("MoleculeError: sequence 'AXA'")
    assert len(lines) < 25
