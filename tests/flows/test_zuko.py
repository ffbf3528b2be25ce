"""zuko, both ways: the same densities and gradients to 1e-10."""

from __future__ import annotations

import copy

import pytest
import torch
import zuko
from flows.examples import ARCHITECTURES, amid_training, disturb
from torch import Tensor, nn

from p4lab import flows
from p4lab.errors import DtypeError, OptionError
from p4lab.flows import (
    BentIdentity,
    BentTransform,
    BijectionTransform,
    Flow,
    FromZuko,
    as_lazy,
    as_transform,
    p4inv_bent,
    to_zuko,
)
from p4lab.p4 import MergeSchedule, P4Inv, fold, p4_modules

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
architectures = pytest.mark.parametrize("name", ARCHITECTURES)
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)  # zuko's modules draw from the default generator


def gradients(value: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))


def disturbed(module: nn.Module) -> nn.Module:
    module = module.double()
    disturb(module)
    return module


@architectures
def test_flow_as_zuko_flow(name: str) -> None:
    flow = amid_training(name, 4)
    lazy = to_zuko(flow)
    assert isinstance(lazy, zuko.flows.Flow)
    ours, theirs = flow.log_prob(X), lazy().log_prob(X)
    torch.testing.assert_close(theirs, ours, **TIGHT)
    for a, b in zip(gradients(theirs.sum(), flow), gradients(ours.sum(), flow), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)
    x, log_prob = lazy().rsample_and_log_prob((5,))
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=1e-7, atol=1e-7)
    assert {id(p) for p in lazy.parameters()} == {id(p) for p in flow.parameters()}


@architectures
def test_whole_flow_as_one_transform(name: str) -> None:
    flow = amid_training(name, 4)
    transform, lazy = as_transform(flow), as_lazy(flow)
    z, ladj = transform.call_and_ladj(X)
    expected, logabsdet = flow(X)
    torch.testing.assert_close(z, expected, **TIGHT)
    torch.testing.assert_close(ladj, logabsdet, **TIGHT)
    x, back = lazy().inv.call_and_ladj(z)
    torch.testing.assert_close(x, X, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back, -ladj, rtol=1e-8, atol=1e-8)


def linear() -> P4Inv:
    return disturbed(P4Inv(4, rank=2, seed=0, init="orthogonal", dtype=torch.float64))


@pytest.mark.parametrize("cache", [0, 1])
@pytest.mark.parametrize(
    ("make", "event_dim"),
    [
        pytest.param(linear, 1, id="p4inv"),
        pytest.param(lambda: amid_training("realnvp-plu", 4).linear_layers()[0], 1, id="plu"),
        pytest.param(lambda: amid_training("realnvp-swap", 4).layers[0], 1, id="coupling"),
        pytest.param(lambda: amid_training("mixed", 4), 1, id="flow"),
        pytest.param(lambda: BentIdentity(), 0, id="b"),
        pytest.param(lambda: BentIdentity(inverted=True), 0, id="b^-1"),
    ],
)
def test_transform_keeps_torchs_contract(make, event_dim: int, cache: int) -> None:
    transform = as_transform(make()).with_cache(cache)
    assert transform.bijective
    assert transform.domain.event_dim == transform.codomain.event_dim == event_dim
    assert transform.inv.inv == transform
    assert transform.inv != transform
    y = transform(X)
    torch.testing.assert_close(transform.inv(y), X, rtol=1e-9, atol=1e-9)
    jacobian = torch.stack([torch.autograd.functional.jacobian(transform, row) for row in X])
    expected = torch.linalg.slogdet(jacobian).logabsdet
    ladj = transform.log_abs_det_jacobian(X, y)
    assert ladj.shape == X.shape[: X.dim() - event_dim]
    torch.testing.assert_close(ladj if event_dim else ladj.sum(-1), expected, rtol=1e-9, atol=1e-9)
    back = transform.inv.log_abs_det_jacobian(y, X)
    torch.testing.assert_close(back, -ladj, rtol=1e-9, atol=1e-9)
    assert transform.forward_shape((3, 4)) == transform.inverse_shape((3, 4)) == (3, 4)


def test_transforms_work_in_torchs_own_distributions() -> None:
    flow = amid_training("p4inv_bent", 4)
    base = torch.distributions.Independent(torch.distributions.Normal(X.new_zeros(4), X.new_ones(4)), 1)
    towards_data = [as_transform(layer).inv for layer in reversed(flow.layers)]
    distribution = torch.distributions.TransformedDistribution(base, towards_data)
    torch.testing.assert_close(distribution.log_prob(X), flow.log_prob(X), rtol=1e-9, atol=1e-9)
    assert distribution.sample((3,)).shape == (3, 4)


@pytest.mark.parametrize("kind", [zuko.flows.NSF, zuko.flows.MAF])
def test_p4_layers_inside_a_zuko_flow(kind) -> None:
    """Against the change of variables done by hand; with a context that only zuko's transforms see."""
    theirs = disturbed(kind(4, context=2, transforms=2, hidden_features=(8,)))
    layer = linear()
    flow = zuko.flows.Flow([theirs.transform, as_lazy(layer), as_lazy(BentIdentity())], theirs.base)
    context = torch.randn(6, 2, dtype=torch.float64)
    y, first = theirs.transform(context).call_and_ladj(X)
    z, last = BentIdentity()(layer(y))
    by_hand = theirs.base().log_prob(z) + first + layer.logabsdet() + last
    value = flow(context).log_prob(X)
    torch.testing.assert_close(value, by_hand, **TIGHT)
    for a, b in zip(gradients(value.sum(), flow), gradients(by_hand.sum(), flow), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)
    sample = flow(context).sample((3,))
    assert sample.shape == (3, 6, 4)


def test_a_zuko_flow_trains_and_merges_p4_layers() -> None:
    theirs = zuko.flows.NSF(4, transforms=1, hidden_features=(8,)).double()
    layer = P4Inv(4, rank=2, reset="gradient", seed=0, dtype=torch.float64)
    flow = zuko.flows.Flow([theirs.transform, as_lazy(layer)], theirs.base)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    merges = MergeSchedule(flow, optimizer, every=4)
    assert p4_modules(flow) == [layer]
    for _ in range(4):
        optimizer.zero_grad()
        (-flow().log_prob(X).mean()).backward()
        optimizer.step()
    before = flow().log_prob(X)
    (report,) = merges.merge()
    assert report
    torch.testing.assert_close(flow().log_prob(X), before, **TIGHT)


ZUKO: dict[str, object] = {
    "coupling": lambda: zuko.flows.coupling.GeneralCouplingTransform(4, hidden_features=(8,)),
    "autoregressive splines": lambda: zuko.flows.NSF(4, transforms=1, hidden_features=(8,)).transform,
    "maf": lambda: zuko.flows.MAF(4, transforms=2, hidden_features=(8,)).transform,
    "rotation": lambda: zuko.lazy.UnconditionalTransform(zuko.transforms.RotationTransform, torch.randn(4, 4)),
    "elementwise": lambda: zuko.lazy.UnconditionalTransform(zuko.transforms.SignedPowerTransform, torch.zeros(4)),
}


@pytest.mark.parametrize("name", ZUKO)
def test_zuko_inside_ours(name: str) -> None:
    """Against a zuko flow of the same parts; there and back."""
    lazy, layer = disturbed(ZUKO[name]()), linear()
    flow = Flow([layer, FromZuko(lazy), BentIdentity()])
    base = p4inv_zuko_base()
    theirs = zuko.flows.Flow([as_lazy(layer), lazy, as_lazy(BentIdentity())], base)
    ours, expected = flow.log_prob(X), theirs().log_prob(X)
    torch.testing.assert_close(ours, expected, **TIGHT)
    for a, b in zip(gradients(ours.sum(), flow), gradients(expected.sum(), flow), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)
    z, logabsdet = flow(X)
    x, back = flow.inverse_with_logabsdet(z)
    torch.testing.assert_close(x, X, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(back, -logabsdet, rtol=1e-5, atol=1e-5)
    assert as_lazy(flow.layers[1]) is lazy
    torch.testing.assert_close(to_zuko(flow)().log_prob(X), ours, **TIGHT)
    torch.testing.assert_close(flow.fold().log_prob(X), ours, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(copy.deepcopy(flow).log_prob(X), ours, **TIGHT)


def p4inv_zuko_base() -> zuko.lazy.LazyDistribution:
    return to_zuko(p4inv_bent(4, 0, dtype=torch.float64)).base


def test_transform_without_parameters_and_with_a_context() -> None:
    x, logabsdet = FromZuko(torch.distributions.AffineTransform(1.0, 3.0))(X)
    torch.testing.assert_close(x, 1 + 3 * X)
    torch.testing.assert_close(logabsdet, 4 * torch.tensor(3.0).double().log().expand(6))
    lazy = disturbed(zuko.flows.MAF(4, context=2, transforms=1, hidden_features=(8,)).transform)
    context = torch.randn(2, dtype=torch.float64)
    layer = FromZuko(lazy, context=context, dim=4)
    torch.testing.assert_close(layer(X), lazy(context).call_and_ladj(X))
    assert as_lazy(layer) is not lazy
    assert "given" in layer.state_dict()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda: FromZuko("splines"), "str", id="no transform"),
        pytest.param(lambda: FromZuko(torch.distributions.AbsTransform()), "bijective", id="not bijective"),
        pytest.param(lambda: Flow([FromZuko(torch.distributions.ExpTransform())]), "at least one", id="no dim"),
        pytest.param(lambda: Flow([P4Inv(2), FromZuko(torch.distributions.ExpTransform(), dim=3)]), "2, 3", id="dims"),
    ],
)
def test_errors(make, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()


def test_transforms_say_what_they_are() -> None:
    assert repr(BijectionTransform(BentIdentity(), inverted=True)).endswith("inverted=True)")
    assert BentTransform() != BentTransform(inverted=True)
    assert as_transform(BentIdentity()) == BentTransform()


@pytest.mark.parametrize("mixing", ["p4inv", "p4orthogonal"])
def test_a_zuko_flow_of_p4_layers_folds(mixing: str) -> None:
    flow = flows.realnvp(2, blocks=2, mixing=mixing, seed=0)
    plain, x = fold(to_zuko(flow)), torch.randn(7, 2)
    torch.testing.assert_close(plain().log_prob(x), flow.log_prob(x))
    assert plain().sample((3,)).shape == (3, 2)
    assert not p4_modules(plain)


def test_another_dtype_is_told_before_zuko_multiplies() -> None:
    flow = flows.spline_flow(2, blocks=2, seed=0)
    with pytest.raises(DtypeError, match=r"FromZuko is torch\.float32 but got torch\.float64"):
        flow.log_prob(torch.zeros(3, 2, dtype=torch.float64))


def test_a_transform_to_more_numbers_is_refused() -> None:
    with pytest.raises(OptionError, match="does not map 3 numbers to as many"):
        FromZuko(torch.distributions.StickBreakingTransform(), dim=3)
