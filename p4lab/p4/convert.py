"""A model of one's own with P4 layers in it: one call puts them there, `p4lab.fold` takes them out again."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from p4lab.errors import OptionError, P4Error
from p4lab.options import check_known, named_options
from p4lab.p4.changes import Changes
from p4lab.p4.circulant import P4Circulant
from p4lab.p4.computed import Stack, compute, plain_class
from p4lab.p4.invertible import P4Inv
from p4lab.p4.linear import HOOKS, P4Linear
from p4lab.p4.lipschitz import P4Lipschitz
from p4lab.p4.orthogonal import P4Orthogonal
from p4lab.p4.positive_definite import P4PositiveDefinite
from p4lab.p4.presets import ORTHOGONAL, RECOMMENDED, Preset
from p4lab.p4.special_linear import P4SpecialLinear
from p4lab.p4.spectrum import P4Spectrum
from p4lab.p4.stiefel import P4Stiefel
from p4lab.p4.targets import Left, Target, Weight, check_parameter, chosen
from p4lab.p4.validate import check_weight, seed_from

KEPT = 1e-5
"""Weights count as kept if none of their numbers moved by more than this part of the largest one."""
FIXED = frozenset({"dim", "dim_in", "dim_out", "bias", "init", "device", "dtype"})
"""These arguments of a layer follow from the weights that it stands for."""


@dataclass(frozen=True)
class Property:
    """How the layers of a property are made.

    Attributes:
        kind: their class.
        settings: from a width to their options, where nobody says otherwise.
        oblong: the class for matrices that are not square, if it is another one.
    """

    kind: type[P4Linear]
    settings: Callable[[int], Mapping[str, Any]] = lambda dim: {}
    oblong: type[P4Linear] | None = None

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise if no layer of the property has options of these names."""
        kinds = [self.kind] if self.oblong is None else [self.kind, self.oblong]
        check_known(self.kind.__name__, options, *(named_options(kind) - FIXED for kind in kinds))

    def layer(self, weight: Tensor, source: nn.Linear | Tensor, options: Mapping[str, Any]) -> P4Linear:
        """Return the layer for a matrix, or for the linear layer that has it."""
        kind = self.oblong if self.oblong is not None and weight.shape[0] != weight.shape[1] else self.kind
        return kind.of(source, **{**self.settings(min(weight.shape)), **options})


def _few(dim: int) -> Mapping[str, Any]:
    return {"rank": ORTHOGONAL.rank_for(dim), "reset": "gradient"}


def _many(dim: int) -> Mapping[str, Any]:
    return {"rank": RECOMMENDED.rank_for(dim), "reset": "gradient"}


PROPERTIES: Mapping[str, Property] = {
    "invertible": Property(P4Inv, RECOMMENDED.settings),
    "orthogonal": Property(P4Orthogonal, ORTHOGONAL.settings, oblong=P4Stiefel),
    "spectrum": Property(P4Spectrum, _few),
    "lipschitz": Property(P4Lipschitz, _few),
    "volume": Property(P4SpecialLinear, _many),
    "positive_definite": Property(P4PositiveDefinite, _many),
    "circulant": Property(P4Circulant),
}
"""The properties that `convert` knows by name."""


@dataclass(frozen=True)
class Converted:
    """What became of one weight.

    Attributes:
        name: its name before, or the path of the linear layer that has it.
        kind: class of its module.
        shape: as the module has it.
        layer: what stands there now.
        moved: the largest change of one of its numbers (or of the bias, which is one number in circulant layers).
        relative: size of the change by size of the weight (Frobenius norms).
        kept: whether nothing moved but by rounding.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layer: str
    moved: float
    relative: float
    kept: bool


@dataclass(frozen=True, repr=False)
class Conversion:
    """What `convert` did, weight by weight; it prints as a table.

    Attributes:
        weights: what was converted.
        left: what has matrices and was meant, but stays what it is, and why.
    """

    weights: tuple[Converted, ...]
    left: tuple[Left, ...]

    def __repr__(self) -> str:
        rows = [("weight", "of", "shape", "now", "max |dW|", "relative", "")]
        for w in self.weights:
            shape, what = " x ".join(map(str, w.shape)), "kept" if w.kept else "projected"
            rows.append((w.name, w.kind, shape, w.layer, f"{w.moved:.2g}", f"{w.relative:.2g}", what))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *(f"{left.name} is left: {left.reason}" for left in self.left)])


def convert(
    model: nn.Module,
    property: str | Preset | type[P4Linear],
    targets: Target | Iterable[Target] | None = None,
    seed: int | torch.Generator | None = None,
    **options: Any,
) -> Conversion:
    r"""Put P4 layers into a model, in place, and return what became of each weight.

    Where the weights have the property the function of the model stays what it is; elsewhere they become the nearest
    ones that have it. An `nn.Linear` is replaced by the P4 layer, whose forward and backward pass are the cheap ones.
    Weights that a module reads by name are made of P4 layers whenever it reads them: those of convolutions, as a
    matrix (out, in k k) or one for each group; of recurrent layers, one square matrix for each gate; of attention, one
    for each of query, key and value. The layers are then in ``module.p4[name]``.

    Make the optimizer after it, for parameters of its own train now (biases are the same `nn.Parameter` as before), and
    a `MergeSchedule` of both. `p4lab.fold` gives the plain model back, with the same names in its ``state_dict``. For a
    linear layer by itself there is ``P4Inv.of(linear)``, and so in other classes.

    Args:
        model: any module. It is changed as a whole or, if anything is refused, not at all.
        property: "invertible" (`P4Inv`), "orthogonal" (`P4Orthogonal`, or `P4Stiefel` where the matrix is not square),
            "spectrum" (`P4Spectrum`: all singular values stay), "lipschitz" (`P4Lipschitz`, with ``bound``), "volume"
            (`P4SpecialLinear`), "positive_definite" (`P4PositiveDefinite`) or "circulant" (`P4Circulant`); or a preset
            such as `RELATIVE`, or a class of linear P4 layers.
        targets: what is meant, one or several of: the path of a module ("head"), the name of a weight
            ("rnn.weight_hh_l0"), a pattern for either ("\*.linear1"), a type of modules, or a function of path and
            module. What is meant has to fit the property; but patterns, types and functions pass over modules whose
            weights no layer can stand for (a masked layer, an embedding), and the report lists these. None means each
            matrix that fits.
        seed: of all the layers' generators (None: torch's default generator).
        options: of the layers, in place of what their presets say: rank, reset, bound, ...

    Returns:
        A report that prints as a table.

    Raises:
        OptionError: an unknown property or option; targets that mean nothing; a weight that is tied, parametrized or
            not there yet; a module whose forward pass does not multiply with it; a linear layer by itself.
        ShapeError: the property needs a square matrix.
        SingularMatrixError: a weight is not finite, or none that has the property is nearest.
        DtypeError, DeviceError: a weight is not of float32 or float64, or on the meta device.

    Cost O(d^3) for each matrix. A weight that is read by name costs O(d^2 k) each time.

    Source: the layers are P4's, arXiv:2010.07033; targets are meant as in peft.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.randn(5, 4)
        >>> before = model(x)
        >>> [weight.layer for weight in convert(model, "invertible", targets="0", seed=0).weights]
        ['P4Inv, rank 2']
        >>> bool((model(x) - before).abs().max() < 1e-6), bool((model[0].inverse(model[0](x)) - x).abs().max() < 1e-4)
        (True, True)
    """
    family = _family(property)
    family.check(options)
    if type(model) is nn.Linear:
        raise OptionError(
            f"a linear layer by itself cannot be changed in place: take {family.kind.__name__}.of(linear), and fold() "
            "for the way back"
        )
    if "seed" in named_options(family.kind):
        options["seed"] = torch.Generator(device="cpu").manual_seed(seed_from(seed))
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise OptionError("DistributedDataParallel keeps the parameters that it was given: convert the model before")
    weights, left = chosen(model, targets)
    changes, converted = Changes(), []
    stacks: dict[nn.Module, dict[str, Stack]] = {}
    for weight in weights:
        try:
            parameter = check_parameter(model, weight)
            module = weight.module
            if _is_replaceable(module):
                layer = _replacement(module, family, options)
                converted.append(_record(weight, parameter, [layer]))
                _plan_replacement(model, module, layer, changes)
            else:
                stack = _stack(parameter, weight.blocks, family, options)
                converted.append(_record(weight, parameter, stack))
                stacks.setdefault(module, {})[weight.name] = stack
        except P4Error as error:
            if targets is not None:
                raise type(error)(f"{weight.full_name}: {error}") from error
            left.append(Left(weight.full_name, str(error)))
    if not converted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left[:5])
        raise OptionError(
            f"nothing in {plain_class(model).__name__} can be converted: {reasons or 'it has no matrices'}"
        )
    for module, made in stacks.items():
        compute(module, made, changes)
    changes.commit()
    return Conversion(tuple(converted), tuple(left))


def _family(property: object) -> Property:
    """Return how the layers are made that somebody means by a name, a preset or a class."""
    if isinstance(property, Preset):
        return Property(property.kind, property.settings)
    if isinstance(property, type) and issubclass(property, P4Linear):
        return Property(property)
    if isinstance(property, str) and property in PROPERTIES:
        return PROPERTIES[property]
    raise OptionError(
        f"property={property!r} is not known: choose one of {', '.join(map(repr, PROPERTIES))}, a preset, or a class "
        "of linear P4 layers"
    )


def _is_replaceable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a linear layer with nothing else in it."""
    plain = type(module) is nn.Linear and "forward" not in vars(module)
    return plain and not module._buffers and not module._modules and len(module._parameters) == 2


def _replacement(module: nn.Linear, family: Property, options: Mapping[str, Any]) -> P4Linear:
    layer = family.layer(module.weight, module, options)
    if module.bias is not None and layer.bias is not None and layer.bias.shape == module.bias.shape:
        layer.bias = module.bias
    own = {name: value for name, value in vars(module).items() if name in HOOKS or not hasattr(layer, name)}
    vars(layer).update(own)
    return layer


def _plan_replacement(model: nn.Module, module: nn.Module, layer: P4Linear, changes: Changes) -> None:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is module:
                changes.also(partial(parent._modules.__setitem__, name, layer))


def _stack(parameter: nn.Parameter, blocks: int, family: Property, options: Mapping[str, Any]) -> Stack:
    check_weight(family.kind.__name__, parameter if is_lazy(parameter) else parameter.flatten(1))
    matrices = parameter.detach().flatten(1).chunk(blocks)
    layers = [family.layer(matrix, matrix.requires_grad_(parameter.requires_grad), options) for matrix in matrices]
    return Stack(layers, parameter.shape)


@torch.no_grad()
def _record(weight: Weight, parameter: nn.Parameter, layers: Stack | list[P4Linear]) -> Converted:
    after = layers() if isinstance(layers, Stack) else layers[0].weight
    change = (after - parameter).to(torch.float64)
    size = torch.linalg.vector_norm(parameter.to(torch.float64)).clamp_min(torch.finfo(parameter.dtype).tiny)
    moved = float(change.abs().max())
    bias, own = getattr(weight.module, "bias", None), layers[0].bias
    if own is not None and bias is not None:
        moved = max(moved, float((bias - own).abs().max()))
    names = [f"{type(layer).__name__}, rank {layer.rank}" for layer in layers]
    return Converted(
        weight.full_name if isinstance(layers, Stack) else weight.path,
        plain_class(weight.module).__name__,
        tuple(parameter.shape),
        names[0] if len(names) == 1 else f"{len(names)} of {names[0]}",
        moved,
        float(torch.linalg.vector_norm(change) / size),
        moved <= KEPT * float(parameter.abs().max()),
    )
