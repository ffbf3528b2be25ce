"""Densities in the plane, and the flows that learn them side by side."""

import base64
import binascii
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab import flows
from p4lab.errors import ConfigError
from p4lab.problems.densities import DENSITIES, Density2D, DensityProblem, density, grid_density
from p4lab.problems.density2d import grid
from p4lab.training.config import Rule, RunConfig, one_of, whole
from p4lab.training.lanes import Lanes

SIDE = 24
"""Cells along a side of a drawing."""
LEVELS = 15
"""Greatest amount of ink in a cell."""
AREA = (-4.0, 4.0, -4.0, 4.0)
"""x0, x1, y0, y1 of a drawing."""
DRAWING = "drawing"
FLOWS = ("p4inv_bent", "realnvp")
"""The lanes: what they are called in `p4lab.flows`."""


def encode_drawing(ink: NDArray[Any]) -> str:
    """Return a drawing as text that fits into a config: four bits for a cell, base64, 384 characters.

    Args:
        ink: shape (24, 24), whole numbers from 0 to 15, the first row at the top.

    Raises:
        ConfigError: another shape, or a number out of range.

    Example:
        >>> text = encode_drawing(np.eye(24))
        >>> len(text), bool((decode_drawing(text) == np.eye(24)).all())
        (384, True)
    """
    values = np.asarray(ink)
    if values.shape != (SIDE, SIDE) or not np.isfinite(values).all() or values.min() < 0 or values.max() > LEVELS:
        span = f"{values.min():g} to {values.max():g}" if values.size else "no values"
        raise ConfigError(
            f"drawing of shape {values.shape}, {span}: expected ({SIDE}, {SIDE}), whole numbers from 0 to {LEVELS}"
        )
    cells = values.astype(np.uint8).ravel()
    return base64.urlsafe_b64encode((cells[::2] << 4 | cells[1::2]).tobytes()).decode()


def decode_drawing(text: str) -> NDArray[np.uint8]:
    """Return the drawing that `encode_drawing` made text of, shape (24, 24), uint8.

    Raises:
        ConfigError: not such a text.
    """
    try:
        pairs = np.frombuffer(base64.b64decode(text, altchars=b"-_", validate=True), np.uint8)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"drawing={text[:20]!r}...: expected base64 ({error})") from error
    if 2 * len(pairs) != SIDE * SIDE:
        raise ConfigError(f"drawing={text[:20]!r}... of {len(text)} characters: expected {SIDE * SIDE * 2 // 3}")
    return np.stack([pairs >> 4, pairs & LEVELS], axis=1).reshape(SIDE, SIDE)


def _is_drawing(text: str) -> bool:
    try:
        return text == "" or bool(decode_drawing(text).any())
    except ConfigError:
        return False


class LaneProblem(DensityProblem):
    """Learn a density; what is shown of a lane is made of its weights, by whoever looks (see `FlowCopy`).

    So looking costs the training no more than a copy of the weights, however fine the pictures are.
    """

    @torch.no_grad()
    def pictures(self, model: torch.nn.Module, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights, on the CPU. ``z`` is not used."""
        return {
            name: value.detach().to("cpu", copy=True)
            for name, value in model.state_dict().items()
            if torch.is_tensor(value)
        }


@dataclass(frozen=True)
class DensityConfig(RunConfig):
    """Learn a density in the plane with one of two flows; the default is the paper's P4Inv + Bent.

    RealNVP starts at the identity, P4Inv + Bent as a rotation or reflection, which a normal density does not feel: each
    Bent identity is undone by the inverse one that follows it.

    Attributes:
        density: a name of `p4lab.problems.densities.DENSITIES`, or "drawing".
        drawing: text of `encode_drawing`; needed if that is the density.
        flow: "p4inv_bent" or "realnvp".
        blocks: nonlinearities of P4Inv + Bent; it has one P4Inv layer more.
        couplings: blocks of RealNVP, whose networks are as wide as it takes to have as many parameters as the other.

    Raises:
        ConfigError: as `RunConfig`, or no drawing where there should be one.
    """

    problem: ClassVar[str] = "density"
    rules: ClassVar[dict[str, Rule]] = {
        "density": one_of(*DENSITIES, DRAWING),
        "drawing": Rule(str, _is_drawing, "a drawing with ink on it, as text of encode_drawing"),
        "flow": one_of(*FLOWS),
        "blocks": whole(1, 100),
        "couplings": whole(2, 32),
    }

    rank: int = 2
    learning_rate: float = 1e-2
    batch_size: int = 256
    measure_every: int = 50
    density: str = "eight_gaussians"
    drawing: str = ""
    flow: str = "p4inv_bent"
    blocks: int = 16
    couplings: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density == DRAWING and not self.drawing:
            raise ConfigError("density='drawing': there is no drawing yet; paint one and press Train on this")

    @property
    def width(self) -> int:
        """The plane's 2."""
        return 2

    def truth(self) -> Density2D:
        """Return the density that is learnt."""
        return _truth(self.density, self.drawing if self.density == DRAWING else "")

    def parts(self) -> tuple[LaneProblem, torch.nn.Module]:
        """Return the problem, and the flow."""
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        return LaneProblem(self.truth(), self.seed, device, dtype), self.model()

    @property
    def architecture(self) -> tuple[Any, ...]:
        """What decides which weights there are; flows that agree in it can take over each other's."""
        return self.flow, self.blocks, self.couplings, self.rank, self.train_v, self.dtype, self.device

    def model(self) -> Any:
        """Return the flow at its start."""
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype), "device": torch.device(self.device)}
        if self.flow == "realnvp":
            hidden = matching_width(self.blocks, self.couplings)
            return flows.realnvp(2, self.couplings, hidden=hidden, depth=1, seed=self.seed, **options)
        options |= {"rank": min(self.rank, 2), "reset": self.reset, "train_v": self.train_v}
        return flows.p4inv_bent(2, self.blocks, init="paired", seed=self.seed, **options)


@lru_cache(maxsize=32)
def matching_width(blocks: int, couplings: int) -> int:
    """Return the hidden width at which RealNVP has as good as the same number of parameters as P4Inv + Bent.

    Counted are `p4lab.flows.effective_parameters`; the networks of RealNVP's couplings have one hidden layer.

    Example:
        >>> matching_width(100, 8)
        18
    """
    target = flows.effective_parameters(flows.p4inv_bent(2, blocks))
    twin = flows.matched(lambda hidden: flows.realnvp(2, couplings, hidden=hidden, depth=1), target)
    return int(twin.layers[0].hidden)


@lru_cache(maxsize=32)
def _truth(name: str, drawing: str) -> Density2D:
    if name == DRAWING:
        return grid_density(decode_drawing(drawing), AREA)
    return density(name)


@lru_cache(maxsize=32)
def _entropy(name: str, drawing: str, seed: int) -> float:
    return LaneProblem(_truth(name, drawing), seed).entropy


def entropy(config: DensityConfig) -> float:
    """Return the entropy of what is learnt, estimated on the test set (nats): test loss minus this is the KL."""
    return _entropy(config.density, config.drawing if config.density == DRAWING else "", config.seed)


def sketched(config: DensityConfig) -> NDArray[np.uint8]:
    """Return what is learnt as a drawing, shape (24, 24), the first row at the top."""
    if config.density == DRAWING:
        return decode_drawing(config.drawing)
    fine = 4
    density = config.truth().log_prob(grid(AREA, fine * SIDE)).exp().view(SIDE, fine, SIDE, fine).mean((1, 3))
    return (LEVELS * density / density.max()).round().to(torch.uint8).numpy()


def side_by_side(config: RunConfig) -> Lanes:
    """Return RealNVP and P4Inv + Bent, with the same batches and as good as the same number of parameters."""
    return Lanes(config, "flow", FLOWS)
