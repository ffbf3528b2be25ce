"""Properties of a matrix, and five ways to learn one that has it: P4, two usual ones, a penalty, and plain weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.baselines import property_layers as layers
from p4lab.baselines import property_maps as maps
from p4lab.baselines.orthogonal import GeotorchOrthogonal, TorchOrthogonal
from p4lab.baselines.reparameterized import PLU, MatrixExponential
from p4lab.linalg import orthogonality_error
from p4lab.linalg.initial import haar_rotation, spread_spd
from p4lab.p4 import (
    P4Circulant,
    P4Inv,
    P4Lipschitz,
    P4Orthogonal,
    P4Permutation,
    P4PositiveDefinite,
    P4SpecialLinear,
    P4Spectrum,
)

WAYS = ("p4", "usual", "other", "penalty", "plain")
"""There are these ways to keep a property, whatever it is."""
START = 0.5
"""The spectral norm starts at this part of its bound."""
MAP_TEXTS = {"matrix_exp": "exponential", "cayley": "Cayley", "householder": "Householder"}
"""The maps of torch's orthogonal parametrization are called so."""


@dataclass(frozen=True)
class Spec:
    """What is asked of a layer ``y = W x``; each way reads what means something to it.

    Attributes:
        dim: width d.
        rank: directions of a perturbation, no more than fit.
        reset: how new ones are drawn.
        bound: c of the spectral norm (None: it is not bounded).
        orthogonal_map: the map of torch's orthogonal parametrization.
        seed: of directions.
        where: dtype and device, as torch's functions take them.
        begin: makes the weights at the start of the identity; see `Property`.
    """

    dim: int
    rank: int = 32
    reset: Any = "gradient"
    bound: float | None = None
    orthogonal_map: Any = "householder"
    seed: int = 0
    where: Mapping[str, Any] = field(default_factory=dict)
    begin: Callable[[Tensor], Tensor] = maps.as_it_is

    @property
    def start(self) -> Tensor:
        """The weights at the start: the identity, or what the property begins with, within the bound."""
        scale = 1.0 if self.bound is None else START * self.bound
        return scale * self.begin(torch.eye(self.dim, **self.where))

    @property
    def channels(self) -> int:
        """Numbers of an item, where d numbers are read as a set."""
        return maps.channels_of(self.dim)

    def directions(self, most: int) -> dict[str, Any]:
        """Return the options of a P4 layer that has room for so many directions."""
        return {"bias": False, "rank": min(self.rank, most), "reset": self.reset, "seed": self.seed, **self.where}


Build = Callable[[Spec], nn.Module]
"""A layer is built of what is asked of it."""


@dataclass(frozen=True)
class Way:
    """One way to keep a property.

    Attributes:
        label: what it is called.
        build: makes the layer at its start.
        optimizer: "adam" or "sgd".
        rate: learning rate for "adam", for "sgd" divided by `scale`. The best of the grid for d = 64 that
            ``python -m p4lab.bench property_tuning`` tries.
        source: where it comes from.
        per: what the curvature of the loss, a mean over d numbers, goes down with: "width" (each weight acts on one of
            them), "channels" (each acts on one number of every item) or "one" (each acts on all).
        keeps: what keeps the property.
    """

    label: str
    build: Build
    optimizer: str
    rate: float
    source: str = ""
    per: str = "width"
    keeps: str = "parametrization"

    def settings(self, dim: int) -> dict[str, Any]:
        """Return optimizer and learning rate at a width."""
        factor = self.scale(dim) if self.optimizer == "sgd" else 1
        return {"optimizer": self.optimizer, "learning_rate": self.rate * factor}

    def scale(self, dim: int) -> int:
        """Return the factor on the rates of gradient descent at a width."""
        return {"width": dim, "channels": maps.channels_of(dim), "one": 1}[self.per]


@dataclass(frozen=True)
class Property:
    """A property of a matrix.

    Attributes:
        label: what it is called.
        symbols: what its violation measures.
        target: makes a random matrix that has it of standard normal noise, shape (3, d, d), float64.
        violation: how far W is off, or W / c if there is a bound (None: what counts is the inverse that a layer knows).
        ways: the ways to keep it, by the names in `WAYS`.
        bounded: whether it is about a bound c of the spectral norm.
        begin: makes the weights at the start of the identity, where that does not have the property.
    """

    label: str
    symbols: str
    target: Callable[[Tensor], Tensor]
    violation: Callable[[Tensor], float] | None
    ways: Mapping[str, Way]
    bounded: bool = False
    begin: Callable[[Tensor], Tensor] = maps.as_it_is


def _p4(layer: Callable[..., nn.Module]) -> Build:
    return lambda spec: layer(spec.dim, **spec.directions(spec.dim))


def _p4_lipschitz(spec: Spec) -> nn.Module:
    return P4Lipschitz(spec.dim, spec.dim, _bound(spec), init=spec.start, **spec.directions(2 * spec.dim))


def _p4_permutation(spec: Spec) -> nn.Module:
    layer = P4Permutation(spec.channels, **spec.directions(spec.channels))
    return layers.OnItems(layer, spec.dim // spec.channels)


def _bound(spec: Spec) -> float:
    return 1.0 if spec.bound is None else spec.bound


def _baseline(layer: Callable[..., nn.Module], spec: Spec) -> nn.Module:
    return layer(spec.dim, bias=False, **spec.where)


def _torch_orthogonal(spec: Spec) -> nn.Module:
    return TorchOrthogonal(spec.dim, spec.orthogonal_map, bias=False, **spec.where)


def _rebased(layer: Callable[..., nn.Module], spec: Spec) -> nn.Module:
    return layers.Rebased(_baseline(layer, spec))


def _manifold(name: str) -> Build:
    return lambda spec: layers.OnManifold(spec.start, name)


def _cholesky(spec: Spec) -> nn.Module:
    return layers.Mapped(maps.cholesky_start(spec.start), maps.cholesky)


def _averaged(spec: Spec) -> nn.Module:
    return layers.Mapped(spec.start, partial(maps.averaged, channels=spec.channels))


def _clipped(spec: Spec) -> nn.Module:
    return layers.Free(spec.start, project=partial(maps.clipped, bound=_bound(spec)))


def _penalized(penalty: Callable[[Tensor], Tensor]) -> Build:
    def build(spec: Spec) -> nn.Module:
        def wish(w: Tensor) -> Tensor:
            return penalty(w if spec.bound is None else w / spec.bound) / spec.dim

        return layers.Free(spec.start, wish=wish)

    return build


def _penalty(penalty: Callable[[Tensor], Tensor], source: str) -> Way:
    return Way("penalty", _penalized(penalty), "sgd", 0.05, source, keeps="penalty")


def _two_rotations(spec: Spec) -> nn.Module:
    return layers.TwoRotations(spec.start, lambda: TorchOrthogonal(spec.dim, "cayley", bias=False, **spec.where))


def _ways(p4: Way, usual: Way, other: Way, penalty: Way) -> dict[str, Way]:
    plain = Way("nn.Linear", lambda spec: layers.Free(spec.start), "sgd", 0.05, keeps="nothing")
    return dict(zip(WAYS, (p4, usual, other, penalty, plain), strict=True))


_by_p4 = partial(Way, optimizer="sgd", source="p4lab, arXiv:2010.07033", keeps="perturbation")
_GEOTORCH = "geotorch 0.4, arXiv:1909.09501"

PROPERTIES: Mapping[str, Property] = {
    "orthogonal": Property(
        "orthogonal",
        "|WᵀW − I|",
        lambda noise: haar_rotation(noise[0]),
        lambda w: float(orthogonality_error(w)),
        _ways(
            _by_p4("P4Orthogonal", _p4(P4Orthogonal), rate=0.05),
            Way("torch", _torch_orthogonal, "adam", 3e-2, "torch.nn.utils.parametrizations.orthogonal"),
            Way(
                "geotorch SO",
                partial(_rebased, GeotorchOrthogonal),
                "sgd",
                0.05,
                f"{_GEOTORCH}; re-based every 100 steps",
            ),
            _penalty(maps.orthogonal_penalty, "arXiv:1609.07093"),
        ),
    ),
    "volume": Property(
        "volume preserving, det = 1",
        "|det W − 1|",
        maps.volume_target,
        maps.volume_violation,
        _ways(
            _by_p4("P4SpecialLinear", _p4(P4SpecialLinear), rate=0.1),
            Way("geotorch SL", _manifold("SL"), "adam", 3e-2, _GEOTORCH),
            Way("W / |det W|^(1/d)", lambda s: layers.Mapped(s.start, maps.unit_volume), "sgd", 0.03, "torch.linalg"),
            _penalty(maps.volume_penalty, "(ln|det W|)² / d"),
        ),
    ),
    "positive_definite": Property(
        "positive definite",
        "|W − Wᵀ|, −λ min",
        lambda noise: spread_spd(noise[0]),
        maps.definite_violation,
        _ways(
            _by_p4("P4PositiveDefinite", _p4(P4PositiveDefinite), rate=0.01),
            Way("Cholesky, softplus", _cholesky, "sgd", 0.03, "W = L Lᵀ"),
            Way("geotorch PSD", _manifold("PSD"), "adam", 3e-2, _GEOTORCH),
            _penalty(maps.definite_penalty, "|W − Wᵀ|², and negative eigenvalues"),
        ),
    ),
    "lipschitz": Property(
        "Lipschitz, |W|₂ ≤ c",
        "|W|₂ / c − 1",
        maps.lipschitz_target,
        lambda w: max(0.0, float(torch.linalg.matrix_norm(w, 2)) - 1),
        _ways(
            _by_p4("P4Lipschitz", _p4_lipschitz, rate=0.1),
            Way(
                "spectral_norm",
                lambda s: layers.SpectralNorm(s.start, _bound(s)),
                "sgd",
                0.01,
                "torch, arXiv:1802.05957",
            ),
            Way("SVD clipping", _clipped, "sgd", 0.05, "projected gradient descent", keeps="projection"),
            _penalty(maps.norm_penalty, "singular values above c"),
        ),
        bounded=True,
    ),
    "spectrum": Property(
        "singular values kept",
        "|σ(W) − σ|",
        maps.spectrum_target,
        maps.spectrum_violation,
        _ways(
            _by_p4(
                "P4Spectrum",
                lambda s: P4Spectrum(s.dim, s.dim, init=s.start, **s.directions(s.dim)),
                rate=3e-2,
                optimizer="adam",
            ),
            Way("two rotations (torch)", _two_rotations, "sgd", 0.3, "torch.nn.utils.parametrizations.orthogonal"),
            Way(
                "SVD projection",
                lambda s: layers.Free(s.start, project=maps.respread),
                "sgd",
                0.05,
                "projected gradient descent",
                keeps="projection",
            ),
            _penalty(maps.spectrum_penalty, "|σ(W) − σ|²"),
        ),
        begin=maps.respread,
    ),
    "circulant": Property(
        "shift-equivariant (circulant)",
        "|P⁻¹WP − W|",
        maps.circulant_target,
        lambda w: maps.largest(w.roll((1, 1), (0, 1)) - w),
        _ways(
            _by_p4("P4Circulant", lambda s: P4Circulant(s.dim, bias=False, **s.where), rate=0.1, per="one"),
            Way("FFT", lambda s: layers.FourierCirculant(s.dim, **s.where), "sgd", 0.05, "a number for each frequency"),
            Way(
                "Conv1d, circular",
                lambda s: layers.CircularConvolution(s.dim, **s.where),
                "sgd",
                0.1,
                "torch.nn.Conv1d",
                "one",
            ),
            _penalty(maps.circulant_penalty, "|P⁻¹WP − W|²"),
        ),
    ),
    "permutation": Property(
        "permutation-equivariant",
        "|P⁻¹WP − W|",
        maps.permutation_target,
        maps.permutation_violation,
        _ways(
            _by_p4("P4Permutation", _p4_permutation, rate=0.3, per="channels"),
            Way(
                "DeepSets",
                lambda s: layers.DeepSets(s.dim // s.channels, s.channels, **s.where),
                "sgd",
                0.3,
                "arXiv:1703.06114",
                "channels",
            ),
            Way("group average", _averaged, "sgd", 0.1, "mean over all permutations"),
            _penalty(maps.permutation_penalty, "distance from the group average"),
        ),
    ),
    "invertible": Property(
        "invertible",
        "|W⁻¹W − I|",
        maps.invertible_target,
        None,
        _ways(
            _by_p4("P4Inv", _p4(P4Inv), rate=0.05),
            Way("PLU (Glow)", partial(_baseline, PLU), "sgd", 0.1, "arXiv:1807.03039"),
            Way("exponential", partial(_baseline, MatrixExponential), "sgd", 0.1, "arXiv:2012.10166"),
            Way(
                "penalty, solve",
                partial(_baseline, layers.Barrier),
                "sgd",
                0.05,
                "barrier at det = 0; torch.linalg.solve",
                keeps="penalty",
            ),
        ),
    ),
}
"""Here is all that there is to know about each property, by its name."""


def label_of(prop: str, way: str, orthogonal_map: str) -> str:
    """Return what a way to keep a property is called."""
    label = PROPERTIES[prop].ways[way].label
    return f"{label}, {MAP_TEXTS[orthogonal_map]}" if (prop, way) == ("orthogonal", "usual") else label
