"""The orthogonal group by pairs of Householder reflections: the comparison with `p4lab.p4.orthogonal`."""

import torch
from torch import Tensor

from p4lab.linalg import reflections_core
from p4lab.p4.orthogonal import LowRankRotation


class P4Reflections(LowRankRotation):
    r"""Linear layer with orthogonal weights, trained by pairs of Householder reflections of a frozen matrix.

    .. math:: y = W x + b, \qquad W = R\,Q, \qquad R = H_{v_1} \cdots H_{v_k} H_{w_1} \cdots H_{w_k}, \qquad
              w_i = v_i + u_i / 2

    With ``u = 0`` the reflections cancel. To first order in u, and outside of the span of v, R is that of
    `p4lab.p4.P4Orthogonal`, so that both take the same learning rates; farther away they differ: here no rotation is
    out of reach of a single merge, but ``w_i = 0`` is singular (its merge is discarded).

    Arguments, errors and cost as for `p4lab.p4.P4Orthogonal`; the core takes an inverse of size k instead of 2k.

    Source: compact WY form of products of reflections (Joffrain et al., 2006); the pairs are p4lab's.

    Example:
        >>> layer = P4Reflections(3, rank=2, seed=0)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        True
        >>> bool(layer.merge())
        True
    """

    def rows(self) -> Tensor:
        """Return the rows ``u / 2``, then those of v."""
        return torch.cat([0.5 * self.u, self.v])

    def core(self, p: Tensor) -> Tensor:
        """Return the core of the product of reflections (`p4lab.linalg.reflections_core`)."""
        return reflections_core(p)
