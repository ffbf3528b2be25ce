"""The common toy densities in the plane, by name, with their exact log-density."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.problems.density2d import Bounds, Density2D, Level, Modes
from p4lab.problems.density_problem import DensityProblem
from p4lab.problems.picture_density import GridDensity, grid_density, picture
from p4lab.problems.shapes import Board, Curve, Curves, Gaussians, Pinwheel, Rings

__all__ = [
    "DENSITIES",
    "Bounds",
    "Density2D",
    "DensityProblem",
    "GridDensity",
    "Level",
    "Modes",
    "density",
    "grid_density",
]


def _eight_gaussians() -> Density2D:
    angle = torch.arange(8, dtype=torch.float64, device="cpu") * (math.pi / 4)
    return Gaussians("eight_gaussians", "Eight Gaussians", 2.8 * torch.stack([angle.cos(), angle.sin()], -1), 0.2)


def _two_moons() -> Density2D:
    def upper(s: Tensor) -> Tensor:
        return torch.stack([2 * (math.pi * s).cos() - 1, 2 * (math.pi * s).sin() - 0.5], -1)

    return Curves("two_moons", "Two moons", [upper, lambda s: -upper(s)], 0.12)


def _arm(start: float, end: float, radius: float, turn: float = 0.0) -> Curve:
    """Return a spiral of Archimedes from angle ``start`` to ``end``, where it has this radius."""

    def curve(s: Tensor) -> Tensor:
        t = start + (end - start) * s
        return torch.stack([t * (t + turn).cos(), t * (t + turn).sin()], -1) * (radius / end)

    return curve


DENSITIES: dict[str, Callable[[], Density2D]] = {
    "eight_gaussians": _eight_gaussians,
    "two_moons": _two_moons,
    "rings": lambda: Rings("rings", "Rings", (1.0, 2.0, 3.0), 0.12),
    "checkerboard": lambda: Board("checkerboard", "Checkerboard", 4, 3.2),
    "pinwheel": lambda: Pinwheel("pinwheel", "Pinwheel"),
    "swiss_roll": lambda: Curves("swiss_roll", "Swiss roll", [_arm(1.5 * math.pi, 4.5 * math.pi, 3.2)], 0.13),
    "spirals": lambda: Curves(
        "spirals", "Two spirals", [_arm(0.0, 3 * math.pi, 3.2, turn) for turn in (0.0, math.pi)], 0.12, power=2
    ),
    "picture": picture,
}
"""Name to maker; `density` calls it."""


def density(name: str) -> Density2D:
    """Return a toy density.

    Args:
        name: one of `DENSITIES`.

    Raises:
        OptionError: unknown name.

    Example:
        >>> moons = density("two_moons")
        >>> moons.sample(3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """
    if name not in DENSITIES:
        raise OptionError(f"density {name!r} is not known: choose one of {', '.join(DENSITIES)}")
    return DENSITIES[name]()
