"""Coupling layers that preserve volume: their determinant is 1 everywhere."""

import torch
from torch import Tensor

from p4lab.baselines.designed import scale_and_shift
from p4lab.flows.coupling import Halves
from p4lab.p4._validate import check_input


class VolumePreservingCoupling(Halves):
    r"""One coupling layer whose scales multiply to 1 for each sample: it moves and shears, but never compresses.

    .. math:: y_a = x_a, \qquad y_b = x_b \odot e^{s(x_a)} + t(x_a), \qquad \sum_i s_i(x_a) = 0, \qquad |s_i| < 4

    Where the second half has one coordinate only, its scale is 1 (NICE). It starts at the identity.

    Args:
        dim: width d, at least 2; the first ``d // 2`` coordinates stay.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        seed: seed of the network, or a CPU generator to draw it from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: dim, hidden, depth or dtype out of range.

    Cost for a batch of B: O(B hidden (d + depth hidden)), forward and inverse alike.
    Source: Dinh et al., arXiv:1410.8516 (NICE); Sorrenson et al., arXiv:2001.04872 (scales that sum to zero);
    Dibak et al., arXiv:2108.01590 (temperature steering).

    Example:
        >>> y, logabsdet = VolumePreservingCoupling(4, hidden=8)(torch.ones(5, 4))
        >>> y.shape, logabsdet
        (torch.Size([5, 4]), tensor([0., 0., 0., 0., 0.]))
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, 0)`` of shapes (..., d) and (...).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit.
        """
        a, b, s, t = self._parts(x)
        return torch.cat([a, torch.addcmul(t, b, s.exp())], -1), x.new_zeros(x.shape[:-1])

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(x, 0)`` of shapes (..., d) and (...).

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit.
        """
        a, b, s, t = self._parts(y)
        return torch.cat([a, (b - t) * (-s).exp()], -1), y.new_zeros(y.shape[:-1])

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        check_input("VolumePreservingCoupling", self.dim, next(self.parameters()), x)
        a, b = x.split((self.cut, self.dim - self.cut), -1)
        s, t = scale_and_shift(self.network(a))
        return a, b, s - s.mean(-1, keepdim=True), t

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"dim={self.dim}, hidden={self.hidden}, depth={self.depth}"
