"""Bent identities: elementwise nonlinearities with a closed-form inverse and a bounded slope."""

import torch
from torch import Tensor

from p4lab.flows.bijection import Bijective
from p4lab.p4.validate import check_tensor


def bent(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the Bent identity and the logarithm of its slope.

    .. math:: b(x) = \frac{\sqrt{x^2 + 1} - 1}{2} + x, \qquad b'(x) = 1 + \frac{x}{2 \sqrt{x^2 + 1}} \in (1/2, 3/2)

    Args:
        x: any shape.

    Returns:
        ``(b(x), log b'(x))``, both of the shape of ``x``. Cost O(1) per entry.

    Raises:
        DtypeError: x is no tensor.

    Source: arXiv:2010.07033, section 3.2.

    Example:
        >>> bent(torch.tensor([0.0]))
        (tensor([0.]), tensor([0.]))
    """
    check_tensor("bent", x)
    square = x * x
    s = torch.sqrt(square + 1)
    # x^2 / (s + 1) is s - 1 without the cancellation
    return torch.addcdiv(x, square, s + 1, value=0.5), torch.log1p(0.5 * (x / s))


def bent_inverse(y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the inverse of the Bent identity and the logarithm of its slope.

    .. math:: b^{-1}(y) = \frac{2 c - \sqrt{c^2 + 3}}{3} = \frac{4 y (y + 1)}{2 c + \sqrt{c^2 + 3}}, \qquad c = 2 y + 1

    The second form is used where the first one cancels (c > 0): so the relative precision is full everywhere.

    Args:
        y: any shape.

    Returns:
        ``(x, -log b'(x))`` with ``b(x) = y``, both of the shape of ``y``. Cost O(1) per entry.

    Raises:
        DtypeError: y is no tensor.
    """
    check_tensor("bent_inverse", y)
    c = 2 * y + 1
    positive = c > 0
    # t = 2 |c| + root is never small; not by abs(), whose gradient at c = 0 is neither branch's.
    t = torch.add(torch.sqrt(c * c + 3), torch.where(positive, c, -c), alpha=2)
    x = torch.where(positive, 4 * (y * (y + 1) / t), t * (-1 / 3))
    # sqrt(x^2 + 1) is c - 2 x
    return x, -torch.log1p(0.5 * (x / torch.sub(c, x, alpha=2)))


class BentIdentity(Bijective):
    """Elementwise Bent identity, or its inverse, as a layer of a flow.

    Args:
        inverted: whether ``forward`` is the inverse of `bent`.

    Example:
        >>> y, logabsdet = BentIdentity()(torch.zeros(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, inverted: bool = False) -> None:
        super().__init__()
        self.inverted = inverted

    def check(self, x: Tensor) -> None:
        """Raise the error of what is no tensor."""
        check_tensor("bent_inverse" if self.inverted else "bent", x)

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...)."""
        y, log_slope = (bent if inverse == self.inverted else bent_inverse)(x)
        return y, log_slope.sum(-1)

    def extra_repr(self) -> str:
        """Return the direction."""
        return f"inverted={self.inverted}"
