"""Which P4 layers keep a property, by its name: an entry each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from p4lab.errors import OptionError
from p4lab.options import check_known, named_options
from p4lab.p4.circulant import P4Circulant
from p4lab.p4.invertible import P4Inv
from p4lab.p4.linear import P4Linear
from p4lab.p4.lipschitz import P4Lipschitz
from p4lab.p4.orthogonal import P4Orthogonal
from p4lab.p4.positive_definite import P4PositiveDefinite
from p4lab.p4.presets import ORTHOGONAL, RECOMMENDED, Preset
from p4lab.p4.special_linear import P4SpecialLinear
from p4lab.p4.spectrum import P4Spectrum
from p4lab.p4.stiefel import P4Stiefel

FIXED = frozenset({"dim", "dim_in", "dim_out", "bias", "init", "device", "dtype"})
"""These arguments of a layer follow from the weights that it stands for."""


@dataclass(frozen=True)
class Family:
    """The layers of a property.

    Attributes:
        kind: their class.
        settings: from a width to their options, where nobody says otherwise.
        oblong: the class for matrices that are not square, if it is another one.
    """

    kind: type[P4Linear]
    settings: Callable[[int], Mapping[str, Any]] = lambda dim: {}
    oblong: type[P4Linear] | None = None

    @classmethod
    def of(cls, property: object) -> "Family":
        """Return what somebody means by a name, a preset or a class.

        Raises:
            OptionError: it is none of these.
        """
        if isinstance(property, Preset):
            return cls(property.kind, property.settings)
        if isinstance(property, type) and issubclass(property, P4Linear):
            return cls(property)
        if isinstance(property, str) and property in FAMILIES:
            return FAMILIES[property]
        raise OptionError(
            f"property={property!r} is not known: choose one of {', '.join(map(repr, FAMILIES))}, a preset, or a class "
            "of linear P4 layers"
        )

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise if no layer of the family has options of these names.

        Raises:
            OptionError: it lists the known ones.
        """
        kinds = [self.kind] if self.oblong is None else [self.kind, self.oblong]
        check_known(self.kind.__name__, options, *(named_options(kind) - FIXED for kind in kinds))

    def layer(self, source: nn.Linear | Tensor, options: Mapping[str, Any]) -> P4Linear:
        """Return the layer that takes the place of a linear layer, or of a matrix (`P4Linear.of`)."""
        rows, columns = (source if isinstance(source, Tensor) else source.weight).shape
        kind = self.kind if self.oblong is None or rows == columns else self.oblong
        return kind.of(source, **{**self.settings(min(rows, columns)), **options})


def _few(dim: int) -> Mapping[str, Any]:
    return {"rank": ORTHOGONAL.rank_for(dim), "reset": "gradient"}


def _many(dim: int) -> Mapping[str, Any]:
    return {"rank": RECOMMENDED.rank_for(dim), "reset": "gradient"}


FAMILIES: Mapping[str, Family] = {
    "invertible": Family(P4Inv, RECOMMENDED.settings),
    "orthogonal": Family(P4Orthogonal, ORTHOGONAL.settings, oblong=P4Stiefel),
    "spectrum": Family(P4Spectrum, _few),
    "lipschitz": Family(P4Lipschitz, _few),
    "volume": Family(P4SpecialLinear, _many),
    "positive_definite": Family(P4PositiveDefinite, _many),
    "circulant": Family(P4Circulant),
}
"""The properties that `convert` knows by name."""
