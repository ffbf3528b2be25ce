"""A flow in the plane as it was at a moment, rebuilt from its weights to be looked at."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.errors import ConfigError
from p4lab.flows import Flow
from p4lab.flows.linear import Permutation
from p4lab.problems.density2d import Bounds, grid

Points = NDArray[np.float32]
REACH = 3.0
"""The lattice covers latent z from -3 to 3, which holds 99.5% of the samples."""
LINES, KNOTS = 13, 49
SAMPLES = 500


class FlowCopy:
    """A copy of a flow that follows another one's weights; using it does not touch what trains.

    Args:
        model: a flow of the same architecture; it is kept and overwritten.
        seed: of the latent variables of the samples.
        samples: their number.

    Attributes:
        model: the copy.
        dtype, device: of its weights.
        latent: the samples' latent variables, shape (n, 2).

    Raises:
        ConfigError: the flow is not one in the plane.
    """

    def __init__(self, model: Flow, seed: int = 0, samples: int = SAMPLES) -> None:
        if model.dim != 2:
            raise ConfigError(f"flow of dim {model.dim}: expected 2, the plane")
        self.model = model.eval()
        self._weights = {name: value for name, value in model.state_dict().items() if torch.is_tensor(value)}
        like = next(value for value in self._weights.values() if value.is_floating_point())
        self.dtype, self.device = like.dtype, like.device
        latent = torch.randn(
            samples, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"
        )
        self.latent = latent.numpy()
        self._z = torch.cat([latent, _lattice().reshape(-1, 2)]).to(self.device, self.dtype)
        self._stages: NDArray[np.float32] | None = None

    @torch.no_grad()
    def load(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Take over weights: the model's state by name.

        Raises:
            ConfigError: they do not fit.
        """
        if set(weights) != set(self._weights):
            raise ConfigError("weights of another flow: their names differ")
        for name, value in self._weights.items():
            value.copy_(torch.from_numpy(weights[name]))
        self._stages = None

    @torch.no_grad()
    def log_density(self, bounds: Bounds, side: int) -> NDArray[np.float32]:
        """Return log q (nats) in the centres of ``side`` x ``side`` cells, the first row at the bottom."""
        x = grid(bounds, side).flip(0).reshape(-1, 2).to(self.device, self.dtype)
        return self.model.log_prob(x).view(side, side).float().cpu().numpy()

    def at_depth(self, share: float) -> tuple[Points, Points, float]:
        """Return samples and lattice on their way from the latent space (share 0) to the data (share 1).

        Between two layers everything moves along straight lines. Layers that only permute the coordinates are not
        shown: the coordinates are named as in the data throughout.

        Returns:
            Samples (n, 2); the lattice's lines, one below the other with a row of NaN behind each, (m, 2); and the
            number of layers passed.
        """
        stages = self._path()
        place = min(1.0, max(0.0, share)) * (len(stages) - 1)
        first = min(int(place), len(stages) - 2)
        part = np.float32(place - first)
        points = (1 - part) * stages[first] + part * stages[first + 1]
        n = len(self.latent)
        lines = np.full((2 * LINES, KNOTS + 1, 2), np.nan, np.float32)
        lines[:, :-1] = points[n:].reshape(2 * LINES, KNOTS, 2)
        return points[:n], lines.reshape(-1, 2), place

    @property
    def layers(self) -> int:
        """Number of layers that are shown on the way."""
        return len(self._path()) - 1

    @torch.no_grad()
    def _path(self) -> NDArray[np.float32]:
        if self._stages is None:
            layers = list(self.model.layers)
            stages = self.model.stages(self._z)  # after undoing the last layer, the last but one, ...
            shown = [_unpermuted(stages[0], layers)]
            for passed, (layer, stage) in enumerate(zip(reversed(layers), stages[1:], strict=True), start=1):
                if not isinstance(layer, Permutation):
                    shown.append(_unpermuted(stage, layers[: len(layers) - passed]))
            self._stages = torch.stack(shown).float().cpu().numpy()
        return self._stages


def _unpermuted(points: Tensor, ahead: list[Any]) -> Tensor:
    """Return points with the permutations that are still ahead of them undone at once."""
    for layer in reversed(ahead):
        if isinstance(layer, Permutation):
            points = layer.inverse(points)
    return points


def _lattice() -> Tensor:
    """Return the lines of a lattice, shape (2 LINES, KNOTS, 2): first the upright ones, then the level ones."""
    places = torch.linspace(-REACH, REACH, LINES, dtype=torch.float64)
    along = torch.linspace(-REACH, REACH, KNOTS, dtype=torch.float64)
    upright = torch.stack(torch.meshgrid(places, along, indexing="ij"), dim=-1)
    return torch.cat([upright, upright.flip(-1)])
