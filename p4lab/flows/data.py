"""Layers that put data into the range that flows are good at: fixed ones that are fitted, and ActNorm."""

from typing import Self

import torch
from torch import Tensor, nn

from p4lab.baselines.layer import readable
from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.flows.bijection import Bijective
from p4lab.flows.linear_layers import FoldedLinear
from p4lab.p4.validate import check_tensor


class Standardize(Bijective):
    r"""Fixed shift and scale of each coordinate.

    .. math:: y_i = (x_i - \mu_i) / \sigma_i

    Args:
        mean: mu, shape (d,).
        std: sigma > 0, shape (d,).

    Raises:
        DtypeError, ShapeError, SingularMatrixError: mean or std is no tensor, shapes differ, or a sigma is not a
            positive finite number.

    Example:
        >>> layer = Standardize.fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> layer(torch.tensor([[2.0, 20.0]]))[0]
        tensor([[0., 0.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        for given in (mean, std):
            check_tensor("Standardize", given)
        if mean.dim() != 1 or mean.shape != std.shape or not len(mean):
            raise ShapeError(f"mean {tuple(mean.shape)}, std {tuple(std.shape)}: expected (d,) and (d,)")
        bad = ~(std > 0) | ~torch.isfinite(std) | ~torch.isfinite(mean)
        if readable(bad) and bool(bad.any()):
            raise SingularMatrixError(
                f"coordinates {bad.nonzero().flatten().tolist()} have no positive, finite standard deviation: "
                "leave these columns out, or add noise to them"
            )
        self.dim = len(mean)
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("std", std.detach().clone())

    @classmethod
    def fit(cls, x: Tensor) -> Self:
        """Return the layer that gives x, shape (n, d), mean 0 and variance 1.

        Raises:
            ShapeError, DtypeError: not a table of two rows or more, or no tensor.
            SingularMatrixError: a column is constant or not finite.
        """
        x = _table("Standardize.fit", x)
        return cls(x.mean(0), x.std(0, correction=0))

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...), unchecked."""
        logabsdet = self.std.log().sum().expand(x.shape[:-1])
        if inverse:
            return torch.addcmul(self.mean, x, self.std), logabsdet
        return (x - self.mean) / self.std, -logabsdet


class Whitening(FoldedLinear):
    r"""Fixed linear layer that gives data the covariance I, by the symmetric root ("ZCA"): axes turn the least.

    .. math:: y = \Sigma^{-1/2} (x - \mu)

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> torch.allclose(Whitening.fit(x)(x).T.cov(correction=0), torch.eye(2), atol=1e-4)
        True
    """

    @classmethod
    def fit(cls, x: Tensor) -> Self:
        """Return the layer that whitens x, shape (n, d). Cost O(n d^2 + d^3), in float64.

        Raises:
            ShapeError, DtypeError: not a table of two rows or more, or no tensor.
            SingularMatrixError: x is not finite, or lies in a subspace.
        """
        x = _table("Whitening.fit", x)
        if not readable(x):
            return cls(x.new_empty(x.shape[1], x.shape[1]), x.new_empty(x.shape[1]))
        wide = x.detach().cpu().double()
        if not bool(torch.isfinite(wide).all()):
            raise SingularMatrixError("the data hold NaN or infinity: leave those rows out")
        mean = wide.mean(0)
        values, vectors = torch.linalg.eigh((wide - mean).t().cov(correction=0).reshape(x.shape[1], -1))
        if not float(values[0]) > len(values) * torch.finfo(x.dtype).eps * float(values[-1]):
            raise SingularMatrixError(
                f"the data's covariance has eigenvalues from {float(values[0]):.3g} to {float(values[-1]):.3g}: they "
                "lie in a subspace; leave out columns that depend on others, or add noise"
            )
        weight = (vectors / values.sqrt()) @ vectors.t()
        return cls(weight.to(x), -(weight @ mean).to(x))


class ActNorm(Bijective):
    r"""Trained shift and scale of each coordinate, initialized by data when `initialize` is called, and only then.

    .. math:: y = (x + b) \odot e^{s}

    Args:
        dim: width d.
        dtype: float32 or float64 (None: torch's default).
        device: device of all tensors.

    Raises:
        OptionError: dim < 1.

    Cost for a batch of B: O(B d). Source: Kingma and Dhariwal, arXiv:1807.03039, section 3.1.

    Example:
        >>> layer = ActNorm(2)
        >>> layer.initialize(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        >>> layer(torch.tensor([[3.0, 10.0]]))[0].detach().round(decimals=3)
        tensor([[ 1., -1.]])
    """

    def __init__(self, dim: int, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise OptionError(f"dim={dim}: expected at least 1")
        self.dim = dim
        self.shift = nn.Parameter(torch.zeros(dim, dtype=dtype, device=device))
        self.log_scale = nn.Parameter(torch.zeros(dim, dtype=dtype, device=device))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set shift and scale so that x, shape (n, d), comes out with mean 0 and variance 1.

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
            SingularMatrixError: a column is constant or not finite; the layer is left as it was.
        """
        self.check(x)
        fitted = Standardize.fit(x.reshape(-1, self.dim))
        self.shift.copy_(-fitted.mean)
        self.log_scale.copy_(-fitted.std.log())

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...), unchecked."""
        logabsdet = self.log_scale.sum().expand(x.shape[:-1])
        if inverse:
            return x * (-self.log_scale).exp() - self.shift, -logabsdet
        return (x + self.shift) * self.log_scale.exp(), logabsdet

    def extra_repr(self) -> str:
        """Return the width."""
        return f"dim={self.dim}"


def _table(what: str, x: Tensor) -> Tensor:
    check_tensor(what, x)
    if x.dim() != 2 or x.shape[0] < 2 or x.shape[1] < 1:
        raise ShapeError(f"data of shape {tuple(x.shape)}: expected (n, d) with n >= 2")
    return x.detach()
