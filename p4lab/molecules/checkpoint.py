"""Trained flows in small files."""

import math
from pathlib import Path
from typing import Any

import torch

from p4lab.errors import DataFileError
from p4lab.flows.linear_layers import FoldedLinear
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.couplings import Mixed
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.flow import ARCHITECTURES, molecule_flow
from p4lab.p4 import P4Inv

FORMAT = "p4lab molecule flow 1"
"""What a file says that it is."""
SHIPPED = Path(__file__).parent / "data" / "alanine_flow.pt"
SHIPPED_METHOD = "spline_p4"
"""The flow that comes with p4lab: file, and name of its architecture."""


def save(
    path: Path,
    flow: MoleculeFlow,
    method: str,
    coordinates: Coordinates,
    figures: dict[str, Any] | None = None,
    half: bool = True,
    probes: int = 512,
) -> float:
    """Write a flow and its coordinates, and return how far storage in 16 bits moves log q.

    Args:
        path: file to write.
        flow: the flow, folded: nothing of P4 in it.
        method: name of its architecture, with its default options.
        coordinates: the map to positions.
        figures: numbers and texts to keep along.
        half: whether networks are stored as float16; linear layers and whitenings are always float32.
        probes: samples of the flow that the difference is measured on.

    Returns:
        The root mean square of the change of log q (nats) over samples of the flow.
    """
    state = flow.state_dict()
    stored = {
        name: value.half() if half and value.is_floating_point() and ".network." in name else value.clone()
        for name, value in state.items()
    }
    saved = {
        "format": FORMAT,
        "method": method,
        "flow": stored,
        "coordinates": coordinates.state_dict(),
        "figures": figures or {},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, path)
    with torch.no_grad():
        y = flow.sample(probes, generator=torch.Generator().manual_seed(0))
        change = load_flow(path)[0].log_prob(y) - flow.log_prob(y)
    return math.sqrt(float(change.double().square().mean()))


def load_flow(path: Path) -> tuple[MoleculeFlow, Coordinates, dict[str, Any]]:
    """Return a flow, its coordinates and the figures that were kept along.

    Raises:
        DataFileError: the file is missing, damaged, or something else.
    """
    try:
        saved = torch.load(path, weights_only=True)
    except Exception as error:  # what torch raises for bytes of another kind is not limited
        raise DataFileError(f"{path} cannot be read ({error}): make it anew with --checkpoint") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT or saved.get("method") not in ARCHITECTURES:
        raise DataFileError(f"{path} is not a flow of a molecule that p4lab saved: make one with --checkpoint")
    coordinates = Coordinates()
    try:
        coordinates.load_state_dict(saved["coordinates"])
        # Whitening and cuts come from the file; any data make a flow of the right shape.
        some = torch.randn(
            4 * Coordinates.dim, Coordinates.dim, generator=torch.Generator().manual_seed(0), device="cpu"
        )
        flow = molecule_flow(saved["method"], some).with_linear(
            lambda layer: FoldedLinear(torch.eye(layer.dim, device="cpu"), torch.zeros(layer.dim, device="cpu"))
        )
        flow.load_state_dict(saved["flow"])
    except (KeyError, RuntimeError) as error:
        raise DataFileError(f"{path} does not fit this version of p4lab ({error}): make it anew") from error
    return flow, coordinates, dict(saved["figures"])


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
