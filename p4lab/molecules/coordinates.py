"""Coordinates of a molecule for flows: torsions on the circle and standardized numbers."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ShapeError
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.zmatrix import Internal, ZMatrix, check_dtype


class Coordinates(nn.Module):
    r"""The map between positions of a molecule of n atoms and the numbers that a flow models.

    .. math:: y = (\varphi_1, \dots, \varphi_m, (q - \mu) / \sigma)

    with the m torsions that turn (radians in [-pi, pi)), and q the n - 1 bonds (nm), n - 2 angles and all other
    torsions (radians, within pi of their circular means). For alanine dipeptide the first are phi, psi and those of the
    methyl groups, m = 5. Rigid motions are left out: positions come back with the first atom of the Z-matrix at the
    origin, and log-determinants are of positions up to rigid motion.

    ``Coordinates(molecule)`` has mean 0 and deviation 1; `fit` gives those of frames, ``load_state_dict`` those of a
    file.

    Args:
        molecule: whose coordinates they are.

    Attributes:
        dim: width of y, d = 3 n - 6.
        circular: m.
        columns: kind of each column, and the atom that it places.
        folds: how many turns bring each rotor of the molecule back.
        mean: of q, shape (d - m,); buffer, float64.
        std: of q, shape (d - m,); buffer, float64.
        center: circular means of the narrow torsions; buffer, float64.

    Raises:
        ShapeError, DtypeError: from all methods, if tensors have another shape, or are neither float32 nor float64.

    Cost O(B) for B frames in either direction.

    Example:
        >>> molecule = Molecule.from_sequence("A")
        >>> frames = molecule.start + 0.002 * torch.randn(50, 22, 3, dtype=torch.float64)
        >>> coordinates = Coordinates.fit(molecule, frames)
        >>> y, logabsdet = coordinates.encode(frames)
        >>> y.shape, logabsdet.shape
        (torch.Size([50, 60]), torch.Size([50]))
        >>> x, back = coordinates.decode(y)
        >>> torch.allclose(torch.cdist(x, x), torch.cdist(frames, frames)), torch.allclose(back, -logabsdet)
        (True, True)
    """

    mean: Tensor
    std: Tensor
    center: Tensor
    _wide_first: Tensor
    _as_rows: Tensor
    _orders: Tensor

    def __init__(self, molecule: Molecule) -> None:
        super().__init__()
        rows, wide, n = molecule.graph.rows, molecule.graph.circular, len(molecule)
        torsions = [row[0] for row in rows[3:]]
        order = [torsions.index(atom) for atom in wide]
        order += [at for at in range(n - 3) if at not in order]
        self.molecule, self.columns = molecule, molecule.columns
        self.dim, self.circular = 3 * n - 6, len(wide)
        self.zmatrix = ZMatrix(rows)
        n_rest = self.dim - self.circular
        self._parts = (len(wide), n - 1, n - 2, n - 3 - len(wide))
        for name, size, value in (("mean", n_rest, 0.0), ("std", n_rest, 1.0), ("center", self._parts[3], 0.0)):
            self.register_buffer(name, torch.full((size,), value, dtype=torch.float64, device="cpu"))
        self._index("_wide_first", order)
        self._index("_as_rows", [order.index(at) for at in range(len(order))])
        # Where atoms come from after each rotor has turned 0, 1, ... times; beyond its fold, again from the start.
        self.folds = tuple(one.fold for one in molecule.rotors)
        self._variants = math.lcm(*self.folds)
        images = [
            [(one.images((atom,)) * self._variants)[: self._variants] for atom in range(n)] for one in molecule.rotors
        ]
        orders = torch.tensor(images, dtype=torch.long, device="cpu").reshape(len(self.folds), n, self._variants)
        self.register_buffer("_orders", orders.transpose(1, 2).contiguous(), persistent=False)

    def _index(self, name: str, values: list[Any]) -> None:
        self.register_buffer(name, torch.tensor(values, device="cpu"), persistent=False)

    @classmethod
    @torch.inference_mode(False)
    def fit(cls, molecule: Molecule, x: Tensor) -> "Coordinates":
        """Return the coordinates with the means and deviations of frames and of their permutations by the rotors.

        Args:
            molecule: whose frames they are.
            x: training frames, shape (B, n, 3), nm; of the hands and amides of `Molecule.start`.

        Raises:
            OptionError: fewer than 2 frames; frames that are not `valid`, or not in nm; a coordinate that is the same
                in all frames.
        """
        made = cls(molecule).to(x.device)
        valid = molecule.valid(x)
        if len(x) < 2:
            raise OptionError(f"{len(x)} frames: expected at least 2, better thousands, to fit means and deviations")
        if count := int((~valid).sum()):
            raise OptionError(
                f"{count} of {len(x)} frames have NaNs, or unlike the molecule's start a D form or cis amide: fit "
                "x[molecule.valid(x)]"
            )
        molecule.check_units(x)
        internal = made.zmatrix.internal(x.detach().double())
        narrow = internal.torsions.T.index_select(0, made._wide_first[made.circular :])
        made.center.copy_(torch.atan2(narrow.sin().mean(1), narrow.cos().mean(1)))
        raw = made._columns(internal)
        turned = [
            made._columns(made._turned(raw, torch.full((len(x), len(made.folds)), shift, device=x.device)))
            for shift in range(1, made._variants)
        ]
        q = torch.cat([raw, *turned], 1)[made.circular :]
        std = q.std(1)
        if still := [made.columns[made.circular + at] for at in (std < 1e-9).nonzero()[:, 0].tolist()]:
            kind, atom = still[0]
            raise OptionError(f"the {kind} of atom {atom} is the same in all {len(x)} frames: expected ones that vary")
        made.mean.copy_(q.mean(1))
        made.std.copy_(std)
        return made

    @classmethod
    @torch.inference_mode(False)
    def around_start(cls, molecule: Molecule) -> "Coordinates":
        """Return coordinates that are distances (nm, radians) from ``Molecule.start``, but for circular torsions."""
        made = cls(molecule)
        internal = made.zmatrix.internal(molecule.start[None])
        made.center.copy_(internal.torsions[0, made._wide_first[made.circular :]])
        made.mean.copy_(made._columns(internal)[made.circular :, 0])
        return made

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates of frames.

        A frame with two bonded atoms in one place, or with an angle of exactly 0 or pi, has finite coordinates and a
        log|det| of +inf.

        Args:
            x: shape (B, n, 3), nm.

        Returns:
            ``(y, log|dy/dx|)``, shapes (B, d) and (B,), nats for lengths in nm.
        """
        internal = self.zmatrix.internal(x)
        return self._standardized(self._columns(internal)).T.contiguous(), -self._log_volume(internal)

    def decode(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions that belong to coordinates.

        What `encode` never gives (a bond not above 0, an angle outside of (0, pi), a narrow torsion more than pi from
        its mean) makes finite positions with a log|det| of -inf, so that it has weight 0. Circular torsions may be any
        number.

        Args:
            y: shape (B, d).

        Returns:
            ``(x, log|dx/dy|)``, shapes (B, n, 3) and (B,), nm, nats for lengths in nm.
        """
        self._check(y)
        raw = self._scaled(y.T.contiguous())
        internal, narrow = self._internal(raw), raw[self.dim - self._parts[3] :]
        inside = ((narrow - self._like("center", y)).abs() <= math.pi + 1e-5).all(0)
        return self.zmatrix.cartesian(internal), torch.where(inside, self._log_volume(internal), -math.inf)

    def permute(self, y: Tensor, shifts: Tensor) -> Tensor:
        r"""Return the coordinates after atoms of each rotor (`Molecule.rotors`) took each other's places.

        The positions stay as they are, but atoms change their names, as three hydrogens of a methyl group do. The
        energy is that of y, and so is the volume element but for rings that flip. It is differentiable.

        Args:
            y: shape (B, d).
            shifts: how often each rotor turns, shape (B, rotors), integers from 0 to its fold - 1.
        """
        self._check(y)
        if shifts.shape != (len(y), len(self.folds)):
            raise ShapeError(f"shifts of shape {tuple(shifts.shape)}: expected ({len(y)}, {len(self.folds)})")
        turned = self._turned(self._scaled(y.T.double()), shifts)
        numbers = self._standardized(self._columns(turned)).to(y.dtype)
        return torch.cat([_on_circle(numbers[: self.circular]), numbers[self.circular :]]).T.contiguous()

    def augment(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return each sample with its rotors turned at random (see `permute`).

        Args:
            y: shape (B, d).
            generator: on the CPU.
        """
        self._check(y)
        return self.permute(y, random_turns(self.folds, len(y), generator).to(y.device))

    def rotor_of_columns(self) -> Tensor:
        """Return for each column the number of the rotor that changes it, from 1 on, 0 if none does; shape (d,)."""
        place = {
            atom: number
            for number, one in enumerate(self.molecule.rotors, start=1)
            for atom in self.molecule.graph.below(one.axis[1])
        }
        return torch.tensor([place.get(atom, 0) for _, atom in self.columns], device="cpu")

    # Inside, columns come first: shape (d, B), bonds in nm, angles in radians.

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

    def _internal(self, raw: Tensor) -> Internal:
        wide, bonds, angles, narrow = raw.split(self._parts)
        return Internal(bonds.T, angles.T, torch.cat([wide, narrow]).index_select(0, self._as_rows).T)

    def _turned(self, raw: Tensor, shifts: Tensor) -> Internal:
        x = self.zmatrix.cartesian(self._internal(raw))
        for orders, shift in zip(self._orders, shifts.T, strict=True):
            x = x.gather(1, orders[shift][:, :, None].expand_as(x))
        return self.zmatrix.internal(x)

    def _like(self, name: str, raw: Tensor) -> Tensor:
        column: Tensor = getattr(self, name)
        return column.to(raw.dtype)[:, None]

    def _log_volume(self, internal: Internal) -> Tensor:
        return self.zmatrix.logabsdet(internal) + self.std.log().sum().to(internal.bonds.dtype)

    def _check(self, y: Tensor) -> None:
        if y.ndim != 2 or y.shape[1] != self.dim:
            raise ShapeError(f"coordinates of shape {tuple(y.shape)}: expected (B, {self.dim}); one sample is y[None]")
        check_dtype("coordinates", y)


def random_turns(folds: tuple[int, ...], n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return random turns of rotors, all equally likely, shape (n, rotors), on the CPU.

    Args:
        folds: how many turns bring each rotor back.
        n: number of rows.
        generator: on the CPU.
    """
    drawn = torch.randint(math.lcm(*folds), (n, len(folds)), generator=generator, device="cpu")
    return drawn % torch.tensor(folds, dtype=torch.long, device="cpu")


def _near(angle: Tensor, center: Tensor | float) -> Tensor:
    return angle - 2 * math.pi * ((angle - center) / (2 * math.pi)).round()


def _on_circle(angle: Tensor) -> Tensor:
    angle = _near(angle, 0.0)
    return torch.where(angle >= math.pi, angle - 2 * math.pi, angle)
