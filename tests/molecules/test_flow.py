"""Flows of molecules: densities, directions, scores that are carried along, architectures."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from p4lab.errors import DtypeError, OptionError, ShapeError
from p4lab.flows import trainable
from p4lab.molecules.couplings import CircularCoupling, ConditionalCoupling
from p4lab.molecules.flow import ARCHITECTURES, MoleculeFlow, emptiest, molecule_flow
from p4lab.molecules.splines import wrap
from p4lab.p4 import MergeSchedule, p4_modules

DIM, CIRCULAR = 9, 3
SMALL: dict[str, dict[str, Any]] = {
    "realnvp": {"hidden": 6},
    "realnvp_p4inv": {"hidden": 6},
    "spline": {"blocks": 3, "hidden": 8, "bins": (0, 4)},
    "spline_p4": {"blocks": 3, "hidden": 8, "bins": (0, 4), "rank": 2},
}
NAMES = pytest.mark.parametrize("name", list(ARCHITECTURES))


def data(n: int = 200, dim: int = DIM, circular: int = CIRCULAR) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(n, dim, generator=generator)
    y[:, :circular] = wrap(0.7 * y[:, :circular] + 1)
    return y


def flow_of(name: str, seed: int = 0) -> MoleculeFlow:
    """Away from the start, in float64."""
    flow = molecule_flow(name, data(), seed, CIRCULAR, **SMALL[name]).double()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        near = {id(parameter) for layer in p4_modules(flow) for parameter in layer.parameters()}
        for parameter in flow.parameters():
            size = 0.02 if id(parameter) in near else 0.1  # far from a singular matrix
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return flow


@NAMES
def test_there_and_back(name: str) -> None:
    flow, y = flow_of(name), data(50).double()
    z, logabsdet = flow(y)
    back, minus = flow.inverse_with_logabsdet(z)
    off = torch.cat([wrap(back - y)[:, :CIRCULAR], (back - y)[:, CIRCULAR:]], -1)
    assert float(off.detach().abs().max()) < 1e-8
    torch.testing.assert_close(minus, -logabsdet, rtol=0, atol=1e-8)


@NAMES
@pytest.mark.parametrize("direction", ["forward", "inverse_with_logabsdet"])
def test_the_determinant_is_that_of_the_jacobian(name: str, direction: str) -> None:
    flow, y = flow_of(name), data(2).double()
    run = getattr(flow, direction)
    at = y if direction == "forward" else flow(y)[0].detach()
    for row, logabsdet in zip(at, run(at)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: run(row[None])[0][0], row)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, logabsdet, rtol=0, atol=1e-8)


@NAMES
def test_samples_know_their_density(name: str) -> None:
    flow = flow_of(name)
    y, log_q = flow.sample_with_log_prob(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(flow.log_prob(y), log_q, rtol=0, atol=1e-7)
    assert torch.equal(flow.sample(40, generator=torch.Generator().manual_seed(1)), y.detach())
    assert (y[:, :CIRCULAR].abs() <= math.pi).all()
    assert y.requires_grad
    assert log_q.requires_grad


@NAMES
def test_samples_carry_their_score(name: str) -> None:
    flow = flow_of(name)
    y, log_q, score = flow.sample_with_score(30, torch.Generator().manual_seed(1))
    at = y.detach().requires_grad_()
    log_prob = flow.log_prob(at)
    (wanted,) = torch.autograd.grad(log_prob.sum(), at)
    torch.testing.assert_close(score, wanted, rtol=1e-8, atol=1e-7)
    torch.testing.assert_close(log_q, log_prob, rtol=0, atol=1e-7)
    assert not score.requires_grad


@NAMES
def test_data_carry_their_score(name: str) -> None:
    flow, y = flow_of(name), data(30).double()
    given = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z, log_q, score = flow.latent_with_score(y, given)
    at = y.clone().requires_grad_()
    latent, logabsdet = flow(at)
    (of_determinant,) = torch.autograd.grad(logabsdet.sum(), at)
    latent = latent.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(flow.inverse(latent), latent, given - of_determinant)
    torch.testing.assert_close(score, wanted - flow.prior_score(latent.detach()), rtol=1e-8, atol=1e-7)
    torch.testing.assert_close(z, latent.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(log_q, flow.log_prob(y), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["spline", "spline_p4"])
def test_whole_turns_do_not_matter(name: str) -> None:
    flow, y = flow_of(name), data(20).double()
    turned = y.clone()
    turned[:, 1] += 2 * math.pi
    torch.testing.assert_close(flow.log_prob(turned), flow.log_prob(y), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["realnvp_p4inv", "spline_p4"])
def test_merges_and_folding_do_not_show(name: str) -> None:
    flow, y = flow_of(name), data(20).double()
    with torch.no_grad():
        for layer in p4_modules(flow):
            for parameter in layer.perturbation():
                parameter *= 0.3
    before = flow.log_prob(y).detach()
    plain = flow.fold()
    reports = MergeSchedule(flow, every=1).merge()
    assert all(report.merged for report in reports)
    torch.testing.assert_close(flow.log_prob(y), before, rtol=0, atol=1e-8)
    torch.testing.assert_close(plain.log_prob(y), before, rtol=0, atol=1e-8)
    assert p4_modules(flow)
    assert not p4_modules(plain)


def test_a_p4_flow_starts_as_its_plain_twin() -> None:
    y = data(20)
    for plain, mixed in (("realnvp", "realnvp_p4inv"), ("spline", "spline_p4")):
        values = [molecule_flow(name, data(), 4, CIRCULAR, **SMALL[name]).log_prob(y) for name in (plain, mixed)]
        torch.testing.assert_close(*values)


def test_penalties_of_p4_layers_add_up() -> None:
    assert float(flow_of("realnvp").penalty()) == 0
    assert flow_of("realnvp_p4inv").penalty().requires_grad


def test_the_seed_decides() -> None:
    y = data(10)
    first, again, other = (molecule_flow("spline", data(), seed, CIRCULAR, **SMALL["spline"]) for seed in (0, 0, 1))
    states = [torch.cat([p.flatten() for p in flow.parameters()]) for flow in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert first.log_prob(y).shape == (10,)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        pytest.param("realnvp", 725_000, 745_000, id="realnvp"),
        pytest.param("realnvp_p4inv", 735_000, 750_000, id="realnvp_p4inv"),
        pytest.param("spline", 200_000, 1_000_000, id="spline"),
        pytest.param("spline_p4", 200_000, 1_000_000, id="spline_p4"),
    ],
)
def test_sizes(name: str, least: int, most: int) -> None:
    y = data(200, 60, 5)
    flow = molecule_flow(name, y)
    assert least < trainable(flow) < most
    if name == "realnvp_p4inv":
        assert 8_000 < trainable(flow) - trainable(molecule_flow("realnvp", y)) < 10_000
        assert len(p4_modules(flow)) == 24


def test_a_state_can_be_loaded() -> None:
    flow, y = flow_of("spline"), data(10).double()
    other = molecule_flow("spline", data(), 7, CIRCULAR, **SMALL["spline"]).double()
    other.load_state_dict(copy.deepcopy(flow.state_dict()))
    torch.testing.assert_close(other.log_prob(y), flow.log_prob(y))


def test_the_cut_is_where_angles_are_rare() -> None:
    angles = wrap(0.5 * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 2.0]))
    cuts = emptiest(angles)
    assert abs(float(cuts[0])) > 2
    assert abs(float(wrap(cuts[1] - 2.0 - math.pi))) < 1.2


@NAMES
@pytest.mark.parametrize("option", ["hiden", "mixing"])
def test_unknown_options_are_refused(name: str, option: str) -> None:
    with pytest.raises(OptionError, match=rf"^architecture '{name}' has no option '{option}'.*it knows .*\bhidden\b"):
        molecule_flow(name, data(), 0, CIRCULAR, **{option: 8})


@NAMES
def test_a_penalty_takes_known_options_and_refuses_others(name: str) -> None:
    flow = flow_of(name)
    torch.testing.assert_close(flow.penalty(strength=0.2), 2 * flow.penalty(strength=0.1))
    with pytest.raises(OptionError, match=r"^penalty has no option 'strenght'"):
        flow.penalty(strenght=0.2)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        pytest.param(lambda: molecule_flow("glow", data()), OptionError, id="name"),
        pytest.param(lambda: molecule_flow("spline", data()[0]), ShapeError, id="one-row"),
        pytest.param(lambda: flow_of("spline").log_prob(torch.zeros(3, 4)), ShapeError, id="width"),
        pytest.param(lambda: flow_of("spline").log_prob(np.zeros((3, DIM))), DtypeError, id="array"),
        pytest.param(lambda: flow_of("spline").sample(-1), ShapeError, id="samples"),
        pytest.param(lambda: MoleculeFlow(5, 5, [], []), OptionError, id="no-numbers"),
        pytest.param(lambda: ConditionalCoupling(4, 0, 8, 1, 1, torch.Generator()), OptionError, id="one-bin"),
        pytest.param(lambda: CircularCoupling(2, (0, 1), 8, 4, 1, torch.Generator()), OptionError, id="none-moves"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"expected|choose"):
        make()


@pytest.mark.parametrize(("name", "circular"), [("spline_p4", 1), ("realnvp", 0), ("realnvp", 1)])
def test_molecules_with_one_angle_or_none_have_flows(name: str, circular: int) -> None:
    y = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    flow = molecule_flow(name, y, circular=circular, hidden=8)
    flow.log_prob(y).mean().backward()
    samples, log_q = flow.sample_with_log_prob(50, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(flow.log_prob(samples), log_q, atol=1e-4)


def test_splines_without_angles_are_refused_by_name() -> None:
    with pytest.raises(OptionError, match="take realnvp"):
        molecule_flow("spline", torch.randn(200, 12), circular=0)
