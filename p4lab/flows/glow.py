"""Glow: multi-scale flows of images, with any mixing layer for a 1 x 1 convolution."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.flows.bijection import Bijective
from p4lab.flows.context import length_of, paired
from p4lab.flows.data import ActNorm
from p4lab.flows.images import ConvolutionCoupling, OnChannels, Squeeze
from p4lab.flows.latent import LatentDensity
from p4lab.flows.linear_layers import folded, sum_of_logabsdets
from p4lab.flows.mixing import check_mixing_options, mixing_layer
from p4lab.p4 import EVERYTHING, Preset, fold
from p4lab.p4.validate import check_input, check_tensor, seed_from


class MultiScale(LatentDensity):
    r"""A density of images: at each level a squeeze, layers, and half of the channels leaves for the latent space.

    .. math:: \log p(x \mid c) = \log N(z; 0, T I) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad
              z = F(x; c)

    Images have shape (..., C, H, W), and latent vectors (..., C H W): what leaves first comes first. Else all is as for
    `p4lab.flows.Flow`: ``log_prob``, ``sample``, ``latent``, temperatures (what Glow calls so is the root of T), and
    contexts, of shape (c,) for all images or (..., c) for each.

    Args:
        shape: (C, H, W) of an image.
        levels: the layers of each level. Level l, counted from 0, has images of C 2^(l + 2) x H / 2^(l + 1) x
            W / 2^(l + 1); all channels that are left after the last one are latent.
        context: length of the context that the layers get, 0 for none.

    Attributes:
        dim: C H W.

    Raises:
        OptionError: no level, a side that is no multiple of 2^levels, or a layer for another number of channels or
            another context.
        ShapeError, DtypeError, DeviceError: from all methods, if images, latent vectors or a context do not fit.

    Cost for a batch of N: that of the layers; log|det| of linear layers does not depend on N.
    Source: Dinh et al., arXiv:1605.08803, section 3.6; Kingma and Dhariwal, arXiv:1807.03039.
    """

    def __init__(self, shape: tuple[int, int, int], levels: Sequence[Iterable[Bijective]], context: int = 0) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.ModuleList(layers) for layers in levels)
        _check_shape(shape, len(self.levels))
        self.shape, self.context, self.dim = tuple(shape), context, math.prod(shape)
        self.squeeze = Squeeze()
        for level, layers in enumerate(self.levels):
            for layer in cast(Iterable[Any], layers):
                _check_layer(layer, 4 * shape[0] * 2**level, context)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dx|)`` of shapes (..., dim) and (...) for images of shape (..., C, H, W)."""
        x, context, batch = self._images(x, context)
        n, total, left = len(x), self._logabsdet().to(x.dtype), []
        for i, layers in enumerate(self.levels):
            x = self.squeeze.map(x)[0]
            for layer in cast(Iterable[Any], layers):
                x, logabsdet = _step(layer, x, False, context)
                total = total if logabsdet is None else total + logabsdet
            if i + 1 < len(self.levels):
                x, leaves = x.chunk(2, 1)
                left.append(leaves.flatten(1))
        z = torch.cat([*left, x.flatten(1)], 1)
        return z.view(*batch, self.dim), total.expand(n).reshape(batch)

    def inverse_with_logabsdet(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dz|)`` of shapes (..., C, H, W) and (...) for latent vectors of shape (..., dim)."""
        check_input("MultiScale", self.dim, self.like(), z)
        z, context, batch = self._flat(z, context)
        shapes, n = self._leaving(), len(z)
        *left, last = z.split([math.prod(shape) for shape in shapes], 1)
        x, total = last.reshape(n, *shapes[-1]), -self._logabsdet().to(z.dtype)
        for i in reversed(range(len(self.levels))):
            if i + 1 < len(self.levels):
                x = torch.cat([x, left[i].reshape(n, *shapes[i])], 1)
            for layer in reversed(cast(Any, self.levels[i])):
                x, logabsdet = _step(layer, x, True, context)
                total = total if logabsdet is None else total + logabsdet
            x = self.squeeze.map(x, True)[0]
        return x.reshape(*batch, *self.shape), total.expand(n).reshape(batch)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set every `ActNorm` so that the channels of these images leave it with mean 0 and variance 1.

        Raises:
            SingularMatrixError: a channel is constant or not finite; the layers before it are initialized.
        """
        x, context, _ = self._images(x, context)
        for layers in self.levels:
            x = self.squeeze.map(x)[0]
            for layer in cast(Iterable[Any], layers):
                if isinstance(layer, OnChannels) and isinstance(layer.layer, ActNorm):
                    layer.layer.initialize(x.movedim(1, -1).reshape(-1, layer.dim))
                x = _step(layer, x, False, context)[0]
            x = x.chunk(2, 1)[0]

    @torch.no_grad()
    def fold(self) -> "MultiScale":
        """Return a plain flow of the same density, for use after training: nothing of P4 is left in it.

        Raises:
            SingularMatrixError: a linear layer is singular or not finite.
        """
        levels = [
            [OnChannels(folded(layer.layer)) if isinstance(layer, OnChannels) else fold(layer) for layer in layers]
            for layers in cast(Iterable[Iterable[Any]], self.levels)
        ]
        return MultiScale(cast(Any, self.shape), cast(Any, levels), self.context).train(self.training)

    def linear_layers(self) -> list[list[Any]]:
        """Return the linear layers on channels of each level, in order."""
        return [
            [layer.layer for layer in cast(Iterable[Any], layers) if isinstance(layer, OnChannels) and layer.linear]
            for layers in self.levels
        ]

    @torch.no_grad()
    def condition(self) -> float:
        """Return the largest condition number of a linear layer on channels, 1 where there is none. Cost O(C^3)."""
        matrices = [layer.weight.double() for layers in self.linear_layers() for layer in layers]
        return max((float(torch.linalg.cond(matrix)) for matrix in matrices), default=1.0)

    def _images(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Return images of shape (n, C, H, W), contexts of shape (n, c), and the batch shape that they had."""
        check_tensor("MultiScale", x)
        if x.shape[-3:] != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ShapeError(f"MultiScale got images of shape {tuple(x.shape)}: expected (..., {expected})")
        check_input("MultiScale", x.shape[-1], self.like(), x)
        points, context, batch = self._flat(x.flatten(-3), context)
        return points.view(len(points), *self.shape), context, batch

    def _flat(self, points: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None, torch.Size]:
        """Return points of shape (n, dim), contexts of shape (n, c), and the batch shape that they share."""
        points, context = paired("MultiScale", self.context, points, context)
        batch = points.shape[:-1]
        n = math.prod(batch)
        return points.reshape(n, self.dim), None if context is None else context.reshape(n, self.context), batch

    def _logabsdet(self) -> Tensor:
        """Return the sum of H W log|det W| over the linear layers on channels, those of a level at once."""
        total, pixels = torch.zeros((), device=self.like().device), self.shape[1] * self.shape[2]
        for layers in self.linear_layers():
            pixels //= 4
            logabsdet = sum_of_logabsdets(layers)
            total = total if logabsdet is None else total + pixels * logabsdet
        return total

    def _leaving(self) -> list[tuple[int, int, int]]:
        """Return the shapes of what leaves each level."""
        c, h, w = self.shape
        shapes = []
        for i in range(len(self.levels)):
            last = i + 1 == len(self.levels)
            c, h, w = (4 if last else 2) * c, h // 2, w // 2
            shapes.append((c, h, w))
        return shapes


def _step(layer: Any, x: Tensor, inverse: bool, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return layer.move(x, inverse) if isinstance(layer, OnChannels) else layer.map(x, inverse, context)


def _check_layer(layer: Any, channels: int, context: int) -> None:
    dim = getattr(layer, "dim", channels)
    if dim != channels or length_of(layer) not in (0, context):
        raise OptionError(
            f"{type(layer).__name__} of {dim} channels with a context of {length_of(layer)}: expected {channels} "
            f"channels at its level, and a context of {context}, that of the flow, or none"
        )


def _check_shape(shape: tuple[int, int, int], levels: int) -> None:
    if len(shape) != 3 or min(shape) < 1 or levels < 1 or any(side % 2**levels for side in shape[1:]):
        raise OptionError(
            f"images of shape {tuple(shape)} with {levels} levels: expected (C, H, W), at least one level, and sides "
            f"that are multiples of {2**levels}; pad images, or take fewer levels"
        )


def glow(
    shape: tuple[int, int, int],
    levels: int = 2,
    blocks: int = 4,
    mixing: str = "p4inv",
    hidden: int = 32,
    context: int = 0,
    seed: int | torch.Generator | None = 0,
    preset: Preset = EVERYTHING,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> MultiScale:
    """Return a Glow: at each level ``blocks`` times an ActNorm, a 1 x 1 convolution and a coupling.

    All mixings of `MIXINGS` but "permutation" start as the swap, so that flows of one seed start as the same function
    whatever mixes their channels.

    Args:
        shape: (C, H, W) of an image; H and W are multiples of 2^levels.
        levels: number of levels, at least 1.
        blocks: blocks of each level, at least 1.
        mixing: a name of `p4lab.flows.MIXINGS`.
        hidden: channels of the hidden layers of the couplings' networks.
        context: length of the context that the couplings read, such as the number of classes; 0 for none.
        seed: seed of networks and mixing layers; the networks do not depend on the mixing.
        preset: settings of P4 mixing layers. For few channels and many pixels that with all directions is the fastest:
            it forms W once, and multiplies each pixel by it once.
        dtype: float32 or float64 (None: torch's default).
        device: device of all tensors.
        options: further options of the mixing layers, such as ``init``.

    Raises:
        OptionError: something is out of range, or an option that neither this function nor the mixing knows.

    Source: Kingma and Dhariwal, arXiv:1807.03039.

    Example:
        >>> flow = glow((1, 8, 8), levels=2, blocks=2, hidden=8, context=10)
        >>> flow.sample(3, torch.eye(10)[7], temperature=0.7).shape
        torch.Size([3, 1, 8, 8])
    """
    check_mixing_options(glow, mixing, options)
    _check_shape(shape, levels)
    if blocks < 1:
        raise OptionError(f"blocks={blocks}: expected at least 1")
    where: dict[str, Any] = {"dtype": dtype, "device": device}
    mix = mixing_layer(mixing)
    first = 2 * seed_from(seed)
    couplings, mixings = (torch.Generator().manual_seed(first + i) for i in (0, 1))

    def block(channels: int) -> list[Bijective]:
        return [
            OnChannels(ActNorm(channels, **where)),
            OnChannels(mix(channels, mixings, preset, **where, **options)),
            ConvolutionCoupling(channels, hidden, context, couplings, **where),
        ]

    # A squeeze makes four channels of one, and a split leaves two of them.
    widths = [4 * shape[0] * 2**level for level in range(levels)]
    stages = [[layer for _ in range(blocks) for layer in block(channels)] for channels in widths]
    return MultiScale(shape, stages, context)
