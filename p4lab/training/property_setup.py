"""What a property costs and what it is worth: five ways to learn a matrix that has it, side by side."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4lab.p4.linear import P4Linear
from p4lab.problems.property_targets import PROPERTIES, PropertyProblem, property_target, violation
from p4lab.training.config import POSITIVE, Rule, RunConfig, one_of, whole
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.property_ways import LANES, MAP_TEXTS, WAYS, label_of

_NOT_NEGATIVE = Rule(float, lambda value: math.isfinite(value) and value >= 0, "a number of at least 0")


@dataclass(frozen=True)
class PropertyConfig(RunConfig):
    """Learn y = T x for a matrix T with a property, in one of the ways to keep it.

    Attributes:
        prop: the property, a name of `p4lab.problems.property_targets.PROPERTIES`.
        way: how it is kept, a name of `WAYS`.
        dim: width d.
        bound: c of the Lipschitz bound; the norm of T is 1, so that a bound below 1 cannot be met without an error.
        orthogonal_map: the map of torch's orthogonal parametrization.
        rate_factor: factor on the learning rates of all lanes; live.
        noise: standard deviation of the noise of y; live.
        strength: weight of the penalty, in the lane that has one; live.
        samples: how many samples there are; 0: each batch is new.

    Raises:
        ConfigError: as `RunConfig`.
    """

    problem: ClassVar[str] = "properties"
    rules: ClassVar[dict[str, Rule]] = {
        "prop": one_of(*PROPERTIES),
        "way": one_of(*WAYS),
        "dim": whole(2, 512),
        "bound": POSITIVE,
        "orthogonal_map": one_of(*MAP_TEXTS),
        "rate_factor": POSITIVE,
        "noise": _NOT_NEGATIVE,
        "strength": _NOT_NEGATIVE,
        "samples": whole(0, 100_000),
    }
    live: ClassVar[tuple[str, ...]] = ("rate_factor", "merge_every", "refine_every", "reset", "noise", "strength")

    rank: int = 32
    optimizer: str = "sgd"
    learning_rate: float = 1.0
    batch_size: int = 128
    merge_every: int = 4
    measure_every: int = 5
    prop: str = "orthogonal"
    way: str = "p4"
    dim: int = 64
    bound: float = 0.8
    orthogonal_map: str = "householder"
    rate_factor: float = 1.0
    noise: float = 0.1
    strength: float = 1.0
    samples: int = 0

    @property
    def width(self) -> int:
        """The width d."""
        return self.dim

    @property
    def label(self) -> str:
        """What this way to keep the property is called."""
        return label_of(self.prop, self.way, self.orthogonal_map)

    def parts(self) -> tuple[PropertyProblem, nn.Module]:
        """Return the regression, and the model of this way at its start."""
        target = property_target(self.prop, self.dim, self.seed)
        settings = {"noise": self.noise, "strength": self.strength, "samples": self.samples, "seed": self.seed + 2}
        problem = PropertyProblem(target, **settings, dtype=getattr(torch, self.dtype), device=self.device)  # type: ignore[arg-type]
        return problem, LANES[self.prop][self.way].build(self)

    def update(self, problem: PropertyProblem) -> None:
        """Set noise and penalty."""
        problem.noise, problem.strength = self.noise, self.strength


@lru_cache(maxsize=32)
def best_error(prop: str, dim: int, seed: int, bound: float) -> float:
    """Return the least error that the property allows: 0, but for a Lipschitz bound below the target's norm."""
    if prop != "lipschitz":
        return 0.0
    excess = (torch.linalg.svdvals(property_target(prop, dim, seed)) - bound).relu()
    return float(excess.square().sum() / dim)


class PropertyEngine(Engine):
    """One way to keep a property; the violation is recorded in the column "residual", log|det| and sign beside it.

    Args:
        config: its settings, learning rate and optimizer of the way among them.
    """

    def _apply(self, config: RunConfig) -> None:
        assert isinstance(config, PropertyConfig)
        super()._apply(dataclasses.replace(config, learning_rate=config.learning_rate * config.rate_factor))
        for layer in self.layers:
            if isinstance(layer, P4Linear):
                layer.reset_kind = config.reset

    @torch.no_grad()
    def _measure(self) -> None:
        assert isinstance(self.config, PropertyConfig)
        weight = self.model.weight
        sign, logabsdet = torch.linalg.slogdet(weight.cpu().double())
        missed = violation(self.config.prop, weight, self.config.bound, own_inverse(self.model))  # type: ignore[arg-type]
        self.records.measures.append(
            step=self.step,
            test_loss=float(self.problem.test_loss(self.model)),
            logabsdet=float(logabsdet),
            sign=float(sign),
            logabsdet_error=math.nan,
            residual=missed,
            condition=math.nan,
        )


@torch.no_grad()
def own_inverse(model: Any) -> Tensor | None:
    """Return the inverse that a model knows of its weights, shape (d, d); None if it knows none."""
    if hasattr(model, "weight_inverse"):
        inverse: Tensor = model.weight_inverse
        return inverse
    if not hasattr(model, "inverse"):
        return None
    columns: Tensor = model.inverse(torch.eye(len(model.weight)).to(model.weight))
    return columns.t()


class PropertyLanes(Lanes):
    """The ways to keep a property, from the same start and with the same batches.

    Args:
        config: what they share.
        ways: names of `WAYS`.

    Raises:
        ConfigError: a name is not one of these.
        MissingPackageError: a package that a way is made of is not installed.

    Example:
        >>> lanes = PropertyLanes(PropertyConfig(prop="circulant", dim=8), ("p4", "plain"))
        >>> lanes.run(3)
        >>> [lane.config.label for lane in lanes.engines.values()]
        ['P4Circulant', 'nn.Linear']
    """

    def __init__(self, config: PropertyConfig, ways: Iterable[str] = WAYS) -> None:
        _warm_up(config.prop, config.dtype, config.device)
        engines = {
            name: PropertyEngine(config.replace(way=name, **LANES[config.prop][name].settings(config.dim)))
            for name in ways
        }
        super().__init__(config, "way", engines)


@lru_cache(maxsize=64)
def _warm_up(prop: str, dtype: str, device: str) -> None:
    """Do a few steps of every way once: what libraries load at their first call would count as the first lane's."""
    for way in WAYS:
        PropertyEngine(PropertyConfig(prop=prop, way=way, dtype=dtype, device=device, dim=8, learning_rate=1e-3)).run(5)


def side_by_side(config: RunConfig) -> Lanes:
    """Return one lane for each of `WAYS`."""
    assert isinstance(config, PropertyConfig)
    return PropertyLanes(config)
