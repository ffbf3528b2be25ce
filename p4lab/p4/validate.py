"""What P4 layers refuse, with errors that say what arrived, what was expected and what to do."""

from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from p4lab.errors import DeviceError, DtypeError, OptionError, ShapeError, SingularMatrixError
from p4lab.linalg import autocasts

DTYPES = (torch.float32, torch.float64)
"""Layers have these dtypes: no narrower one holds an inverse."""


def check_input(layer: str, dim: int, parameter: Tensor, x: Tensor) -> None:
    """Raise unless ``x`` is a tensor of shape (..., dim), with dtype (autocast apart) and device of ``parameter``."""
    if not isinstance(x, Tensor):
        raise no_tensor(layer, x, parameter)
    if x.shape[-1:] != (dim,):
        raise ShapeError(
            f"{layer}(dim={dim}) got shape {tuple(x.shape)}: expected (..., {dim}); reshape the input or change dim"
        )
    if x.dtype != parameter.dtype and not autocasts(x.device.type):
        raise DtypeError(
            f"{layer} is {parameter.dtype} but got {x.dtype}: convert the input, or the layer with .to(dtype)"
        )
    if x.device != parameter.device:
        raise DeviceError(f"{layer} is on {parameter.device} but got an input on {x.device}: move one with .to(device)")


def check_tensor(what: str, x: object) -> None:
    """Raise unless ``x`` is a tensor, also one of torch's transforms or of a fake mode."""
    if not isinstance(x, Tensor):
        raise no_tensor(what, x)


def check_weight(layer: str, weight: Tensor) -> None:
    """Raise unless a layer can be built of a weight: a matrix of finite numbers, in `DTYPES`."""
    if is_lazy(weight):
        raise OptionError("the weight is not there yet (a lazy module): run a batch through the model first")
    if type(weight) not in (Tensor, nn.Parameter):
        raise OptionError(
            f"the weight is a {type(weight).__name__}, not a plain tensor: convert the model before it is sharded or "
            "quantized"
        )
    if weight.is_meta:
        raise DeviceError("the weight is on the meta device, without numbers: load or draw them first")
    if weight.dtype not in DTYPES:
        raise DtypeError(
            f"the weight is {weight.dtype}, and {layer} needs float32 or float64: convert the model with .float() "
            "first, and use autocast for cheaper products"
        )
    if weight.dim() != 2 or not weight.numel():
        raise ShapeError(f"the weight has shape {tuple(weight.shape)}: {layer} needs a matrix, (dim_out, dim_in)")
    if not bool(torch.isfinite(weight).all()):
        raise SingularMatrixError("the weight has entries that are NaN or infinite: load or draw it anew")


def no_tensor(what: str, x: object, like: Tensor | None = None) -> DtypeError:
    """Return the error of an input that is no tensor: what it is, and how it becomes one like ``like``."""
    kind = type(x)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    # Tables, which torch cannot read, may give an array that cannot be written to: it must be copied.
    convert = "torch.tensor(x.to_numpy()" if hasattr(x, "to_numpy") else "torch.as_tensor(x"
    keywords = ", dtype=..." if like is None else f", dtype={like.dtype}"
    if like is not None and like.device.type != "cpu":
        keywords += f", device={str(like.device)!r}"
    return DtypeError(f"{what} got {name}, expected a torch.Tensor: convert it with {convert}{keywords})")


def check_cast(layer: str, dtype: torch.dtype) -> None:
    """Raise if a layer cannot be cast to ``dtype``."""
    if dtype not in DTYPES:
        raise DtypeError(
            f"{layer} cannot be cast to {dtype}: its property needs float32 or float64; "
            "use autocast for cheaper products"
        )


def check_options(dim: int, rank: int, dtype: torch.dtype) -> None:
    """Raise if a constructor argument is out of range."""
    if not isinstance(dim, int) or dim < 1:
        raise OptionError(f"dim={dim!r}: expected a whole number of at least 1")
    if not isinstance(rank, int) or rank < 1:
        raise OptionError(f"rank={rank!r}: expected a whole number of at least 1")
    if dtype not in DTYPES:
        raise DtypeError(f"dtype={dtype}: an inverse needs float32 or float64")


def seed_from(seed: int | torch.Generator | None) -> int:
    """Return a seed: the given one, numpy's too, or one drawn from a CPU generator (None: torch's default)."""
    if isinstance(seed, Integral):
        return int(seed)
    if seed is not None and not isinstance(seed, torch.Generator):
        raise OptionError(f"seed={seed!r:.80}: expected a whole number, a torch.Generator, or None")
    if seed is not None and seed.device.type != "cpu":
        raise DeviceError(
            f"the generator is on {seed.device}: pass a CPU generator, so that every device draws the same numbers"
        )
    return int(torch.randint(2**62, (), generator=seed, device="cpu"))
