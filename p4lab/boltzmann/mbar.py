"""Free energies from samples of several distributions at once: MBAR, solved by pymbar, with error bars from blocks."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann.weights import check_region, jackknife, told
from p4lab.errors import OptionError, ShapeError
from p4lab.p4.validate import check_tensor
from p4lab.packages import require
from p4lab.problems.metrics import Estimate

FORBIDDEN = 1e5
"""Reduced energies this far above the lowest of their state, or not finite, count as this: exp(-u) is 0 anyway."""
WITHIN = 1e-6
"""How well the equations must be solved: the weights of each state sum to 1 within this."""
PROTOCOL = ({"method": "adaptive", "tol": 1e-7, "options": {"min_sc_iter": 0, "maxiter": 500}},)
"""How pymbar solves them: Newton steps, or self-consistent ones where these do better."""


class Mbar:
    r"""Samples of K distributions, such as a flow and frames at several temperatures, as samples of any other.

    .. math:: w_t(x_n) \propto \frac{e^{-u_t(x_n)}}{\sum_k N_k e^{f_k - u_k(x_n)}}, \qquad
              e^{-f_k} = \sum_n \frac{e^{-u_k(x_n)}}{\sum_l N_l e^{f_l - u_l(x_n)}}

    The error bars are a jackknife: one of the blocks is left out at a time, of each distribution the same part, and the
    equations are solved anew. Blocks must be longer than the time in which the frames of a simulation forget each
    other, so frames belong in the order of time. Where blocks are too few to tell, errors are inf (see
    `p4lab.boltzmann.weights.told`).

    Args:
        energies: reduced energy of each sample in each distribution, -log q for a flow, shape (K, N); the samples of
            the first distribution come first, and so on; inf for what is forbidden.
        counts: number N_k of samples of each distribution, none of them 0.
        blocks: number of blocks, at least 10.

    Attributes:
        energies: float64, on the CPU.

    Raises:
        ShapeError: energies and counts do not fit, or fewer samples than blocks.
        OptionError: the distributions do not overlap, so that there is no solution; a sample whose energy in its own
            distribution is not finite; counts that are no whole numbers; fewer than 10 blocks.
        MissingPackageError: pymbar is not installed.

    Cost: O(K^2 N) for some ten Newton steps, and as much for each block.
    Source: Shirts and Chodera, J. Chem. Phys. 129 (2008), 124105; the package pymbar.

    Example:
        >>> x = torch.cat([torch.linspace(-2, 2, 100), torch.linspace(-1, 3, 100)])
        >>> states = Mbar(torch.stack([x.square(), (x - 1).square()]), [100, 100])
        >>> abs(states.difference(*states.energies).value) < 1e-3
        True
    """

    def __init__(self, energies: Tensor, counts: Sequence[int], blocks: int = 20) -> None:
        check_tensor("Mbar", energies)
        if energies.dim() != 2 or len(counts) != len(energies) or sum(counts) != energies.shape[1]:
            raise ShapeError(
                f"energies of shape {tuple(energies.shape)} and counts {list(counts)}: expected (K, N), and K numbers "
                "with the sum N"
            )
        counts = [int(n) if float(n).is_integer() else n for n in counts]
        if not all(isinstance(n, int) for n in [*counts, blocks]) or blocks < 10:
            raise OptionError(f"counts={counts}, blocks={blocks}: expected whole numbers, and at least 10 blocks")
        if min(counts) < blocks:
            raise ShapeError(f"counts {list(counts)}: expected at least {blocks} of each, one for each block")
        self.energies, self.counts, self.blocks = energies.detach().to("cpu", torch.float64), tuple(counts), blocks
        self._block = torch.cat([torch.arange(n, device="cpu") * blocks // n for n in counts])
        states = torch.arange(len(counts), device="cpu")
        self._state = states.repeat_interleave(torch.tensor(counts, device="cpu"))
        if count := int((~self.energies.gather(0, self._state[None]).isfinite()).sum()):
            raise OptionError(
                f"{count} samples have no finite energy in the distribution that they are of, where they cannot come "
                "from: look at the order of samples, or leave them out and count them less"
            )
        low = torch.where(torch.isfinite(self.energies), self.energies, torch.inf).min(1, keepdim=True).values
        self._u = torch.nan_to_num(self.energies - low, nan=FORBIDDEN).clamp(max=FORBIDDEN).numpy()
        f = self._solved(self._u, np.array(counts), np.zeros(len(counts)))
        if f is None or not self._overlap(f):
            raise OptionError(
                f"the {len(counts)} distributions overlap too little for MBAR, in fewer than 5 of {blocks} blocks: add "
                "samples of some in between, such as temperatures"
            )
        self._f = f

    def log_weights(self, target: Tensor) -> Tensor:
        """Return log-weights of all samples as samples of another distribution, up to a constant.

        Args:
            target: reduced energy of all samples in it, shape (N,); inf for what is forbidden.

        Raises:
            ShapeError: another shape.
        """
        return self._log_weights(self._checked(target), self._f, self.counts)

    def difference(self, a: Tensor, b: Tensor) -> Estimate:
        r"""Return the free energy of b minus that of a, each in its own kT.

        .. math:: -\log \frac{\int e^{-u_b(x)} dx}{\int e^{-u_a(x)} dx}

        Two temperatures are ``difference(u_cold, u_hot)``; two regions are energies that are inf elsewhere. From a flow
        to u it is -log Z.

        Args:
            a, b: reduced energies of all samples in the two distributions, shape (N,), sampled from or not.

        Raises:
            ShapeError: another shape.
        """
        a, b = self._checked(a), self._checked(b)
        of_a, of_b = (self._log_weights(u, self._f, self.counts) for u in (a, b))
        left_out = []
        for number, (f, counts) in enumerate(self._left_out):
            rest = self._block != number
            without = [self._log_weights(u, f, counts)[rest].logsumexp(0) for u in (a, b)]
            left_out.append(without[0] - without[1])
        every = torch.stack(left_out)
        certain = told(self._sums(of_a)) and told(self._sums(of_b)) and bool(torch.isfinite(every).all())
        return Estimate(float(of_a.logsumexp(0) - of_b.logsumexp(0)), float(jackknife(every)) if certain else math.inf)

    def share(self, target: Tensor, inside: Tensor) -> Estimate:
        """Return the share of a distribution that lies inside of a region.

        Args:
            target: reduced energy of all samples in it, shape (N,).
            inside: bool, shape (N,).

        Raises:
            ShapeError, DtypeError: another shape; what is inside is not bool.
        """
        target = self._checked(target)
        check_region(target, inside)
        inside = inside.to("cpu")
        within, without = (torch.where(region, target, torch.inf) for region in (inside, ~inside))
        odds = self.difference(without, within)
        share = 1 / (1 + math.exp(min(odds.value, 700.0)))
        return Estimate(share, share * (1 - share) * odds.error if math.isfinite(odds.error) else math.inf)

    # --- inside ------------------------------------------------------------------------------------------------------

    @cached_property
    def _left_out(self) -> list[tuple[NDArray[np.float64], NDArray[np.int_]]]:
        """Free energies without each of the blocks, NaN where there is no solution, and the counts there."""
        parts = []
        for number in range(self.blocks):
            rest = self._block != number
            counts = np.bincount(self._state[rest].numpy(), minlength=len(self.counts))
            f = self._solved(self._u[:, rest.numpy()], counts, self._f)
            parts.append((np.full(len(counts), np.nan) if f is None else f, counts))
        return parts

    def _solved(
        self, u: NDArray[np.float64], counts: NDArray[np.int_], start: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Return the free energies f, or None where the equations have no solution."""
        if len(counts) == 1:
            return start
        with _quiet() as solvers, np.errstate(all="ignore"):
            f, _ = solvers.solve_mbar(u, counts, start, PROTOCOL)
            off = np.abs(solvers.mbar_gradient(u, counts, f)) / counts
        return f if bool((off < WITHIN).all()) else None

    def _overlap(self, f: NDArray[np.float64]) -> bool:
        """Return whether the two most distant groups of distributions share samples, in enough blocks."""
        if len(f) == 1:
            return True
        log_p = torch.from_numpy((f + np.log(self.counts))[:, None] - self._u)
        p = torch.softmax(log_p, 0)  # how likely each sample is to come from each of the distributions, shape (K, N)
        size = p.sum(1).sqrt()
        vectors = torch.linalg.eigh(p @ p.T / (size[:, None] * size)).eigenvectors
        group = vectors[:, -2] > 0  # the eigenvector of the second largest value tells the groups apart
        of_group = p[group].sum(0)
        return told(self._per_block(of_group * (1 - of_group)))

    def _log_weights(self, target: Tensor, f: NDArray[np.float64], counts: Sequence[int] | NDArray[np.int_]) -> Tensor:
        each = torch.from_numpy(f + np.log(counts))[:, None] - torch.from_numpy(self._u)
        return torch.where(torch.isfinite(target), -target, -torch.inf) - each.logsumexp(0)

    def _per_block(self, values: Tensor) -> Tensor:
        return torch.zeros(self.blocks, dtype=torch.float64, device="cpu").index_add_(0, self._block, values)

    def _sums(self, log_w: Tensor) -> Tensor:
        return self._per_block(torch.nan_to_num(torch.softmax(log_w, 0), nan=0.0))

    def _checked(self, target: Tensor) -> Tensor:
        check_tensor("Mbar", target)
        if target.shape != self.energies.shape[1:]:
            raise ShapeError(f"energies of shape {tuple(target.shape)}: expected ({self.energies.shape[1]},)")
        return target.detach().to("cpu", torch.float64)


@contextmanager
def _quiet() -> Iterator[ModuleType]:
    """Give pymbar's solvers without their words: a recommendation on import, and of failures, which are seen here."""
    log = logging.getLogger("pymbar")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield require("pymbar.mbar_solvers", "molecules")
    finally:
        log.setLevel(before)
