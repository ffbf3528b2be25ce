"""The eigenvalues of the watched matrix, live."""

import math

import numpy as np
from numpy.typing import NDArray

from p4lab.plots.layers import Layer, Path, Points
from p4lab.training import Frame, Trail
from p4lab.widgets.plane import Plane

EARLIER = 24
"""How many earlier moments leave faint points."""

_TURN = np.linspace(0, 2 * np.pi, 97)
CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


def spectrum_plane(note: str, height: int = 200) -> Plane:
    """Return an empty picture of eigenvalues in the complex plane.

    Args:
        note: of which matrix.
        height: in pixels.
    """
    return Plane("Eigenvalues", note, x_label="real part", y_label="imaginary part", height=height)


def show_spectrum(plane: Plane, frame: Frame) -> None:
    """Show eigenvalues at present and before, the unit circle, and 0, where the determinant vanishes."""
    spectrum = frame.snapshot.spectrum
    plane.show(spectrum_layers(spectrum), bounds(spectrum))


def spectrum_layers(spectrum: Trail) -> list[Layer]:
    """Return the picture of eigenvalues, shape (n, d), of which the last row is the present one."""
    layers: list[Layer] = [
        Path(CIRCLE, "grey", width=1, dashed=True, label="unit circle"),
        Points(np.zeros((1, 2)), "red", "cross", 9, label="0: det = 0"),
    ]
    if len(spectrum.steps):
        earlier = spectrum.values[-EARLIER - 1 : -1]
        if len(earlier):
            layers.append(Points(_plane(earlier), "blue", "dot", 3, fade=True))
        now = _plane(spectrum.values[-1])
        labels = tuple(f"{x:.3g} {'−' if y < 0 else '+'} {abs(y):.3g} i" for x, y in now)
        layers.append(Points(now, "blue", "dot", 6, labels, label=f"step {int(spectrum.steps[-1]):,}"))
    return layers


def bounds(spectrum: Trail) -> tuple[float, float, float, float]:
    """Return a frame around 0 and the present eigenvalues that moves in steps, not all the time."""
    now = _plane(spectrum.values[-1:])
    reach = max(1.0, float(np.nanmax(now[:, 0], initial=0.0)))
    back = min(0.0, float(np.nanmin(now[:, 0], initial=0.0)))
    up = max(0.25, float(np.nanmax(np.abs(now[:, 1]), initial=0.0)))
    right, left, top = (math.ceil(4.4 * extent) / 4 for extent in (reach, -back, up))
    return -max(left, 0.25), right, -top, top


def _plane(values: NDArray[np.complex128]) -> NDArray[np.float64]:
    flat = np.asarray(values).reshape(-1)
    finite = np.where(np.isfinite(flat), flat, np.nan)
    return np.stack([finite.real, finite.imag], axis=1)
