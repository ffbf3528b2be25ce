"""From `nn.Linear` to a P4 layer, and back."""

import copy
from typing import Any, Self, cast

from torch import Tensor, nn

from p4lab.errors import ShapeError
from p4lab.options import named_options
from p4lab.p4.contract import P4Module
from p4lab.p4.modes import without_gradients
from p4lab.p4.validate import check_weight

HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)
"""Modules keep their hooks in these attributes."""


class LikeLinear(P4Module):
    """Base class of layers ``y = W x + b`` that can take the place of an `nn.Linear`.

    Attributes:
        dim_in: length of an input.
        dim_out: length of an output.
        bias: the additive bias, which trains beside the perturbation (None: there is none).
        frozen_bias: the bias at the last merge.
        kind: device and dtype of the layer's tensors, as keywords for torch.
    """

    dim_in: int
    dim_out: int
    bias: nn.Parameter | None
    frozen_bias: Tensor | None

    @property
    def kind(self) -> dict[str, Any]:
        """Device and dtype of the layer's tensors, as keywords for torch."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The effective weights, shape (dim_out, dim_in), differentiable."""
        raise NotImplementedError

    @classmethod
    def of(cls, source: nn.Linear | Tensor, **options: Any) -> Self:
        """Return a layer in the place of an `nn.Linear`, with the nearest weights that have the property.

        The other way is `fold`. Device, dtype, ``requires_grad`` and ``training`` are those of the source; so is the
        function, where its weights have the property.

        Args:
            source: a linear layer, which is left as it is, or weights alone, shape (dim_out, dim_in).
            options: of the class, other than its dimensions, bias, init, device and dtype.

        Raises:
            ShapeError: the weights are no matrix, or the property needs a square one.
            DtypeError, DeviceError, OptionError: they are not of float32 or float64, on the meta device, or not there
                yet.
            SingularMatrixError, OptionError: they are not finite, no matrix with the property is nearest, or an option
                is out of range.

        Cost O(d^3).

        Example:
            >>> import torch
            >>> from p4lab.p4 import P4Inv
            >>> linear, x = nn.Linear(3, 3), torch.randn(5, 3)
            >>> layer = P4Inv.of(linear, rank=2)
            >>> bool((layer(x) - linear(x)).abs().max() < 1e-6), bool((layer.fold()(x) - linear(x)).abs().max() < 1e-6)
            (True, True)
        """
        weight, bias = (source, None) if isinstance(source, Tensor) else (source.weight, source.bias)
        check_weight(cls.__name__, weight)
        dim_out, dim_in = weight.shape
        dims = {"dim_in": dim_in, "dim_out": dim_out}
        if "dim" in named_options(cls):
            if dim_in != dim_out:
                raise ShapeError(f"the weight has shape {tuple(weight.shape)}: {cls.__name__} needs a square matrix")
            dims = {"dim": dim_in}
        kind = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
        layer = cls._near(weight, **dims, **kind, **options)
        if layer.bias is not None and layer.frozen_bias is not None:
            for target in (layer.bias, layer.frozen_bias):  # of a circulant layer, one number for all
                target.detach().copy_(cast(Tensor, bias).detach().view(len(target), -1).mean(1))
            layer.bias.requires_grad_(cast(Tensor, bias).requires_grad)
        for parameter in layer.perturbation():
            parameter.requires_grad_(weight.requires_grad)
        return layer if isinstance(source, Tensor) else layer.train(source.training)

    @classmethod
    def _near(cls, weight: Tensor, **options: Any) -> Self:
        """Return a layer with the weights that are nearest to given ones."""
        layer = cls(**options)
        layer.start_at(layer.nearest(weight))
        return layer

    @without_gradients
    def fold(self) -> nn.Linear:
        """Return a plain `nn.Linear` with the effective weights and a copy of the bias.

        Its parameters train if those of the layer do, and the hooks of the layer are its own.
        """
        linear = nn.utils.skip_init(nn.Linear, self.dim_in, self.dim_out, bias=self.bias is not None, **self.kind)
        linear.weight.detach().copy_(self.weight)
        if self.bias is not None:
            linear.bias.detach().copy_(self.bias)
            linear.bias.requires_grad_(self.bias.requires_grad)
        linear.weight.requires_grad_(any(parameter.requires_grad for parameter in self.perturbation()))
        vars(linear).update({name: copy.copy(vars(self)[name]) for name in HOOKS})
        return cast(nn.Linear, linear.train(self.training))
