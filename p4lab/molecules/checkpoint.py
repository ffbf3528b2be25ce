"""Trained flows in small files."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from p4lab.errors import DataFileError, OptionError
from p4lab.files import write_whole
from p4lab.flows.linear_layers import FoldedLinear
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.couplings import Mixed
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.molecules.molecule import Molecule
from p4lab.p4 import P4Inv

FORMAT = "p4lab molecule flow 1"
"""What a file says that it is."""
SHIPPED = Path(__file__).parent / "data" / "alanine_flow.pt"
SHIPPED_METHOD = "spline_p4"
"""The flow that comes with p4lab: file, and name of its architecture."""


def save(
    path: str | Path,
    flow: MoleculeFlow,
    method: str,
    coordinates: Coordinates,
    figures: dict[str, Any] | None = None,
    half: bool = True,
    probes: int = 512,
    options: Mapping[str, Any] | None = None,
) -> float:
    """Write a flow and its coordinates, and return how far storage in 16 bits moves log q.

    Args:
        path: file to write.
        flow: the flow; it is folded (`MoleculeFlow.fold`) for the file.
        method: name of its architecture.
        coordinates: the map to positions.
        figures: numbers and texts to keep along.
        half: whether networks are stored as float16; linear layers and whitenings are always float32.
        probes: samples of the flow that the difference is measured on.
        options: those that `molecule_flow` made it with, such as ``{"hidden": 192}``.

    Returns:
        The root mean square of the change of log q (nats) over samples of the flow.

    Raises:
        FileError: the file cannot be written; nothing is.
        DataFileError: it could not be read again: another architecture or other options, or numbers that 16 bits do
            not hold; nothing is written.
    """
    flow = flow.fold().cpu()
    state = flow.state_dict()
    stored = {
        name: value.half() if half and ".network." in name and value.is_floating_point() else value
        for name, value in state.items()
    }
    saved = {
        "format": FORMAT,
        "method": method,
        "options": dict(options or {}),
        "atoms": list(coordinates.molecule.atom_names),
        "flow": stored,
        "coordinates": coordinates.state_dict(),
        "figures": figures or {},
    }
    stream = io.BytesIO()
    torch.save(saved, stream)
    with torch.no_grad():
        y = flow.sample(probes, generator=torch.Generator().manual_seed(0))
        change = _flow_of(saved, str(path), coordinates.molecule)[0].log_prob(y) - flow.log_prob(y)
    off = math.sqrt(float(change.double().square().mean()))
    if not math.isfinite(off):
        raise DataFileError(f"{path}: log q is not finite after storage: save it with half=False, or mend the flow")
    write_whole(path, stream.getvalue(), folders=True)
    return off


def load_flow(path: str | Path, molecule: Molecule | None = None) -> tuple[MoleculeFlow, Coordinates, dict[str, Any]]:
    """Return a flow, its coordinates and the figures that were kept along.

    Args:
        path: of the file.
        molecule: whose flow it is (None: alanine dipeptide).

    Raises:
        DataFileError: the file is missing, damaged, or something else, or of another molecule.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for bytes of another kind is not limited
        raise DataFileError(f"{path} cannot be read ({error}): make it anew with --checkpoint") from error
    return _flow_of(saved, str(path), molecule)


def _flow_of(saved: Any, path: str, molecule: Molecule | None) -> tuple[MoleculeFlow, Coordinates, dict[str, Any]]:
    known = isinstance(saved, dict) and saved.get("format") == FORMAT and str(saved.get("method")) in ARCHITECTURES
    if not known:
        raise DataFileError(
            f"{path} is not a flow of a molecule that p4lab saved, by one of {', '.join(ARCHITECTURES)}: make one with "
            "--checkpoint"
        )
    coordinates = Coordinates(molecule or Molecule.from_sequence("A"))
    ours = list(coordinates.molecule.atom_names)
    if (atoms := saved.get("atoms", ours)) != ours:  # early files do not tell
        raise DataFileError(
            f"{path} does not fit {coordinates.molecule.name}: it is of {len(atoms)} atoms {', '.join(atoms[:6])}, "
            f"..., not of {len(ours)}, {', '.join(ours[:6])}, ...; pass its molecule"
        )
    try:
        coordinates.load_state_dict(saved["coordinates"])
        # Whitening and cuts come from the file; any data make a flow of the right shape.
        dim = coordinates.dim
        some = torch.randn(4 * dim, dim, generator=torch.Generator().manual_seed(0), device="cpu")
        options = saved.get("options", {})  # early files have none
        flow = molecule_flow(saved["method"], some, circular=coordinates.circular, **options).with_linear(
            lambda layer: FoldedLinear(torch.eye(layer.dim, device="cpu"), torch.zeros(layer.dim, device="cpu"))
        )
        flow.load_state_dict(saved["flow"])
        return flow, coordinates, dict(saved["figures"])
    except (KeyError, RuntimeError, TypeError, OptionError) as error:
        made = f"{saved['method']} with {saved.get('options') or 'the default options'}"
        raise DataFileError(
            f"{path} does not fit {coordinates.molecule.name}, {made}, or this version of p4lab ({error}): make it "
            "anew, with the options that made the flow"
        ) from error


@torch.no_grad()
def start_at(flow: MoleculeFlow, plain: MoleculeFlow) -> None:
    """Set a flow, whose linear layers may be P4 layers, to the weights of a plain one of the same architecture.

    Args:
        flow: is changed; its P4 layers have no perturbation afterwards.
        plain: of `load_flow`, or a fold.

    Raises:
        DataFileError: another architecture.

    Cost: one factorization of each matrix.
    """
    state = plain.state_dict()
    try:
        for i, layer in enumerate(flow.numbers):
            if isinstance(layer, Mixed) and isinstance(layer.linear, P4Inv):
                weight, bias = (state.pop(f"numbers.{i}.linear.{name}") for name in ("weight", "bias"))
                if layer.linear.bias is not None:
                    layer.linear.bias.copy_(bias)
                layer.linear.start_at(weight)
                state |= {f"numbers.{i}.linear.{name}": value for name, value in layer.linear.state_dict().items()}
                state.pop(f"numbers.{i}.linear.weight_inverse")
        flow.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise DataFileError(f"the plain flow does not fit ({error}): build both with the same architecture") from error
