"""Internal coordinates of molecules: bonds, angles and torsions, row by row of a Z-matrix.

Both directions are batched and differentiable. Inside, tensors have shape (3, atoms, frames), so that each operation
runs over contiguous memory; atoms are placed level by level of the tree that the rows make.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from p4lab.errors import DtypeError, OptionError, ShapeError

SHORTEST = 1e-12
"""Lengths and areas below this (of order 0.1 nm as a rule) give no direction: vectors are divided by no less."""
NOWHERE = 1e-15
"""An angle whose sine and cosine, times the lengths, are both below this is 0."""


class Internal(NamedTuple):
    """Internal coordinates of frames of n atoms, in the order of the rows of a Z-matrix.

    Attributes:
        bonds: lengths of rows 1, 2, ..., shape (B, n - 1), in the unit of the positions.
        angles: of rows 2, 3, ..., shape (B, n - 2), radians in [0, pi].
        torsions: of rows 3, 4, ..., shape (B, n - 3), radians in [-pi, pi], sign after IUPAC.
    """

    bonds: Tensor
    angles: Tensor
    torsions: Tensor


class ZMatrix(nn.Module):
    r"""The map between positions and internal coordinates.

    Row (i, j, k, l) places atom i at distance r from j, at angle :math:`\theta` = i-j-k, and with the torsion
    :math:`\varphi` = i-j-k-l. Neither do bonds have to be chemical ones, nor torsions to run along a chain: with a
    sibling of i for l (both are bonded to j), the torsion is an improper one, which hardly varies.

    It holds no parameters; its indices move with ``to(device)`` and are not part of a ``state_dict``.

    Args:
        rows: (atom, bond, angle, torsion), one for each atom 0 ... n - 1; -1 stands for what the first three rows do
            not have. A row refers to atoms of rows before it.

    Raises:
        OptionError: rows that do not place each atom once, from other atoms that were placed before.
        ShapeError, DtypeError: from all methods, if tensors have another shape, or are neither float32 nor float64.

    Cost O(n B) in either direction; `cartesian` takes as many steps as the tree has levels.

    Example:
        >>> peroxide = ZMatrix([(0, -1, -1, -1), (1, 0, -1, -1), (2, 1, 0, -1), (3, 0, 1, 2)])
        >>> x = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 2]]])
        >>> peroxide.internal(x)
        Internal(bonds=tensor([[1., 1., 2.]]), angles=tensor([[1.5708, 1.5708]]), torsions=tensor([[-1.5708]]))
        >>> peroxide.logabsdet(peroxide.internal(x))  # 2 ln 2
        tensor([1.3863])
    """

    n_atoms: int
    _by_level: Tensor
    _place: Tensor

    def __init__(self, rows: Iterable[Sequence[int]]) -> None:
        super().__init__()
        self.rows = _checked(rows)
        self.n_atoms = len(self.rows)
        level: dict[int, int] = {row[0]: 0 for row in self.rows[:3]}
        for atom, *others in self.rows[3:]:
            level[atom] = 1 + max(level[other] for other in others)
        # Sorted by level (sorting is stable), rows of one level lie side by side.
        by_level = sorted(range(3, self.n_atoms), key=lambda number: level[self.rows[number][0]])
        placing = [*range(min(3, self.n_atoms)), *by_level]
        place = {self.rows[number][0]: at for at, number in enumerate(placing)}
        self._levels: list[tuple[int, int]] = []
        for at, number in enumerate(by_level):
            if at == 0 or level[self.rows[number][0]] != level[self.rows[by_level[at - 1]][0]]:
                self._levels.append((at, at + 1))
            self._levels[-1] = (self._levels[-1][0], at + 1)
        self._third_from_second = self.rows[2][1] == self.rows[1][0]
        self._index("_bonded", [row[0] for row in self.rows[1:]] + [row[1] for row in self.rows[1:]])
        self._index("_angled", [row[2] for row in self.rows[2:]] + [row[1] for row in self.rows[2:]])
        self._index("_turned", [row[3] for row in self.rows[3:]] + [row[2] for row in self.rows[3:]])
        self._index("_by_level", [number - 3 for number in by_level])
        self._index("_place", [place[atom] for atom in range(self.n_atoms)])
        for step, (first, last) in enumerate(self._levels):
            own = [self.rows[number] for number in by_level[first:last]]
            self._index(f"_references_{step}", [place[row[column]] for column in (1, 2, 3) for row in own])

    def _index(self, name: str, values: list[int]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.long, device="cpu"), persistent=False)

    def extra_repr(self) -> str:
        """Say how large it is."""
        return f"n_atoms={self.n_atoms}, levels={len(self._levels)}"

    def internal(self, x: Tensor) -> Internal:
        r"""Return bonds, angles and torsions.

        .. math:: \theta = \operatorname{atan2}(|d \times v|, d \cdot v), \quad
                  \varphi = \operatorname{atan2}(-|v|\, d \cdot c, -(d \times v) \cdot c), \quad c = v \times w

        with :math:`d = x_i - x_j, v = x_k - x_j, w = x_l - x_k`. Where atoms coincide, an angle is 0; where they lie
        on a line, a torsion is 0 (or, within rounding of a line, arbitrary). All values and gradients are finite
        there; `regular` and `logabsdet` tell that it is not a chart any more.

        Args:
            x: positions, shape (B, n, 3).
        """
        check_frames(x, self.n_atoms)
        p = x.permute(2, 1, 0).contiguous()
        d, v, w = (_difference(p, getattr(self, name)) for name in ("_bonded", "_angled", "_turned"))
        bonds = _norm(d)
        across = _cross(d[:, 1:], v)
        angles = _atan2(_norm(across), _dot(d[:, 1:], v))
        c = _cross(v[:, 1:], w)
        torsions = _atan2(-_norm(v[:, 1:]) * _dot(d[:, 2:], c), -_dot(across[:, 1:], c))
        return Internal(bonds.T, angles.T, torsions.T)

    def cartesian(self, internal: Internal) -> Tensor:
        """Return positions: the first atom at the origin, the second on the x axis, the third in the plane z = 0.

        Any real numbers are taken, also bonds and angles that `internal` never gives (`regular` tells them). Where
        reference atoms lie on a line there is no plane to turn from: the atom is then placed on that line. Positions
        and gradients are finite all the same.

        Args:
            internal: of B frames.

        Returns:
            Positions, shape (B, n, 3).
        """
        self._check(internal)
        r, theta, phi = (part.T.contiguous() for part in internal)
        zero = torch.zeros_like(r[0])
        along, aside = r[1:] * theta.cos(), r[1:] * theta.sin()
        third = r[0] - along[0] if self._third_from_second else along[0]
        p = torch.stack([torch.stack([zero, r[0], third]), torch.stack([zero, zero, aside[0]]), zero.expand(3, -1)])
        # In the frame (towards k, towards l's side, normal) of each row, rows of a level side by side.
        local = torch.stack([along[1:], aside[1:] * phi.cos(), -aside[1:] * phi.sin()])
        local = local.index_select(1, self._by_level)
        for step, (first, last) in enumerate(self._levels):
            j, k, l = p.index_select(1, getattr(self, f"_references_{step}")).chunk(3, 1)  # noqa: E741
            towards = k - j
            normal = _unit(_cross(towards, l - k))
            towards = _unit(towards)
            a, b, c = local[:, None, first:last]
            p = torch.cat([p, j + a * towards + b * _cross(normal, towards) + c * normal], 1)
        return p.index_select(1, self._place).permute(2, 1, 0).contiguous()

    def regular(self, internal: Internal) -> Tensor:
        """Return which frames have bonds above 0 and angles strictly between 0 and pi, shape (B,), bool.

        Only those are what `internal` gives back; torsions count modulo 2 pi.
        """
        self._check(internal)
        return _regular(internal)

    def logabsdet(self, internal: Internal) -> Tensor:
        r"""Return the logarithm of the volume of positions per volume of internal coordinates.

        .. math:: \log\left|\det \frac{\partial x}{\partial (q, \omega, t)}\right| = 2 \sum \ln r + \sum \ln \sin \theta

        The rigid motion (rotation :math:`\omega`, translation t) is taken at the positions that `cartesian` gives.
        Where the map is singular or not one to one, that is, a bond not above 0 or an angle not between 0 and pi, it
        is -inf with a gradient of 0: such a frame has weight 0.

        Args:
            internal: of B frames.

        Returns:
            log|det|, shape (B,), nats for lengths in the unit of the bonds.
        """
        self._check(internal)
        regular = _regular(internal)
        r = torch.where(regular, internal.bonds.T, 1.0).log().sum(0)
        sine = torch.where(regular, internal.angles.T, 1.0).sin().log().sum(0)
        return torch.where(regular, 2 * r + sine, -math.inf)

    def _check(self, internal: Internal) -> None:
        for less, (name, part) in enumerate(internal._asdict().items(), start=1):
            if part.ndim != 2 or part.shape != (len(internal.bonds), self.n_atoms - less):
                raise ShapeError(
                    f"{name} of shape {tuple(part.shape)} for a molecule of {self.n_atoms} atoms and bonds of shape "
                    f"{tuple(internal.bonds.shape)}: expected (B, {self.n_atoms - less}), with the same B for all"
                )
            check_dtype(name, part)


def check_frames(x: Tensor, n_atoms: int) -> None:
    """Raise an error unless x holds frames.

    Raises:
        ShapeError: its shape is not (B, n_atoms, 3).
        DtypeError: neither float32 nor float64.
    """
    if x.ndim != 3 or x.shape[1:] != (n_atoms, 3):
        raise ShapeError(f"frames of shape {tuple(x.shape)}: expected (B, {n_atoms}, 3); one frame is x[None]")
    check_dtype("frames", x)


def check_dtype(name: str, given: Tensor) -> None:
    """Raise an error unless a tensor is of float32 or float64.

    Raises:
        DtypeError: it is not.
    """
    if given.dtype not in (torch.float32, torch.float64):
        raise DtypeError(f"{name} of {given.dtype}: expected torch.float32 or torch.float64")


def _checked(rows: Iterable[Sequence[int]]) -> list[tuple[int, int, int, int]]:
    made = [tuple(int(value) for value in row) for row in rows]
    n = len(made)
    if n < 3:
        raise OptionError(f"a Z-matrix of {n} rows: expected at least 3, one for each atom")
    placed: set[int] = set()
    for number, row in enumerate(made):
        where = f"row {number} of the Z-matrix, {row}"
        has = min(number, 3)  # how many atoms it refers to
        if len(row) != 4:
            raise OptionError(f"{where}: {len(row)} numbers, expected 4 (atom, bond, angle, torsion)")
        if any((value < 0) != (at > has) for at, value in enumerate(row)) or min(row) < -1:
            raise OptionError(f"{where}: expected an atom and {has} others of 0 ... {n - 1}, and {3 - has} of -1 after")
        used = row[: has + 1]
        if unknown := [atom for atom in used if atom >= n]:
            raise OptionError(f"{where}: atom {unknown[0]} is unknown, {n} rows place atoms 0 ... {n - 1}")
        if len(set(used)) < len(used):
            raise OptionError(f"{where}: an atom is there twice, expected {len(used)} different ones")
        if row[0] in placed:
            raise OptionError(f"{where}: atom {row[0]} has a row already, expected one for each atom")
        if missing := [atom for atom in used[1:] if atom not in placed]:
            raise OptionError(
                f"{where}: atom {missing[0]} is not placed yet; put its row before this one, and if it refers back to "
                f"atom {row[0]}, break that cycle"
            )
        placed.add(row[0])
    return cast(list[tuple[int, int, int, int]], made)


def _difference(p: Tensor, pairs: Tensor) -> Tensor:
    ends, starts = p.index_select(1, pairs).chunk(2, 1)
    return ends - starts


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return (a * b.roll(-1, 0) - a.roll(-1, 0) * b).roll(-1, 0)  # three times as fast as torch.linalg.cross


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _norm(v: Tensor) -> Tensor:
    square = _dot(v, v)
    some = square > 0
    return torch.where(some, torch.where(some, square, 1.0).sqrt(), 0.0)  # the gradient at 0 is 0


def _unit(v: Tensor) -> Tensor:
    return v * _dot(v, v).clamp_min(SHORTEST**2).rsqrt()


def _atan2(sine: Tensor, cosine: Tensor) -> Tensor:
    nowhere = torch.maximum(sine.abs(), cosine.abs()) < NOWHERE
    return torch.atan2(torch.where(nowhere, 0.0, sine), torch.where(nowhere, 1.0, cosine))


def _regular(internal: Internal) -> Tensor:
    r, theta = internal.bonds.T, internal.angles.T
    return (r > 0).all(0) & ((theta > 0) & (theta < math.pi)).all(0)
