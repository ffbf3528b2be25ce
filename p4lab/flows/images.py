"""Bijections of images (N, C, H, W): layers on channels, periodic convolutions, squeezes and couplings."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines.layer import device_of
from p4lab.errors import OptionError, ShapeError
from p4lab.flows.bijection import Bijection, Bijective
from p4lab.flows.context import paired
from p4lab.flows.coupling import Affine, Coupling
from p4lab.flows.latent import LatentDensity
from p4lab.flows.linear_layers import Linear, is_linear
from p4lab.p4.validate import check_input, check_options, check_tensor, seed_from

PIXELS = (-3, -2, -1)
"""Axes over which the volumes of an image add up: channels, rows and columns."""


def check_images(layer: str, x: Tensor, channels: int, like: Tensor | None = None) -> None:
    """Raise unless x is a batch of images (N, channels, H, W), of the kind of the tensor ``like``.

    Raises:
        ShapeError, DtypeError, DeviceError: it is not.
    """
    check_tensor(layer, x)
    if x.dim() != 4 or x.shape[1] != channels:
        raise ShapeError(
            f"{layer} got shape {tuple(x.shape)}: expected (N, {channels}, H, W); a single image is x[None]"
        )
    if like is not None:
        check_input(layer, channels, like, x.movedim(1, -1))


class OnImages(Bijective):
    """Base class of bijections of images (N, C, H, W); log|det| has the shape (N,).

    Attributes:
        dim: number of channels C.

    Raises:
        ShapeError, DtypeError, DeviceError: from both directions, if images do not fit.
    """

    axis = -3

    def check(self, x: Tensor) -> None:
        """Raise the error of images that do not fit the layer's first tensor."""
        check_images(type(self).__name__, x, self.dim, next(self.parameters()))


class OnChannels(OnImages):
    r"""A layer of points (..., C) at every pixel alike; with a linear one, a 1 x 1 convolution.

    .. math:: y_{n \cdot h w} = f(x_{n \cdot h w}), \qquad
              \log\left|\det \frac{\partial y}{\partial x}\right| = H W \log|\det W| \quad\text{for } f(x) = W x + b

    Args:
        layer: a `Linear` layer (`P4Inv`, the linear baselines, `Permutation`, ...) or a `Bijection` of points, such as
            `ActNorm`. It is not copied.

    Raises:
        OptionError: the layer does not tell its width, has no inverse, or is a whole flow.

    Cost for a batch of N: that of the layer for N H W points, and a copy where the channels of an image are not
    contiguous in memory (of images in ``torch.channels_last`` they are).
    Source: Kingma and Dhariwal, arXiv:1807.03039, section 3.2.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> convolution = OnChannels(P4Inv(3, init=2 * torch.eye(3)))
        >>> y, logabsdet = convolution(torch.ones(1, 3, 2, 5))
        >>> y.shape, logabsdet.detach()  # 2 * 5 * 3 ln 2
        (torch.Size([1, 3, 2, 5]), tensor([20.7944]))
    """

    def __init__(self, layer: Linear | Bijection) -> None:
        super().__init__()
        dim = getattr(layer, "dim", None)
        if not isinstance(dim, int):
            raise OptionError(f"{type(layer).__name__} does not tell its width: give it an attribute dim")
        if isinstance(layer, LatentDensity) or not callable(getattr(layer, "inverse", None)):
            raise OptionError(
                f"{type(layer).__name__} is no layer of points with an inverse: hand over a linear layer that knows "
                "its inverse and log|det|, such as P4Inv, or a bijection; of a flow its layers, one by one"
            )
        self.dim, self.layer = dim, layer

    @property
    def linear(self) -> bool:
        """Whether the layer is linear: log|det| is then one number times H W."""
        return is_linear(self.layer)

    def check(self, x: Tensor) -> None:
        """Raise the error of images of another number of channels; the layer looks at the rest."""
        check_images(type(self).__name__, x, self.dim)

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (N, C, H, W) and (N,), unchecked."""
        layer: Any = self.layer
        y, logabsdet = self.move(x, inverse)
        if logabsdet is None:
            pixels = x.shape[-2] * x.shape[-1]
            logabsdet = ((-pixels if inverse else pixels) * layer.logabsdet()).to(x.dtype)
        return y, logabsdet.expand(len(x))

    def move(self, x: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return y, and log|det| unless the layer is linear: who has many such layers asks all of them at once."""
        layer: Any = self.layer
        points = x.movedim(1, -1)
        image = layer.inverse(points) if inverse else layer(points)
        if self.linear:
            return image.movedim(-1, 1), None
        return image[0].movedim(-1, 1), image[1].sum((-2, -1))


class Squeeze(Bijective):
    r"""Blocks of pixels become channels: (N, C, H, W) to (N, C f^2, H / f, W / f).

    Args:
        factor: f, side of a block.

    Raises:
        OptionError: factor < 1.
        ShapeError: from both directions, if images cannot be divided into blocks; DtypeError: no tensor.

    Cost: one copy; log|det| is 0. Source: Dinh et al., arXiv:1605.08803, section 3.6.

    Example:
        >>> Squeeze()(torch.arange(4.0).view(1, 1, 2, 2))[0].flatten()
        tensor([0., 1., 2., 3.])
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise OptionError(f"factor={factor}: expected at least 1")
        self.factor = factor

    def check(self, x: Tensor) -> None:
        """Raise if x is no batch of images."""
        check_tensor("Squeeze", x)
        if x.dim() != 4:
            raise ShapeError(f"Squeeze got shape {tuple(x.shape)}: expected (N, C, H, W)")

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the rearranged images, and 0 of shape (N,)."""
        f, (n, c, h, w) = self.factor, x.shape
        if inverse and c % f**2:
            raise ShapeError(f"{c} channels cannot be made blocks of {f} x {f}: expected a multiple of {f**2}")
        if not inverse and (h % f or w % f):
            raise ShapeError(f"images of {h} x {w} have no blocks of {f} x {f}: pad them to multiples of {f}")
        # torch.nn.functional.pixel_unshuffle does nothing to an empty batch.
        if inverse:
            y = x.reshape(n, c // f**2, f, f, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // f**2, h * f, w * f)
        else:
            y = x.reshape(n, c, h // f, f, w // f, f).permute(0, 1, 3, 5, 2, 4).reshape(n, c * f**2, h // f, w // f)
        return y, x.new_zeros(n)

    def extra_repr(self) -> str:
        """Return the factor."""
        return f"factor={self.factor}"


class ConvolutionNetwork(nn.Module):
    """The network of a coupling of images: 3 x 3, 1 x 1 and 3 x 3 convolutions; its last layer starts at 0.

    Args:
        read: channels that it reads.
        hidden: hidden channels.
        write: channels that it puts out.
        context: length c of the context; it shifts the hidden channels.
        generator: source of randomness, on the CPU.
    """

    def __init__(self, read: int, hidden: int, write: int, context: int, generator: torch.Generator) -> None:
        super().__init__()
        kind: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # cast by the coupling, as all that is drawn
        sides = ((read, hidden, 3), (hidden, hidden, 1), (hidden, write, 3))
        self.first, self.second, self.last = (
            nn.utils.skip_init(nn.Conv2d, a, b, k, padding=k // 2, **kind) for a, b, k in sides
        )
        self.shift = nn.utils.skip_init(nn.Linear, context, hidden, bias=False, **kind) if context else None
        for layer, reach in ((self.first, 9 * read), (self.second, hidden), (self.shift, context)):
            for parameter in [] if layer is None else layer.parameters():
                nn.init.uniform_(parameter, -(reach**-0.5), reach**-0.5, generator=generator)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, a: Tensor, context: Tensor | None) -> Tensor:
        """Return what the coupling needs, shape (N, write, H, W), from a of shape (N, read, H, W)."""
        hidden = self.first(a)
        if self.shift is not None and context is not None:
            hidden = hidden + self.shift(context)[..., None, None]
        return self.last(F.silu(self.second(F.silu(hidden))))


class ConvolutionCoupling(OnImages, Coupling):
    r"""A coupling of images: half of the channels says how the others are scaled and shifted, pixel by pixel.

    .. math:: y_a = x_a, \qquad y_b = x_b \odot e^{s(x_a, c)} + t(x_a, c), \qquad |s| < 2

    It starts at the identity.

    Args:
        channels: C, at least 2; the first ``C // 2`` stay.
        hidden: channels of the network's hidden layers.
        context: length of the context, 0 for none.
        seed: seed of the network, or a CPU generator to draw it from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: something is out of range.
        ShapeError, DtypeError, OptionError: from both directions, if a context is missing or does not fit.

    Cost for a batch of N: that of the network, forward and inverse alike.
    Source: Dinh et al., arXiv:1605.08803; Kingma and Dhariwal, arXiv:1807.03039, section 3.3.

    Example:
        >>> coupling = ConvolutionCoupling(4, hidden=8, context=10, seed=0)
        >>> y, logabsdet = coupling(torch.ones(5, 4, 6, 6), torch.eye(10)[:5])
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 4, 6, 6]), torch.Size([5]))
    """

    transformer = Affine()

    def __init__(
        self,
        channels: int,
        hidden: int = 32,
        context: int = 0,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(channels, 1, dtype)
        if channels < 2 or hidden < 1 or context < 0:
            raise OptionError(
                f"channels={channels}, hidden={hidden}, context={context}: expected channels >= 2 (two halves), "
                "hidden >= 1, context >= 0"
            )
        self.dim, self.cut, self.hidden, self.context = channels, channels // 2, hidden, context
        generator = torch.Generator().manual_seed(seed_from(seed))
        write = self.transformer.parameters * (channels - self.cut)
        self.network = ConvolutionNetwork(self.cut, hidden, write, context, generator)
        self.to(dtype=dtype, device=device_of(device))

    def pair(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return images (N, C, H, W) and contexts (N, c); raise the error of a context that does not fit."""
        points, context = paired(type(self).__name__, self.context, x.flatten(1), context)
        if points.dim() != 2:
            raise ShapeError(
                f"{type(self).__name__} got contexts for {tuple(points.shape[:-1])}: expected (c,) or (N, c)"
            )
        return points.unflatten(1, x.shape[1:]), context

    def transform(self, a: Tensor, b: Tensor, inverse: bool, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what b becomes and the logarithms of the slopes, both of the shape of b."""
        return self.transformer(b, self.network(a, context), inverse, self.axis)

    def volume(self, log_slope: Tensor) -> Tensor:
        """Return log|det dy/dx| from the logarithms of the slopes, shape (N,)."""
        return log_slope.sum(PIXELS)

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"channels={self.dim}, hidden={self.hidden}, context={self.context}"
