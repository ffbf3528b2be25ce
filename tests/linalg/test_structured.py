"""Congruences, low-rank rotations, frames and sketches against explicit algebra."""

from __future__ import annotations

import pytest
import torch

from p4lab.linalg import (
    complete_frame,
    congruence,
    definiteness_defect,
    gradient_rows,
    low_rank_rotation,
    operator_sketch,
    orthonormal_rows,
    orthonormalized_rows,
    pairing,
    row_defect,
    symmetric_update,
    symmetrized,
)

F64 = torch.float64
shapes = pytest.mark.parametrize(("rank", "dim"), [(1, 2), (1, 7), (2, 7), (7, 7), (8, 32)], ids=str)


def directions(rank: int, dim: int) -> torch.Tensor:
    rows = torch.randn(rank, dim, dtype=F64)
    return orthonormal_rows(rows, rows)


@shapes
def test_a_congruence_is_the_product(rank: int, dim: int) -> None:
    u, v, a = torch.randn(rank, dim, dtype=F64), directions(rank, dim), torch.randn(dim, dim, dtype=F64)
    a = a + a.T
    f = torch.eye(dim, dtype=F64) + u.T @ v
    w = congruence(a, u, v)
    torch.testing.assert_close(symmetric_update(a, v, w), f.T @ a @ f)
    torch.testing.assert_close(symmetric_update(f.T @ a @ f, v, w, alpha=-1), a)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_symmetrizedis_exact(dtype: torch.dtype) -> None:
    a = torch.randn(33, 33, dtype=dtype)
    result = symmetrized(a)
    assert torch.equal(result, result.T)
    torch.testing.assert_close(result, (a + a.T) / 2)


def test_the_defect_is_the_largest_of_three() -> None:
    a = torch.diag(torch.tensor([2.0, 4.0]))
    assert definiteness_defect(a, a.inverse()) == 0
    assert definiteness_defect(a, a.inverse() + torch.tensor([[0.0, 0.25], [0.0, 0.0]])) == 0.5
    assert definiteness_defect(-a, -a.inverse()) == torch.inf


@shapes
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e6, 1e100], ids=str)
def test_a_rotation_is_the_cayley_map_and_orthogonal(scale: float, rank: int, dim: int) -> None:
    u, v = scale * torch.randn(rank, dim, dtype=F64), directions(rank, dim)
    eye = torch.eye(dim, dtype=F64)
    p, core = low_rank_rotation(u, v, pairing(rank, F64))
    f = eye + p.T @ core @ p
    torch.testing.assert_close(f @ f.T, eye, rtol=0, atol=1e-13)
    bounded = u / (1 + u.square().sum() / 4).sqrt()
    k = bounded.T @ v - v.T @ bounded
    torch.testing.assert_close(f, torch.linalg.solve(eye - k / 2, eye + k / 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_an_overflowing_rotation_is_none(dtype: torch.dtype) -> None:
    v = torch.eye(3, dtype=dtype)[:1]
    p, core = low_rank_rotation(torch.full_like(v, 1e30 if dtype == torch.float32 else 1e200), v, pairing(1, dtype))
    assert not (p.T @ core @ p).any()


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 10.0, 1e6], ids=str)
@pytest.mark.parametrize("across", [0.0, 1e-3, 1.0], ids="across{}".format)
def test_a_rotation_in_float32_is_orthogonal_to_rounding(across: float, scale: float) -> None:
    v = directions(8, 64).float()
    u = scale * (v.roll(1, 0) + across * torch.randn(8, 64))  # within the span of v, or out of it
    p, core = low_rank_rotation(u, v, pairing(8))
    f = (torch.eye(64) + p.T @ core @ p).double()
    torch.testing.assert_close(f @ f.T, torch.eye(64, dtype=F64), rtol=0, atol=2e-6)


def test_the_derivative_of_a_rotation_at_rest_is_the_skew_matrix() -> None:
    v, du = directions(2, 5), torch.randn(2, 5, dtype=F64)

    def rotation(u: torch.Tensor) -> torch.Tensor:
        p, core = low_rank_rotation(u, v, pairing(2, F64))
        return p.T @ core @ p

    _, slope = torch.autograd.functional.jvp(rotation, torch.zeros_like(v), du)
    torch.testing.assert_close(slope, du.T @ v - v.T @ du)


@pytest.mark.parametrize(("rows", "columns"), [(3, 3), (2, 5), (5, 2), (1, 1)], ids=str)
@pytest.mark.parametrize("norm", [0.0, 0.5, 1.0], ids=str)
def test_a_completed_frame_has_orthonormal_rows(norm: float, rows: int, columns: int) -> None:
    block = torch.randn(rows, columns, dtype=F64)
    block *= norm / torch.linalg.matrix_norm(block, 2)
    frame = complete_frame(block)
    assert torch.equal(frame[:, :columns], block)
    torch.testing.assert_close(row_defect(frame), torch.zeros(rows, rows, dtype=F64), rtol=0, atol=1e-13)


def test_orthonormalizing_squares_the_error() -> None:
    frame = 3 * complete_frame(0.5 * torch.eye(4, dtype=F64))
    frame += 1e-3 * torch.randn_like(frame)
    before = float(row_defect(frame, 3.0).abs().max())
    after = []
    for _ in range(3):
        frame, error = orthonormalized_rows(frame, 3.0)
        after.append(float(error))
    assert after[0] < 10 * before**2
    assert after[2] < 1e-14


@pytest.mark.parametrize("value", [10.0, torch.nan], ids=str)
def test_orthonormalizing_leaves_alone_what_would_not_converge(value: float) -> None:
    frame = torch.full((2, 3), value)
    result, error = orthonormalized_rows(frame)
    assert not error < 1
    torch.testing.assert_close(result, torch.full((2, 3), value), equal_nan=True)


def test_a_sketch_finds_the_dominant_range() -> None:
    q = torch.linalg.qr(torch.randn(9, 9, dtype=F64)).Q
    s = q * torch.tensor([9.0, -8.0, *[1e-3] * 7], dtype=F64) @ q.T
    rows = operator_sketch(lambda r: r @ s, torch.randn(2, 9, dtype=F64))
    basis = orthonormal_rows(rows, rows)
    torch.testing.assert_close(basis.T @ basis, q[:, :2] @ q[:, :2].T, rtol=0, atol=1e-5)


def test_a_sketch_of_tiny_gradients_does_not_underflow() -> None:
    rows = operator_sketch(lambda r: 1e-30 * r, torch.ones(1, 4))
    assert (rows.abs() > 0).all()


def test_gradient_rows_apply_the_weight_gradient() -> None:
    x, g = torch.randn(6, 3, dtype=F64), torch.randn(6, 4, dtype=F64)
    rows, columns = torch.randn(2, 3, dtype=F64), torch.randn(2, 4, dtype=F64)
    torch.testing.assert_close(gradient_rows(x, g, rows), rows @ (g.T @ x).T)
    torch.testing.assert_close(gradient_rows(g, x, columns), columns @ (g.T @ x))
