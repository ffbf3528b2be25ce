"""Potentials in the plane whose Boltzmann distributions are known by quadrature."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.flows.latent import positive
from p4lab.problems.density2d import Bounds, cell_area, grid

SIDE = 1000
"""Cells along a side of the quadrature."""


class Energy(Protocol):
    r"""A reduced energy u(x) = E(x) / kT at the reference temperature 1, for the distribution p(x) ~ exp(-u(x) / T)."""

    @property
    def dim(self) -> int:
        """Number of coordinates d."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return u(x) in nats, shape (...) for x of shape (..., d), differentiable, on any device and in any dtype."""


class PlaneEnergy(ABC):
    r"""A potential in the plane with two basins; everything about it is known by quadrature.

    .. math:: p_T(x) = e^{-u(x) / T} / Z_T, \qquad Z_T = \int e^{-u(x) / T} dx

    The midpoint rule on 1000 x 1000 cells errs by less than 1e-6 in log Z from T = 0.2 on, since u is smooth and the
    box ends where nothing is left.

    Args:
        name: what `plane_energy` calls it.
        label: what a reader is shown.
        bounds: x0, x1, y0, y1 of pictures.
        box: where quadrature happens at T = 1.
        basins: what the two are called, a and b.

    Raises:
        ShapeError: from all methods, if points have another last dimension than 2.
        OptionError: from all methods, if a temperature is not positive.

    Attributes:
        dim: 2.
    """

    dim = 2

    def __init__(self, name: str, label: str, bounds: Bounds, box: Bounds, basins: tuple[str, str]) -> None:
        self.name, self.label, self.bounds, self.basins = name, label, bounds, basins
        self._box1 = box

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Return u(x) in nats, shape (...) for x of shape (..., 2)."""

    @abstractmethod
    def in_b(self, x: Tensor) -> Tensor:
        """Return which points lie in basin b, bool, shape (...); all others lie in a."""

    def box(self, temperature: float = 1.0) -> Bounds:
        """Return where quadrature happens: it grows with the temperature about its middle."""
        x0, x1, y0, y1 = self._box1
        spread = max(1.0, math.sqrt(temperature))
        mx, my = (x0 + x1) / 2, (y0 + y1) / 2
        return mx + spread * (x0 - mx), mx + spread * (x1 - mx), my + spread * (y0 - my), my + spread * (y1 - my)

    def log_z(self, temperature: float = 1.0) -> float:
        """Return log Z_T (nats)."""
        return _summary(self, positive(temperature))[0]

    def log_prob(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log p_T(x) in nats, shape (...) for x of shape (..., 2)."""
        return -self(x) / positive(temperature) - self.log_z(temperature)

    def entropy(self, temperature: float = 1.0) -> float:
        """Return the entropy of p_T (nats), by quadrature."""
        return _summary(self, positive(temperature))[1]

    def share_of_b(self, temperature: float = 1.0) -> float:
        """Return the probability of basin b."""
        return _summary(self, positive(temperature))[2]

    def free_energy_difference(self, temperature: float = 1.0) -> float:
        r"""Return the free energy of basin b minus that of basin a in kT of this temperature: -log(p_b / p_a)."""
        share = self.share_of_b(temperature)
        return math.log1p(-share) - math.log(share)

    def profile(self, edges: Tensor, temperature: float = 1.0) -> Tensor:
        r"""Return the free energy along x in kT: minus the logarithm of the mean marginal density in each bin.

        .. math:: f_k = -\log \frac{1}{h_k} \int_{x_k}^{x_{k + 1}} \int p_T(x, y)\, dy\, dx

        Args:
            edges: ascending, shape (bins + 1,).
            temperature: T.

        Returns:
            Shape (bins,), float64; inf where there is nothing.
        """
        edges = edges.detach().to("cpu", torch.float64)
        _, _, y0, y1 = self.box(positive(temperature))
        fine = 12
        share = (torch.arange(fine, dtype=torch.float64, device="cpu") + 0.5) / fine
        x = edges[:-1, None] + edges.diff()[:, None] * share
        y = y0 + (y1 - y0) * (torch.arange(SIDE, dtype=torch.float64, device="cpu") + 0.5) / SIDE
        points = torch.stack(torch.broadcast_tensors(x[..., None], y), -1)
        log_p = self.log_prob(points, temperature)
        return -(log_p.logsumexp((1, 2)) + math.log((y1 - y0) / SIDE / fine))

    def sample(
        self, n: int, generator: torch.Generator, temperature: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Draw ``n`` independent points of p_T, shape (n, 2), on the CPU.

        A cell of the quadrature is drawn and a point within it: exact up to the width of a cell, whose share of any
        variance is below 1e-4.

        Args:
            n: number of points, at least 0.
            generator: CPU generator.
            temperature: T.
            dtype: of the result; the draw itself is float64.

        Raises:
            OptionError: n < 0, or a temperature that is not positive.
        """
        if n < 0:
            raise OptionError(f"n={n}: expected at least 0 samples")
        cumulative = _cumulative(self, positive(temperature))
        place = torch.rand(n, generator=generator, dtype=torch.float64, device="cpu") * cumulative[-1]
        cell = torch.searchsorted(cumulative, place, right=True).clamp(max=SIDE * SIDE - 1)
        x0, x1, y0, y1 = self.box(temperature)
        jitter = torch.rand(n, 2, generator=generator, dtype=torch.float64, device="cpu")
        column, row = cell % SIDE, cell // SIDE
        x = x0 + (x1 - x0) * (column + jitter[:, 0]) / SIDE
        y = y1 - (y1 - y0) * (row + jitter[:, 1]) / SIDE
        return torch.stack([x, y], -1).to(dtype)

    def grid(self, side: int = 96) -> Tensor:
        """Return the centres of ``side`` x ``side`` cells over the bounds, first row at the top."""
        return grid(self.bounds, side)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.name))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class DoubleWell(PlaneEnergy):
    r"""The double well of the reference: two wells of different depth along x, harmonic along y.

    .. math:: u(x, y) = x^4 - 6 x^2 + x + y^2 / 2

    Minima near x = -1.77 (basin a, deeper by about 3.5 kT) and x = 1.69 (b); the barrier is at x = 0.0835.

    Source: Noé et al., arXiv:1812.01729.

    Example:
        >>> round(DoubleWell().free_energy_difference(), 2)
        3.38
    """

    barrier = 0.0835

    def __init__(self) -> None:
        super().__init__(
            "double_well", "Double well", (-3.0, 3.0, -4.0, 4.0), (-3.6, 3.6, -9.5, 9.5), ("left", "right")
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return u."""
        a, b = _plane(x)
        square = a * a
        return square * (square - 6) + a + 0.5 * b * b

    def in_b(self, x: Tensor) -> Tensor:
        """Return which points lie right of the barrier."""
        return x[..., 0] > self.barrier


class MuellerBrown(PlaneEnergy):
    r"""The potential of Müller and Brown, in units that make its barriers a few kT.

    .. math:: u(x, y) = \frac{1}{20} \sum_{k=1}^4 A_k e^{a_k (x - x_k)^2 + b_k (x - x_k)(y - y_k) + c_k (y - y_k)^2}

    Minima at (-0.56, 1.44) (a) and (0.62, 0.03) (b, higher by 1.9 kT), a shallow one between them.

    Source: Müller and Brown, Theor. Chim. Acta 53 (1979).
    """

    _terms = (
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    )
    """A, a, b, c, and the centre, of each term."""
    scale = 1 / 20

    def __init__(self) -> None:
        super().__init__(
            "mueller_brown",
            "Müller–Brown",
            (-1.7, 1.3, -0.6, 2.2),
            (-4.0, 2.6, -3.0, 4.6),
            ("upper left", "lower right"),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return u."""
        first, second = _plane(x)
        total = torch.zeros_like(first)
        for height, a, b, c, x0, y0 in self._terms:
            dx, dy = first - x0, second - y0
            total = total + height * (a * dx * dx + b * dx * dy + c * dy * dy).exp()
        return self.scale * total

    def in_b(self, x: Tensor) -> Tensor:
        """Return which points lie right of and below the line through the barrier between the two deep minima."""
        return x[..., 1] < x[..., 0] + 1.45


PLANE_ENERGIES: dict[str, Callable[[], PlaneEnergy]] = {"double_well": DoubleWell, "mueller_brown": MuellerBrown}
"""Name to maker; `plane_energy` calls it."""


def plane_energy(name: str) -> PlaneEnergy:
    """Return a potential in the plane.

    Args:
        name: one of `PLANE_ENERGIES`.

    Raises:
        OptionError: unknown name.
    """
    if name not in PLANE_ENERGIES:
        raise OptionError(f"energy {name!r} is not known: choose one of {', '.join(PLANE_ENERGIES)}")
    return PLANE_ENERGIES[name]()


def _plane(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[-1:] != (2,):
        raise ShapeError(f"points of shape {tuple(x.shape)}: expected (..., 2)")
    return x[..., 0], x[..., 1]


def _quadrature(energy: PlaneEnergy, temperature: float) -> tuple[Tensor, float]:
    """Return log p_T on the quadrature's grid, shape (SIDE, SIDE), and log Z_T."""
    minus = -energy(grid(energy.box(temperature), SIDE)) / temperature
    log_z = float(minus.logsumexp((0, 1))) + math.log(cell_area(energy.box(temperature), SIDE))
    return minus - log_z, log_z


@lru_cache(maxsize=256)
def _summary(energy: PlaneEnergy, temperature: float) -> tuple[float, float, float]:
    """Return log Z_T, the entropy, and the probability of basin b."""
    log_p, log_z = _quadrature(energy, temperature)
    mass = log_p.exp() * cell_area(energy.box(temperature), SIDE)
    entropy = -float((mass * log_p.clamp(min=-1e3)).sum())
    return log_z, entropy, float(mass[energy.in_b(grid(energy.box(temperature), SIDE))].sum())


@lru_cache(maxsize=4)
def _cumulative(energy: PlaneEnergy, temperature: float) -> Tensor:
    return _quadrature(energy, temperature)[0].exp().flatten().cumsum(0)
