"""Low-rank rotations, turned planes, and the ways back to orthogonal and unimodular matrices, against dense algebra."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p4lab.linalg import (
    cayley_core,
    cayley_turn,
    nearest_orthogonal,
    orthogonality_error,
    polar_step,
    reflections_core,
    skew_sketch,
    turn_planes,
    unit_determinant,
)

sizes = st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31)).map(lambda t: (t[0], min(t[:2]), t[2]))


def rows(dim: int, k: int, seed: int, size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rows u, and orthonormal rows v."""
    torch.manual_seed(seed)
    u, noise = torch.randn(2, k, dim, dtype=torch.float64)
    return size * u, torch.linalg.qr(noise.T).Q.T


def rotation(p: torch.Tensor, core: torch.Tensor) -> torch.Tensor:
    return torch.eye(p.shape[1], dtype=p.dtype) - p.T @ core @ p


@given(size=sizes, scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
def test_the_cayley_core_is_that_of_the_dense_transform(size: tuple[int, int, int], scale: float) -> None:
    u, v = rows(*size, scale)
    half = (u.T @ v - v.T @ u) / 2
    eye = torch.eye(size[0], dtype=torch.float64)
    p = torch.cat([u, v])
    torch.testing.assert_close(
        rotation(p, cayley_core(p)), torch.linalg.solve(eye + half, eye - half), rtol=0, atol=1e-9
    )


@given(size=sizes, scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0]))
def test_a_turn_is_that_of_the_core(size: tuple[int, int, int], scale: float) -> None:
    u, v = rows(*size, scale)
    p, z, bias = torch.cat([u, v]), torch.randn(3, size[0], dtype=torch.float64), torch.randn(size[0]).double()
    expected = z @ rotation(p, cayley_core(p)).T
    torch.testing.assert_close(cayley_turn(z, u, v, bias), expected + bias, rtol=0, atol=1e-9)
    torch.testing.assert_close(cayley_turn(expected, -u, v), z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("names", ["zub", "zu", "z", "u", "b"])
@pytest.mark.parametrize("batch", [(3,), (2, 2), ()], ids=str)
def test_derivatives_of_a_turn(batch: tuple[int, ...], names: str) -> None:
    u, v = rows(5, 2, 0)
    z, bias = torch.randn(*batch, 5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    tensors_by_name = {"z": z, "u": u, "b": bias}
    for name in names:
        tensors_by_name[name].requires_grad_()

    def turned(*tensors: torch.Tensor) -> torch.Tensor:
        now = tensors_by_name | dict(zip(names, tensors, strict=True))
        return cayley_turn(now["z"], now["u"], v, now["b"])

    inputs = tuple(tensors_by_name[name] for name in names)
    assert torch.autograd.gradcheck(turned, inputs)
    assert torch.autograd.gradgradcheck(turned, inputs)
    vectors = torch.func.vmap(lambda row: cayley_turn(row, u, v, bias))(z.reshape(-1, 5))
    torch.testing.assert_close(vectors, cayley_turn(z, u, v, bias).reshape(-1, 5), rtol=0, atol=1e-12)


def test_rows_that_are_orthonormal_to_float32_give_a_rotation_to_float64() -> None:
    u, v = rows(40, 8, 0)
    p = torch.cat([u, v]).float().double()
    assert 1e-9 < float((p[8:] @ p[8:].T - torch.eye(8)).abs().max()) < 1e-6
    assert float(orthogonality_error(rotation(p, cayley_core(p)))) < 1e-13


@given(size=sizes, scale=st.sampled_from([0.0, 1e-3, 1.0]))
def test_the_reflections_core_is_that_of_the_product(size: tuple[int, int, int], scale: float) -> None:
    u, v = rows(*size, scale)
    w = v + u / 2
    product = torch.eye(size[0], dtype=torch.float64)
    for x in (*v, *w):
        product = product - 2 * torch.outer(product @ x, x) / (x @ x)
    p = torch.cat([u / 2, v])
    torch.testing.assert_close(rotation(p, reflections_core(p)), product, rtol=0, atol=1e-7)


@given(size=sizes)
def test_turned_planes_are_givens_rotations(size: tuple[int, int, int]) -> None:
    torch.manual_seed(size[2])
    dim, half = size[0], size[0] // 2
    order, angles, x = torch.randperm(dim), torch.randn(half, dtype=torch.float64), torch.randn(3, dim).double()
    turn = torch.eye(dim, dtype=torch.float64)
    for i, j, a in zip(order.tolist(), order[half:].tolist(), angles, strict=False):
        turn[i, i] = turn[j, j] = a.cos()
        turn[i, j], turn[j, i] = -a.sin(), a.sin()
    y = turn_planes(x, order, order.argsort(), angles.cos(), angles.sin())
    torch.testing.assert_close(y, x @ turn.T, rtol=0, atol=1e-14)
    back = turn_planes(y, order, order.argsort(), angles.cos(), -angles.sin())
    torch.testing.assert_close(back, x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("noise", [1e-8, 1e-4, 1e-2])
def test_a_polar_step_is_quadratic_and_goes_to_the_nearest_orthogonal_matrix(noise: float) -> None:
    q = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64)).Q + noise * torch.randn(20, 20).double() / 20
    nearest, before = nearest_orthogonal(q), orthogonality_error(q)
    q, after = polar_step(q)
    assert after < 10 * before**2 + 1e-14
    for _ in range(4):
        q, _ = polar_step(q)
    torch.testing.assert_close(q, nearest, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bad", [2.0, torch.nan, torch.inf], ids=str)
def test_a_polar_step_leaves_alone_what_it_cannot_mend(bad: float) -> None:
    q = torch.eye(4)
    q[0, 0] = bad
    result, error = polar_step(q)
    assert not error < 1
    torch.testing.assert_close(result, q, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dim", [1, 2, 64, 256], ids="d{}".format)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_drifted_determinant_comes_back(dtype: torch.dtype, dim: int) -> None:
    a = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q.to(dtype)
    a *= 1 + 1e-6
    a_inv = a.double().inverse().to(dtype)
    a, a_inv, error = unit_determinant(a, a_inv)
    assert error < (3e-7 if dtype == torch.float32 else 1e-13)
    error = (a.double() @ a_inv.double() - torch.eye(dim)).abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("bad", [0.0, torch.nan], ids=str)
def test_no_determinant_is_made_up(bad: float) -> None:
    a, a_inv = torch.diag(torch.tensor([bad, 2.0])), torch.eye(2)
    result, _, error = unit_determinant(a, a_inv)
    assert not torch.isfinite(error)
    torch.testing.assert_close(result, a, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e10])
def test_the_sketch_finds_a_skew_gradient_of_low_rank(scale: float) -> None:
    y, g = torch.randn(2, 3, 16)
    gradient = g.T @ y - y.T @ g
    frame = torch.linalg.qr(skew_sketch(y, scale * g, torch.randn(3, 16)).T).Q
    left = torch.eye(16) - frame @ frame.T
    torch.testing.assert_close(left @ gradient @ left, torch.zeros(16, 16), rtol=0, atol=1e-4)
    assert float(torch.linalg.matrix_norm(gradient)) > 1
