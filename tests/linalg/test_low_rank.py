"""Rank-k updates against explicit algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p4lab.linalg import capacitance, inverse_and_det, wide_residual

shapes = st.tuples(st.integers(1, 12), st.integers(1, 10), st.integers(0, 2**31))


def update(dim: int, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A matrix with singular values in [1/2, 3/2] and a perturbation of norm at most 1/4: their sum is invertible."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator)).Q
    a = q * torch.empty(dim, dtype=torch.float64).uniform_(0.5, 1.5, generator=generator)
    u, v = (torch.randn(rank, dim, dtype=torch.float64, generator=generator) for _ in range(2))
    return a, u / (4 * torch.linalg.matrix_norm(u, 2)), v / torch.linalg.matrix_norm(v, 2)


@given(shapes)
def test_capacitance_has_the_determinant_ratio(shape: tuple[int, int, int]) -> None:
    a, u, v = update(*shape)
    ratio = torch.linalg.det(a + u.T @ v) / torch.linalg.det(a)
    torch.testing.assert_close(torch.linalg.det(capacitance(v @ torch.linalg.inv(a), u)), ratio, rtol=1e-9, atol=1e-12)


@given(shapes)
def test_woodbury_matches_the_dense_inverse(shape: tuple[int, int, int]) -> None:
    a, u, v = update(*shape)
    a_inv = torch.linalg.inv(a)
    q = v @ a_inv
    p = a_inv @ u.T @ inverse_and_det(capacitance(q, u))[0]
    torch.testing.assert_close(a_inv - p @ q, torch.linalg.inv(a + u.T @ v), rtol=1e-9, atol=1e-9)


@given(st.integers(1, 9), st.integers(0, 2**31))
def test_inverse_and_det_of_a_small_matrix(size: int, seed: int) -> None:
    a, u, v = update(size, 1, seed)
    c = a + u.T @ v
    inverse, sign, logabsdet = inverse_and_det(c)
    torch.testing.assert_close(inverse, torch.linalg.inv(c), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sign * logabsdet.exp(), torch.linalg.det(c), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_a_singular_matrix_is_reported_by_its_values(size: int) -> None:
    c = torch.eye(size)
    c[0, 0] = 0
    inverse, sign, logabsdet = inverse_and_det(c)
    assert not torch.isfinite(inverse).all()
    assert (float(sign), float(logabsdet)) == (0.0, -torch.inf)


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("part", ["inverse", "logabsdet"])
def test_inverse_and_det_are_differentiable(size: int, part: str) -> None:
    a, _, _ = update(size, 1, 0)
    index = {"inverse": 0, "logabsdet": 2}[part]
    assert torch.autograd.gradcheck(lambda c: inverse_and_det(c)[index], a.requires_grad_())


@pytest.mark.parametrize("dim", [1, 31, 32, 33, 100], ids="d{}".format)
@pytest.mark.parametrize("rank", [1, 8], ids="k{}".format)
def test_wide_residual_keeps_the_digits_that_cancellation_leaves(dim: int, rank: int) -> None:
    a, p = torch.randn(dim, dim), torch.randn(dim, rank, dtype=torch.float64)
    b = (a.double() @ p).float()
    expected = b.double() - a.double() @ p
    torch.testing.assert_close(wide_residual(a, p, b), expected, rtol=1e-6, atol=1e-12)
