"""Directions from a sketch of the weight gradient that is never formed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p4lab.linalg import orthonormal_rows, row_space_sketch

sizes = st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 10), st.integers(0, 2**31))


def normal(seed: int, *shapes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]


def direction(rows: torch.Tensor) -> torch.Tensor:
    return rows / torch.linalg.vector_norm(rows)


@given(sizes)
def test_sketch_is_the_explicit_one(size: tuple[int, int, int, int]) -> None:
    batch, dim, rank, seed = size
    x, g, omega = normal(seed, (batch, dim), (batch, dim), (rank, dim))
    weight_gradient = g.T @ x
    explicit = omega @ weight_gradient.T @ weight_gradient
    torch.testing.assert_close(direction(row_space_sketch(x, g, omega)), direction(explicit), rtol=1e-7, atol=1e-9)


@given(sizes)
def test_sketch_pulls_back_through_another_matrix(size: tuple[int, int, int, int]) -> None:
    batch, dim, rank, seed = size
    x, g, omega, m = normal(seed, (batch, dim), (batch, dim), (rank, dim), (dim, dim))
    weight_gradient = m @ g.T @ x
    explicit = omega @ weight_gradient.T @ weight_gradient
    sketch = row_space_sketch(x, g, omega, pull=lambda rows: rows @ m.T @ m)
    torch.testing.assert_close(direction(sketch), direction(explicit), rtol=1e-6, atol=1e-8)


def test_sketch_of_a_tiny_gradient_does_not_underflow() -> None:
    x, g, omega = (t.float() for t in normal(0, (8, 5), (8, 5), (2, 5)))
    tiny = row_space_sketch(x, 1e-22 * g, omega)
    torch.testing.assert_close(
        direction(tiny / tiny.abs().max()), direction(row_space_sketch(x, g, omega)), rtol=1e-4, atol=1e-5
    )


@given(sizes)
def test_rows_are_orthonormal(size: tuple[int, int, int, int]) -> None:
    _, dim, rank, seed = size
    y, fallback = normal(seed, (rank, dim), (rank, dim))
    rows = orthonormal_rows(y, fallback)
    expected = torch.zeros(rank, rank, dtype=torch.float64)
    expected.diagonal()[: min(rank, dim)] = 1  # beyond d there is no orthogonal direction: those rows are zero
    torch.testing.assert_close(rows @ rows.T, expected, rtol=1e-12, atol=1e-12)


@given(sizes)
def test_rows_span_the_same_space(size: tuple[int, int, int, int]) -> None:
    _, dim, rank, seed = size
    (y,) = normal(seed, (rank, dim))
    rows = orthonormal_rows(y, torch.zeros_like(y))
    torch.testing.assert_close(y @ rows.T @ rows, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [2, 8])
def test_rows_of_a_deficient_sketch_are_completed(rank: int) -> None:
    (y,) = normal(0, (1, 9))
    rows = orthonormal_rows(y.expand(rank, 9), torch.zeros(rank, 9, dtype=torch.float64))
    torch.testing.assert_close(rows @ rows.T, torch.eye(rank, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 0.0], ids=["nan", "inf", "zero"])
@pytest.mark.parametrize("rank", [1, 2, 8])
def test_fallback_where_the_sketch_is_unusable(rank: int, bad: float) -> None:
    (fallback,) = normal(0, (rank, 5))
    y = torch.full_like(fallback, bad)
    assert torch.equal(orthonormal_rows(y, fallback), orthonormal_rows(fallback, fallback))
