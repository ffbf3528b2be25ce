"""A model of one's own with P4 layers in it: one call puts them there, `p4lab.fold` takes them out again."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from p4lab.errors import OptionError, P4Error
from p4lab.options import named_options
from p4lab.p4.changes import Changes
from p4lab.p4.computed import Stack, compute, plain_class
from p4lab.p4.contract import p4_modules
from p4lab.p4.families import Family
from p4lab.p4.linear import P4Linear
from p4lab.p4.modes import outside_inference, without_gradients
from p4lab.p4.plain import HOOKS
from p4lab.p4.presets import Preset
from p4lab.p4.targets import Left, Target, Weight, chosen, is_replaceable, owners_of, parameter_of
from p4lab.p4.validate import check_weight, seed_from

KEPT = 1e-5
"""Weights count as kept if none of their numbers moved by more than this part of the largest one."""


@dataclass(frozen=True)
class Converted:
    """What became of one weight.

    Attributes:
        name: its name before, or the path of the linear layer that has it.
        kind: class of its module.
        shape: as the module has it.
        layers: what stands there now, from the first rows to the last.
        moved: the largest change of one of its numbers (or of the bias, which is one number in circulant layers).
        relative: size of the change by size of the weight (Frobenius norms).
        kept: whether nothing moved but by rounding.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    layers: tuple[P4Linear, ...]
    moved: float
    relative: float
    kept: bool

    @property
    def now(self) -> str:
        """What stands there now, in words."""
        layer, count = self.layers[0], len(self.layers)
        rank = f", rank {layer.rank}" if "rank" in named_options(type(layer)) else ""
        return f"{count} of " * (count > 1) + type(layer).__name__ + rank


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
            rows.append((w.name, w.kind, shape, w.now, f"{w.moved:.2g}", f"{w.relative:.2g}", what))
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
    for each of query, key and value. The layers are then in ``module.p4[name].layers``. (A convolution of k x k has
    at most k times the norm of its matrix, with stride 1.)

    Load a plain checkpoint before it, and make the optimizer after it, for parameters of its own train now (biases are
    the same `nn.Parameter` as before), and a `MergeSchedule` of both. `p4lab.fold` gives the plain model back, with the
    same names in its ``state_dict``. For a linear layer by itself there is ``P4Inv.of(linear)``, and so in other
    classes.

    Args:
        model: any module. It is changed as a whole or, if anything is refused, not at all.
        property: "invertible" (`P4Inv`), "orthogonal" (`P4Orthogonal`, or `P4Stiefel` where the matrix is not square),
            "spectrum" (`P4Spectrum`: all singular values stay), "lipschitz" (`P4Lipschitz`, with ``bound``), "volume"
            (`P4SpecialLinear`), "positive_definite" (`P4PositiveDefinite`) or "circulant" (`P4Circulant`); or a preset
            such as `RELATIVE`, or a class of linear P4 layers.
        targets: what is meant, one or several of: the path of a module ("head"), the name of a weight
            ("rnn.weight_hh_l0"), a pattern for either ("\*.linear1"), a module, a type of modules, or a function of
            path and module. What is meant has to fit the property; but patterns, types and functions pass over modules
            whose weights no layer can stand for (a masked layer, an embedding, one in a plain list), and the report
            lists these. None means each matrix that fits.
        seed: of all the layers' generators (None: torch's default generator).
        options: of the layers, in place of what their presets say: rank, reset, bound, ...

    Returns:
        A report that prints as a table.

    Raises:
        OptionError: an unknown property or option; targets that mean nothing; a weight that is tied, parametrized, not
            there yet, or made under `torch.inference_mode`; a module whose forward pass does not multiply with it, or
            which stands where torch does not look, in a plain list for example; a linear layer by itself.
        ShapeError: the property needs a square matrix.
        SingularMatrixError: a weight is not finite, or none that has the property is nearest.
        DtypeError, DeviceError: a weight is not of float32 or float64, or on the meta device.

    Cost O(d^3) for each matrix. A weight that is read by name costs O(d^2 k) each time.

    Source: the layers are P4's, arXiv:2010.07033; targets are meant as in peft.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> x = torch.randn(5, 4)
        >>> before = model(x)
        >>> [weight.now for weight in convert(model, "invertible", targets="0", seed=0).weights]
        ['P4Inv, rank 2']
        >>> bool((model(x) - before).abs().max() < 1e-6), bool((model[0].inverse(model[0](x)) - x).abs().max() < 1e-4)
        (True, True)
    """
    family = Family.of(property)
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
    with outside_inference():  # where P4 layers that are made can never train
        return _converted(model, family, targets, options)


def _converted(
    model: nn.Module, family: Family, targets: Target | Iterable[Target] | None, options: Mapping[str, Any]
) -> Conversion:
    weights, left = chosen(model, targets)
    owners, parents = owners_of(model), _parents(model)
    changes, converted = Changes(), []
    stacks: dict[nn.Module, dict[str, Stack]] = {}
    for weight in weights:
        module = weight.module
        try:
            parameter = parameter_of(weight, owners)
            if is_replaceable(module):
                layer = _replacement(module, family, options)
                converted.append(_record(weight.path, weight, parameter, layer.weight, [layer]))
                for parent, name in parents[module]:
                    changes.also(partial(parent._modules.__setitem__, name, layer))
            else:
                stack = _stack(parameter, weight.blocks, family, options)
                converted.append(_record(weight.full_name, weight, parameter, stack(), stack.layers))
                stacks.setdefault(module, {})[weight.name] = stack
        except P4Error as error:
            if targets is not None:
                raise type(error)(f"{weight.full_name}: {error}") from error
            left.append(Left(weight.full_name, str(error)))
    if not converted:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left[:5])
        none = "its matrices are P4 layers already" if p4_modules(model) else "no matrices, or no targets"
        raise OptionError(f"nothing in {plain_class(model).__name__} can be converted: {reasons or none}")
    for module, made in stacks.items():
        compute(module, made, changes)
    changes.commit()
    return Conversion(tuple(converted), tuple(left))


def _parents(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """Return the places of all modules inside of a model."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places[child].append((parent, name))
    return places


def _replacement(module: nn.Linear, family: Family, options: Mapping[str, Any]) -> P4Linear:
    check_weight(family.kind.__name__, module.weight)
    layer = family.layer(module, options)
    if layer.bias is not None and layer.bias.shape == module.bias.shape:
        layer.bias = module.bias
    # Hooks stay hooks, with their handles, and what somebody else has put there stays, too.
    own = {name: value for name, value in vars(module).items() if name in HOOKS or not hasattr(layer, name)}
    vars(layer).update(own)
    return layer


def _stack(parameter: nn.Parameter, blocks: int, family: Family, options: Mapping[str, Any]) -> Stack:
    check_weight(family.kind.__name__, parameter if is_lazy(parameter) else parameter.flatten(1))
    matrices = parameter.detach().flatten(1).chunk(blocks)
    layers = [family.layer(matrix.requires_grad_(parameter.requires_grad), options) for matrix in matrices]
    return Stack(layers, parameter.shape)


@without_gradients
def _record(name: str, weight: Weight, before: Tensor, after: Tensor, layers: Iterable[Any]) -> Converted:
    change, norm = after - before, torch.linalg.vector_norm
    moved, (first, *_) = change.abs().max(), layers
    if first.bias is not None:
        moved = torch.maximum(moved, (weight.module.bias - first.bias).abs().max())
    return Converted(
        name=name,
        kind=plain_class(weight.module).__name__,
        shape=tuple(before.shape),
        layers=tuple(layers),
        moved=float(moved),
        relative=float(norm(change) / norm(before).clamp_min(torch.finfo(before.dtype).tiny)),
        kept=bool(moved <= KEPT * before.abs().max()),
    )
