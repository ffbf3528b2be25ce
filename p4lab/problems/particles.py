"""A few particles in the plane, and how to sample what has no quadrature."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.energies import Energy


class DoubleWellParticles:
    r"""Particles in the plane, each pair of which sits in a double well, in a weak trap.

    .. math:: u(x) = \sum_{i < j} \left[ a (r_{ij} - r_0) + b (r_{ij} - r_0)^2 + c (r_{ij} - r_0)^4 \right]
        + \frac{k n}{2} |\bar x|^2

    Pairs prefer one of two distances. The trap holds the mean of the positions, so that p is normalizable, and does not
    touch their shape: the mean is N(0, T / (k n)) in each direction at any temperature.

    Args:
        particles: n, at least 2.
        tilt, square, quartic: a, b, c.
        distance: r_0.
        trap: k > 0.

    Raises:
        OptionError: fewer than two particles, or no trap.

    Cost: O(n^2) per sample. Source: Köhler et al., arXiv:2006.02425 (DW-4, without its factor 1/2 of tau).
    """

    def __init__(
        self,
        particles: int = 4,
        tilt: float = 0.0,
        square: float = -4.0,
        quartic: float = 0.9,
        distance: float = 4.0,
        trap: float = 1.0,
    ) -> None:
        if particles < 2 or trap <= 0 or quartic <= 0:
            raise OptionError(
                f"particles={particles}, trap={trap}, quartic={quartic}: expected at least 2, above 0, above 0"
            )
        self.particles, self.dim = particles, 2 * particles
        self.tilt, self.square, self.quartic, self.distance, self.trap = tilt, square, quartic, distance, trap
        self._pairs = torch.triu_indices(particles, particles, 1, device="cpu")

    def __call__(self, x: Tensor) -> Tensor:
        """Return u(x) in nats, shape (...) for x of shape (..., 2 n).

        Raises:
            ShapeError: x has another last dimension.
        """
        off = self.distances(x) - self.distance
        square = off * off
        pairs = (self.tilt * off + self.square * square + self.quartic * square * square).sum(-1)
        centre = x.view(*x.shape[:-1], self.particles, 2).mean(-2)
        return pairs + 0.5 * self.trap * self.particles * centre.square().sum(-1)

    def distances(self, x: Tensor) -> Tensor:
        """Return the distances r_ij, shape (..., n (n - 1) / 2), for x of shape (..., 2 n).

        Raises:
            ShapeError: x has another last dimension.
        """
        if x.shape[-1:] != (self.dim,):
            raise ShapeError(f"positions of shape {tuple(x.shape)}: expected (..., {self.dim})")
        positions = x.view(*x.shape[:-1], self.particles, 2)
        i, j = self._pairs.to(x.device)
        # A tiny term: the gradient of the root at distance 0 is then 0 and not NaN.
        return ((positions[..., i, :] - positions[..., j, :]).square().sum(-1) + 1e-12).sqrt()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(particles={self.particles})"


class Trajectory(NamedTuple):
    """Frames of walkers at several temperatures.

    Attributes:
        x: shape (frames, temperatures, walkers, d).
        accepted: share of proposals that were accepted, by temperature.
        swapped: share of swaps between neighbouring temperatures that were accepted; NaN without neighbours.
    """

    x: Tensor
    accepted: Tensor
    swapped: float


@torch.no_grad()
def metropolis(
    energy: Energy,
    start: Tensor,
    steps: int,
    generator: torch.Generator,
    temperatures: Sequence[float] = (1.0,),
    width: float = 0.3,
    keep_every: int = 10,
    swap_every: int = 10,
) -> Trajectory:
    r"""Run Metropolis walkers with Gaussian proposals; at several temperatures they swap places (replica exchange).

    .. math:: x' = x + \sigma \sqrt{T} \xi, \qquad P(\text{accept}) = \min(1, e^{-(u(x') - u(x)) / T}), \qquad
        P(\text{swap}_{ij}) = \min(1, e^{(1 / T_i - 1 / T_j) (u_i - u_j)})

    Args:
        energy: u.
        start: where the walkers start at every temperature, shape (walkers, d); device and dtype of the run.
        steps: proposals per walker, at least 1.
        generator: CPU generator.
        temperatures: T, ascending or descending; the walkers of one temperature are independent of each other.
        width: sigma.
        keep_every: proposals between two frames that are kept.
        swap_every: proposals between two attempts to swap, of every second pair in turn.

    Raises:
        OptionError: something is out of range.
        ShapeError: start does not fit the energy.

    Cost: ``steps`` evaluations of the energy on temperatures * walkers points.
    """
    if not temperatures or not all(math.isfinite(t) and t > 0 for t in temperatures):
        raise OptionError(f"temperatures={tuple(temperatures)}: expected at least one, all above 0")
    if min(steps, keep_every, swap_every) < 1 or not width > 0:
        raise OptionError(
            f"steps={steps}, keep_every={keep_every}, swap_every={swap_every}, width={width}: expected at least 1, 1, "
            "1, and above 0"
        )
    if start.dim() != 2 or start.shape[1] != energy.dim:
        raise ShapeError(f"start of shape {tuple(start.shape)}: expected (walkers, {energy.dim})")
    t = torch.tensor(list(temperatures), dtype=start.dtype, device=start.device)[:, None]
    x = start.detach().expand(len(t), *start.shape).clone()
    u = energy(x)
    frames, accepted = [], torch.zeros(len(t), device=x.device)
    attempts, swapped = 0, torch.zeros((), device=x.device)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)

    for step in range(1, steps + 1):
        move = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
        trial = x + width * t[..., None].sqrt() * move
        u_trial = energy(trial)
        yes = rand(*u.shape).log() * t < u - u_trial
        x, u = torch.where(yes[..., None], trial, x), torch.where(yes, u_trial, u)
        accepted = accepted + yes.float().mean(-1)
        if step % swap_every == 0 and len(t) > 1:
            low = torch.arange((step // swap_every) % 2, len(t) - 1, 2, device=x.device)
            high = low + 1
            yes = rand(len(low), x.shape[1]).log() < (1 / t[low] - 1 / t[high]) * (u[low] - u[high])
            x[low], x[high] = torch.where(yes[..., None], x[high], x[low]), torch.where(yes[..., None], x[low], x[high])
            u[low], u[high] = torch.where(yes, u[high], u[low]), torch.where(yes, u[low], u[high])
            if len(low):
                attempts, swapped = attempts + 1, swapped + yes.float().mean()
        if step % keep_every == 0:
            frames.append(x.clone())
    kept = torch.stack(frames) if frames else x.new_zeros(0, *x.shape)
    return Trajectory(kept, (accepted / steps).cpu(), float(swapped / attempts) if attempts else math.nan)
