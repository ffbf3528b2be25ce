"""P4Circulant: linear layers that commute with cyclic shifts, inverted by the Fourier transform."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.p4.changes import Changes
from p4lab.p4.contract import full_precision
from p4lab.p4.linear import LARGEST_CONDITION_EPS, MIN_FACTOR, NOT_FINITE, P4Factored, widest
from p4lab.p4.report import Check, MergeStatus
from p4lab.p4.validate import check_tensor

LARGEST_DEVIATION = 1e-4
"""Weights count as circulant up to this relative error."""


class P4Circulant(P4Factored):
    r"""Linear layer with circulant weights: equivariant under cyclic shifts, invertible through the FFT.

    .. math:: y = w * x + b, \qquad w = a + u, \qquad W_{ij} = w_{(i-j) \bmod d}, \qquad
              \hat y = \hat w\, \hat x, \quad W^{-1} = \mathrm{circ}(1/\hat w), \quad
              \ln|\det W| = \sum_f \ln|\hat w_f|

    The matrices that commute with the shift are the circulant ones, a linear space of dimension d, so the additive
    perturbation u stays inside it for every value; a merge is ``a <- a + u``. What a merge judges is invertibility: no
    frequency may lose more than the factor ``min_factor`` at once. The bias is one number, which keeps the layer
    equivariant.

    Args:
        dim: length d of the cycle.
        bias: whether there is an additive bias, the same for all positions.
        init: "identity" or a kernel, the first column of W, of shape (d,), with an inverse.
        min_factor: smallest :math:`|\hat w_f / \hat a_f|` that a merge accepts; 0 switches skipping off.
        device: device of all tensors.
        dtype: float32 or float64.

    Raises:
        OptionError: dim, init or min_factor out of range.
        ShapeError, SingularMatrixError: ``init`` has another shape, or a frequency without response.
        DtypeError: a dtype other than float32 and float64.

    Cost for a batch of B: forward, backward and inverse O(B d log d); logabsdet and merge O(d log d).

    Source: P4 scheme arXiv:2010.07033; circulant matrices: Davis (1979).

    Example:
        >>> layer = P4Circulant(4, init=torch.tensor([1.0, 0.5, 0.0, 0.0]))
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(layer(x.roll(1, -1)), layer(x).roll(1, -1), atol=1e-6)
        True
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    checks: ClassVar[tuple[Check, ...]] = (
        NOT_FINITE,
        Check(
            MergeStatus.SKIPPED_SINGULAR,
            "loss of a frequency's response: merging would make the matrix nearly singular; the perturbation trains on",
        ),
    )

    frozen_kernel: Tensor

    def __init__(
        self,
        dim: int,
        bias: bool = True,
        init: str | Tensor = "identity",
        min_factor: float = MIN_FACTOR,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            min_factor, dim, 1, 1, bias, "gaussian", 0, device, dtype
        )  # one number of bias, no random directions
        self.dim = self.dim_out = dim
        self.register_buffer("frozen_kernel", _start(init, dim).to(**self.kind).clone())
        self.u = nn.Parameter(torch.zeros(dim, **self.kind))

    # --- the layer ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x, self.dim)
        y = self._filter(x, self.spectrum())
        return self._watched(x, y if self.bias is None else y + self.bias)

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable; not finite where W is exactly singular.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y, self.dim)
        r = y if self.bias is None else y - self.bias
        return self._watched(y, self._filter(r, 1 / self.spectrum()), inverted=True)

    def spectrum(self) -> Tensor:
        """Return the eigenvalues of W at the frequencies 0 ... d // 2, complex; the others are their conjugates."""
        return torch.fft.rfft(self.frozen_kernel + self.u)

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar in float64; -inf where W is singular. Cost O(d log d)."""
        wide = widest(self.u.device)
        levels = torch.fft.rfft(self.frozen_kernel.to(wide) + self.u.to(wide)).abs().log()
        # All frequencies but 0 and, for even d, d/2 stand for a pair of conjugates.
        last = levels[-1] if self.dim % 2 == 0 else 0.0
        return 2 * levels.sum() - levels[0] - last

    def sign(self) -> Tensor:
        """Return the sign of det W, a scalar: that of the real eigenvalues, at the frequencies 0 and d/2."""
        with torch.no_grad():
            real = self.spectrum().real.sign()
            return real[0] * real[-1] if self.dim % 2 == 0 else real[0].clone()

    @property
    def weight(self) -> Tensor:
        """The effective weights as a matrix, shape (d, d), differentiable. Cost O(d^2)."""
        return circulant(self.frozen_kernel + self.u)

    @property
    def weight_inverse(self) -> Tensor:
        """The inverse of the effective weights, shape (d, d), differentiable. Cost O(d^2)."""
        return circulant(torch.fft.irfft(1 / self.spectrum(), self.dim))

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def _absorb(self) -> Changes:
        # Judged by the frequency that would lose most. Cost O(d log d).
        before, after = torch.fft.rfft(self.frozen_kernel).abs(), self.spectrum().abs()
        changes = Changes(self.judge((), (before / after).max()))
        changes.absorb(self.frozen_kernel, self.frozen_kernel + self.u)
        return changes

    def _absorb_anew(self) -> Changes:
        # Refused for what single merges would take away; as a whole it is good enough if all frequencies respond.
        after = torch.fft.rfft((self.frozen_kernel + self.u).to(widest(self.u.device))).abs()
        condition = after.max() / after.min()
        worse = condition * torch.finfo(self.u.dtype).eps / LARGEST_CONDITION_EPS
        changes = Changes(self.judge((), *(worse * limit for limit in self.thresholds())))
        changes.absorb(self.frozen_kernel, self.frozen_kernel + self.u)
        return changes

    def nearest(self, weight: Tensor) -> Tensor:
        """Return a given matrix, shape (d, d), averaged along its cyclic diagonals. Cost O(d^2)."""
        wide = super().nearest(weight)
        i = torch.arange(self.dim, device="cpu")
        return circulant(wide[(i[:, None] + i) % self.dim, i].mean(1))

    @torch.no_grad()
    def start_at(self, weight: Tensor) -> None:
        """Make W a given circulant matrix, of shape (d, d), with no perturbation left.

        Raises:
            ShapeError, SingularMatrixError, OptionError: it has another shape, a frequency without response, or is not
                circulant to a relative 1e-4; the layer is left as it was.

        Cost O(d^2).
        """
        check_tensor("start_at", weight)
        if weight.shape != (self.dim, self.dim):
            raise ShapeError(f"weight has shape {tuple(weight.shape)}, expected ({self.dim}, {self.dim})")
        error = float((circulant(weight[:, 0]) - weight).abs().max() / weight.abs().max())
        if not error <= LARGEST_DEVIATION:
            raise OptionError(f"weight is not circulant (relative error {error:.3g}): average it along its diagonals")
        changes = Changes()
        changes.put(self.frozen_kernel, _start(weight[:, 0], self.dim).to(self.frozen_kernel))
        self._restart(changes)

    def shrink(self, changes: Changes, factor: float | Tensor) -> None:
        """Plan ``W <- factor W``. Cost O(d)."""
        changes.scale(self.frozen_kernel, factor)
        changes.scale(self.u, factor)

    @torch.no_grad()
    @full_precision
    def violation(self) -> Tensor:
        """Return the equivariance error ``max |P^-1 W P - W|`` of what the layer computes, P the shift by one.

        Cost O(d^2 log d).
        """
        eye = torch.eye(self.dim, dtype=self.u.dtype, device=self.u.device)
        w = self._filter(eye, torch.fft.rfft(self.frozen_kernel))
        return (w.roll((1, 1), (0, 1)) - w).abs().max()

    def correct(self) -> Tensor:
        """Return `violation`: a circulant matrix has nothing to correct."""
        return self.violation()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _filter(self, x: Tensor, response: Tensor) -> Tensor:
        # Transforms of nothing are an error in some libraries, and those of half precision in most.
        x = x.to(self.u.dtype)
        if x.numel() == 0:
            return x * response.real.sum()
        return torch.fft.irfft(torch.fft.rfft(x) * response, self.dim)


def circulant(kernel: Tensor) -> Tensor:
    """Return the circulant matrix whose first column is a kernel of shape (d,). Cost O(d^2).

    Example:
        >>> circulant(torch.tensor([1.0, 2.0, 0.0]))
        tensor([[1., 0., 2.],
                [2., 1., 0.],
                [0., 2., 1.]])
    """
    i = torch.arange(kernel.shape[0], device=kernel.device)
    return kernel[(i[:, None] - i) % kernel.shape[0]]


def _start(init: str | Tensor, dim: int) -> Tensor:
    if isinstance(init, str):
        if init != "identity":
            raise OptionError(f"init={init!r} is not known: choose 'identity' or pass a kernel of shape ({dim},)")
        return torch.eye(dim, dtype=torch.float64, device="cpu")[0]
    check_tensor("init", init)
    kernel = init.detach().to("cpu", torch.float64)
    if kernel.shape != (dim,):
        raise ShapeError(f"init has shape {tuple(kernel.shape)}, expected ({dim},): the first column of the matrix")
    response = torch.fft.rfft(kernel).abs()
    if not bool(response.min() > torch.finfo(torch.float32).eps * response.max()):
        raise SingularMatrixError(
            f"init has no response at frequency {int(response.argmin())} ({float(response.min()):.3g}, largest "
            f"{float(response.max()):.3g}), so it has no inverse: add to its first entry"
        )
    return kernel
