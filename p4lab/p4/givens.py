"""The orthogonal group by Givens rotations in random coordinate planes: the comparison with `p4lab.p4.orthogonal`."""

import sys
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.linalg import turn_planes
from p4lab.p4.changes import Changes
from p4lab.p4.contract import Total
from p4lab.p4.linear import widest
from p4lab.p4.orthogonal import Orthogonal

BLOCK = 128
"""A merge turns so many columns of Q at a time."""


class P4Givens(Orthogonal):
    r"""Linear layer with orthogonal weights, trained by Givens rotations of a frozen matrix in disjoint random planes.

    .. math:: y = W x + b, \qquad W = R\,Q, \qquad R = G_k \cdots G_1, \qquad G_l = \Pi_l^T \begin{pmatrix}
              \cos u_l & -\sin u_l & \\ \sin u_l & \cos u_l & \\ & & 1\end{pmatrix} \Pi_l

    Each of the k sweeps has its own permutation of the coordinates, pairs them, turns every pair by an angle of its
    own, and puts the coordinates back by the inverse permutation. ``u`` has the angles, shape (k, d // 2). `merge`
    moves R into Q and draws new permutations. The planes are blind to the gradient: there is no gradient reset.

    Args:
        dim: width d.
        rank: number k of sweeps, at least 1, and as many as one likes.
        bias, init, seed, device, dtype: as for `p4lab.p4.P4Orthogonal`.

    Raises:
        OptionError, ShapeError, SingularMatrixError, DtypeError: as for `p4lab.p4.P4Orthogonal`.

    Cost for a batch of B: forward and backward 2 B d^2 + O(B d k); merge O(d^2 k). A merge rounds every
    entry of Q: in float32, correct each 20 merges to stay below 1e-6.

    Source: the abandoned Givens attempt of the authors of arXiv:2010.07033, which put the coordinates back by the same
    permutation instead of its inverse.

    Example:
        >>> layer = P4Givens(3, seed=0)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-6)
        True
        >>> bool(layer.merge())
        True
    """

    order: Tensor
    place: Tensor

    def __init__(
        self,
        dim: int,
        rank: int = 1,
        bias: bool = True,
        init: str | Tensor = "identity",
        seed: int | torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, rank, bias, init, "gaussian", seed, device, dtype)
        kind = self.kind
        self.u = nn.Parameter(torch.zeros(rank, dim // 2, **kind))
        for name in ("order", "place"):
            self.register_buffer(name, torch.zeros(rank, dim, device=kind["device"], dtype=torch.int64))
        self.reset()

    def largest_rank(self) -> int:
        """Return no limit: each sweep has planes of its own."""
        return sys.maxsize

    def turn(self, z: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``R z + bias`` for z of shape (..., d). Cost for a batch of B: O(B d k)."""
        for order, place, cos, sin in zip(self.order, self.place, self.u.cos(), self.u.sin(), strict=True):
            z = turn_planes(z, order, place, cos, sin)
        return z if bias is None else z + bias.to(z.dtype)

    def turn_back(self, z: Tensor) -> Tensor:
        """Return ``R^T z`` for z of shape (..., d). Cost as `turn`."""
        sweeps = zip(self.order, self.place, self.u.cos(), self.u.sin(), strict=True)
        for order, place, cos, sin in reversed(list(sweeps)):
            z = turn_planes(z, order, place, cos, -sin)
        return z

    def _absorb(self) -> Changes:
        # Any finite angles give a rotation. Q is turned in place, by blocks of columns: O(d^2 k), no d x d temporary.
        report = self.judge((), self.u.new_full((), self.rank * torch.finfo(self.u.dtype).eps))
        changes = Changes(report)
        angles = torch.where(report.accepted, self.u, torch.zeros_like(self.u)).to(widest(self.u.device))
        cos, sin = angles.cos().to(self.u.dtype), angles.sin().to(self.u.dtype)
        order, place = self.order.clone(), self.place.clone()
        for columns in self.frozen_weight.split(BLOCK, dim=1):
            changes.write(self.frozen_weight, partial(turn_columns_, columns, order, place, cos, sin))
        return changes

    def _redraw(self, changes: Changes, total: Total) -> None:
        super()._redraw(changes, total)
        generator = self.generator.clone_state()
        kind: dict[str, Any] = {"generator": generator, "device": "cpu"}
        order = torch.stack([torch.randperm(self.dim, **kind) for _ in range(self.rank)])
        for buffer, new in ((self.order, order), (self.place, order.argsort(dim=1))):
            changes.renew(buffer, new.to(buffer.device))
        changes.assign(self, generator=generator)

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, changes: Changes) -> Tensor:
        """Clear the momentum of the angles: they belong to other planes now."""
        return torch.zeros_like(momentum) if parameter is self.u else momentum


def turn_columns_(columns: Tensor, order: Tensor, place: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Write some columns of a matrix, turned by sweeps of rotations, in their place, once."""
    rows = columns.t()
    for sweep in zip(order, place, cos, sin, strict=True):
        rows = turn_planes(rows, *sweep)
    columns.copy_(rows.t())
