"""Where layers start, what they refuse, and what depends on the seed."""

from __future__ import annotations

import sys

import pytest
import torch
from baselines.twins import BASELINES, IDENTITY_ONLY, NEARLY, ORTHOGONAL, start_for

from p4lab.baselines import METHODS, MissingPackageError, UnsupportedError
from p4lab.errors import DtypeError, OptionError, ShapeError, SingularMatrixError

methods = pytest.mark.parametrize("name", BASELINES)
dims = pytest.mark.parametrize("dim", [1, 2, 5], ids="d{}".format)


@dims
@methods
def test_starts_at_the_identity(name: str, dim: int) -> None:
    layer = METHODS[name].build(dim, dtype=torch.float64)
    # nflows makes its scales from a constant that it rounds to float32.
    torch.testing.assert_close(layer.weight, torch.eye(dim, dtype=torch.float64), rtol=0, atol=1e-7)
    assert layer.dim == dim
    assert torch.equal(layer.bias, torch.zeros(dim, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in (*IDENTITY_ONLY, "woodbury")])
@pytest.mark.parametrize("mirrored", [False, True], ids=["as-is", "row-negated"])
@dims
def test_starts_at_a_given_matrix(name: str, dim: int, mirrored: bool) -> None:
    start = start_for(name, dim)
    start[0] *= -1 if mirrored else 1
    original = start.clone()
    layer = METHODS[name].build(dim, init=start, dtype=torch.float64)
    torch.testing.assert_close(layer.weight, start, rtol=1e-12, atol=1e-12, check_stride=False)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert torch.equal(start, original)  # no memory is shared


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in (*IDENTITY_ONLY, "woodbury")])
@pytest.mark.parametrize("init", ["reverse", "permutation", "orthogonal"])
def test_starts_at_a_named_matrix(name: str, init: str) -> None:
    build = METHODS[name].build
    weight = build(5, init=init, seed=3, dtype=torch.float64).weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(5, dtype=torch.float64))
    assert not torch.allclose(weight, torch.eye(5, dtype=torch.float64), atol=0.1)
    assert torch.equal(build(5, init=init, seed=3, dtype=torch.float64).weight, weight)


@pytest.mark.parametrize("name", METHODS)
def test_building_with_a_seed_draws_nothing_from_the_default_generator(name: str) -> None:
    before = torch.get_rng_state()
    METHODS[name].build(4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["woodbury", "realnvp"])
def test_the_seed_decides(name: str) -> None:
    a, b, c = (next(iter(METHODS[name].build(4, seed=seed).state_dict().values())) for seed in (0, 0, 1))
    if name == "woodbury":
        a, b, c = (METHODS[name].build(4, seed=seed).v for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_woodbury_starts_within_its_rank() -> None:
    start = torch.eye(6, dtype=torch.float64) + torch.outer(torch.arange(6.0), torch.ones(6))
    layer = METHODS["woodbury"].build(6, init=start, rank=2, dtype=torch.float64)
    torch.testing.assert_close(layer.weight, start, rtol=1e-12, atol=1e-12)
    assert layer.u.shape == (2, 6)


# --- refusals ---


@pytest.mark.parametrize(
    "name", [*ORTHOGONAL, *NEARLY, "nflows_lu", "nflows_qr", "nflows_svd", "woodbury", "butterfly"]
)
def test_a_start_outside_of_the_family(name: str) -> None:
    with pytest.raises(OptionError, match=r"outside of the .* family"):
        METHODS[name].build(4, init=torch.diag(torch.tensor([2.0, 3.0, 4.0, 5.0])))


@pytest.mark.parametrize("name", ["torch_matrix_exp", "torch_cayley", "cayley_neumann"])
def test_a_static_map_cannot_be_given_a_start(name: str) -> None:
    with pytest.raises(OptionError, match="identity"):
        METHODS[name].build(3, init="reverse")


@pytest.mark.parametrize("name", ["qr", "svd", "householder"])
def test_too_few_reflections_for_a_start(name: str) -> None:
    with pytest.raises(OptionError, match="1 reflections"):
        METHODS[name].build(4, init="orthogonal", seed=0, reflections=1)
    with pytest.raises(OptionError, match="from 1 to dim = 4"):
        METHODS[name].build(4, reflections=5)


def test_geotorch_refuses_small_singular_values() -> None:
    start = torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))
    with pytest.raises(OptionError, match="smallest singular value"):
        METHODS["geotorch_gl"].build(2, init=start, dtype=torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_dim_and_dtype_out_of_range(name: str) -> None:
    with pytest.raises(OptionError, match="dim=0"):
        METHODS[name].build(0)
    with pytest.raises(DtypeError, match="float16"):
        METHODS[name].build(3, dtype=torch.float16)


@methods
def test_a_start_that_is_not_invertible_or_of_another_shape(name: str) -> None:
    with pytest.raises(SingularMatrixError):
        METHODS[name].build(3, init=torch.zeros(3, 3))
    with pytest.raises(ShapeError):
        METHODS[name].build(3, init=torch.eye(4))
    with pytest.raises(OptionError, match="'nonsense' is not known"):
        METHODS[name].build(3, init="nonsense")


@pytest.mark.parametrize("name", METHODS)
def test_inputs_that_do_not_fit(name: str) -> None:
    layer = METHODS[name].build(4)
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 4\)"):
        layer(torch.zeros(2, 3))
    with pytest.raises(DtypeError, match="float64"):
        layer(torch.zeros(2, 4, dtype=torch.float64))


def test_unknown_kinds() -> None:
    with pytest.raises(OptionError, match="kind='ql'"):
        METHODS["nflows_lu"].build(3, kind="ql")
    with pytest.raises(OptionError, match="orthogonal_map='givens'"):
        METHODS["torch_cayley"].build(3, orthogonal_map="givens")


def test_plain_weights_promise_nothing() -> None:
    layer = METHODS["plain"].build(3)
    with pytest.raises(UnsupportedError, match="'dense'"):
        layer.inverse(torch.zeros(1, 3))
    with pytest.raises(UnsupportedError, match="'dense'"):
        layer.logabsdet()


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("nflows_lu", "nflows"),
        ("nflows_qr", "nflows"),
        ("nflows_svd", "nflows"),
        ("geotorch_gl", "geotorch"),
        ("geotorch_so_dynamic", "geotorch"),
        ("geoopt_stiefel", "geoopt"),
    ],
)
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"{package}.*pip install 'p4lab\[baselines\]'"):
        METHODS[name].build(3)
