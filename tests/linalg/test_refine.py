"""Iterative refinement: its order of convergence, its floor, and that it never harms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p4lab.errors import OptionError
from p4lab.linalg import refined_inverse, residual
from p4lab.linalg.refine import ORDERS

orders = pytest.mark.parametrize("order", ORDERS)


def problem(
    dim: int, defect: float, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix with singular values in [1/2, 3/2], and X with A X = I - R, Frobenius norm of R = `defect`."""
    generator = torch.Generator().manual_seed(seed)
    q, w = torch.linalg.qr(torch.randn(2, dim, dim, dtype=torch.float64, generator=generator)).Q
    a = q * torch.linspace(0.5, 1.5, dim, dtype=torch.float64) @ w
    r = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    x = torch.linalg.solve(a, torch.eye(dim, dtype=torch.float64) - r * (defect / torch.linalg.matrix_norm(r)))
    return a.to(dtype), x.to(dtype)


@orders
def test_one_step_raises_the_residual_to_its_order(order: int) -> None:
    a, x = problem(5, 0.5)
    r = torch.eye(5, dtype=torch.float64) - a @ x
    x, _ = refined_inverse(a, x, order)
    expected = torch.linalg.matrix_power(r, order)
    torch.testing.assert_close(torch.eye(5, dtype=torch.float64) - a @ x, expected, rtol=1e-9, atol=1e-13)


@orders
@given(dim=st.integers(1, 20), defect=st.floats(1e-3, 0.95), seed=st.integers(0, 2**31))
def test_a_convergent_inverse_gets_better(order: int, dim: int, defect: float, seed: int) -> None:
    a, x = problem(dim, defect, seed)
    before = torch.linalg.matrix_norm(a @ x - torch.eye(dim, dtype=torch.float64))
    x, _ = refined_inverse(a, x, order)
    after = torch.linalg.matrix_norm(a @ x - torch.eye(dim, dtype=torch.float64))
    assert after <= before**order + 1e-12


@orders
@given(dim=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_a_good_inverse_stays_at_the_float32_floor(order: int, dim: int, seed: int) -> None:
    a, x = problem(dim, 0.0, seed, torch.float32)
    for _ in range(5):
        x, _ = refined_inverse(a, x, order)
    assert residual(a, x) <= 3e-6


@orders
@pytest.mark.parametrize("defect", [3.0, 1e3, 1e30], ids="defect{:g}".format)
def test_a_divergent_inverse_is_left_alone(order: int, defect: float) -> None:
    a, _ = problem(4, 0.0)
    x = torch.linalg.inv(a) * (1 + defect)
    after, error = refined_inverse(a, x, order)
    assert error >= 1
    assert torch.equal(after, x)


@orders
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_an_inverse_that_is_not_finite_is_left_alone(order: int, bad: float) -> None:
    a, x = problem(4, 0.1)
    x[1, 2] = bad
    after, _ = refined_inverse(a, x, order)
    torch.testing.assert_close(after, x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("norm", ["rows", "columns"])
def test_either_norm_below_one_suffices(norm: str) -> None:
    """R with one full row (or column) has a large norm one way, and a small one the other way."""
    r = torch.zeros(40, 40, dtype=torch.float64)
    r[0, :] = 0.3
    r = r if norm == "columns" else r.T.contiguous()
    x = torch.eye(40, dtype=torch.float64) - r
    _, error = refined_inverse(torch.eye(40, dtype=torch.float64), x, 2)
    torch.testing.assert_close(error, (r @ r).abs().max())


@orders
def test_the_residual_after_the_step_is_returned(order: int) -> None:
    a, x = problem(6, 0.5)
    x, returned = refined_inverse(a, x, order)
    assert returned == (a @ x - torch.eye(6, dtype=torch.float64)).abs().max()


@pytest.mark.parametrize("order", [0, 1, 4, "3"], ids=repr)
def test_unknown_order(order: int) -> None:
    with pytest.raises(OptionError, match=rf"order {order!r}.*choose one of \(2, 3, 7\)"):
        refined_inverse(torch.eye(2), torch.eye(2), order)
