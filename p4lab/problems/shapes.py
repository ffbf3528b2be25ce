"""Families of exact densities in the plane: Gaussians, noisy curves and rings, boards, twists."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from p4lab.problems.density2d import BOUNDS, Bounds, Density2D, Modes

Curve = Callable[[Tensor], Tensor]
"""Maps s in [0, 1], shape (n,), to points (n, 2)."""
NODES = 8
PANEL = 3.0
"""Gauss-Legendre nodes of a panel of a curve, and its greatest length in standard deviations of the noise."""
FAR = 6.0
"""Radii of a pinwheel beyond which it twists no further: there is no mass, and no angle may overflow."""


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64, device="cpu")


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device="cpu")


class Gaussians(Density2D):
    r"""Equally weighted Gaussians of one width, :math:`p_j = N(c_j, \sigma^2 I) / m`.

    Args:
        name, label, bounds: as `Density2D`.
        centres: shape (m, 2).
        noise: standard deviation sigma.
    """

    def __init__(self, name: str, label: str, centres: Tensor, noise: float, bounds: Bounds = BOUNDS) -> None:
        self.centres, self.noise = centres.double(), noise
        super().__init__(name, label, bounds, Modes(self.centres, 4 * noise))
        self._width = 2 * len(centres)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.centres), (n,), generator=generator, device="cpu")
        return self.centres[which] + self.noise * _normal(n, generator)

    def _piece_log_prob(self, x: Tensor) -> Tensor:
        square = (x[:, None] - self.centres).square().sum(-1)
        return -square / (2 * self.noise**2) - math.log(2 * math.pi * self.noise**2 * len(self.centres))


class Rings(Density2D):
    r"""Circles around the origin with Gaussian noise, each with a mass proportional to its radius.

    A point on a circle of radius R plus N(0, sigma^2 I) has the density

    .. math:: p(x) = \frac{1}{2 \pi \sigma^2} \exp\left(-\frac{|x|^2 + R^2}{2 \sigma^2}\right)
              I_0\left(\frac{|x| R}{\sigma^2}\right)

    with the modified Bessel function I_0.

    Args:
        name, label, bounds: as `Density2D`.
        radii: R of each circle.
        noise: standard deviation sigma.
    """

    def __init__(self, name: str, label: str, radii: Sequence[float], noise: float, bounds: Bounds = BOUNDS) -> None:
        super().__init__(name, label, bounds)
        self.radii, self.noise = torch.tensor(radii, dtype=torch.float64, device="cpu"), noise
        self.weights = self.radii / self.radii.sum()
        self._width = len(radii)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        radius = self.radii[torch.multinomial(self.weights, n, replacement=True, generator=generator)] if n else 0.0
        angle = 2 * math.pi * _uniform(n, generator)
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        return points + self.noise * _normal(n, generator)

    def _piece_log_prob(self, x: Tensor) -> Tensor:
        r, variance = x.norm(dim=-1, keepdim=True), self.noise**2
        # The scaled Bessel function takes exp(|x| R / sigma^2) out, which leaves a square.
        bessel = torch.special.i0e(r * self.radii / variance).log()
        return bessel - (r - self.radii).square() / (2 * variance) + (self.weights / (2 * math.pi * variance)).log()


class Curves(Density2D):
    r"""Equally weighted curves with Gaussian noise.

    .. math:: p_j(x) = \frac{1}{m} \int_0^1 N\left(x; c_j(s), \sigma^2 I\right)\, q s^{q - 1}\, ds

    The integral is done by Gauss-Legendre quadrature on panels of at most 3 sigma; its relative error is below 1e-6
    wherever p > 1e-9, and below 1e-8 where there are samples.

    Args:
        name, label, bounds: as `Density2D`.
        curves: c_j, each from [0, 1] to the plane.
        noise: standard deviation sigma.
        power: q; 1 spreads the mass evenly over the parameter s, 2 in proportion to s.
    """

    def __init__(
        self, name: str, label: str, curves: Sequence[Curve], noise: float, power: int = 1, bounds: Bounds = BOUNDS
    ) -> None:
        super().__init__(name, label, bounds)
        self.curves, self.noise, self.power = tuple(curves), noise, power
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        length = max(_longest(curve) for curve in self.curves)
        panels = math.ceil(length / (PANEL * noise))
        starts = torch.arange(panels, dtype=torch.float64, device="cpu")[:, None]
        s = ((starts + (torch.from_numpy(nodes) + 1) / 2) / panels).flatten()
        mass = torch.from_numpy(weights).repeat(panels) / (2 * panels) * power * s ** (power - 1)
        self._points = torch.stack([curve(s) for curve in self.curves])  # (m, nodes, 2)
        self._log_mass = (mass / mass.sum() / len(self.curves)).log()
        self._width = self._points[..., 0].numel()

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.curves), (n,), generator=generator, device="cpu")
        s = _uniform(n, generator) ** (1 / self.power)
        points = torch.stack([curve(s) for curve in self.curves])[which, torch.arange(n, device="cpu")]
        return points + self.noise * _normal(n, generator)

    def _piece_log_prob(self, x: Tensor) -> Tensor:
        # |x - c|^2 multiplied out is one matrix product; float64 can afford the cancellation.
        variance, points = self.noise**2, self._points.flatten(0, 1)
        constant = self._log_mass.repeat(len(self.curves)) - points.square().sum(-1) / (2 * variance)
        exponents = torch.addmm(constant, x, points.t() / variance).view(len(x), *self._points.shape[:2])
        own = x.square().sum(-1, keepdim=True) / (2 * variance)
        return exponents.logsumexp(-1) - own - math.log(2 * math.pi * variance)


def _longest(curve: Curve) -> float:
    """Return the greatest speed |c'(s)|: no panel of parameter length h is longer than h times this."""
    points = curve(torch.linspace(0, 1, 2001, dtype=torch.float64, device="cpu"))
    return 2000 * points.diff(dim=0).norm(dim=-1).max().item()


class Board(Density2D):
    """Uniform on the black squares of a board around the origin; the density is 0 elsewhere.

    Args:
        name, label, bounds: as `Density2D`.
        squares: number of squares along a side.
        half: half the side of the board.
    """

    def __init__(self, name: str, label: str, squares: int, half: float, bounds: Bounds = BOUNDS) -> None:
        self.side = 2 * half / squares
        index = torch.cartesian_prod(torch.arange(squares, device="cpu"), torch.arange(squares, device="cpu"))
        self.corners = index[index.sum(1) % 2 == 0] * self.side - half
        self.corners = self.corners.double()
        super().__init__(name, label, bounds, Modes(self.corners + self.side / 2, self.side / math.sqrt(2)))
        self._width = 2 * len(self.corners)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        which = torch.randint(len(self.corners), (n,), generator=generator, device="cpu")
        return self.corners[which] + self.side * torch.rand(
            n, 2, generator=generator, dtype=torch.float64, device="cpu"
        )

    def _piece_log_prob(self, x: Tensor) -> Tensor:
        offset = x[:, None] - self.corners
        inside = ((offset >= 0) & (offset <= self.side)).all(-1)
        height = -math.log(len(self.corners) * self.side**2)
        return torch.where(inside, height, -math.inf).to(x)


class Pinwheel(Density2D):
    r"""Arms bent by a twist that turns each circle around the origin as a whole.

    Arm j is a Gaussian with centre (R, 0) and standard deviations ``along`` and ``across``, turned by 2 pi j / m. The
    twist turns x by the angle phi(|x|), phi(r) = turn exp(r / R), which is held constant beyond r = 6 R. It preserves
    areas, so that the density is that of the arms at the point twisted back.

    Args:
        name, label, bounds: as `Density2D`.
        arms: m.
        radius: R.
        along, across: standard deviations of an arm.
        turn: radians at the origin.
    """

    def __init__(
        self,
        name: str,
        label: str,
        arms: int = 5,
        radius: float = 1.8,
        along: float = 0.5,
        across: float = 0.14,
        turn: float = 0.25,
        bounds: Bounds = BOUNDS,
    ) -> None:
        super().__init__(name, label, bounds)
        self.arms, self.radius, self.along, self.across, self.turn = arms, radius, along, across, turn
        self._angles = torch.arange(arms, dtype=torch.float64, device="cpu") * (2 * math.pi / arms)
        self._width = 2 * arms

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        arm = self._angles[torch.randint(self.arms, (n,), generator=generator, device="cpu")]
        noise = _normal(n, generator)
        return self._twist(
            _turned(torch.stack([self.radius + self.along * noise[:, 0], self.across * noise[:, 1]], -1), arm), 1
        )

    def _piece_log_prob(self, x: Tensor) -> Tensor:
        points = _turned(self._twist(x, -1)[:, None], -self._angles)
        square = ((points[..., 0] - self.radius) / self.along).square() + (points[..., 1] / self.across).square()
        return -square / 2 - math.log(2 * math.pi * self.along * self.across * self.arms)

    def _twist(self, x: Tensor, direction: int) -> Tensor:
        return _turned(x, direction * self.turn * (x.norm(dim=-1) / self.radius).clamp_max(FAR).exp())


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Return points (..., 2) turned around the origin by angles (...)."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([c * x[..., 0] - s * x[..., 1], s * x[..., 0] + c * x[..., 1]], dim=-1)
