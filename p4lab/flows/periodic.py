"""Periodic convolutions: block-circulant matrices, of which the Fourier transform knows inverse and determinant."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines.layer import device_of, readable
from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.flows.images import OnImages
from p4lab.p4.linear import widest
from p4lab.p4.validate import check_options, check_tensor


class PeriodicConvolution(OnImages):
    r"""A k x k convolution of C channels on a torus, invertible as long as no frequency is singular.

    .. math:: y_o(p) = b_o + \sum_{i, \delta} K_{oi}(\delta)\, x_i(p + \delta), \qquad
              \hat y(f) = \hat K(f)\, \hat x(f) + \hat b(f), \qquad
              \log\left|\det \frac{\partial y}{\partial x}\right| = \sum_f \log|\det \hat K(f)|

    Each frequency f has a C x C complex matrix. Those of a real image come in pairs of conjugates, of which one is
    looked at: so half of the H W frequencies are. It starts at the identity.

    Args:
        channels: C.
        kernel: k, odd.
        bias: whether there is an additive bias, one number for each channel.
        init: "identity", or the kernel K of shape (C, C, k, k).
        dtype: float32 or float64 (None: torch's default).
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: channels, kernel, init or dtype out of range.
        ShapeError: ``init`` has another shape; from both directions, images are smaller than the kernel.
        SingularMatrixError: from `inverse`, a frequency is singular or not finite; `logabsdet` is -inf there.

    Cost for a batch of N: forward that of `torch.nn.functional.conv2d`; inverse O(N C H W (C + log H W) + H W C^3);
    log|det| O(C^2 H W log H W + H W C^3), in float64.
    Source: Hoogeboom et al., arXiv:1901.11137 (emerging and periodic convolutions), section 3.2.

    Example:
        >>> layer = PeriodicConvolution(2, kernel=3)
        >>> x = torch.randn(1, 2, 5, 4)
        >>> y, logabsdet = layer(x)
        >>> torch.allclose(layer.inverse(y)[0], x, atol=1e-5), logabsdet.detach()
        (True, tensor([0.]))
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        kernel: int = 3,
        bias: bool = True,
        init: str | Tensor = "identity",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(channels, 1, dtype)
        if kernel < 1 or kernel % 2 == 0:
            raise OptionError(f"kernel={kernel}: expected an odd number of at least 1")
        self.dim, self.reach = channels, kernel // 2
        device = device_of(device)
        start = _start(init, channels, kernel)
        self.kernel = nn.Parameter(start.to(device, dtype, copy=True))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(channels, dtype=dtype, device=device)) if bias else None
        )

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (N, C, H, W) and (N,), unchecked."""
        height, width = x.shape[-2:]
        if min(height, width) < self.kernel.shape[-1]:
            raise ShapeError(
                f"images of {height} x {width} are smaller than the kernel of side {self.kernel.shape[-1]}: take a "
                "smaller kernel"
            )
        logabsdet = self.logabsdet(height, width).to(x.dtype).expand(len(x))
        if inverse:
            return self._solve(x), -logabsdet
        r = self.reach
        return F.conv2d(F.pad(x, (r, r, r, r), mode="circular"), self.kernel, self.bias), logabsdet

    def spectrum(self, height: int, width: int) -> Tensor:
        """Return the matrices of the frequencies, complex, shape (height, width // 2 + 1, C, C)."""
        return _spectrum(self.kernel, height, width)

    def logabsdet(self, height: int, width: int) -> Tensor:
        """Return log|det| for images of this size (nats), a differentiable scalar in float64 (float32 on mps)."""
        kernel = self.kernel.to(widest(self.kernel.device))
        levels = torch.linalg.slogdet(_spectrum(kernel, height, width)).logabsdet
        # All columns but 0 and, for an even width, the last one stand for their conjugates, too.
        twice = [1 if 2 * column in (0, width) else 2 for column in range(levels.shape[1])]
        return (levels * torch.tensor(twice, device=levels.device)).sum()

    def _solve(self, y: Tensor) -> Tensor:
        y = y if self.bias is None else y - self.bias[:, None, None]
        height, width = y.shape[-2:]
        if not len(y):  # MKL knows no transform of nothing
            return y
        right = torch.fft.rfft2(y).permute(2, 3, 1, 0)
        x, info = torch.linalg.solve_ex(self.spectrum(height, width), right)
        if readable(info) and not bool(((info == 0) & torch.isfinite(x.real).all(-1).all(-1)).all()):
            raise SingularMatrixError(
                f"the kernel is singular at a frequency of images of {height} x {width}, or not finite: it has no "
                "inverse there; go back to an earlier kernel, or add to its centre"
            )
        return torch.fft.irfft2(x.permute(3, 2, 0, 1), (height, width))

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"channels={self.dim}, kernel={self.kernel.shape[-1]}, bias={self.bias is not None}"


def _spectrum(kernel: Tensor, height: int, width: int) -> Tensor:
    # What is at delta acts as a circular convolution with what is at -delta.
    k = kernel.shape[-1]
    grid = F.pad(kernel.flip(-2, -1), (0, width - k, 0, height - k)).roll((-(k // 2), -(k // 2)), (-2, -1))
    return torch.fft.rfft2(grid).permute(2, 3, 0, 1)


def _start(init: str | Tensor, channels: int, kernel: int) -> Tensor:
    shape = (channels, channels, kernel, kernel)
    if not isinstance(init, str):
        check_tensor("init", init)
        if init.shape != shape:
            raise ShapeError(f"init has shape {tuple(init.shape)}: expected {shape}")
        return init.detach()
    if init != "identity":
        raise OptionError(f"init={init!r} is not known: expected 'identity' or a kernel of shape {shape}")
    start = torch.zeros(shape, device="cpu")
    start[:, :, kernel // 2, kernel // 2] = torch.eye(channels, device="cpu")
    return start
