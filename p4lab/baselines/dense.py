"""Plain weights: without a property, with one computed anew each time, and with one that a penalty asks for."""

import itertools
from abc import abstractmethod
from typing import NoReturn

import torch
from torch import Tensor, nn

from p4lab.baselines.layer import Baseline, UnsupportedError, start_matrix
from p4lab.linalg import orthogonality_error


class Dense(Baseline):
    """Linear layer whose inverse and log|det| are computed anew whenever they are asked for.

    Args:
        dim: width d.
        init: "identity", "reverse", "permutation", "orthogonal" or an invertible (d, d) tensor.
        bias: whether there is an additive bias.
        seed: seed of a random ``init``.
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, ShapeError, SingularMatrixError: see `p4lab.baselines.layer.start_matrix`.

    Cost for a batch of B: forward and backward 3 B d^2; `inverse` and `logabsdet` O(d^3).

    Example:
        >>> layer = Dense(2, init=torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        >>> layer.inverse(layer(torch.ones(1, 2))).detach()
        tensor([[1., 1.]])
    """

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        self.matrix = nn.Parameter(start_matrix(init, dim, self._kind["dtype"], seed).to(**self._kind))

    @property
    def weight(self) -> Tensor:
        """The weights, which are the parameter itself."""
        return self.matrix


class Plain(Dense):
    """Linear layer that promises nothing, as `nn.Linear` does: the floor of what a step can cost."""

    def inverse(self, y: Tensor) -> NoReturn:
        """Raise UnsupportedError: nothing keeps plain weights invertible."""
        raise UnsupportedError("plain weights know no inverse: take the method 'dense', which solves a system")

    def logabsdet(self) -> NoReturn:
        """Raise UnsupportedError: plain weights know no determinant."""
        raise UnsupportedError("plain weights know no determinant: take the method 'dense', which factorizes")


class Penalized(Dense):
    """Plain weights, and a term to be added to the loss that asks for a property without ensuring it."""

    @abstractmethod
    def penalty(self, strength: float = 0.1) -> Tensor:
        """Return ``strength`` times how much the property is missed, a differentiable scalar."""

    @abstractmethod
    def violation(self) -> Tensor:
        """Return how far the weights are from the property (a scalar; 0 is exact)."""


class SoftOrthogonal(Penalized):
    r"""Plain weights with a penalty on non-orthogonality; their inverse is that of `Dense`, not the transpose.

    .. math:: s \, \|W^T W - I\|_F^2

    Source: Brock et al., arXiv:1609.07093; Bansal et al., arXiv:1810.09102 ("soft orthogonality").
    """

    def penalty(self, strength: float = 0.1) -> Tensor:
        """Return the penalty above, a differentiable scalar. Cost O(d^3)."""
        eye = torch.eye(self.dim, dtype=self.matrix.dtype, device=self.matrix.device)
        return strength * (self.matrix.t() @ self.matrix - eye).square().sum()

    @torch.no_grad()
    def violation(self) -> Tensor:
        """Return ``max |W^T W - I|``. Cost O(d^3)."""
        return orthogonality_error(self.matrix)


class SoftDeterminant(Penalized):
    r"""Plain weights with a barrier against vanishing and exploding determinants.

    .. math:: s \left[\mathrm{relu}(f - l)^2 + \mathrm{relu}(l - c)^2\right], \qquad l = \tfrac{1}{d} \ln|\det W|

    The barrier of `p4lab.p4.P4Inv.penalty`, without what keeps P4Inv invertible. Source: arXiv:2010.07033, section 2.3.
    """

    def penalty(self, strength: float = 0.1, floor: float = -2.0, ceiling: float = 15.0) -> Tensor:
        """Return the penalty above with f = ``floor`` and c = ``ceiling`` (nats), differentiable. Cost O(d^3)."""
        level = self.logabsdet() / self.dim
        return strength * ((floor - level).relu().square() + (level - ceiling).relu().square())

    @torch.no_grad()
    def violation(self) -> Tensor:
        """Return ``|ln|det W|| / d``. Cost O(d^3)."""
        return self.logabsdet().abs() / self.dim


def penalty(model: nn.Module) -> Tensor:
    """Return the sum of the penalties of a model's penalized baselines, a differentiable scalar; 0.0 without any.

    That of P4Inv is optional and not among them: see `p4lab.p4.penalty`.
    """
    terms = [module.penalty() for module in model.modules() if isinstance(module, Penalized)]
    if terms:
        return torch.stack(terms).sum()
    like = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.zeros((), device=None if like is None else like.device)
