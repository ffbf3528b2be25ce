"""Coordinates of alanine dipeptide for flows: 5 angles on the circle and 55 standardized numbers."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.molecules.alanine import METHYLS, N_ATOMS, PHI, PSI, ROWS
from p4lab.molecules.dataset import is_natural
from p4lab.molecules.zmatrix import Internal, ZMatrix, check_dtype, check_frames

CIRCULAR = (PHI[0], PSI[-1], *(hydrogens[0] for hydrogens in METHYLS))
"""Atoms whose torsions take the whole circle: phi, psi, and the methyl groups of CB, ACE and NME."""
_TORSIONS = [row[0] for row in ROWS[3:]]
_WIDE = [_TORSIONS.index(atom) for atom in CIRCULAR]
_NARROW = [at for at in range(len(_TORSIONS)) if at not in _WIDE]
_PARTS = (len(_WIDE), N_ATOMS - 1, N_ATOMS - 2, len(_NARROW))
"""Columns: circular torsions, bonds, angles, narrow torsions."""
COLUMNS = (
    *(("torsion", atom) for atom in CIRCULAR),
    *(("bond", row[0]) for row in ROWS[1:]),
    *(("angle", row[0]) for row in ROWS[2:]),
    *(("torsion", _TORSIONS[at]) for at in _NARROW),
)
"""Kind of each of the 60 columns, and the atom that it places."""


class Coordinates(nn.Module):
    r"""The map between positions of alanine dipeptide and the numbers that a flow models.

    .. math:: y = (\varphi_1, \dots, \varphi_5, (q - \mu) / \sigma)

    with the torsions phi, psi and those of the methyl groups of CB, ACE and NME (radians in [-pi, pi)), and q the 21
    bonds (nm), 20 angles and 14 narrow torsions (radians, within pi of their circular means). Rigid motions are left
    out: positions come back with the C-alpha at the origin, and log-determinants are of positions up to rigid motion.

    ``Coordinates()`` has mean 0 and deviation 1; `fit` gives those of frames, ``load_state_dict`` those of a file.

    Attributes:
        mean: of q, shape (55,); buffer, float64.
        std: of q, shape (55,); buffer, float64.
        center: circular means of the narrow torsions, shape (14,); buffer, float64.

    Raises:
        ShapeError, DtypeError: from all methods, if tensors have another shape, or are neither float32 nor float64.

    Cost O(B) for B frames in either direction.

    Example:
        >>> from p4lab.molecules import alanine
        >>> frames = alanine.start() + 0.002 * torch.randn(50, 22, 3, dtype=torch.float64)
        >>> coordinates = Coordinates.fit(frames)
        >>> y, logabsdet = coordinates.encode(frames)
        >>> y.shape, logabsdet.shape
        (torch.Size([50, 60]), torch.Size([50]))
        >>> x, back = coordinates.decode(y)
        >>> torch.allclose(torch.cdist(x, x), torch.cdist(frames, frames)), torch.allclose(back, -logabsdet)
        (True, True)
    """

    dim = sum(_PARTS)
    circular = len(_WIDE)
    mean: Tensor
    std: Tensor
    center: Tensor
    _wide_first: Tensor
    _as_rows: Tensor
    _methyl_bonds: Tensor
    _methyl_angles: Tensor
    _methyl_torsions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.zmatrix = ZMatrix(ROWS)
        self.register_buffer("mean", torch.zeros(self.dim - self.circular, dtype=torch.float64))
        self.register_buffer("std", torch.ones(self.dim - self.circular, dtype=torch.float64))
        self.register_buffer("center", torch.zeros(len(_NARROW), dtype=torch.float64))
        order = _WIDE + _NARROW
        self._index("_wide_first", order)
        self._index("_as_rows", [order.index(at) for at in range(len(order))])
        for kind in ("bond", "angle", "torsion"):
            self._index(f"_methyl_{kind}s", [[COLUMNS.index((kind, h)) for h in group] for group in METHYLS])

    def _index(self, name: str, values: list[Any]) -> None:
        self.register_buffer(name, torch.tensor(values), persistent=False)

    @classmethod
    def fit(cls, x: Tensor) -> "Coordinates":
        """Return the coordinates with the means and deviations of frames and of their 27 permutations of hydrogens.

        Args:
            x: training frames, shape (n, 22, 3), nm; of the L form, with trans amides.

        Raises:
            OptionError: fewer than 2 frames; frames that are not `valid`; a coordinate that is the same in all frames.
        """
        made = cls().to(x.device)
        valid = made.valid(x)
        if len(x) < 2:
            raise OptionError(f"{len(x)} frames: expected at least 2, better thousands, to fit means and deviations")
        if count := int((~valid).sum()):
            raise OptionError(
                f"{count} of {len(x)} frames have NaNs, the D form or a cis amide: fit x[Coordinates.valid(x)]"
            )
        internal = made.zmatrix.internal(x.detach().double())
        narrow = internal.torsions.T[_NARROW]
        made.center.copy_(torch.atan2(narrow.sin().mean(1), narrow.cos().mean(1)))
        y = made._columns(internal)
        turned = [made._permuted(y, torch.full((len(METHYLS), len(x)), shift, device=x.device)) for shift in range(3)]
        q = torch.cat(turned, 1)[made.circular :]
        std = q.std(1)
        if still := [COLUMNS[made.circular + at] for at in (std < 1e-9).nonzero()[:, 0].tolist()]:
            kind, atom = still[0]
            raise OptionError(f"the {kind} of atom {atom} is the same in all {len(x)} frames: expected ones that vary")
        made.mean.copy_(q.mean(1))
        made.std.copy_(std)
        return made

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates of frames.

        A frame with two bonded atoms in one place, or with an angle of exactly 0 or pi, has finite coordinates and a
        log|det| of +inf.

        Args:
            x: shape (B, 22, 3), nm.

        Returns:
            ``(y, log|dy/dx|)``, shapes (B, 60) and (B,), nats for lengths in nm.
        """
        internal = self.zmatrix.internal(x)
        return self._standardized(self._columns(internal)).T.contiguous(), -self._log_volume(internal)

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions that belong to coordinates.

        What `encode` never gives (a bond not above 0, an angle outside of (0, pi), a narrow torsion more than pi from
        its mean) makes finite positions with a log|det| of -inf, so that it has weight 0. Circular torsions may be any
        number.

        Args:
            y: shape (B, 60).

        Returns:
            ``(x, log|dx/dy|)``, shapes (B, 22, 3) and (B,), nm, nats for lengths in nm.
        """
        self._check(y)
        wide, bonds, angles, narrow = self._scaled(y.T.contiguous()).split(_PARTS)
        torsions = torch.cat([wide, narrow]).index_select(0, self._as_rows)
        internal = Internal(bonds.T, angles.T, torsions.T)
        inside = ((narrow - self._like("center", y)).abs() <= math.pi + 1e-5).all(0)
        return self.zmatrix.cartesian(internal), torch.where(inside, self._log_volume(internal), -math.inf)

    def permute(self, y: Tensor, shifts: Tensor) -> Tensor:
        r"""Return the coordinates after hydrogens of each methyl group took each other's places.

        The positions stay as they are, hydrogen h of a group takes the name of hydrogen h - shift. This is exact:
        bonds and angles are exchanged, and torsions about one axis add up,
        :math:`\varphi_h = \varphi_0 + \delta_h` with the narrow torsions :math:`\delta` of the two others. Energy and
        the volume element are those of y.

        Args:
            y: shape (B, 60).
            shifts: for CB, ACE and NME, shape (B, 3), integers in 0, 1, 2.
        """
        self._check(y)
        if shifts.shape != (len(y), len(METHYLS)):
            raise ShapeError(f"shifts of shape {tuple(shifts.shape)}: expected ({len(y)}, {len(METHYLS)})")
        return self._standardized(self._permuted(self._scaled(y.T.contiguous()), shifts.T)).T.contiguous()

    def augment(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return each sample with one of the 27 permutations of methyl hydrogens, drawn at random (see `permute`).

        Args:
            y: shape (B, 60).
            generator: on the CPU.
        """
        self._check(y)
        return self.permute(y, torch.randint(3, (len(y), len(METHYLS)), generator=generator, device="cpu").to(y.device))

    @staticmethod
    def valid(x: Tensor) -> Tensor:
        """Return which frames are finite, of the L form and with both amides trans, shape (B,), bool.

        Args:
            x: shape (B, 22, 3).
        """
        check_frames(x, N_ATOMS)
        return is_natural(x) & x.isfinite().all(2).all(1)

    # Inside, columns come first: shape (60, B), bonds in nm, angles in radians.

    def _columns(self, internal: Internal) -> Tensor:
        torsions = internal.torsions.T.index_select(0, self._wide_first)
        narrow = _near(torsions[self.circular :], self._like("center", torsions))
        return torch.cat([_on_circle(torsions[: self.circular]), internal.bonds.T, internal.angles.T, narrow])

    def _standardized(self, raw: Tensor) -> Tensor:
        q = (raw[self.circular :] - self._like("mean", raw)) / self._like("std", raw)
        return torch.cat([raw[: self.circular], q])

    def _scaled(self, y: Tensor) -> Tensor:
        q = y[self.circular :] * self._like("std", y) + self._like("mean", y)
        return torch.cat([y[: self.circular], q])

    def _permuted(self, raw: Tensor, shifts: Tensor) -> Tensor:
        source = (shifts[:, None] + torch.arange(3, device=raw.device)[:, None]) % 3
        for columns in (self._methyl_bonds, self._methyl_angles):
            raw = raw.index_copy(0, columns.flatten(), raw[columns].gather(1, source).flatten(0, 1))
        first, others = self._methyl_torsions[:, 0], self._methyl_torsions[:, 1:]
        from_first = torch.cat([torch.zeros_like(raw[first, None]), raw[others]], 1).gather(1, source)
        raw = raw.index_copy(0, first, _on_circle(raw[first] + from_first[:, 0]))
        center = self._like("center", raw)[others - (self.dim - len(_NARROW))]
        narrow = _near(from_first[:, 1:] - from_first[:, :1], center)
        return raw.index_copy(0, others.flatten(), narrow.flatten(0, 1))

    def _like(self, name: str, raw: Tensor) -> Tensor:
        column: Tensor = getattr(self, name)
        return column.to(raw.dtype)[:, None]

    def _log_volume(self, internal: Internal) -> Tensor:
        return self.zmatrix.logabsdet(internal) + self.std.log().sum().to(internal.bonds.dtype)

    def _check(self, y: Tensor) -> None:
        if y.ndim != 2 or y.shape[1] != self.dim:
            raise ShapeError(f"coordinates of shape {tuple(y.shape)}: expected (B, {self.dim}); one sample is y[None]")
        check_dtype("coordinates", y)


def _near(angle: Tensor, center: Tensor | float) -> Tensor:
    return angle - 2 * math.pi * ((angle - center) / (2 * math.pi)).round()


def _on_circle(angle: Tensor) -> Tensor:
    angle = _near(angle, 0.0)
    return torch.where(angle >= math.pi, angle - 2 * math.pi, angle)
