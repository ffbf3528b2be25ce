"""What better mixing buys: RealNVP with different mixing layers between its couplings, side by side."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from p4lab import flows
from p4lab.flows import MIXINGS, Flow
from p4lab.p4 import RECOMMENDED
from p4lab.problems.densities import DENSITIES, DensityProblem, density
from p4lab.problems.digits import DIM, Digits, to_levels
from p4lab.training.config import Rule, RunConfig, one_of, whole
from p4lab.training.lanes import Lanes

DIGITS = "digits"
SIDE = 32
"""Cells along a side of the picture of a density."""
NATS = 8.0
"""How far the ink of a log-density reaches below its highest value."""
TOP = 16
"""Darkest level of the pictures."""
SAMPLES = 9
"""Digits in a picture."""
LANES = ("swap", "permutation", "plu", "p4inv", "p4orthogonal")
"""The lanes of the lab: names of `p4lab.flows.MIXINGS`."""


def mixing_matrices(model: Flow) -> Tensor:
    """Return the mixing matrices in the order in which the data meets them, shape (blocks - 1, d, d).

    Example:
        >>> mixing_matrices(flows.realnvp(2, 2))
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    return torch.stack([layer.weight for layer in model.linear_layers()])


def distance_from_swap(matrices: Any) -> Any:
    r"""Return how far matrices W are from the swap S: the root mean square over their rows.

    .. math:: |W - S|_F / \sqrt{d}

    That of another permutation is at most the root of 2, that of a random rotation near it.

    Args:
        matrices: shape (..., d, d), a tensor or numpy array.

    Returns:
        Shape (...), of the same kind.

    Example:
        >>> round(float(distance_from_swap(torch.eye(4))), 3)
        1.414
    """
    values = torch.as_tensor(matrices)
    swap = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device).flip(-1)
    distance = torch.linalg.matrix_norm(values - swap) / values.shape[-1] ** 0.5
    return distance if torch.is_tensor(matrices) else distance.numpy()


class MixedDigits(Digits):
    """The digits; what is shown of a lane are its mixing matrices and a few samples."""

    @torch.no_grad()
    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return "matrices" (see `mixing_matrices`), and "images": samples of shape (9, 8, 8), uint8, 0 to 16."""
        samples = to_levels(self.to_data(model.inverse(z[:SAMPLES])))
        return {"matrices": _shown(model), "images": samples}


class MixedDensity(DensityProblem):
    """A density in the plane; what is shown of a lane are its mixing matrices and its density."""

    @torch.no_grad()
    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return "matrices" (see `mixing_matrices`), and "images": the log-density as ink, (1, 32, 32), uint8, 0 to 16.

        Ink fades over 8 nats below the highest true value. ``z`` is not used.
        """
        log_density = model.log_prob(self._grid.view(-1, 2)).view(SIDE, SIDE)
        share = 1 + (log_density - _highest(self.density.name)) / NATS
        ink = (TOP * torch.nan_to_num(share, nan=0.0)).round().clamp(0, TOP)
        return {"matrices": _shown(model), "images": ink.to("cpu", torch.uint8)[None]}


def _shown(model: Flow) -> Tensor:
    return mixing_matrices(model).detach().to("cpu", torch.float32, copy=True)


@lru_cache(maxsize=16)
def _highest(name: str) -> float:
    truth = density(name)
    return float(truth.log_prob(truth.grid(SIDE)).max())


@lru_cache(maxsize=16)
def _density_problem(name: str, seed: int, device: str, dtype: str) -> MixedDensity:
    return MixedDensity(density(name), seed, torch.device(device), getattr(torch, dtype), SIDE)


@lru_cache(maxsize=4)
def _digits(seed: int, device: str, dtype: str) -> MixedDigits:
    return MixedDigits(seed, torch.device(device), getattr(torch, dtype))


@dataclass(frozen=True)
class SwapsConfig(RunConfig):
    """Learn digits, or a density in the plane, with RealNVP and one kind of mixing layer.

    Networks and batches of one seed are the same whatever mixes the coordinates.

    Attributes:
        data: "digits", or a name of `p4lab.problems.densities.DENSITIES`.
        mixing: a name of `p4lab.flows.MIXINGS`.
        blocks: affine couplings; there is one mixing layer less.
        hidden: width of the one hidden layer of each coupling's network.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "swaps"
    rules: ClassVar[dict[str, Rule]] = {
        "data": one_of(DIGITS, *DENSITIES),
        "mixing": one_of(*MIXINGS),
        "blocks": whole(2, 32),
        "hidden": whole(1, 1024),
    }

    rank: int = RECOMMENDED.rank
    learning_rate: float = 5e-3
    batch_size: int = 128
    measure_every: int = 10
    data: str = DIGITS
    mixing: str = "p4inv"
    blocks: int = 8
    hidden: int = 64

    @property
    def width(self) -> int:
        """64 pixels, or the plane's 2."""
        return DIM if self.data == DIGITS else 2

    def parts(self) -> tuple[MixedDigits | MixedDensity, torch.nn.Module]:
        """Return the problem, which all lanes share, and the flow."""
        where = self.seed, self.device, self.dtype
        problem = _digits(*where) if self.data == DIGITS else _density_problem(self.data, *where)
        return problem, self.model()

    def model(self) -> Flow:
        """Return the flow at its start."""
        preset = dataclasses.replace(
            RECOMMENDED, rank=self.rank, reset=self.reset, train_v=self.train_v, every=self.merge_every
        )
        return flows.realnvp(
            self.width,
            self.blocks,
            self.mixing,
            hidden=self.hidden,
            depth=1,
            seed=self.seed,
            preset=preset,
            dtype=getattr(torch, self.dtype),
            device=torch.device(self.device),
        )


def entropy(config: SwapsConfig) -> float | None:
    """Return the entropy of what is learnt, estimated on the test set (nats); None for the digits: nobody knows."""
    if config.data == DIGITS:
        return None
    return _density_problem(config.data, config.seed, config.device, config.dtype).entropy


def side_by_side(config: RunConfig, mixings: Sequence[str] = LANES) -> Lanes:
    """Return one lane for each kind of mixing, with the same networks at the start and the same batches.

    Raises:
        ConfigError: a name is not one of `p4lab.flows.MIXINGS`.
    """
    return Lanes(config, "mixing", mixings)
