"""Which weights of a model are matrices that a P4 layer can stand for, and which of them somebody means."""

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from p4lab.errors import OptionError, P4Error
from p4lab.p4.computed import NAME, Computed, plain_class
from p4lab.p4.contract import P4Module
from p4lab.p4.modes import without_gradients
from p4lab.p4.references import references_in

Target = str | nn.Module | type[nn.Module] | Callable[[str, nn.Module], bool]
"""Modules are meant by path or pattern, by themselves, by type, or by a function; weights by path or pattern."""
GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}
"""So many matrices stand one below the other in the weights of recurrent layers; of others it is one."""
READERS = (
    nn.MultiheadAttention,
    nn.LSTM,
    nn.GRU,
    nn.RNN,
    nn.LSTMCell,
    nn.GRUCell,
    nn.RNNCell,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)
"""These modules have no other use for their weights than to multiply with matrices."""
PROBES = 3
"""So many inputs show whether a module computes W x + b."""


class Weight(NamedTuple):
    """A weight of a model.

    Attributes:
        path: of the module.
        module: which has it.
        name: of the parameter in the module.
        blocks: number of matrices that stand one below the other in it.
    """

    path: str
    module: nn.Module
    name: str
    blocks: int

    @property
    def full_name(self) -> str:
        """Its name in the ``state_dict`` of the model."""
        return _joined(self.path, self.name)


class Left(NamedTuple):
    """A module, or a weight, that stays what it is.

    Attributes:
        name: its path.
        reason: why.
    """

    name: str
    reason: str


def matrices_of(module: nn.Module) -> dict[str, int]:
    """Return the names of those weights of a module that are matrices, and the number of blocks in each.

    Raises:
        OptionError: it has none, or uses them for something else than to multiply with them.

    Example:
        >>> matrices_of(nn.LSTM(2, 3))
        {'weight_ih_l0': 4, 'weight_hh_l0': 4}
        >>> matrices_of(nn.Conv2d(4, 8, 3, groups=2))
        {'weight': 2}
    """
    kind = plain_class(module)
    if isinstance(module, P4Module):
        raise OptionError(f"it is a {kind.__name__} already")
    reader = next((reader for reader in READERS if issubclass(kind, reader)), None)
    if reader is None:
        return _of_linear(module)
    if any(_is_own(module, reader, name) for name in ("forward", "_conv_forward")):
        raise OptionError(f"{kind.__name__} has a forward pass of its own, which may do anything with the weights")
    weights = [name for name in module._parameters if name.startswith("weight")]
    if isinstance(module, nn.MultiheadAttention):
        return {"in_proj_weight": 3} if module._qkv_same_embed_dim else {f"{part}_proj_weight": 1 for part in "qkv"}
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        if module.groups > 1 and module.groups == module.out_channels:
            raise OptionError("it is a depthwise convolution: each of its groups has a single row, which is no matrix")
        return {"weight": module.groups}
    gates = GATES.get(reader.__name__, 1)
    return {name: 1 if name.startswith("weight_hr") else gates for name in weights}


def chosen(model: nn.Module, targets: Target | Iterable[Target] | None) -> tuple[list[Weight], list[Left]]:
    """Return the weights that somebody means, each once, and what else has matrices but cannot take part.

    Args:
        model: any module.
        targets: see `p4lab.convert`.

    Raises:
        OptionError: a target means nothing, or a module is named that has no weights to take.
    """
    if targets is None:
        wanted: list[Target] = [lambda path, module: True]
    else:
        single = isinstance(targets, (str, nn.Module)) or callable(targets)
        wanted = [cast(Target, targets)] if single else list(cast(Iterable[Target], targets))
    weights, left, used, known = [], [], set(), []
    hits_of: dict[nn.Module, list[int]] = {}
    places = references_in(model)
    for module, paths in _modules(model).items():
        hits = [i for i, target in enumerate(wanted) if any(_means(target, path, module) for path in paths)]
        attention = _attention_around(model, paths[0])
        if attention is not None:  # which reads the weights of its last layer by itself
            hits += hits_of[attention]
        hits_of[module], path = hits, paths[0]
        try:
            blocks = matrices_of(module)
            _check_references(module, blocks, places)
        except P4Error as refusal:
            names = [*paths, *(_joined(path, name) for path in paths for name in module._parameters)]
            for target in wanted:
                if isinstance(target, str) and target in names:
                    raise OptionError(f"{target!r} cannot be converted: {refusal}") from refusal
            matrices = [n for n, p in module._parameters.items() if p is not None and (is_lazy(p) or p.dim() > 1)]
            names = [_joined(path, name) for path in paths for name in matrices]
            meant = [*hits, *(i for i, target in enumerate(wanted) if any(_matches(target, name) for name in names))]
            if meant and matrices and not isinstance(module, P4Module):
                used.update(meant)
                left.append(Left(path, f"{plain_class(module).__name__}: {refusal}"))
            continue
        known += paths
        for name, count in blocks.items():
            names = [_joined(path, name) for path in paths]
            by_name = [i for i, target in enumerate(wanted) if any(_matches(target, name) for name in names)]
            used.update(hits, by_name)
            known += names
            if hits or by_name:
                weights.append(Weight(path, module, name, count))
    for i, target in enumerate(wanted):
        if i not in used and targets is not None:
            near = difflib.get_close_matches(str(target), known, n=3) or known[:3]
            raise OptionError(
                f"the target {target!r} means nothing that has matrices in {plain_class(model).__name__}: names there "
                f"are {', '.join(map(repr, near)) or 'none'} and the like; patterns ('*.linear1') match whole names"
            )
    return weights, left


def owners_of(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Return the names of all parameters of a model; those that are tied have several."""
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                names[parameter].append(_joined(path, name))
    return names


def parameter_of(weight: Weight, owners: Mapping[nn.Parameter, list[str]]) -> nn.Parameter:
    """Return the parameter that a weight is.

    Args:
        weight: one of a model.
        owners: `owners_of` the model.

    Raises:
        OptionError: it is computed of others, or tied to another one.
    """
    parameter = weight.module._parameters.get(weight.name)
    if parameter is None and isinstance(weight.module, Computed):
        raise OptionError("it is made of P4 layers already: p4lab.fold(model) gives the plain model back")
    if parameter is None:
        raise OptionError(
            "it is made of other parameters (a parametrization, weight_norm, spectral_norm, pruning): remove that "
            "first, as torch.nn.utils.parametrize.remove_parametrizations does"
        )
    if len(owners[parameter]) > 1:
        raise OptionError(
            f"it is tied: {' and '.join(owners[parameter])} are one Parameter, and a P4 layer would take the place of "
            "one of them; untie them with a clone, or leave it out"
        )
    if any(p is not None and not is_lazy(p) and p.is_inference() for p in weight.module._parameters.values()):
        raise OptionError(
            "it was made under torch.inference_mode and can never train: make the model outside of it, or put clones "
            "in the place of its parameters"
        )
    return parameter


def is_replaceable(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is a linear layer with nothing else in it, so that a P4 layer can replace all of it."""
    plain = type(module) is nn.Linear and "forward" not in vars(module)
    return plain and not module._buffers and not module._modules and len(module._parameters) == 2


# --- inside ----------------------------------------------------------------------------------------------------------


def _is_own(module: nn.Module, base: type[nn.Module], method: str) -> bool:
    """Return whether a module, or its class, has another method of this name than the class of torch."""
    return method in vars(module) or getattr(plain_class(module), method, None) is not getattr(base, method, None)


def _check_references(module: nn.Module, names: Iterable[str], places: Mapping[int, str]) -> None:
    """Raise if somebody would go on with what P4 layers take the place of."""
    replaced = [(f"its {name}", cast(object, module._parameters.get(name))) for name in names]
    if is_replaceable(module):
        replaced.append(("it", module))
    for what, target in replaced:
        if target is not None and id(target) in places:
            raise OptionError(
                f"{what} is also in {places[id(target)]}, where torch does not look and the old one would stay: "
                "use an nn.ModuleList or nn.ModuleDict there, or read it by its name in the forward pass"
            )


def _of_linear(module: nn.Module) -> dict[str, int]:
    kind = plain_class(module)
    weight = module._parameters.get("weight")
    if issubclass(kind, nn.Linear) and not _is_own(module, nn.Linear, "forward"):
        return {"weight": 1}
    if weight is None or is_lazy(weight) or weight.dim() != 2:
        raise OptionError(f"{kind.__name__} has no weight of its own that is a matrix (for all inside of it: 'path.*')")
    if {*module._parameters, *module._buffers, *module._modules} - {"weight", "bias", NAME}:
        raise OptionError("it has a forward pass of its own, and more in it than a weight and a bias, such as a mask")
    if not weight.is_meta:  # which is refused later on
        _check_product(module, weight)
    return {"weight": 1}


@without_gradients
def _check_product(module: nn.Module, weight: Tensor) -> None:
    """Raise unless a module computes W x + b, in training as in evaluation, as inputs show."""
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(PROBES, weight.shape[1], generator=generator, device="cpu").to(weight)
    training = module.training
    try:
        expected = F.linear(x, weight, getattr(module, "bias", None))
        same = True
        for mode in (not training, training):  # its own is the last, so that it is left in it
            module.training = mode
            y = module.forward(x)
            same = same and y.shape == expected.shape and torch.allclose(y, expected, rtol=1e-3, atol=1e-5)
    except Exception as error:  # whatever a stranger's forward pass raises for inputs that it does not expect
        raise OptionError(f"its forward pass is not W x + b with its weight W, it raises {error!r}") from error
    finally:
        module.training = training
    if not same:
        raise OptionError("its forward pass is not W x + b with its weight W, which it may mask or scale")


def _modules(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all modules with all paths to them, but for what is inside of P4 layers and of what they compute."""
    paths: dict[nn.Module, list[str]] = defaultdict(list)

    def walk(module: nn.Module, path: str) -> None:
        paths[module].append(path)
        for name, child in module._modules.items():
            if child is not None and not (isinstance(module, Computed) and name == NAME):
                walk(child, _joined(path, name))

    walk(model, "")
    return paths


def _attention_around(model: nn.Module, path: str) -> nn.MultiheadAttention | None:
    around, _, name = path.rpartition(".")
    parent = model.get_submodule(around) if name == "out_proj" else None
    return parent if isinstance(parent, nn.MultiheadAttention) else None


def _means(target: Target, path: str, module: nn.Module) -> bool:
    if isinstance(target, str):
        return fnmatchcase(path, target)
    if isinstance(target, nn.Module):
        return module is target
    return isinstance(module, target) if isinstance(target, type) else bool(target(path, module))


def _matches(target: Target, name: str) -> bool:
    return isinstance(target, str) and fnmatchcase(name, target)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
