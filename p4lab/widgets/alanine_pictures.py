"""The pictures of the lab of alanine dipeptide: frames in, layers out."""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.molecules import alanine
from p4lab.molecules.dataset import BINS, reference
from p4lab.plots.layers import Dots, Heatmap, Layer, Line, Path, Points
from p4lab.training import Frame, State
from p4lab.training.alanine_setup import AlanineConfig, AlanineView, View, prepared
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.plane import Plane
from p4lab.widgets.space import Space

LOOK_EVERY = 2.0
"""Seconds between two looks at a flow that trains."""
DEGREES = 180.0
CIRCLE = (-DEGREES, DEGREES, -DEGREES, DEGREES)
DEPTH = 8.0
"""How far, in kT, free energies are shown."""
PROFILE_BINS = 36
ENERGY_RANGE = (-95.0, 55.0)
ENERGY_BINS = 50
TURN = 0.5
"""Radians per second by which the molecule turns."""
HOLD = 4.0
"""Seconds for which a sample is shown."""
ELEMENT_COLORS = {"C": "grey", "N": "blue", "O": "red", "H": "ink"}
ELEMENT_SIZES = {"C": 15.0, "N": 15.0, "O": 15.0, "H": 8.0}
BOX = 0.36
"""Half the side of the box around the molecule (nm)."""


class StyledPlane(Plane):
    """A plane that brings the lab's look along."""

    _css: Any = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("pictures.css", "alanine_lab.css"))


class Watch:
    """Looks at the flow of a frame, and remembers what it saw; for the pump's thread alone.

    Args:
        view: what looks.
    """

    def __init__(self, view: AlanineView) -> None:
        self._view = view
        self._seen: Any = None
        self._next = 0.0
        self.last: View | None = None

    def of(self, frame: Frame) -> View:
        """Return what the flow of a frame is like; while it trains, a little late."""
        snapshot = frame.snapshot
        now = (frame.run, snapshot.step, snapshot.config)
        late = frame.state is State.RUNNING and time.monotonic() < self._next and self._seen[0] == frame.run
        if self.last is None or (now != self._seen and not late):
            self.last = self._view.look(config_of(frame), snapshot.pictures)
            self._seen, self._next = now, time.monotonic() + LOOK_EVERY
        return self.last


def config_of(frame: Frame) -> AlanineConfig:
    """Return the config of a frame, which is this lab's."""
    return cast(AlanineConfig, frame.snapshot.config)


@lru_cache(maxsize=1)
def reference_map() -> NDArray[np.float64]:
    """Return ln p of the reference above its depth, shape (64, 64): rows are psi from low to high, columns phi."""
    with np.errstate(divide="ignore"):
        logs = np.log(reference().histogram.T)
    shown: NDArray[np.float64] = np.maximum(logs - logs.max(), -DEPTH)
    return shown


class Ramachandran:
    """The flow's samples over the reference.

    Args:
        watch: what sees the flow.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch, self._drawn = watch, None
        self.widget = StyledPlane(
            "Ramachandran plot", "samples over ln p of the reference", "φ (degrees)", "ψ (degrees)", height=480
        )
        self.widget.add_class("p4-alanine-map")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        view = self._watch.of(frame)
        points = np.degrees(np.stack([view.phi, view.psi], axis=1))
        layers: list[Layer] = [
            Heatmap(reference_map(), CIRCLE, low=-DEPTH, high=0.0, label="ln (p / max p)"),
            Points(points, "orange", size=3, label="samples of the flow"),
        ]
        self.widget.show(layers, CIRCLE)


class Energies:
    """Histograms of the energy: data, flow, and flow reweighted.

    Args:
        watch: what sees the flow.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.widget = Plane("Energy", "", "E (kJ/mol)", "share", equal=False, height=210)
        edges = np.linspace(*ENERGY_RANGE, ENERGY_BINS + 1)
        self._edges, self._centres = edges, (edges[1:] + edges[:-1]) / 2
        self._data = self._shares(prepared().frames.energy.numpy(), None)

    def _shares(self, energy: NDArray[Any], weights: NDArray[Any] | None) -> NDArray[np.float64]:
        weights = np.full(len(energy), 1 / len(energy)) if weights is None else weights
        shares, _ = np.histogram(energy, self._edges, weights=weights)
        return np.stack([self._centres, shares], axis=1)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        view = self._watch.of(frame)
        self.widget.show(
            [
                Path(self._data, "ink", label="simulation"),
                Path(self._shares(view.energy, None), "orange", label="flow"),
                Path(self._shares(view.energy, view.weights), "blue", dashed=True, label="reweighted"),
            ]
        )


class Profile:
    """Free energy along a torsion: reference with its error, flow, and flow reweighted.

    Args:
        watch: what sees the flow.
        name: of the torsion.
        axis: of the reference's histogram.
        torsion: which one of a view.
    """

    def __init__(self, watch: Watch, name: str, axis: int, torsion: Callable[[View], NDArray[np.float32]]) -> None:
        self._watch, self._torsion = watch, torsion
        self.widget = Plane(f"Free energy along {name}", "", f"{name} (degrees)", "F (kT)", equal=False, height=210)
        known = reference()
        other = 1 - axis
        shares = known.histogram.sum(other)
        error = np.sqrt((known.histogram_error**2).sum(other))  # bins of one row vary together less than they add up to
        centres = (np.arange(BINS) + 0.5) * 2 * DEGREES / BINS - DEGREES
        self._reference = [np.stack([centres, _free(shares + sign * error, BINS)], axis=1) for sign in (0.0, 1.0, -1.0)]

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        view = self._watch.of(frame)
        edges = np.linspace(-DEGREES, DEGREES, PROFILE_BINS + 1)
        centres, degrees = (edges[1:] + edges[:-1]) / 2, np.degrees(self._torsion(view))

        def curve(weights: NDArray[Any]) -> NDArray[np.float64]:
            shares, _ = np.histogram(degrees, edges, weights=weights)
            return np.stack([centres, _free(shares, PROFILE_BINS)], axis=1)

        middle, low, high = self._reference
        self.widget.show(
            [
                Path(low, "grey", width=1),
                Path(high, "grey", width=1),
                Path(middle, "ink", label="reference, with its error"),
                Path(curve(np.full(len(degrees), 1 / len(degrees))), "orange", label="flow"),
                Path(curve(view.weights), "blue", dashed=True, label="reweighted"),
            ],
            (-DEGREES, DEGREES, 0.0, DEPTH + 1),
        )


def _free(shares: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return -ln of shares in kT, as if there were 36 bins; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = -np.log(shares * bins / PROFILE_BINS)
    shown: NDArray[np.float64] = np.where(np.isfinite(energy), energy, np.nan)
    return shown


class Molecule:
    """A sample, turning while the flow trains.

    Args:
        watch: what sees the flow.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.widget = Space("A sample", "in nm; drag to turn", ("", "", ""), height=210, home=(-60, 12))
        self._of = {
            element: [i for i, other in enumerate(alanine.ELEMENTS) if other == element] for element in ELEMENT_COLORS
        }

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        view, now = self._watch.of(frame), time.monotonic()
        x = aligned(view.positions[int(now / HOLD) % len(view.positions)])
        angle = TURN * now
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        x = x @ turn.T
        bonds = np.full((3 * len(alanine.bonds()), 3), np.nan)
        for k, (i, j) in enumerate(alanine.bonds()):
            bonds[3 * k], bonds[3 * k + 1] = x[i], x[j]
        layers: list[Layer] = [Line(bonds, "grey", width=4)]
        layers += [
            Dots(x[atoms], ELEMENT_COLORS[element], ELEMENT_SIZES[element], label=element)
            for element, atoms in self._of.items()
        ]
        self.widget.show(layers, (-BOX, BOX, -BOX, BOX, -BOX, BOX))


@lru_cache(maxsize=1)
def _upright() -> NDArray[np.float64]:
    """Return the start geometry about its centre, its long axis along x."""
    x = alanine.start().numpy()
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    return cast(NDArray[np.float64], x @ (axes * np.linalg.det(axes)).T)


def aligned(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return positions (22, 3), nm, turned onto the start geometry (Kabsch's algorithm); as they are if not finite."""
    if not np.isfinite(x).all():
        return np.asarray(x, np.float64)
    centred = torch.as_tensor(x, dtype=torch.float64)
    centred = centred - centred.mean(0)
    u, _, v = torch.linalg.svd(centred.t() @ torch.from_numpy(_upright()))
    u[:, -1] *= torch.linalg.det(u @ v).sign()
    return cast(NDArray[np.float64], (centred @ (u @ v)).numpy())
