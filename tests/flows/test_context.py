"""Conditional flows: densities, shapes, zuko both ways, and what is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import zuko
from flows.examples import disturb
from torch import Tensor, nn

from p4lab.boltzmann import SteerableFlow, steerable_flow
from p4lab.errors import DeviceError, DtypeError, OptionError, P4Error, ShapeError
from p4lab.flows import (
    AffineCoupling,
    BentIdentity,
    ContextAffine,
    Flow,
    FromZuko,
    Permutation,
    VolumePreservingCoupling,
    as_lazy,
    as_transform,
    coupling_flow,
    p4inv_bent,
    realnvp,
    spline_flow,
    to_zuko,
)
from p4lab.flows.torus import BesideAngles, TorusCoupling
from p4lab.molecules.flow import molecule_flow
from p4lab.p4 import MergeSchedule, P4Inv

C = 3
WIDE = {"dtype": torch.float64}
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), **WIDE)
CONTEXT = torch.randn(6, C, generator=torch.Generator().manual_seed(1), **WIDE)
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def volume(dim: int) -> Flow:
    def coupling(generator: torch.Generator) -> Any:
        return VolumePreservingCoupling(dim, 8, 1, generator, context=C, **WIDE)

    return coupling_flow(dim, 3, coupling, "p4inv", **WIDE)


def of_zuko(dim: int) -> Flow:
    """Conditional transformations of zuko with P4 layers and Bent identities between them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nsf = zuko.flows.NSF(dim, C, bins=4, transforms=2, hidden_features=(8,)).double()
    first, last = nsf.transform.transforms
    return Flow([FromZuko(first, C, dim), P4Inv(dim, seed=1, **WIDE), BentIdentity(), FromZuko(last, C, dim)])


MAKERS: dict[str, Callable[[int], Flow]] = {
    "realnvp": lambda dim: realnvp(dim, 3, "p4inv", hidden=8, context=C, **WIDE),
    "spline": lambda dim: spline_flow(dim, 3, "p4orthogonal", bins=4, hidden=8, context=C, **WIDE),
    "bent": lambda dim: p4inv_bent(dim, 3, context=C, hidden=8, **WIDE),
    "volume": volume,
    "zuko": of_zuko,
}
names = pytest.mark.parametrize("name", MAKERS)


def flow_of(name: str, dim: int = 4, size: float = 0.3) -> Flow:
    flow = MAKERS[name](dim)
    disturb(flow, size)
    return flow


# --- densities --------------------------------------------------------------------------------------------------------


@names
def test_change_of_variables_against_autograd(name: str) -> None:
    flow = flow_of(name)
    assert flow.context == C
    z, logabsdet = flow(X, CONTEXT)
    rows = [
        torch.autograd.functional.jacobian(lambda x, c=c: flow(x, c)[0], x) for x, c in zip(X, CONTEXT, strict=True)
    ]
    torch.testing.assert_close(logabsdet, torch.linalg.slogdet(torch.stack(rows)).logabsdet, **TIGHT)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(flow.log_prob(X, CONTEXT), normal + logabsdet, **TIGHT)
    back, minus = flow.inverse_with_logabsdet(z, CONTEXT)
    torch.testing.assert_close(back, X, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(minus, -logabsdet, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(flow.inverse(z, CONTEXT), back, **TIGHT)


@names
def test_each_context_has_a_density_of_its_own_with_integral_1(name: str) -> None:
    flow, side = flow_of(name, 2, 0.04), torch.linspace(-12, 12, 321, **WIDE)
    with torch.no_grad():
        log_p = flow.log_prob(torch.cartesian_prod(side, side), CONTEXT[:2, None]) + 2 * (side[1] - side[0]).log()
    assert log_p.logsumexp(-1).exp().tolist() == pytest.approx([1.0, 1.0], abs=2e-3)
    assert float((log_p[0].exp() - log_p[1].exp()).abs().sum()) > 0.01


@names
def test_gradients_reach_points_and_context(name: str) -> None:
    flow = flow_of(name)
    x, context = (t[:2].clone().requires_grad_() for t in (X, CONTEXT))
    assert torch.autograd.gradcheck(flow.log_prob, (x, context), atol=1e-6)
    sample, _ = flow.sample_with_log_prob(2, context, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(sample.square().sum(), context)
    assert (slope.abs().sum(-1) > 0).all()


def test_a_conditional_flow_trains_and_merges_without_a_change_of_its_density() -> None:
    flow = flow_of("realnvp")
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    merges = MergeSchedule(flow, optimizer, every=100)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = -flow.log_prob(X, CONTEXT).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    before = flow.log_prob(X, CONTEXT)
    assert all(merges.merge())
    torch.testing.assert_close(flow.log_prob(X, CONTEXT), before, rtol=1e-8, atol=1e-8)


# --- shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "contexts"),
    [((4,), (C,)), ((6, 4), (C,)), ((4,), (6, C)), ((5, 6, 4), (6, C)), ((6, 4), (5, 1, C)), ((0, 4), (C,))],
    ids=str,
)
@names
def test_batch_shapes_are_broadcast(name: str, points: tuple[int, ...], contexts: tuple[int, ...]) -> None:
    flow, generator = flow_of(name), torch.Generator().manual_seed(2)
    x, context = (torch.randn(shape, generator=generator, **WIDE) for shape in (points, contexts))
    batch = torch.broadcast_shapes(points[:-1], contexts[:-1])
    rows = [t.expand(*batch, t.shape[-1]).reshape(-1, t.shape[-1]) for t in (x, context)]
    log_p = flow.log_prob(x, context)
    assert log_p.shape == batch
    torch.testing.assert_close(log_p.flatten(), flow.log_prob(*rows), **TIGHT)
    assert flow.inverse(x, context).shape == (*batch, 4)
    stages = flow.stages(x, "latent", context)
    assert len(stages) == len(flow.layers) + 1
    torch.testing.assert_close(stages[-1], flow(x, context)[0], **TIGHT)


@pytest.mark.parametrize("contexts", [(), (6,), (2, 3), (0,)], ids=str)
@names
def test_samples_of_each_context(name: str, contexts: tuple[int, ...]) -> None:
    flow = flow_of(name)
    context = torch.randn(*contexts, C, generator=torch.Generator().manual_seed(2), **WIDE)
    x, log_q = flow.sample_with_log_prob(5, context, generator=torch.Generator().manual_seed(3))
    assert (x.shape, log_q.shape) == ((5, *contexts, 4), (5, *contexts))
    torch.testing.assert_close(flow.log_prob(x, context), log_q, rtol=1e-6, atol=1e-6)
    again = flow.sample(5, context, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(again, x.detach(), **TIGHT)


# --- copies -----------------------------------------------------------------------------------------------------------


@names
def test_copies_and_folded_flows_keep_the_context(name: str) -> None:
    flow = flow_of(name)
    expected = flow.log_prob(X, CONTEXT)
    file = io.BytesIO()
    torch.save(flow.state_dict(), file)
    file.seek(0)
    fresh = MAKERS[name](4)
    fresh.load_state_dict(torch.load(file))
    for twin in (fresh, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), flow.fold(), Flow([flow])):
        assert twin.context == C
        torch.testing.assert_close(twin.log_prob(X, CONTEXT), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["realnvp", "bent", "volume"])  # zuko picks coordinates by a mask
def test_transforms_of_torch_func(name: str) -> None:
    flow = flow_of(name)
    state = dict(flow.named_parameters())

    def log_prob(state: dict[str, Tensor], x: Tensor, context: Tensor) -> Tensor:
        z, logabsdet = torch.func.functional_call(flow, state, (x, context))
        return flow.joined(z, logabsdet)

    expected = flow.log_prob(X, CONTEXT)
    torch.testing.assert_close(torch.vmap(partial(log_prob, state))(X, CONTEXT), expected, **TIGHT)
    torch.testing.assert_close(torch.vmap(partial(log_prob, state), (None, 0))(X[0], CONTEXT)[0], expected[0], **TIGHT)
    context = CONTEXT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_prob(X, context).sum(), context)
    torch.testing.assert_close(torch.func.grad(lambda c: log_prob(state, X, c).sum())(CONTEXT), slope, **TIGHT)


# --- zuko -------------------------------------------------------------------------------------------------------------


@names
def test_a_conditional_flow_as_one_of_zuko(name: str) -> None:
    flow = flow_of(name)
    lazy = to_zuko(flow)
    torch.testing.assert_close(lazy(CONTEXT).log_prob(X), flow.log_prob(X, CONTEXT), **TIGHT)
    torch.testing.assert_close(lazy(CONTEXT[0]).log_prob(X), flow.log_prob(X, CONTEXT[0]), **TIGHT)
    x, log_q = lazy(CONTEXT).rsample_and_log_prob((5,))
    assert x.shape == (5, 6, 4)
    torch.testing.assert_close(log_q, flow.log_prob(x, CONTEXT), rtol=1e-5, atol=1e-5)
    whole = as_transform(flow, CONTEXT)
    torch.testing.assert_close(whole.call_and_ladj(X), flow(X, CONTEXT), **TIGHT)
    torch.testing.assert_close(whole.inv(whole(X)), X, rtol=1e-7, atol=1e-7)
    assert whole.inv.inv == whole != as_transform(flow, CONTEXT.clone())


def test_a_flow_of_zuko_is_a_layer_of_ours() -> None:
    torch.manual_seed(0)
    nsf = zuko.flows.NSF(4, C, transforms=2, hidden_features=(8,)).double()
    flow = Flow([FromZuko(nsf, context=C)])
    assert flow.dim == 4
    torch.testing.assert_close(flow.log_prob(X, CONTEXT), nsf(CONTEXT).log_prob(X), **TIGHT)
    torch.testing.assert_close(to_zuko(flow)(CONTEXT).log_prob(X), nsf(CONTEXT).log_prob(X), **TIGHT)


def test_layers_of_zuko_without_a_context_stand_beside_conditional_ones() -> None:
    torch.manual_seed(0)
    plain = zuko.flows.NSF(4, transforms=1, hidden_features=(8,)).double().transform.transforms[0]
    fixed = zuko.flows.MAF(4, C, transforms=1, hidden_features=(8,)).double().transform
    layers = [FromZuko(plain, dim=4), AffineCoupling(4, 8, context=C, **WIDE), FromZuko(fixed, CONTEXT[0], dim=4)]
    flow = Flow([*layers, P4Inv(4, seed=0, **WIDE)])
    disturb(flow)
    y, _ = layers[1](layers[0](X)[0], CONTEXT)
    torch.testing.assert_close(flow.stages(X, "latent", CONTEXT)[2], y, **TIGHT)
    torch.testing.assert_close(to_zuko(flow)(CONTEXT).log_prob(X), flow.log_prob(X, CONTEXT), **TIGHT)


def test_our_conditional_layers_between_those_of_zuko() -> None:
    torch.manual_seed(0)
    nsf = zuko.flows.NSF(4, C, transforms=1, hidden_features=(8,)).double()
    ours = [AffineCoupling(4, 8, context=C, **WIDE), P4Inv(4, seed=0, **WIDE), flow_of("bent")]
    flow = zuko.flows.Flow([nsf.transform, *map(as_lazy, ours)], nsf.base)
    disturb(flow)
    mixed = Flow([FromZuko(nsf, C, 4), *ours])
    torch.testing.assert_close(flow(CONTEXT).log_prob(X), mixed.log_prob(X, CONTEXT), **TIGHT)


# --- other flows and layers -------------------------------------------------------------------------------------------


def on_a_torus() -> SteerableFlow:
    layers = [TorusCoupling(2, 3, 8, 1, context=C, **WIDE), BesideAngles(P4Inv(3, seed=0, **WIDE), 2)]
    return SteerableFlow(Flow(layers), momenta=1, angles=2)


@pytest.mark.parametrize(
    "make", [lambda: steerable_flow(3, 2, 3, hidden=8, context=C, **WIDE), on_a_torus], ids=["line", "torus"]
)
def test_a_temperature_for_each_context(make: Callable[[], SteerableFlow]) -> None:
    flow = make()
    disturb(flow, 0.3)
    y, log_q = flow.sample_with_log_prob(6, CONTEXT, generator=torch.Generator().manual_seed(0), temperature=2.0)
    assert y.shape == (6, 6, 5)
    torch.testing.assert_close(log_q, flow.log_prob(y, CONTEXT, 2.0), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow.rescaled(log_q, 0.5, of=2.0), flow.log_prob(y, CONTEXT, 0.5), rtol=1e-8, atol=1e-8)
    assert not torch.allclose(flow.log_prob(y, CONTEXT), flow.log_prob(y, CONTEXT.roll(1, 0)))


def test_a_layer_of_ones_own_is_called_with_the_context_if_it_says_so() -> None:
    class Shift(nn.Module):
        context = C

        def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
            return x + context[..., :1], x.new_zeros(x.shape[:-1])

    class Same(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x.new_zeros(x.shape[:-1])

    flow = Flow([Permutation([1, 0, 3, 2]), Same(), Shift()])
    torch.testing.assert_close(flow(X, CONTEXT)[0], X[:, [1, 0, 3, 2]] + CONTEXT[:, :1])


def test_a_context_layer_starts_at_the_identity_and_is_affine() -> None:
    layer = ContextAffine(4, C, 8, **WIDE)
    y, logabsdet = layer(X, CONTEXT)
    assert torch.equal(y, X)
    assert not logabsdet.any()
    disturb(layer, 0.5)
    x = torch.stack([X[0], X[1], X[0] + X[1], torch.zeros_like(X[0])])
    first, second, both, none = layer(x, CONTEXT[0])[0]
    torch.testing.assert_close(both, first + second - none, **TIGHT)


# --- what is refused --------------------------------------------------------------------------------------------------


def plain() -> Flow:
    return realnvp(4, 2, hidden=8, **WIDE)


def molecule() -> Any:
    y = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    return molecule_flow("realnvp", y, circular=1, hidden=4)


REFUSED: dict[str, tuple[Callable[[], object], type[P4Error], str]] = {
    "none": (lambda: flow_of("realnvp").log_prob(X), OptionError, r"takes a context and got none: .*\(\.\.\., 3\)"),
    "none-sample": (lambda: flow_of("realnvp").sample(2), OptionError, "takes a context and got none"),
    "none-layer": (lambda: AffineCoupling(4, context=C, **WIDE)(X), OptionError, "AffineCoupling takes a context"),
    "none-zuko": (lambda: to_zuko(flow_of("realnvp"))().log_prob(X), OptionError, "takes a context and got none"),
    "one": (lambda: plain().log_prob(X, CONTEXT), OptionError, r"takes no context and got one of shape \(6, 3\)"),
    "one-fused": (lambda: p4inv_bent(4, 2, **WIDE).log_prob(X, CONTEXT), OptionError, "Flow takes no context"),
    "one-inverse": (lambda: p4inv_bent(4, 2, **WIDE).inverse(X, CONTEXT), OptionError, "Flow takes no context"),
    "one-sample": (lambda: plain().sample(2, CONTEXT), OptionError, "Flow takes no context"),
    "one-layer": (lambda: BentIdentity()(X, CONTEXT), OptionError, "BentIdentity takes no context"),
    "one-molecule": (lambda: molecule().sample(2, CONTEXT), OptionError, "MoleculeFlow takes no context"),
    "one-molecule-density": (
        lambda: molecule().log_prob(X.float(), CONTEXT.float()),
        OptionError,
        "MoleculeFlow takes no context",
    ),
    "length": (lambda: flow_of("bent").log_prob(X, X), ShapeError, r"of shape \(6, 4\): expected \(\.\.\., 3\)"),
    "scalar": (lambda: flow_of("bent").log_prob(X, X.new_zeros(())), ShapeError, r"of shape \(\)"),
    "batch": (lambda: flow_of("bent").log_prob(X, CONTEXT[:4]), ShapeError, r"\(6, 4\) with a context .*\(4, 3\)"),
    "point": (lambda: flow_of("bent").log_prob(X.new_zeros(()), CONTEXT), ShapeError, r"points of shape \(\)"),
    "dtype": (lambda: flow_of("bent").log_prob(X, CONTEXT.float()), DtypeError, r"\.to\(torch.float64\)"),
    "classes": (lambda: flow_of("bent").sample(2, CONTEXT.long()), DtypeError, "one_hot"),
    "device": (lambda: flow_of("bent").log_prob(X, CONTEXT.to("meta")), DeviceError, "on meta, expected cpu"),
    "list": (lambda: flow_of("bent").log_prob(X, CONTEXT.tolist()), DtypeError, "got list, expected a torch.Tensor"),
    "generator": (lambda: plain().sample(2, torch.Generator()), DtypeError, "say generator=... or temperature=... by"),
    "temperature": (lambda: plain().log_prob(X, 2.0), DtypeError, "got 2.0 where the context stands"),
    "two": (
        lambda: Flow([AffineCoupling(4, context=2), AffineCoupling(4, context=3)]),
        OptionError,
        r"contexts of length \[2, 3\]",
    ),
    "negative": (lambda: realnvp(4, 2, context=-1), OptionError, "context=-1"),
    "fraction": (lambda: spline_flow(4, 2, context=1.5), OptionError, "context=1.5"),
    "switch": (lambda: p4inv_bent(4, 2, context=True), OptionError, "context=True"),
    "nothing": (lambda: ContextAffine(4, 0), OptionError, "context=0"),
    "transform": (lambda: FromZuko(torch.distributions.ExpTransform(), 2), OptionError, "no parameters"),
    "sizes": (lambda: FromZuko(zuko.flows.NSF(4, C), 2, 4), OptionError, "points of 4 numbers with a context of 2"),
    "sizes-none": (lambda: FromZuko(zuko.flows.NSF(4, C), dim=4), OptionError, "with a context of 0"),
    "base": (lambda: FromZuko(zuko.flows.NCSF(2, C)), OptionError, r"NCSF is no flow onto N\(0, I\)"),
    "no-flow": (lambda: FromZuko(zuko.flows.GMM(2, C)), OptionError, "GMM is no flow"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str) -> None:
    call, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        call()
