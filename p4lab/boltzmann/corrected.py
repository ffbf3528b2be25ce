"""Samples of a flow made into samples of a Boltzmann distribution: annealing, and Markov chains in the latent space."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from p4lab.boltzmann.losses import ReducedEnergy
from p4lab.boltzmann.weights import BLOCKS, free_energy_difference, weighted_share
from p4lab.errors import OptionError, ShapeError
from p4lab.flows.latent import LatentDensity
from p4lab.p4.validate import check_tensor
from p4lab.problems.metrics import Estimate

WANTED = 0.75
"""Share of local moves that step sizes are fitted to."""
ROUNDS = 12
"""Moves after which a step size is taken as it is."""
FIRST_STEP = 0.3
"""Step size that the search begins with: the latent density has a width of 1."""


@dataclass(frozen=True)
class Corrected:
    """Samples with log-weights, for all that `p4lab.boltzmann.weights` estimates.

    Attributes:
        y: shape (n, d).
        log_weights: shape (n,), float64. Of `annealed` the mean of exp(log_weights) estimates the integral of exp(-u);
            of `chains` all are 0, but for -inf where a chain has not yet found anything that is allowed.
        blocks: number of contiguous blocks of equal length that are independent of each other.
        acceptance: share of the local moves that were accepted, at each level.
        independent: share of the flow's samples that chains accepted; nan where there are no chains.
        forgotten: whether chains accepted one or more of the flow's samples before the steps that are kept, in the
            mean. Else they are still where they began, of which their spread says nothing, and errors are inf.
        evaluations: of the energy, the search for step sizes included.
    """

    y: Tensor
    log_weights: Tensor
    blocks: int
    acceptance: tuple[float, ...]
    independent: float
    evaluations: int
    forgotten: bool = True

    def share(self, inside: Tensor) -> Estimate:
        """Return `weighted_share` of samples that are inside, bool, shape (n,)."""
        return self._known(weighted_share(self.log_weights, inside, self.blocks))

    def free_energy_difference(self, in_a: Tensor, in_b: Tensor) -> Estimate:
        """Return `p4lab.boltzmann.free_energy_difference` of two regions, each bool, shape (n,)."""
        return self._known(free_energy_difference(self.log_weights, in_a, in_b, self.blocks))

    def _known(self, estimate: Estimate) -> Estimate:
        return estimate if self.forgotten else Estimate(estimate.value, math.inf)


@torch.inference_mode(False)
@torch.no_grad()
def annealed(
    flow: LatentDensity,
    energy: ReducedEnergy,
    n: int,
    levels: int = 8,
    moves: int = 1,
    leaps: int = 3,
    seed: int = 0,
    chunk: int = 1024,
    pilot: int = 128,
) -> Corrected:
    r"""Bring samples of a flow to a Boltzmann distribution, level by level, and weigh them.

    .. math:: p_k(y) \propto q(y)^{1 - \beta_k} e^{-\beta_k u(y)}, \qquad
              \log w = \sum_{k=0}^{K-1} (\beta_{k+1} - \beta_k) (-u(y_k) - \log q(y_k)), \qquad \beta_k = k / K

    At each level between the two, samples move by Hamiltonian Monte Carlo in the latent space, where these are the
    prior times a power of the importance weight. Step sizes are found before, for each level, with samples of their
    own. Samples of which u is not finite weigh nothing.

    Args:
        flow: q; it must cover all of the target.
        energy: u of y, differentiable; inf for what is forbidden.
        n: number of samples, at least 2.
        levels: K; 1 are plain importance weights.
        moves: at each level.
        leaps: of the leapfrog integrator in a move.
        seed: of all that is random.
        chunk: samples at a time.
        pilot: samples for the search of step sizes.

    Raises:
        OptionError: a number out of range.
        TrainingError: the energy failed.

    Cost: n (1 + (K - 1) moves leaps) energies with gradients, and as many passes of the flow; the search has
    pilot (1 + 12 (K - 1) leaps).
    Source: Neal, Statistics and Computing 11 (2001), 125; with flows: Midgley et al., arXiv:2208.01893.

    Example:
        >>> from p4lab.flows import realnvp
        >>> flow = realnvp(2, blocks=2).double()
        >>> result = annealed(flow, lambda y: y.square().sum(-1), 200, levels=4)
        >>> result.y.shape, result.share(result.y[:, 0] > 0).error < 0.1
        (torch.Size([200, 2]), True)
    """
    _check(n=(n, 2), levels=(levels, 1), moves=(moves, 1), leaps=(leaps, 1), chunk=(chunk, 1), pilot=(pilot, 2))
    target, generator = _Target(flow, energy), torch.Generator().manual_seed(seed)
    between = [k / levels for k in range(1, levels)]
    steps: list[float] = []
    if between:
        at = target.at(flow.latent(pilot, generator), True)
        for beta in between:
            at, step = target.fitted(at, beta, leaps, steps[-1] if steps else FIRST_STEP, generator)
            steps.append(step)
    parts, accepted = [], torch.zeros(len(between), dtype=torch.float64, device="cpu")
    for start in range(0, n, chunk):
        at = target.at(flow.latent(min(chunk, n - start), generator), bool(between))
        log_w = at.log_w / levels
        for k, (beta, step) in enumerate(zip(between, steps, strict=True)):
            for _ in range(moves):
                at, chance = target.moved(at, beta, step, leaps, generator)
                accepted[k] += float(chance.sum()) / (n * moves)
            log_w = log_w + at.log_w / levels
        parts.append((at.y, log_w))
    y, log_w = (torch.cat(column) for column in zip(*parts, strict=True))
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    return Corrected(y, log_w, min(BLOCKS, n), tuple(accepted.tolist()), math.nan, target.evaluations)


@torch.inference_mode(False)
@torch.no_grad()
def chains(
    flow: LatentDensity,
    energy: ReducedEnergy,
    steps: int,
    number: int = 20,
    local: int = 0,
    leaps: int = 3,
    burn: int = 0,
    seed: int = 0,
    chunk: int = 2048,
) -> Corrected:
    r"""Run independent Markov chains that have a Boltzmann distribution in the long run.

    Each step of a chain proposes a sample of the flow, whatever the chain's own place, and accepts it with

    .. math:: \min(1, w(y') / w(y)), \qquad \log w(y) = -u(y) - \log q(y);

    then come local moves, if wanted: Hamiltonian Monte Carlo in the latent space. Their step size is found in the first
    half of the burn-in, which is left out of the result. The chains are its blocks, so that error bars hold however
    slowly a chain moves, if only all have forgotten where they began; where they plainly have not, errors are inf (see
    `Corrected.forgotten`).

    Args:
        flow: q; what it does not cover is not found.
        energy: u of y, differentiable if there are local moves; inf for what is forbidden.
        steps: of each chain that are kept, at least 1.
        number: of chains, at least 5; error bars from fewer than 20 are rough.
        local: local moves after each proposal.
        leaps: of the leapfrog integrator in a local move.
        burn: steps before these that are left out (0: a quarter of ``steps``, and at least 24).
        seed: of all that is random.
        chunk: proposals that are made at a time.

    Returns:
        ``number * steps`` samples, chain by chain.

    Raises:
        OptionError: a number out of range.
        TrainingError: the energy failed.

    Cost: number (steps + burn) (1 + local leaps) energies, with gradients for local moves, and passes of the flow.
    Source: Noé et al., arXiv:1812.01729; Gabrié et al., arXiv:2105.12603 (proposals of flows and local moves in turn).

    Example:
        >>> from p4lab.flows import realnvp
        >>> flow = realnvp(2, blocks=2).double()
        >>> result = chains(flow, lambda y: y.square().sum(-1), 50)
        >>> result.y.shape, result.share(result.y[:, 0] > 0).error < 0.1
        (torch.Size([1000, 2]), True)
    """
    _check(steps=(steps, 1), number=(number, 5), local=(local, 0), leaps=(leaps, 1), burn=(burn, 0), chunk=(chunk, 1))
    target, generator = _Target(flow, energy), torch.Generator().manual_seed(seed)
    burn = burn or max(2 * ROUNDS, steps // 4)
    at = target.at(flow.latent(number, generator), local > 0)
    step = FIRST_STEP
    kept: list[tuple[Tensor, Tensor]] = []
    independent, accepted = 0.0, 0.0
    for start in range(0, burn + steps, rows := max(1, chunk // number)):
        block = min(rows, burn + steps - start)
        proposals = target.at(flow.latent(block * number, generator), local > 0).split(number)
        for place, other in enumerate(proposals, start=start):
            taken = _accepted(other.log_w - at.log_w, at.log_w, _uniform(number, generator, at.log_w))
            at = other.where(taken, at)
            for _ in range(local):
                at, chance = target.moved(at, 1.0, step, leaps, generator)
                if place < burn // 2:
                    step = _adapted(step, float(chance.mean()), place)
                elif place >= burn:
                    accepted += float(chance.mean()) / (steps * local)
            if place >= burn:
                independent += float(taken.double().mean()) / steps
                kept.append((at.y, torch.where(torch.isfinite(at.log_w), 0.0, at.log_w)))
    y, log_w = (torch.stack(column, 1).flatten(0, 1) for column in zip(*kept, strict=True))
    forgotten = independent * burn >= 1
    return Corrected(y, log_w, number, (accepted,) if local else (), independent, target.evaluations, forgotten)


@dataclass(frozen=True)
class _Points:
    """Latent points z, shape (n, d), what they are in data space, log w (float64) and its gradient at z if known."""

    z: Tensor
    y: Tensor
    log_w: Tensor
    slope: Tensor | None

    def where(self, chosen: Tensor, other: "_Points") -> "_Points":
        pick = chosen[:, None]
        slope = None if self.slope is None or other.slope is None else torch.where(pick, self.slope, other.slope)
        return _Points(
            torch.where(pick, self.z, other.z),
            torch.where(pick, self.y, other.y),
            torch.where(chosen, self.log_w, other.log_w),
            slope,
        )

    def split(self, rows: int) -> Sequence["_Points"]:
        slopes = [None] * -(-len(self.z) // rows) if self.slope is None else self.slope.split(rows)
        columns = zip(self.z.split(rows), self.y.split(rows), self.log_w.split(rows), slopes, strict=True)
        return [_Points(*column) for column in columns]


class _Target:
    """The latent densities p_0(z) w(z)^beta."""

    def __init__(self, flow: LatentDensity, energy: ReducedEnergy) -> None:
        if flow.context:
            raise OptionError(f"a flow with a context of length {flow.context}: expected one without")
        self.flow, self.energy, self.evaluations = flow, energy, 0

    def at(self, z: Tensor, slope: bool) -> _Points:
        """Return points; rows that are not finite have log w = -inf and gradient 0."""
        with torch.set_grad_enabled(slope):
            z = z.detach().requires_grad_(slope)
            y, logabsdet = self.flow.inverse_with_logabsdet(z)
            u = self.energy(y)
            check_tensor("the energy of a flow's samples", u)
            if u.shape != y.shape[:1]:
                raise ShapeError(f"energies of shape {tuple(u.shape)}: expected {tuple(y.shape[:1])}, one per row")
            log_w = -u.double() - (self.flow.log_prior(z) - logabsdet).double()
            gradient = torch.autograd.grad(log_w.sum(), z)[0] if slope else None
        self.evaluations += len(z)
        finite = torch.isfinite(log_w) & torch.isfinite(y).all(-1)
        if gradient is not None:
            gradient = torch.where(finite[:, None] & torch.isfinite(gradient), gradient, 0.0)
        return _Points(z.detach(), y.detach(), torch.where(finite, log_w.detach(), -torch.inf), gradient)

    def moved(
        self, at: _Points, beta: float, step: float, leaps: int, generator: torch.Generator
    ) -> tuple[_Points, Tensor]:
        """Return points after one Hamiltonian move, and how likely each was to be accepted."""
        v = torch.randn(at.z.shape, generator=generator, dtype=at.z.dtype, device="cpu").to(at.z.device)
        before = self._log_density(at, beta) - 0.5 * v.double().square().sum(-1)
        there = at
        for _ in range(leaps):
            v = v + 0.5 * step * self._force(there, beta)
            there = self.at(self._wrapped(there.z + step * v), True)
            v = v + 0.5 * step * self._force(there, beta)
        gain = self._log_density(there, beta) - 0.5 * v.double().square().sum(-1) - before
        taken = _accepted(gain, at.log_w, _uniform(len(gain), generator, gain))
        return there.where(taken, at), torch.nan_to_num(gain, nan=-torch.inf).clamp(max=0.0).exp()

    def fitted(
        self, at: _Points, beta: float, leaps: int, step: float, generator: torch.Generator
    ) -> tuple[_Points, float]:
        """Return points after some moves, and the step size that the last of them had."""
        for place in range(ROUNDS):
            at, chance = self.moved(at, beta, step, leaps, generator)
            step = _adapted(step, float(chance.mean()), place)
        return at, step

    def _log_density(self, at: _Points, beta: float) -> Tensor:
        return self.flow.log_prior(at.z).double() + beta * at.log_w

    def _force(self, at: _Points, beta: float) -> Tensor:
        """Return the gradient of the log-density: that of the prior is 0 for angles."""
        assert at.slope is not None
        pull = -at.z
        pull[:, : self.flow.turns] = 0.0
        return pull + beta * at.slope

    def _wrapped(self, z: Tensor) -> Tensor:
        turns = self.flow.turns
        angles = torch.remainder(z[:, :turns] + math.pi, 2 * math.pi) - math.pi
        return torch.cat([angles, z[:, turns:]], -1)


def _accepted(gain: Tensor, log_w: Tensor, uniform: Tensor) -> Tensor:
    """Return which moves are accepted; from where the density is 0 all are that lead out."""
    return torch.where(torch.isfinite(log_w), gain > uniform.log(), torch.isfinite(gain) | (gain > 0))


def _uniform(n: int, generator: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(n, generator=generator, dtype=torch.float64, device="cpu").to(like.device)


def _adapted(step: float, chance: float, place: int) -> float:
    """Return a step size nearer to `WANTED`, by less and less (Robbins and Monro)."""
    return min(2.0, step * math.exp(2.0 * (chance - WANTED) / math.sqrt(place + 1)))


def _check(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if not isinstance(value, Integral) or value < least:
            raise OptionError(f"{name}={value}: expected a whole number of at least {least}")
