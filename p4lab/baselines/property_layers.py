"""The usual ways to keep a property, as layers ``y = W x``."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from p4lab.baselines.dense import SoftDeterminant
from p4lab.baselines.schedule import Rebase
from p4lab.p4 import P4Permutation
from p4lab.p4.circulant import circulant
from p4lab.packages import require


class Weighted(nn.Module):
    """A linear map without bias whose ``weight`` a subclass computes from its parameters."""

    @property
    def weight(self) -> Tensor:
        """The effective weights, shape (d, d), differentiable."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (batch, d)."""
        return F.linear(x, self.weight)


class Free(Weighted):
    """Plain weights, without any property; with a ``wish`` they are penalized, with a projection set back.

    Args:
        start: shape (d, d).
        wish: what a penalty is made of, a differentiable scalar of the weights.
        project: applied to the weights after every step.
    """

    def __init__(
        self,
        start: Tensor,
        wish: Callable[[Tensor], Tensor] | None = None,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.matrix = nn.Parameter(start.clone())
        self._wish, self._project = wish, project

    @property
    def weight(self) -> Tensor:
        """The weights."""
        return self.matrix

    def wish(self) -> Tensor:
        """Return the penalty, 0 without one."""
        return self.matrix.new_zeros(()) if self._wish is None else self._wish(self.matrix)

    @torch.no_grad()
    def after_step(self) -> None:
        """Project the weights, if there is a projection."""
        if self._project is not None:
            self.matrix.copy_(self._project(self.matrix))


class Mapped(Weighted):
    """Weights that are a function of a free matrix of the same shape.

    Args:
        raw: what the optimizer starts with.
        function: from the free matrix to the weights, differentiable.
    """

    def __init__(self, raw: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw.clone())
        self._function = function

    @property
    def weight(self) -> Tensor:
        """The function of the free matrix."""
        return self._function(self.raw)


class Rebased(Weighted):
    """A trivialized baseline that takes its present weights as the new base from time to time.

    Args:
        layer: with ``rebase``.
        every: optimizer steps between new bases.
    """

    def __init__(self, layer: nn.Module, every: int = 100) -> None:
        super().__init__()
        self.layer = layer
        self._rebase = Rebase(layer, every=every)

    @property
    def weight(self) -> Tensor:
        """The layer's weights."""
        return self.layer.weight  # type: ignore[return-value]

    def after_step(self) -> None:
        """Count a step, and move the base if that is due."""
        self._rebase.step()

    def get_extra_state(self) -> dict[str, Any]:
        """Return the counter of steps."""
        return self._rebase.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Set the counter of steps."""
        self._rebase.load_state_dict(state)


class OnManifold(Weighted):
    """Weights on one of geotorch's manifolds.

    Args:
        start: shape (d, d), on the manifold.
        name: of the class in geotorch.

    Raises:
        MissingPackageError: geotorch is not installed.

    Source: Lezcano-Casado, arXiv:1909.09501; geotorch 0.4.
    """

    def __init__(self, start: Tensor, name: str) -> None:
        super().__init__()
        manifold = getattr(require("geotorch", "baselines"), name)
        with torch.random.fork_rng(devices=[]):  # geotorch draws a random base, which is then replaced
            parametrization = manifold(start.shape).to(start)
        self.map: Any = nn.utils.skip_init(nn.Linear, *start.shape, bias=False, dtype=start.dtype, device=start.device)
        with torch.no_grad():
            self.map.weight.copy_(start)
        parametrize.register_parametrization(self.map, "weight", parametrization, unsafe=True)

    @property
    def weight(self) -> Tensor:
        """The effective weights. Cost O(d^3)."""
        return self.map.weight


class TwoRotations(Weighted):
    """A matrix between two rotations, ``P A Q``, so that its singular values stay.

    Args:
        middle: A, shape (d, d).
        rotation: makes a layer whose weights are a rotation, the identity at first.
    """

    def __init__(self, middle: Tensor, rotation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.left, self.right = rotation(), rotation()
        self.register_buffer("middle", middle)

    @property
    def weight(self) -> Tensor:
        """The product."""
        return self.left.weight @ self.middle @ self.right.weight  # type: ignore[operator]


class SpectralNorm(Weighted):
    """Weights divided by their spectral norm as torch estimates it, times c.

    One power iteration for each forward pass in training. Looking at ``weight`` does none.

    Args:
        start: shape (d, d), not 0.
        bound: c.

    Source: Miyato et al., arXiv:1802.05957; ``torch.nn.utils.parametrizations.spectral_norm``.
    """

    def __init__(self, start: Tensor, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.map: Any = nn.utils.skip_init(nn.Linear, *start.shape, bias=False, dtype=start.dtype, device=start.device)
        with torch.no_grad():
            self.map.weight.copy_(start)
        with torch.random.fork_rng(devices=[]):  # torch starts its iteration at a random vector
            torch.manual_seed(0)
            spectral_norm(self.map)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (batch, d)."""
        return F.linear(x, self.bound * self.map.weight)

    @property
    def weight(self) -> Tensor:
        """The effective weights."""
        self.map.eval()
        try:
            return self.bound * self.map.weight
        finally:
            self.map.train(self.training)


class FourierCirculant(nn.Module):
    """A circulant matrix by its response at each frequency, a free complex number.

    Args:
        dim: length of the cycle; the start is the identity.
        kind: dtype and device.
    """

    def __init__(self, dim: int, **kind: Any) -> None:
        super().__init__()
        self.dim = dim
        ones = torch.ones(dim // 2 + 1, **kind)
        self.response = nn.Parameter(torch.stack([ones, torch.zeros_like(ones)], dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (batch, d). Cost O(batch d log d)."""
        return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(self.response), self.dim)

    @property
    def weight(self) -> Tensor:
        """The matrix, shape (d, d)."""
        return circulant(torch.fft.irfft(torch.view_as_complex(self.response), self.dim))


class CircularConvolution(nn.Module):
    """A circulant matrix as a convolution with circular padding, whose kernel is as long as the cycle.

    Args:
        dim: length of the cycle; the start is the identity.
        kind: dtype and device.
    """

    def __init__(self, dim: int, **kind: Any) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.eye(dim, **kind)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (batch, d). Cost O(batch d^2)."""
        padded = F.pad(x[:, None], (len(self.kernel) - 1, 0), mode="circular")
        return F.conv1d(padded, self.kernel.flip(0)[None, None])[:, 0]

    @property
    def weight(self) -> Tensor:
        """The matrix, shape (d, d)."""
        return circulant(self.kernel)


class DeepSets(nn.Module):
    """A matrix for every item and one for the mean of the items: ``y_i = A x_i + B mean(x)``.

    Args:
        items: how many.
        channels: c, numbers of each; the start is the identity.
        kind: dtype and device.

    Source: Zaheer et al., arXiv:1703.06114.
    """

    def __init__(self, items: int, channels: int, **kind: Any) -> None:
        super().__init__()
        self.items, self.channels = items, channels
        self.each = nn.Parameter(torch.eye(channels, **kind))
        self.mean = nn.Parameter(torch.zeros(channels, channels, **kind))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (batch, items * channels)."""
        sets = x.view(-1, self.items, self.channels)
        return (F.linear(sets, self.each) + F.linear(sets.mean(1, keepdim=True), self.mean)).view(x.shape)

    @property
    def weight(self) -> Tensor:
        """The matrix, shape (d, d)."""
        eye = torch.eye(self.items, dtype=self.each.dtype, device=self.each.device)
        return torch.kron(eye, self.each) + torch.kron(torch.full_like(eye, 1 / self.items), self.mean)


class OnItems(nn.Module):
    """A `P4Permutation` layer that reads d numbers as a set of items.

    Args:
        layer: without bias.
        items: how many.
    """

    def __init__(self, layer: P4Permutation, items: int) -> None:
        super().__init__()
        self.layer, self.items = layer, items

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x`` for x of shape (batch, items * channels)."""
        return self.layer(x.view(-1, self.items, self.layer.channels)).reshape(x.shape)

    @property
    def weight(self) -> Tensor:
        """The matrix, shape (d, d)."""
        return self.layer.weight(self.items)


class Barrier(SoftDeterminant):
    """Plain weights that are asked to stay away from det = 0, and whose inverse is solved for when it is needed."""

    def wish(self) -> Tensor:
        """Return the barrier."""
        return self.penalty(strength=1.0)
