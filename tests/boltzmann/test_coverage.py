"""Every estimate with an error bar: the truth lies within one standard error as often as it should."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch

from p4lab.boltzmann import Estimate, annealed, chains
from p4lab.boltzmann.mbar import Mbar
from p4lab.flows import Flow, Standardize
from p4lab.problems.energies import DoubleWell

WELL = DoubleWell()
RARE, COLD = WELL.share_of_b(), 0.7
BROAD = Flow([Standardize(torch.zeros(2).double(), torch.tensor([1.9, 1.2]).double())], 2)
"""A Gaussian that covers both wells; one in ten of its samples is effective."""


def importance(seed: int) -> Estimate:
    result = annealed(BROAD, WELL, 2000, levels=1, seed=seed)
    return result.share(WELL.in_b(result.y))


def difference(seed: int) -> Estimate:
    result = annealed(BROAD, WELL, 2000, levels=1, seed=seed)
    right = WELL.in_b(result.y)
    return result.free_energy_difference(~right, right)


def annealing(seed: int) -> Estimate:
    result = annealed(BROAD, WELL, 800, levels=4, pilot=64, seed=seed)
    return result.share(WELL.in_b(result.y))


def of_chains(seed: int) -> Estimate:
    result = chains(BROAD, WELL, 250, seed=seed)
    return result.share(WELL.in_b(result.y))


def of_local_moves(seed: int) -> Estimate:
    result = chains(BROAD, WELL, 40, local=1, leaps=2, seed=seed)
    return result.share(result.y[:, 1] > 1)


@functools.lru_cache(maxsize=128)
def states(seed: int) -> tuple[Mbar, torch.Tensor, torch.Tensor]:
    """Of samples of the flow and of the well at two temperatures; u of all, and they themselves."""
    generator = torch.Generator().manual_seed(seed)
    parts = [BROAD.sample(300, generator=generator), *(WELL.sample(200, generator, t) for t in (COLD, 1.0))]
    y = torch.cat(parts)
    u = WELL(y)
    return Mbar(torch.stack([-BROAD.log_prob(y).detach(), u / COLD, u]), [300, 200, 200]), u, y


def of_regions(seed: int) -> Estimate:
    mbar, u, y = states(seed)
    return mbar.share(u, WELL.in_b(y))


def of_temperatures(seed: int) -> Estimate:
    mbar, u, _ = states(seed)
    return mbar.difference(u, u / COLD)


def absolute(seed: int) -> Estimate:
    mbar, u, _ = states(seed)
    return mbar.difference(mbar.energies[0], u)


BETWEEN = WELL.log_z() - WELL.log_z(COLD)


@pytest.mark.parametrize(
    ("made", "truth", "repetitions"),
    [
        (importance, RARE, 200),
        (difference, WELL.free_energy_difference(), 200),
        (annealing, RARE, 80),
        (of_chains, RARE, 120),
        (of_local_moves, math.erfc(1 / math.sqrt(2)) / 2, 100),
        (of_regions, RARE, 70),
        (of_temperatures, BETWEEN, 70),
        (absolute, -WELL.log_z(), 70),
    ],
    ids=["importance", "difference", "annealed", "chains", "chains-local", "mbar-share", "mbar-temperatures", "mbar-z"],
)
def test_error_bars_cover_the_truth(made: Callable[[int], Estimate], truth: float, repetitions: int) -> None:
    estimates = [made(seed) for seed in range(repetitions)]
    off = torch.tensor([abs(value - truth) / error for value, error in estimates])
    one, two = (float((off < width).double().mean()) for width in (1, 2))
    spread = 2.5 * math.sqrt(0.66 * 0.34 / repetitions)
    assert abs(one - 0.66) < spread
    assert two > 0.94 - 2.5 * math.sqrt(0.05 * 0.95 / repetitions)
    assert sum(math.isinf(error) for _, error in estimates) < 0.05 * repetitions


@pytest.mark.parametrize("made", [importance, difference, annealing, of_chains, of_regions])
def test_a_state_that_is_hardly_seen_has_no_error_bar(
    made: Callable[[int], Estimate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WELL, "in_b", lambda x: (x[..., 0] > 2.4) & (x[..., 1] > 1.3))  # a share of 4 in 100,000
    for seed in range(5):
        assert made(seed).error == torch.inf
