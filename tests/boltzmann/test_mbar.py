"""MBAR: what pymbar says, what importance weights say, blocks of correlated samples, and what is refused."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from p4lab.boltzmann import Mbar, free_energy_difference, log_weights
from p4lab.errors import DtypeError, OptionError, ShapeError


def gaussians(shift: float, n: int = 400, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Energies of samples of N(0, 1) and N(shift, 1.5^2), each sample so many times in a row, and the samples."""
    noise = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([noise[0], shift + 1.5 * noise[1]]).repeat_interleave(repeat)
    return torch.stack([x.square() / 2, ((x - shift) / 1.5).square() / 2]), x


def test_it_is_what_pymbar_finds_with_errors_like_its_own() -> None:
    pymbar = pytest.importorskip("pymbar")
    energies, x = gaussians(1.0)
    # its constructor seeds NumPy's global generator, and its covariance takes logarithms of 0
    state = np.random.get_state()  # noqa: NPY002
    with np.errstate(all="ignore"):
        theirs = pymbar.MBAR(energies.numpy(), [400, 400], solver_protocol="robust")
        whole, inside = theirs.compute_free_energy_differences(), theirs.compute_expectations((x > 1).double().numpy())
    np.random.set_state(state)  # noqa: NPY002
    ours = Mbar(energies, [400, 400], blocks=40)
    difference, share = ours.difference(*energies), ours.share(energies[0], x > 1)
    assert difference.value == pytest.approx(whole["Delta_f"][0, 1], abs=1e-5)
    assert difference.error == pytest.approx(whole["dDelta_f"][0, 1], rel=0.35)
    assert share.value == pytest.approx(inside["mu"][0], abs=1e-5)
    assert share.error == pytest.approx(inside["sigma"][0], rel=0.35)


def test_of_one_flow_it_is_importance_weights() -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_q, u = -x.square() / 2 - math.log(2 * math.pi) / 2, (x - 0.5).square()
    mbar, log_w = Mbar(-log_q[None], [2000]), log_weights(u, log_q)
    assert torch.allclose(mbar.log_weights(u).softmax(0), log_w.softmax(0))
    inside = [torch.where(region, u, torch.inf) for region in (x < 1, x >= 1)]
    expected = free_energy_difference(log_w, x < 1, x >= 1, 20)
    assert tuple(mbar.difference(*inside)) == pytest.approx(tuple(expected))
    assert mbar.difference(-log_q, u).value == pytest.approx(-math.log(math.pi) / 2, abs=0.05)


def test_blocks_see_that_samples_are_correlated() -> None:
    once, x = gaussians(1.0)
    many, xs = gaussians(1.0, repeat=10)
    a, b = (Mbar(energies, [energies.shape[1] // 2] * 2) for energies in (once, many))
    assert tuple(b.difference(*many)) == pytest.approx(tuple(a.difference(*once)), rel=1e-4)
    assert tuple(b.share(many[0], xs > 1)) == pytest.approx(tuple(a.share(once[0], x > 1)), rel=1e-4)


def test_what_is_forbidden_in_one_distribution_is_no_harm() -> None:
    energies, x = gaussians(1.0)
    energies[0] = torch.where(x > 0, energies[0], torch.inf)  # the first is half a Gaussian now
    order = torch.cat([(x[:400] > 0).nonzero()[:, 0], torch.arange(400, 800)])
    kept = energies[:, order]
    mbar = Mbar(kept, [len(order) - 400, 400])
    value, error = mbar.difference(*kept)
    assert abs(value + math.log(3.0)) < 4 * error < 0.4


def test_a_region_without_samples_has_no_error_and_others_have() -> None:
    energies, x = gaussians(1.0)
    mbar = Mbar(energies, [400, 400])
    assert mbar.share(energies[0], x > 50) == (pytest.approx(0.0, abs=1e-300), math.inf)
    assert mbar.difference(energies[0], torch.full_like(x, torch.inf)) == (math.inf, math.inf)
    assert mbar.share(energies[0], x > 1).error < 0.02


def test_nothing_is_said_aside_and_pymbar_keeps_its_loggers(caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("pymbar").level
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(OptionError):
        Mbar(gaussians(60.0)[0], [400, 400])
    assert not caplog.records
    assert logging.getLogger("pymbar").level == level
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Mbar(gaussians(12.0)[0], [400, 400]), OptionError, "overlap too little"),
        (lambda: Mbar(gaussians(1.0)[0], [400, 401]), ShapeError, r"\(2, 800\) and counts \[400, 401\]"),
        (lambda: Mbar(gaussians(1.0)[0], [800]), ShapeError, "expected"),
        (lambda: Mbar(gaussians(1.0)[0], [795, 5]), ShapeError, "at least 20 of each"),
        (lambda: Mbar(gaussians(1.0)[0], [400, 400], blocks=5), OptionError, "blocks=5"),
        (lambda: Mbar(torch.full((1, 40), torch.inf), [40]), OptionError, "40 samples have no finite energy"),
        (lambda: Mbar(np.zeros((1, 40)), [40]), DtypeError, "tensor"),
        (lambda: Mbar(torch.zeros(1, 40), [40]).log_weights(torch.zeros(39)), ShapeError, r"expected \(40,\)"),
        (lambda: Mbar(torch.zeros(1, 40), [40]).share(torch.zeros(40), torch.ones(3) > 0), ShapeError, "a region"),
        (lambda: Mbar(torch.zeros(1, 40), [40]).share(torch.zeros(40), torch.ones(40)), DtypeError, r"torch\.bool"),
        (lambda: Mbar(gaussians(1.0)[0], [400.5, 399.5]), OptionError, "whole numbers"),
        (
            lambda: Mbar(gaussians(1.0)[0].index_fill(1, torch.tensor([3]), torch.nan), [400, 400]),
            OptionError,
            "1 samp",
        ),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
