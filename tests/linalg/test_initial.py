"""Initial matrices, and the refusal of those that cannot be used."""

from __future__ import annotations

import pytest
import torch

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.linalg import initial_matrix, inverse_and_logabsdet

kinds = pytest.mark.parametrize("kind", ["identity", "reverse", "permutation", "orthogonal"])
dims = pytest.mark.parametrize("dim", [1, 2, 7, 32], ids="d{}".format)


def make(kind: str, dim: int, seed: int = 0) -> torch.Tensor:
    return initial_matrix(kind, dim, torch.Generator().manual_seed(seed))


def hilbert(dim: int) -> torch.Tensor:
    """The classical ill-conditioned matrix 1 / (i + j + 1)."""
    i = torch.arange(dim, dtype=torch.float64)
    return 1 / (i + i[:, None] + 1)


@kinds
@dims
def test_the_inverse_is_the_transpose(kind: str, dim: int) -> None:
    a = make(kind, dim)
    torch.testing.assert_close(a @ a.T, torch.eye(dim, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@dims
def test_identity_and_reverse(dim: int) -> None:
    x = torch.arange(dim, dtype=torch.float64)
    assert torch.equal(make("identity", dim) @ x, x)
    assert torch.equal(make("reverse", dim) @ x, x.flip(0))


def test_permutation_moves_coordinates_without_changing_them() -> None:
    x = torch.arange(32, dtype=torch.float64)
    y = make("permutation", 32) @ x
    assert not torch.equal(y, x)
    assert torch.equal(y.sort().values, x)


def test_orthogonal_is_haar_distributed_in_its_trace() -> None:
    """E tr Q = 0 and E (tr Q)^2 = 1 for the Haar measure; QR without sign correction fails the first."""
    traces = torch.stack([make("orthogonal", 3, seed).trace() for seed in range(2000)])
    assert abs(float(traces.mean())) < 0.1
    assert abs(float(traces.square().mean()) - 1) < 0.15


@pytest.mark.parametrize("kind", ["permutation", "orthogonal"])
def test_the_generator_decides(kind: str) -> None:
    assert torch.equal(make(kind, 16, seed=1), make(kind, 16, seed=1))
    assert not torch.equal(make(kind, 16, seed=1), make(kind, 16, seed=2))


def test_unknown_kind() -> None:
    with pytest.raises(OptionError, match=r"init='eye'.*choose one of.*identity.*or pass an invertible tensor"):
        make("eye", 2)


@dims
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inverse_and_logabsdet_of_a_users_matrix(dim: int, dtype: torch.dtype) -> None:
    matrix = torch.randn(dim, dim, dtype=dtype) + 3 * torch.eye(dim, dtype=dtype)
    inverse, sign, logabsdet = inverse_and_logabsdet(matrix, dim, dtype)
    torch.testing.assert_close(inverse @ matrix.double(), torch.eye(dim, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(sign * logabsdet.exp(), torch.linalg.det(matrix.double()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 2), (2, 2), (3,), (1, 3, 3)], ids=str)
def test_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"has shape \(.*expected \(3, 3\): pass a square matrix"):
        inverse_and_logabsdet(torch.ones(shape), 3, torch.float32)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_not_finite(bad: float) -> None:
    matrix = torch.eye(3)
    matrix[0, 1] = matrix[2, 2] = bad
    with pytest.raises(SingularMatrixError, match=r"2 entries that are NaN or infinite: pass a finite matrix"):
        inverse_and_logabsdet(matrix, 3, torch.float32)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_singular(rank: int) -> None:
    matrix = torch.diag((torch.arange(3) < rank).float())
    with pytest.raises(SingularMatrixError, match=r"singular values from 0 to .*Add a multiple of the identity"):
        inverse_and_logabsdet(matrix, 3, torch.float64)


def test_ill_conditioned_for_float32_only() -> None:
    """The Hilbert matrix of order 8 has condition 1.5e10."""
    inverse, _, _ = inverse_and_logabsdet(hilbert(8), 8, torch.float64)
    torch.testing.assert_close(inverse @ hilbert(8), torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-4)
    with pytest.raises(
        SingularMatrixError, match=r"too ill-conditioned for torch\.float32.*or use dtype=torch\.float64"
    ):
        inverse_and_logabsdet(hilbert(8), 8, torch.float32)
