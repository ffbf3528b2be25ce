"""A transformer of characters whose projections keep a property, beside the plain one: configs and lanes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import AdamW

from p4lab.baselines.poet import PoetLinear, PoetSchedule
from p4lab.p4 import ORTHOGONAL, MergeSchedule, convert, p4_modules
from p4lab.problems.characters import CharacterModel, Characters
from p4lab.training.config import RunConfig, budget, rate_factor, setting, turn, whole
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes

PROJECTIONS = ("*.query", "*.key", "*.value", "*.output", "*.up", "*.down")
"""The linear layers of a block, which are what keeps a property."""
DECAY = 0.01
"""AdamW's weight decay, of what does not turn."""
WARM_UP = 20
"""Steps in which learning rates rise to what they are."""


@dataclass(frozen=True)
class Way:
    """A way to train the projections.

    Attributes:
        label: what it is called.
        turn: puts the layers of this way into a model (None: it stays as it is).
        rate: of AdamW for what turns; the best of the grid of ``python -m p4lab.experiments.characters``.
        schedule: from model, optimizer and interval to what merges.
        keeps: the property, as `p4lab.p4.convert` names it (empty: none).
        source: where it comes from.
    """

    label: str
    rate: float
    turn: Callable[[nn.Module, int, int], object] | None = None
    schedule: Callable[[nn.Module, AdamW, int], Any] | None = None
    keeps: str = ""
    source: str = ""


def projections(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return each linear layer of a block, after its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and f"*.{name}" in PROJECTIONS
    ]


@torch.no_grad()
def _converted(keeps: str, model: nn.Module, rank: int, seed: int) -> None:
    """Put P4 layers into a model; what keeps its singular values starts with rows of length 1, as POET does."""
    for _, _, layer in projections(model):
        layer.weight.copy_(F.normalize(layer.weight, dim=1))
    convert(model, keeps, PROJECTIONS, seed=seed, rank=rank, reset=ORTHOGONAL.reset)


def _poet(model: nn.Module, rank: int, seed: int) -> None:
    """Put POET's layers in the place of projections, with its own start and blocks of twice the rank."""
    for number, (parent, name, child) in enumerate(projections(model)):
        layer = PoetLinear(child.in_features, child.out_features, block=2 * rank, seed=seed + number)
        setattr(parent, name, layer.to(child.weight))


def _p4(label: str, keeps: str, rate: float) -> Way:
    merges = partial(MergeSchedule, refine_every=ORTHOGONAL.refine_every)
    return Way(label, rate, partial(_converted, keeps), lambda *run: merges(*run), keeps, "p4lab, arXiv:2010.07033")


WAYS: Mapping[str, Way] = {
    "plain": Way("plain weights", 1e-2, source="torch.optim.AdamW"),
    "spectrum": _p4("P4Spectrum", "spectrum", 1e-2),
    "orthogonal": _p4("P4Orthogonal, P4Stiefel", "orthogonal", 1e-2),
    "poet": Way("POET", 1e-2, _poet, PoetSchedule, source="arXiv:2506.08001"),
}
"""Plain weights train by AdamW; the others turn, and AdamW moves what turns them."""
KEEPING = {name: way.label for name, way in WAYS.items() if way.keeps}
"""The ways that keep a property, by name, and what they are called."""


def build(way: str, width: int, blocks: int, heads: int, length: int, rank: int, seed: int) -> CharacterModel:
    """Return a model at its start; all that is no projection is the same for all ways of one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CharacterModel(width, blocks, heads, length)
    if WAYS[way].turn is not None:
        WAYS[way].turn(model, rank, seed)  # type: ignore[misc]
    return model


def optimizer_of(way: str, model: nn.Module) -> AdamW:
    """Return AdamW with what turns in its first group, and all else, at the rate of plain weights, in its last."""
    turning = {id(p) for module in p4_modules(model) for p in module.perturbation()}
    turning |= {id(p) for module in model.modules() if isinstance(module, PoetLinear) for p in module.rotations()}
    groups = [
        {"params": [p for p in model.parameters() if (id(p) in turning) is turns], "lr": rate, "weight_decay": decay}
        for turns, rate, decay in ((True, WAYS[way].rate, 0.0), (False, WAYS["plain"].rate, DECAY))
    ]
    return AdamW([group for group in groups if group["params"]])


@lru_cache(maxsize=8)
def _problem(length: int, device: str) -> "ShownCharacters":
    return ShownCharacters(length, device)


class ShownCharacters(Characters):
    """The text; what is shown of a lane is its model, in whose place looking is done."""

    def pictures(self, model: nn.Module, z: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the model's weights by name; ``z`` is not used."""
        state = model.state_dict()
        return {name: value.detach().to("cpu", copy=True) for name, value in state.items() if torch.is_tensor(value)}


@dataclass(frozen=True)
class CharactersConfig(RunConfig):
    """Train a transformer of characters with plain projections, and one whose projections keep a property.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "characters"

    seed: int = setting(0, help="Of start, batches and directions")
    dtype: str = setting("float32", choices=("float32",))
    rank: int = setting(16, choices=(4, 8, 16, 32, 64), help="Directions of a perturbation, on each side")
    merge_every: int = setting(10, choices=(1, 4, 10, 20, 50, 100))
    refine_every: int = ORTHOGONAL.refine_every
    batch_size: int = setting(16, choices=(8, 16, 32, 64), help="Windows of text in a step")
    measure_every: int = 10
    keeps: str = setting("spectrum", "Projections keep", choices=KEEPING, look="wide")
    way: str = setting("plain", "", choices=tuple(WAYS))
    dim: int = setting(128, "Width d", whole(8, 1024), choices=(64, 128, 256), own=True)
    blocks: int = setting(2, "Blocks", whole(1, 12), choices=(1, 2, 4), own=True)
    length: int = setting(64, "Window", whole(2, 512), choices=(32, 64, 128), own=True, unit="characters")
    rate_factor: float = rate_factor(0.1, 0.3, 0.5, 1.0, 2.0, 3.0)
    turn: float = turn(150.0)
    budget: float = budget(60.0, "Of training")

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    @property
    def heads(self) -> int:
        """Heads of attention: one for 32 numbers, if that divides the width."""
        return self.dim // 32 if self.dim % 32 == 0 else 1

    def parts(self) -> tuple[Characters, nn.Module]:
        """Return the text, which all lanes share, and the model of this way."""
        model = build(self.way, self.dim, self.blocks, self.heads, self.length, self.rank, self.seed)
        return _problem(self.length, self.device), model.to(self.device)

    def measures(self, problem: Characters, model: Any, watched: torch.Tensor | None) -> dict[str, Any]:
        """Return the test loss, and the largest violation of the property as "residual" (NaN where there is none)."""
        violations = [float(layer.violation()) for layer in p4_modules(model)]
        return {
            "test_loss": float(problem.test_loss(model)),
            **dict.fromkeys(("logabsdet", "sign", "logabsdet_error", "condition"), math.nan),
            "residual": max(violations, default=math.nan),
        }


def character_lane(config: CharactersConfig) -> Engine:
    """Return the engine of a model."""
    problem, model = config.parts()

    def rates(config: CharactersConfig) -> list[float]:
        return [config.rate_factor * float(rate) for rate in own]

    optimizer = optimizer_of(config.way, model)
    own = [group["lr"] for group in optimizer.param_groups]
    return Engine(
        config, problem, model, optimizer, rates=rates, anneal=lambda engine: min(1.0, (engine.step + 1) / WARM_UP)
    )


def character_lanes(config: CharactersConfig) -> Lanes:
    """Return a plain lane and one that keeps what the setting ``keeps`` says; each trains for the same time.

    Example:
        >>> lanes = character_lanes(CharactersConfig(dim=16, blocks=1, length=8, turn=1.0))
        >>> lanes.run()
        >>> list(lanes.engines)
        ['plain', 'kept']
    """
    ways = {"plain": "plain", "kept": config.keeps}
    return Lanes(config, "way", {name: character_lane(config.replace(way=way)) for name, way in ways.items()})
