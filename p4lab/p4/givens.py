"""The orthogonal group by Givens rotations in random coordinate planes: the comparison with `p4lab.p4.orthogonal`."""

import torch
from torch import Tensor, nn

from p4lab.linalg import turn_planes
from p4lab.p4.contract import MergeReport, full_precision
from p4lab.p4.linear import widest
from p4lab.p4.orthogonal import Orthogonal

BLOCK = 128
"""Columns of Q that a merge turns at a time."""


class P4Givens(Orthogonal):
    r"""Linear layer with orthogonal weights, trained by Givens rotations of a frozen matrix in disjoint random planes.

    .. math:: y = W x + b, \qquad W = R\,Q, \qquad R = G_k \cdots G_1, \qquad G_l = \Pi_l^T \begin{pmatrix}
              \cos u_l & -\sin u_l & \\ \sin u_l & \cos u_l & \\ & & 1\end{pmatrix} \Pi_l

    Each of the k sweeps has its own permutation of the coordinates, pairs them, turns every pair by an angle of its
    own, and puts the coordinates back by the inverse permutation. ``u`` has the angles, shape (k, d // 2). `merge`
    moves R into Q and draws new permutations. The planes are blind to the gradient: there is no gradient reset.

    Args:
        dim: width d.
        rank: number k of sweeps, at least 1.
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
        self.u = nn.Parameter(torch.zeros(rank, dim // 2, device=device, dtype=self.limits.dtype))
        for name in ("order", "place"):
            self.register_buffer(name, torch.zeros(rank, dim, device=device, dtype=torch.int64))
        self.reset()

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

    def propose(self) -> tuple[MergeReport, dict[str, Tensor]]:
        """Judge the angles: any finite ones give a rotation. Cost O(d k)."""
        rounding = self.u.new_full((), self.rank * torch.finfo(self.u.dtype).eps)
        report = self.judge((), rounding)
        angles = torch.where(report.accepted, self.u, torch.zeros_like(self.u)).to(widest(self.u.device))
        return report, {"cos": angles.cos().to(self.u.dtype), "sin": angles.sin().to(self.u.dtype)}

    def absorb(self, report: MergeReport, update: dict[str, Tensor]) -> None:
        """Write ``Q <- R Q`` in place, by blocks of columns. Cost O(d^2 k), no d x d temporary."""
        super().absorb(report, update)
        for columns in self.frozen_weight.split(BLOCK, dim=1):
            rows = columns.t()
            for sweep in zip(self.order, self.place, update["cos"], update["sin"], strict=True):
                rows = turn_planes(rows, *sweep)
            columns.copy_(rows.t())

    @torch.no_grad()
    @full_precision
    def reset(self, where: Tensor | None = None, undo: Tensor | None = None) -> None:
        """Set the angles to 0 and draw new permutations, where ``where`` holds (a scalar bool; None: always).

        ``undo`` marks where the bias, too, goes back to the last merge. Cost O(d k).
        """
        super().reset(where, undo)
        order = torch.stack([torch.randperm(self.dim, generator=self._generator) for _ in range(self.rank)])
        for buffer, new in ((self.order, order), (self.place, order.argsort(dim=1))):
            new = new.to(buffer.device)
            buffer.copy_(new if where is None else torch.where(where, new, buffer))

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, report: MergeReport) -> None:
        """Clear the momentum of the angles: they belong to other planes now."""
        if parameter is self.u:
            momentum.masked_fill_(report.accepted, 0.0)
