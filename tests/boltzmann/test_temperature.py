"""Steerable flows: the temperature law is exact in float64, whatever the flow has learnt."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p4lab.boltzmann import SteerableFlow, by_energy, by_example, steerable_flow
from p4lab.errors import OptionError, ShapeError
from p4lab.flows import (
    MIXINGS,
    AffineCoupling,
    BentIdentity,
    Flow,
    Standardize,
    Whitening,
    p4inv_bent,
    spline_flow,
)
from p4lab.flows.coupling import VolumePreservingCoupling
from p4lab.flows.torus import BesideAngles, TorusCoupling
from p4lab.p4 import RECOMMENDED, P4Inv

DOUBLE = torch.float64
TEMPERATURES = (0.25, 1.0, 1.7, 4.0)


def amid_training(positions: int = 2, momenta: int = 2, mixing: str = "p4inv", **options: Any) -> SteerableFlow:
    """A flow whose parameters have all moved away from their start; it asks for no gradients."""
    mean, std = torch.arange(positions) - 0.5, 1.0 + torch.arange(positions)
    settings: dict[str, Any] = {"blocks": 4, "hidden": 8, "mean": mean, "std": std, "dtype": DOUBLE, **options}
    flow = steerable_flow(positions, momenta, mixing=mixing, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=DOUBLE)
            parameter.add_(0.2 * noise.to(parameter.dtype))
    return flow.requires_grad_(False)


def points(flow: SteerableFlow, n: int = 40) -> Tensor:
    """Points near and far."""
    return 3 * torch.randn(n, flow.dim, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)


FLOWS = pytest.mark.parametrize(
    "flow",
    [
        pytest.param(lambda: amid_training(2, 0), id="no-momenta"),
        pytest.param(lambda: amid_training(3, 2), id="odd"),
        *(pytest.param(lambda name=name: amid_training(2, 2, name), id=name) for name in MIXINGS),
    ],
)


# --- the law ----------------------------------------------------------------------------------------------------------


@FLOWS
@pytest.mark.parametrize(("here", "there"), [(1.0, 0.25), (1.0, 4.0), (4.0, 0.25), (0.25, 1.7)])
def test_densities_at_two_temperatures_are_powers_of_each_other(flow, here: float, there: float) -> None:
    flow = flow()
    y = points(flow)
    rest = flow.log_prob(y, temperature=there) - here / there * flow.log_prob(y, temperature=here)
    scale = float((here / there * flow.log_prob(y, temperature=here)).abs().max())
    assert float(rest.max() - rest.min()) < 1e-12 * max(1.0, scale)


@FLOWS
def test_the_law_comes_with_its_constant(flow) -> None:
    flow = flow()
    y = points(flow)
    for here, there in itertools.product(TEMPERATURES, repeat=2):
        rescaled = flow.rescaled(flow.log_prob(y, temperature=here), there, of=here)
        torch.testing.assert_close(rescaled, flow.log_prob(y, temperature=there), rtol=1e-10, atol=1e-10)


def test_a_flow_that_may_change_volume_breaks_the_law() -> None:
    torch.manual_seed(0)
    free = p4inv_bent(2, 3, seed=0, dtype=DOUBLE).requires_grad_(False)
    y = torch.randn(40, 2, dtype=DOUBLE)
    z, logabsdet = free(y)
    log_p = [logabsdet - 0.5 * z.square().sum(-1) / t for t in (1.0, 2.0)]
    rest = log_p[1] - 0.5 * log_p[0]
    assert float(rest.max() - rest.min()) > 0.1


@FLOWS
def test_the_determinant_is_the_same_everywhere_and_that_of_autograd(flow) -> None:
    flow = flow()
    y = points(flow, 5)
    _, logabsdet = flow(y)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: flow(row[None])[0][0], row) for row in y])
    exact = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(logabsdet.double(), exact, rtol=0, atol=1e-9)
    assert float(logabsdet.max() - logabsdet.min()) == 0.0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_densities_integrate_to_one(temperature: float) -> None:
    flow = amid_training(1, 1, mean=torch.zeros(1), std=torch.ones(1))
    y = flow.sample(4000, generator=torch.Generator().manual_seed(0), temperature=temperature)
    low, high = y.min(0).values - 4, y.max(0).values + 4
    axes = [torch.linspace(float(a), float(b), 700, dtype=DOUBLE) for a, b in zip(low, high, strict=True)]
    mesh = torch.cartesian_prod(*axes)
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    assert float(flow.log_prob(mesh, temperature=temperature).exp().sum()) * cell == pytest.approx(1.0, abs=2e-3)


def test_after_training_and_merging_the_law_still_holds() -> None:
    flow = steerable_flow(2, 2, 3, hidden=8, dtype=DOUBLE)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    schedule = RECOMMENDED.schedule(flow, optimizer)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(500, 2, generator=generator, dtype=DOUBLE) * torch.tensor([0.5, 3.0])
    first = float(by_example(flow, flow.augment(data, generator)).detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss = by_example(flow, flow.augment(data, generator))
        loss.backward()
        optimizer.step()
        schedule.step()
    assert float(loss.detach()) < first - 0.2
    y = points(flow)
    rest = flow.log_prob(y, temperature=2.0) - 0.5 * flow.log_prob(y, temperature=1.0)
    assert float((rest.max() - rest.min()).detach()) < 1e-10


# --- samples ----------------------------------------------------------------------------------------------------------


@FLOWS
def test_samples_come_with_their_density(flow) -> None:
    flow = flow().requires_grad_()
    for temperature in TEMPERATURES:
        y, log_p = flow.sample_with_log_prob(20, generator=torch.Generator().manual_seed(3), temperature=temperature)
        torch.testing.assert_close(log_p, flow.log_prob(y, temperature=temperature), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(
            y.detach(), flow.sample(20, generator=torch.Generator().manual_seed(3), temperature=temperature)
        )
        z, _ = flow(y)
        assert float(z.detach().square().mean()) == pytest.approx(temperature, rel=0.6)
    assert y.requires_grad


def test_a_gaussian_gets_the_covariance_of_its_temperature() -> None:
    # A linear flow of N(0, C) at T = 1 is N(0, T C) at T: here C = A^-1 A^-T.
    flow = SteerableFlow(Flow([P4Inv(3, init="orthogonal", seed=2, dtype=DOUBLE)]))
    with torch.no_grad():
        flow.flow.layers[0].u.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    inverse = flow.flow.layers[0].weight.detach().inverse()
    x = flow.sample(200_000, generator=torch.Generator().manual_seed(1), temperature=2.5)
    torch.testing.assert_close(x.T.cov(), 2.5 * inverse @ inverse.T, rtol=0.02, atol=0.02)


def test_one_seed_gives_the_same_latent_variables_at_any_temperature() -> None:
    flow = amid_training()
    cold, hot = (flow(flow.sample(10, generator=_seeded(7), temperature=t))[0] for t in (1.0, 4.0))
    torch.testing.assert_close(2 * cold, hot)
    other = flow.sample(10, generator=torch.Generator().manual_seed(8), temperature=1.0)
    assert not torch.equal(flow.sample(10, generator=torch.Generator().manual_seed(7), temperature=1.0), other)


def test_no_sample_is_a_table_without_rows() -> None:
    assert amid_training().sample(0).shape == (0, 4)


def test_training_by_energy_reaches_its_parameters() -> None:
    flow = amid_training(2, 1).requires_grad_()
    target = flow.joint(lambda x: 0.5 * x.square().sum(-1))
    loss = by_energy(flow, target, 64, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    assert sum(g is not None and bool(g.abs().max() > 1e-8) for g in gradients) > 10


# --- momenta ----------------------------------------------------------------------------------------------------------


def test_momenta_are_drawn_at_their_temperature_and_leave_positions_alone() -> None:
    flow = amid_training(2, 3)
    x = torch.randn(20_000, 2, dtype=DOUBLE)
    y = flow.augment(x, torch.Generator().manual_seed(0), temperature=2.0)
    assert y.shape == (20_000, 5)
    assert torch.equal(y[:, :2], x)
    torch.testing.assert_close(y[:, 2:].T.cov(), 2 * torch.eye(3, dtype=DOUBLE), rtol=0.05, atol=0.05)
    assert torch.equal(y, flow.augment(x, torch.Generator().manual_seed(0), temperature=2.0))
    bare = amid_training(2, 0)
    assert bare.augment(x) is x


def test_the_joint_energy_is_that_of_positions_plus_that_of_momenta() -> None:
    flow = amid_training(2, 2)
    y = points(flow, 6)
    total = flow.joint(lambda x: x[..., 0] ** 4)(y)
    torch.testing.assert_close(total, y[:, 0] ** 4 + 0.5 * (y[:, 2] ** 2 + y[:, 3] ** 2))


# --- state, seeds, shapes ---------------------------------------------------------------------------------------------


def test_a_state_dict_carries_everything() -> None:
    flow, other = amid_training(seed=0), steerable_flow(2, 2, 4, hidden=8, seed=9, dtype=DOUBLE)
    standard = steerable_flow(2, 2, 4, hidden=8, mean=torch.zeros(2), std=torch.ones(2), seed=9, dtype=DOUBLE)
    with pytest.raises(RuntimeError, match="state_dict"):
        other.load_state_dict(flow.state_dict())  # it has no layer for mean and std
    standard.load_state_dict(flow.state_dict())
    y = points(flow)
    assert torch.equal(standard.log_prob(y, temperature=1.3), flow.log_prob(y, temperature=1.3))
    twin = copy.deepcopy(flow)
    assert torch.equal(
        twin.sample(5, generator=torch.Generator().manual_seed(0), temperature=0.7),
        flow.sample(5, generator=_seeded(0), temperature=0.7),
    )


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_seed_is_a_flow() -> None:
    one, same, other = (steerable_flow(2, 2, 3, hidden=8, seed=seed) for seed in (4, 4, 5))
    states = [[v for v in flow.state_dict().values() if torch.is_tensor(v)] for flow in (one, same, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))


def test_mean_and_std_are_those_of_positions_alone() -> None:
    mean, std = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    plain = steerable_flow(2, 2, 3, hidden=8, seed=0, dtype=DOUBLE)
    scaled = steerable_flow(2, 2, 3, hidden=8, seed=0, mean=mean, std=std, dtype=DOUBLE)
    y = points(plain)
    moved = torch.cat([y[:, :2] * std + mean, y[:, 2:]], -1)
    torch.testing.assert_close(scaled.log_prob(moved), plain.log_prob(y) - float(std.log().sum()))


@pytest.mark.parametrize("positions", [1, 3, 6])
@pytest.mark.parametrize("momenta", [1, 4])
def test_widths(positions: int, momenta: int) -> None:
    flow = steerable_flow(positions, momenta, 2, hidden=4)
    assert (flow.dim, flow.positions, flow.momenta) == (positions + momenta, positions, momenta)
    z, logabsdet = flow(torch.zeros(2, 3, flow.dim))
    assert (z.shape, logabsdet.shape) == ((2, 3, flow.dim), (2, 3))
    assert f"positions={positions}, momenta={momenta}" in repr(flow)


def test_penalty_and_logabsdet_are_those_of_its_flow() -> None:
    flow = amid_training()
    torch.testing.assert_close(flow.logabsdet(), flow.flow.logabsdet())
    torch.testing.assert_close(flow.penalty(strength=2.0), flow.flow.penalty(strength=2.0))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        pytest.param(BentIdentity(), "BentIdentity", id="bent"),
        pytest.param(AffineCoupling(2), "AffineCoupling", id="affine"),
        pytest.param(spline_flow(2, 1).layers[0], "", id="spline"),
        pytest.param(nn.Tanh(), "Tanh", id="tanh"),
    ],
)
def test_layers_whose_determinant_varies_are_refused(layer: nn.Module, name: str) -> None:
    with pytest.raises(OptionError, match=rf"{name}.*has a determinant that depends on the point"):
        SteerableFlow(Flow([P4Inv(2), layer]))


def test_layers_whose_determinant_is_constant_are_taken() -> None:
    data = torch.randn(50, 2, dtype=DOUBLE)
    layers = [Standardize.fit(data), Whitening.fit(data), VolumePreservingCoupling(2, dtype=DOUBLE)]
    flow = SteerableFlow(Flow(layers), momenta=1)
    assert flow.positions == 1


@pytest.mark.parametrize("momenta", [-1, 2, 3])
def test_positions_need_a_coordinate(momenta: int) -> None:
    with pytest.raises(OptionError, match=f"momenta={momenta} of 2 coordinates: expected 0 to 1"):
        SteerableFlow(Flow([P4Inv(2)]), momenta)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda flow, t: flow.log_prob(torch.zeros(1, 2), temperature=t), id="log_prob"),
        pytest.param(lambda flow, t: flow.sample(3, temperature=t), id="sample"),
        pytest.param(lambda flow, t: flow.sample_with_log_prob(3, temperature=t), id="sample_with_log_prob"),
        pytest.param(lambda flow, t: flow.augment(torch.zeros(3, 1), temperature=t), id="augment"),
        pytest.param(lambda flow, t: flow.rescaled(torch.zeros(3), t), id="rescaled"),
        pytest.param(lambda flow, t: flow.rescaled(torch.zeros(3), 1.0, of=t), id="rescaled-from"),
    ],
)
def test_temperatures_that_are_none_are_refused(call, temperature: float) -> None:
    with pytest.raises(OptionError, match="expected a number above 0"):
        call(steerable_flow(1, 1, 1, hidden=4), temperature)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_unknown_options_are_refused(mixing: str) -> None:
    with pytest.raises(OptionError, match=r"^steerable_flow has no option 'hiden' \(did you mean 'hidden'\?\)"):
        steerable_flow(2, mixing=mixing, hiden=8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda flow: flow.sample(-1), ShapeError, "n=-1", id="samples"),
        pytest.param(lambda flow: flow.augment(torch.zeros(3, 2)), ShapeError, r"expected \(n, 1\)", id="width"),
        pytest.param(lambda flow: flow.augment(torch.zeros(1)), ShapeError, r"expected \(n, 1\)", id="vector"),
        pytest.param(lambda flow: flow.log_prob(torch.zeros(3, 3)), ShapeError, "3", id="points"),
        pytest.param(lambda flow: steerable_flow(1, 0), OptionError, "dim", id="one-coordinate"),
        pytest.param(lambda flow: steerable_flow(2, mixing="shaken"), OptionError, "shaken", id="mixing"),
        pytest.param(lambda flow: steerable_flow(2, blocks=0), OptionError, "blocks=0", id="blocks"),
    ],
)
def test_bad_input_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(steerable_flow(1, 1, 1, hidden=4))


# --- angles -----------------------------------------------------------------------------------------------------------


def on_a_torus(momenta: int = 1) -> SteerableFlow:
    """Two angles, three numbers and momenta, amid training."""
    numbers = 3 + momenta
    layers = [
        BesideAngles(P4Inv(numbers, init="orthogonal", seed=0, dtype=DOUBLE), 2),
        TorusCoupling(2, numbers, hidden=8, seed=1, dtype=DOUBLE),
        BesideAngles(P4Inv(numbers, init="orthogonal", seed=2, dtype=DOUBLE), 2),
        TorusCoupling(2, numbers, hidden=8, seed=3, dtype=DOUBLE),
    ]
    flow = SteerableFlow(Flow(layers), momenta, angles=2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=DOUBLE))
    return flow


@pytest.mark.parametrize(("here", "there"), [(1.0, 0.5), (1.0, 10 / 3), (2.0, 0.3)])
def test_the_law_holds_on_a_torus(here: float, there: float) -> None:
    flow = on_a_torus()
    y = points(flow)
    rescaled = flow.rescaled(flow.log_prob(y, temperature=here), there, of=here)
    torch.testing.assert_close(rescaled, flow.log_prob(y, temperature=there), rtol=1e-10, atol=1e-10)


def test_samples_on_a_torus_come_with_their_density_wherever_their_angles_are_written() -> None:
    flow = on_a_torus()
    y, log_p = flow.sample_with_log_prob(30, generator=_seeded(3), temperature=1.7)
    turn = 2 * math.pi * torch.tensor([1.0, -2.0, 0.0, 0.0, 0.0, 0.0], dtype=DOUBLE)
    torch.testing.assert_close(log_p, flow.log_prob(y + turn, temperature=1.7))


def test_the_density_on_a_torus_integrates_to_one() -> None:
    # By importance sampling from uniform angles and a wide Gaussian.
    flow, n, wide = on_a_torus(0), 400_000, 3.0
    generator = _seeded(0)
    numbers = wide * torch.randn(n, 3, generator=generator, dtype=DOUBLE)
    angles = 2 * math.pi * torch.rand(n, 2, generator=generator, dtype=DOUBLE)
    log_q = -0.5 * (numbers / wide).square().sum(-1) - 1.5 * math.log(2 * math.pi * wide**2) - 2 * math.log(2 * math.pi)
    with torch.no_grad():
        w = (flow.log_prob(torch.cat([angles, numbers], -1), temperature=0.8) - log_q).exp()
    assert float(w.mean()) == pytest.approx(1.0, abs=5 * float(w.std()) / math.sqrt(n))
    assert float(w.std()) / math.sqrt(n) < 0.05


@pytest.mark.parametrize(
    ("layers", "angles", "message"),
    [
        pytest.param([P4Inv(4)], 2, "P4Inv knows of 0 angles, the flow has 2", id="unaware"),
        pytest.param([TorusCoupling(2, 2, hidden=8)], 0, "knows of 2 angles, the flow has 0", id="too-few"),
        pytest.param([BesideAngles(P4Inv(1), 3)], 3, "angles=3 of 2 positions", id="angles-of-momenta"),
    ],
)
def test_layers_must_agree_about_angles(layers: list[Any], angles: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SteerableFlow(Flow(layers), momenta=2, angles=angles)
