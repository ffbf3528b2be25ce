"""Bent identities against autograd and against their inverse."""

import pytest
import torch

from p4lab.flows import BentIdentity, bent, bent_inverse

X = torch.cat([torch.linspace(-1e3, 1e3, 2001, dtype=torch.float64), torch.logspace(-12, 0, 50, dtype=torch.float64)])


@pytest.mark.parametrize("function", [bent, bent_inverse], ids=["forward", "inverse"])
def test_log_slope_is_that_of_autograd(function) -> None:
    x = X.clone().requires_grad_()
    y, log_slope = function(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-7)], ids=["float64", "float32"]
)
def test_inverse_keeps_its_relative_precision(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([X, -X]).to(dtype)
    back, log_slope = bent_inverse(bent(x)[0])
    torch.testing.assert_close(back, x, rtol=tolerance, atol=0)
    torch.testing.assert_close(log_slope, -bent(x)[1], rtol=1e-5, atol=tolerance)


def test_gradient_of_the_inverse_is_finite_where_a_branch_would_divide_by_zero() -> None:
    y = torch.tensor([-1.0, -0.5, 0.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: bent_inverse(t)[0], (y,))


@pytest.mark.parametrize("inverted", [False, True], ids=["b", "b^-1"])
def test_layer_undoes_itself(inverted: bool) -> None:
    layer = BentIdentity(inverted)
    x = torch.randn(4, 3, dtype=torch.float64)
    y, there = layer(x)
    back, home = layer.inverse(y)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(home, -there)
