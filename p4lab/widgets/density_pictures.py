"""The pictures of the lab of densities: frames in, layers out."""

import time
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.plots.layers import Heatmap, Layer, Path, Points
from p4lab.problems.density2d import Density2D, grid
from p4lab.training import Frame, Snapshot, State
from p4lab.training.density_setup import DensityConfig
from p4lab.training.flow_copy import FlowCopy
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.plane import Plane

COARSE, FINE = 80, 144
"""Cells along a side of a density, while training and at rest."""
DATA = 300
"""Points of the data that are shown."""
NATS = 10.0
"""How far the colours of a log-density reach below its highest value."""
HEADROOM = 1.1
PATIENCE = 0.4
"""Seconds between two pictures of a flow that trains, as long as nobody moves the depth."""
SECTORS = ("blue", "orange", "green", "purple")
"""Colours of samples by the quadrant that their latent z lies in, counterclockwise from the upper right."""
EXTENTS = (4.0, 5.0, 6.5, 8.0, 10.0, 13.0, 16.0, 20.0, 30.0, 50.0)
"""How far a picture of the flow may reach from the origin."""


class StyledPlane(Plane):
    """A plane that brings the lab's look along."""

    _css: Any = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("pictures.css", "density_lab.css"))


class Look:
    """What is chosen for the pictures; the lab changes it.

    Attributes:
        log: whether log-densities are shown.
        samples: whether samples are drawn over them.
        lattice: whether the lattice is drawn with the samples on their way.
        depth: how far those have come from the latent space (0) to the data (1).
    """

    log = True
    samples = True
    lattice = True
    depth = 1.0


class Copies:
    """Copies of the lanes' flows, up to date with the frame that is drawn; for the pump's thread alone."""

    def __init__(self) -> None:
        self._copies: dict[str, tuple[Any, FlowCopy]] = {}
        self._loaded: dict[str, Any] = {}

    def of(self, frame: Frame, lane: str) -> FlowCopy:
        """Return the copy of a lane's flow with the weights of this frame."""
        snapshot = frame.snapshot.lanes[lane]
        config = config_of(snapshot)
        kind = config.architecture
        if lane not in self._copies or self._copies[lane][0] != kind:
            self._copies[lane] = kind, FlowCopy(config.model(), config.seed)
            self._loaded.pop(lane, None)
        copy = self._copies[lane][1]
        now = moment_of(frame, lane)
        if self._loaded.get(lane) != now:
            copy.load(snapshot.pictures)
            self._loaded[lane] = now
        return copy


def config_of(snapshot: Snapshot) -> DensityConfig:
    """Return the config of a snapshot, which is this lab's."""
    return cast(DensityConfig, snapshot.config)


def moment_of(frame: Frame, lane: str) -> tuple[Any, ...]:
    """Return what changes whenever a lane's weights do."""
    snapshot = frame.snapshot.lanes[lane]
    return frame.run, snapshot.step, snapshot.config


class Scale:
    """The colours that truth and lanes share: from the greatest true density in the picture down.

    Args:
        truth: the density that is learnt.
        log: whether log-densities are shown.
    """

    def __init__(self, truth: Density2D, log: bool) -> None:
        self.log, self.bounds = log, truth.bounds
        self.top = float(truth_on_grid(truth, FINE).max())

    def heatmap(self, log_density: NDArray[Any], label: str = "") -> Heatmap:
        """Return the layer of a log-density (nats), the first row at the bottom."""
        if self.log:
            low, high = self.top - NATS, self.top
            shown = np.nan_to_num(log_density, nan=np.nan, neginf=low, posinf=high)
            return Heatmap(np.maximum(shown, low), self.bounds, low=low, high=high, label=label)
        shown = np.exp(np.minimum(log_density, self.top + 3))
        return Heatmap(shown, self.bounds, low=0.0, high=HEADROOM * float(np.exp(self.top)), label=label)


@lru_cache(maxsize=8)
def truth_on_grid(truth: Density2D, side: int) -> NDArray[np.float64]:
    """Return log p (nats) in the centres of cells, the first row at the bottom."""
    return truth.log_prob(grid(truth.bounds, side).flip(0)).numpy()


class TruthPicture:
    """The density that is learnt, with data over it.

    Args:
        look: what is chosen.
    """

    def __init__(self, look: Look) -> None:
        self._look = look
        self._drawn: Any = None
        self.widget = StyledPlane("Truth", "and data", x_label="x₁", y_label="x₂", height=300)
        self.widget.add_class("p4-density-truth")

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        config, look = config_of(frame.snapshot), self._look
        now = (config.density, config.drawing, config.seed, look.log, look.samples)
        if now == self._drawn:  # it does not change while a run goes on
            return
        self._drawn, truth = now, config.truth()
        layers: list[Layer] = [
            Scale(truth, look.log).heatmap(truth_on_grid(truth, FINE), "log p (nats)" if look.log else "density p")
        ]
        if look.samples:
            data = truth.sample(DATA, torch.Generator().manual_seed(config.seed))
            layers.append(Points(data.numpy(), "orange", size=3))
        self.widget.show(layers, truth.bounds)


class LaneDensity:
    """The density of one lane, with samples over it.

    Args:
        lane: which lane.
        title: heading.
        copies: of the flows.
        look: what is chosen.
    """

    def __init__(self, lane: str, title: str, copies: Copies, look: Look) -> None:
        self._lane, self._copies, self._look = lane, copies, look
        self._scale: tuple[Any, Scale] | None = None
        self.widget = StyledPlane(title, "and samples", height=300)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        copy, config, look = self._copies.of(frame, self._lane), config_of(frame.snapshot), self._look
        key = (config.density, config.drawing, look.log)
        if self._scale is None or self._scale[0] != key:
            self._scale = key, Scale(config.truth(), look.log)
        scale = self._scale[1]
        side = COARSE if frame.state is State.RUNNING else FINE
        layers: list[Layer] = [scale.heatmap(copy.log_density(scale.bounds, side))]
        if look.samples:
            samples, _, _ = copy.at_depth(1.0)
            layers.append(Points(visible(samples[:DATA], 2 * EXTENTS[-1]), "orange", size=3))
        self.widget.show(layers, scale.bounds)


class FlowPicture:
    """Samples and a lattice on their way through one lane's flow.

    Args:
        lane: which lane.
        title: heading.
        copies: of the flows.
        look: what is chosen.
    """

    def __init__(self, lane: str, title: str, copies: Copies, look: Look) -> None:
        self._lane, self._copies, self._look = lane, copies, look
        self._chosen: Any = None
        self._next = 0.0
        self.widget = StyledPlane(title, "coloured by z", height=300)

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        look, now = self._look, time.monotonic()
        chosen = (look.depth, look.lattice, frame.run, frame.shown)
        if frame.state is State.RUNNING and chosen == self._chosen and now < self._next:
            return
        self._chosen, self._next = chosen, now + PATIENCE
        copy = self._copies.of(frame, self._lane)
        samples, lines, passed = copy.at_depth(look.depth)
        extent = extent_of(samples)
        layers: list[Layer] = []
        if look.lattice:
            label = f"grid of z after {round(passed, 1):g} of {copy.layers} layers"
            layers.append(Path(visible(lines, 4 * extent), "grey", width=1, label=label))
        quadrant = quadrants(copy.at_depth(0.0)[0])
        layers += [
            Points(visible(samples[quadrant == k], 2 * extent), color, size=4) for k, color in enumerate(SECTORS)
        ]
        self.widget.show(layers, (-extent, extent, -extent, extent))


def quadrants(z: NDArray[Any]) -> NDArray[np.intp]:
    """Return 0 to 3, counterclockwise from the upper right, for z of shape (n, 2)."""
    return np.where(z[:, 1] >= 0, np.where(z[:, 0] >= 0, 0, 1), np.where(z[:, 0] < 0, 2, 3))


def extent_of(points: NDArray[Any]) -> float:
    """Return how far a picture has to reach to show nearly all points: in steps, so that it seldom moves."""
    finite = np.abs(points[np.isfinite(points).all(-1)])
    farthest = float(np.quantile(finite.max(-1), 0.98)) if len(finite) else 0.0
    return next((extent for extent in EXTENTS if 1.05 * farthest < extent), EXTENTS[-1])


def visible(points: NDArray[Any], extent: float) -> NDArray[Any]:
    """Return points with those left out (NaN) that are not finite or farther out than this."""
    return np.where((np.abs(points) <= extent).all(-1, keepdims=True), points, np.nan)
