"""Five ways to learn a matrix with a property: P4, two usual ones, a penalty, and plain weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from p4lab.baselines import PLU, GeotorchOrthogonal, MatrixExponential, TorchOrthogonal
from p4lab.p4 import (
    P4Circulant,
    P4Inv,
    P4Lipschitz,
    P4Orthogonal,
    P4Permutation,
    P4PositiveDefinite,
    P4SpecialLinear,
)
from p4lab.problems.property_targets import channels_of
from p4lab.training import property_layers as layers
from p4lab.training import property_maps as maps

if TYPE_CHECKING:
    from p4lab.training.property_setup import PropertyConfig

WAYS = ("p4", "usual", "other", "penalty", "plain")
"""The lanes, whatever the property."""
START = 0.5
"""Of the bound: the spectral norm at the start, where that is bounded."""


@dataclass(frozen=True)
class Way:
    """One way to keep a property.

    Attributes:
        label: what it is called.
        build: makes the model of a config; the config's ``way`` is not looked at.
        optimizer: "adam" or "sgd".
        rate: learning rate for "adam", for "sgd" divided by `scale`. The best of the grid for d = 64 that
            ``python -m p4lab.training.property_tuning`` tries.
        source: where it comes from.
        per: what the curvature of the loss, a mean over d numbers, goes down with: "width" (each weight acts on one of
            them), "channels" (each acts on one number of every item) or "one" (each acts on all).
    """

    label: str
    build: Callable[["PropertyConfig"], nn.Module]
    optimizer: str
    rate: float
    source: str = ""
    per: str = "width"

    def settings(self, dim: int) -> dict[str, Any]:
        """Return optimizer and learning rate at a width."""
        factor = self.scale(dim) if self.optimizer == "sgd" else 1
        return {"optimizer": self.optimizer, "learning_rate": self.rate * factor}

    def scale(self, dim: int) -> int:
        """Return the factor on the rates of gradient descent at a width."""
        return {"width": dim, "channels": channels_of(dim), "one": 1}[self.per]


def _kind(config: "PropertyConfig") -> dict[str, Any]:
    return {"dtype": getattr(torch, config.dtype), "device": torch.device(config.device)}


def _start(config: "PropertyConfig") -> Tensor:
    scale = START * config.bound if config.prop == "lipschitz" else 1.0
    return scale * torch.eye(config.dim, **_kind(config))


def _low_rank(layer: Callable[..., nn.Module], config: "PropertyConfig") -> nn.Module:
    rank = min(config.rank, config.dim)
    return layer(config.dim, rank=rank, bias=False, reset=config.reset, seed=config.seed, **_kind(config))


def _p4_lipschitz(config: "PropertyConfig") -> nn.Module:
    options: dict[str, Any] = {"rank": min(config.rank, 2 * config.dim), "reset": config.reset, "seed": config.seed}
    return P4Lipschitz(
        config.dim, config.dim, config.bound, bias=False, init=_start(config), **options, **_kind(config)
    )


def _p4_permutation(config: "PropertyConfig") -> nn.Module:
    c = channels_of(config.dim)
    options: dict[str, Any] = {"rank": min(config.rank, c), "reset": config.reset, "seed": config.seed}
    return layers.OnItems(P4Permutation(c, bias=False, **options, **_kind(config)), config.dim // c)


def _baseline(layer: Callable[..., nn.Module], config: "PropertyConfig") -> nn.Module:
    return layer(config.dim, bias=False, **_kind(config))


def _torch_orthogonal(config: "PropertyConfig") -> nn.Module:
    return TorchOrthogonal(config.dim, config.orthogonal_map, bias=False, **_kind(config))  # type: ignore[arg-type]


def _rebased(layer: Callable[..., nn.Module], config: "PropertyConfig") -> nn.Module:
    return layers.Rebased(_baseline(layer, config))


def _free(config: "PropertyConfig") -> nn.Module:
    return layers.Free(_start(config))


def _penalized(config: "PropertyConfig") -> nn.Module:
    return layers.Free(_start(config), wish=maps.penalty_of(config.prop, config.dim, config.bound))


def _deep_sets(config: "PropertyConfig") -> nn.Module:
    c = channels_of(config.dim)
    return layers.DeepSets(config.dim // c, c, **_kind(config))


def _averaged(config: "PropertyConfig") -> nn.Module:
    return layers.Mapped(_start(config), partial(maps.averaged, channels=channels_of(config.dim)))


def _clipped(config: "PropertyConfig") -> nn.Module:
    return layers.Free(_start(config), project=partial(maps.clipped, bound=config.bound))


def _cholesky(config: "PropertyConfig") -> nn.Module:
    return layers.Mapped(maps.cholesky_start(_start(config)), maps.cholesky)


def _p4_circulant(config: "PropertyConfig") -> nn.Module:
    return P4Circulant(config.dim, bias=False, **_kind(config))


def _convolution(config: "PropertyConfig") -> nn.Module:
    return layers.CircularConvolution(config.dim, **_kind(config))


def _manifold(name: str) -> Callable[["PropertyConfig"], nn.Module]:
    return lambda config: layers.OnManifold(_start(config), name)


def _p4(layer: Callable[..., nn.Module]) -> Callable[["PropertyConfig"], nn.Module]:
    return partial(_low_rank, layer)


_PLAIN = ("nn.Linear", _free, "sgd", 0.05)
_PENALTY = ("penalty", _penalized, "sgd", 0.05)
_GEOTORCH = "geotorch 0.4, arXiv:1909.09501"


def _ways(*ways: tuple[Any, ...]) -> dict[str, Way]:
    return {name: Way(*arguments) for name, arguments in zip(WAYS, ways, strict=True)}


LANES: Mapping[str, Mapping[str, Way]] = {
    "orthogonal": _ways(
        ("P4Orthogonal", _p4(P4Orthogonal), "sgd", 0.05, "p4lab, arXiv:2010.07033"),
        ("torch", _torch_orthogonal, "adam", 3e-2, "torch.nn.utils.parametrizations.orthogonal"),
        ("geotorch SO", partial(_rebased, GeotorchOrthogonal), "sgd", 0.05, f"{_GEOTORCH}; re-based every 100 steps"),
        (*_PENALTY, "arXiv:1609.07093"),
        _PLAIN,
    ),
    "volume": _ways(
        ("P4SpecialLinear", _p4(P4SpecialLinear), "sgd", 0.1, "p4lab, arXiv:2010.07033"),
        ("geotorch SL", _manifold("SL"), "adam", 3e-2, _GEOTORCH),
        ("W / |det W|^(1/d)", lambda c: layers.Mapped(_start(c), maps.unit_volume), "sgd", 0.03, "torch.linalg"),
        (*_PENALTY, "(ln|det W|)² / d"),
        _PLAIN,
    ),
    "positive_definite": _ways(
        ("P4PositiveDefinite", _p4(P4PositiveDefinite), "sgd", 0.01, "p4lab, arXiv:2010.07033"),
        ("Cholesky, softplus", _cholesky, "sgd", 0.03, "W = L Lᵀ"),
        ("geotorch PSD", _manifold("PSD"), "adam", 3e-2, _GEOTORCH),
        (*_PENALTY, "|W − Wᵀ|², and negative eigenvalues"),
        _PLAIN,
    ),
    "lipschitz": _ways(
        ("P4Lipschitz", _p4_lipschitz, "sgd", 0.1, "p4lab, arXiv:2010.07033"),
        ("spectral_norm", lambda c: layers.SpectralNorm(_start(c), c.bound), "sgd", 0.01, "torch, arXiv:1802.05957"),
        ("SVD clipping", _clipped, "sgd", 0.05, "projected gradient descent"),
        (*_PENALTY, "singular values above c"),
        _PLAIN,
    ),
    "circulant": _ways(
        ("P4Circulant", _p4_circulant, "sgd", 0.1, "p4lab, arXiv:2010.07033", "one"),
        ("FFT", lambda c: layers.FourierCirculant(c.dim, **_kind(c)), "sgd", 0.05, "a number for each frequency"),
        ("Conv1d, circular", _convolution, "sgd", 0.1, "torch.nn.Conv1d", "one"),
        (*_PENALTY, "|P⁻¹WP − W|²"),
        _PLAIN,
    ),
    "permutation": _ways(
        ("P4Permutation", _p4_permutation, "sgd", 0.3, "p4lab, arXiv:2010.07033", "channels"),
        ("DeepSets", _deep_sets, "sgd", 0.3, "arXiv:1703.06114", "channels"),
        ("group average", _averaged, "sgd", 0.1, "mean over all permutations"),
        (*_PENALTY, "distance from the group average"),
        _PLAIN,
    ),
    "invertible": _ways(
        ("P4Inv", _p4(P4Inv), "sgd", 0.05, "p4lab, arXiv:2010.07033"),
        ("PLU (Glow)", partial(_baseline, PLU), "sgd", 0.1, "arXiv:1807.03039"),
        ("exponential", partial(_baseline, MatrixExponential), "sgd", 0.1, "arXiv:2012.10166"),
        ("penalty, solve", partial(_baseline, layers.Barrier), "sgd", 0.05, "barrier at det = 0; torch.linalg.solve"),
        _PLAIN,
    ),
}
"""The ways to keep each property, by lane."""


def label_of(prop: str, way: str, orthogonal_map: str) -> str:
    """Return what a lane is called."""
    label = LANES[prop][way].label
    return f"{label}, {MAP_TEXTS[orthogonal_map]}" if (prop, way) == ("orthogonal", "usual") else label


MAP_TEXTS = {"matrix_exp": "exponential", "cayley": "Cayley", "householder": "Householder"}
"""The maps of torch's orthogonal parametrization."""
