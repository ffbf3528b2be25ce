"""The small Glow of digits that comes with p4lab: how such a flow is kept in a file, and read."""

from pathlib import Path
from typing import Any

import torch

from p4lab.errors import DataFileError
from p4lab.flows.glow import MultiScale, glow
from p4lab.problems.images import CLASSES, SHAPE

FORMAT = "p4lab glow of digits 1"
"""What a file says that it is."""
SHIPPED = Path(__file__).parent / "digits_glow.pt"
"""The flow that comes with p4lab; `p4lab.experiments.images` says how it was made."""


def save(path: Path, flow: MultiScale, settings: dict[str, int], figures: dict[str, Any]) -> None:
    """Write a flow of `p4lab.problems.Images`, folded, to a file.

    Args:
        path: file to write; one that is there stays as it is until the new one is whole.
        flow: the flow; it is not changed.
        settings: "levels", "blocks" and "hidden" of `p4lab.flows.glow`.
        figures: numbers and texts to keep along.

    Raises:
        DataFileError: the file cannot be written.
        SingularMatrixError: a linear layer is singular or not finite.
    """
    content = {"format": FORMAT, "settings": settings, "flow": flow.fold().state_dict(), "figures": figures}
    part = path.with_name(path.name + ".part")
    try:
        torch.save(content, part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise DataFileError(f"{path} cannot be written ({error}): choose another file") from error


def load(path: Path = SHIPPED) -> tuple[MultiScale, dict[str, Any]]:
    """Return a flow that is done with training, in evaluation mode, and the figures that were kept along.

    Raises:
        DataFileError: the file is missing, damaged, or something else.
    """
    again = "make it anew with the option --save of p4lab.experiments.images"
    try:
        saved = torch.load(path, weights_only=True)
    except Exception as error:  # what torch raises for bytes of another kind is not limited
        raise DataFileError(f"{path} cannot be read ({error}): {again}") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise DataFileError(f"{path} is not a flow of digits that p4lab saved: {again}")
    try:
        flow = glow(SHAPE, **saved["settings"], mixing="dense", context=CLASSES, dtype=torch.float32).fold()
        flow.load_state_dict(saved["flow"])
        return flow.eval(), dict(saved["figures"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DataFileError(f"{path} does not fit this version of p4lab ({error}): {again}") from error
