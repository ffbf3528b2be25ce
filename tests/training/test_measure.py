"""What is measured now and then."""

import numpy as np
import pytest

from p4lab.training.measure import eigenvalues


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eigenvalues_are_those_of_numpy(dtype: type) -> None:
    matrix = np.array([[0.0, -2.0], [2.0, 0.0]], dtype=dtype)
    np.testing.assert_allclose(np.sort_complex(eigenvalues(matrix)), [-2j, 2j], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_eigenvalues_of_a_broken_matrix_are_nan(value: float) -> None:
    matrix = np.eye(40, dtype=np.float32)
    matrix[3, 5] = value
    found = eigenvalues(matrix)
    assert found.shape == (40,)
    assert np.iscomplexobj(found)
    assert np.isnan(found).all()
