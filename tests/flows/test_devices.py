"""Flows under another default device: on the device that was asked for, from the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from drawing import default_device, devices

from p4lab.boltzmann import by_energy, by_example, steerable_flow
from p4lab.flows import MIXINGS, Permutation, p4inv_bent, realnvp, spline_flow
from p4lab.flows.coupling import AffineCoupling, VolumePreservingCoupling
from p4lab.flows.torus import TorusCoupling

FLOWS: dict[str, Callable[..., Any]] = {
    "p4inv_bent": lambda **options: p4inv_bent(4, 3, **options),
    **{f"realnvp-{name}": lambda name=name, **options: realnvp(4, 3, name, hidden=8, **options) for name in MIXINGS},
    "spline": lambda **options: spline_flow(4, 2, hidden=8, **options),
    **{
        f"steerable-{name}": lambda name=name, **options: steerable_flow(
            2, 2, 2, name, hidden=8, mean=torch.ones(2, device="cpu"), std=torch.ones(2, device="cpu"), **options
        )
        for name in MIXINGS
    },
}
flows = pytest.mark.parametrize("name", FLOWS)
COUPLINGS: dict[str, Callable[..., Any]] = {
    "affine": lambda **options: AffineCoupling(4, 8, **options),
    "volume": lambda **options: VolumePreservingCoupling(4, 8, **options),
    "torus": lambda **options: TorusCoupling(2, 2, 8, **options),
    "permutation": lambda device=None, **options: Permutation([1, 0, 3, 2], device),
}
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@flows
def test_a_device_that_is_asked_for_goes_over_the_default(name: str) -> None:
    plain = FLOWS[name](seed=1)
    with default_device():
        flow = FLOWS[name](seed=1, device="cpu")
    assert devices(flow) == {"cpu"}
    state = flow.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items() if torch.is_tensor(value))


@flows
def test_training_and_sampling_stay_on_the_device_of_the_flow(name: str) -> None:
    flow, plain = FLOWS[name](seed=1), FLOWS[name](seed=1)
    with default_device():
        loss = by_example(flow, X) + flow.penalty(strength=0.1) + flow.logabsdet()
        loss = loss + by_energy(flow, lambda x: x.square().sum(-1), 8, seeded())
        loss.backward()
        x, log_q = flow.sample_with_log_prob(5, generator=seeded())
        samples = [flow.sample(5, generator=seeded()), flow.sample(5), flow(x)[0], flow.log_prob(x), loss, log_q]
        if hasattr(flow, "augment"):
            samples += [flow.augment(X[:, :2], seeded()), flow.rescaled(log_q, 2.0)]
        else:
            samples += [*flow.stages(x), *flow.stages(x, "latent"), flow.fold().sample(5)]
    assert {sample.device.type for sample in samples} == {"cpu"}
    torch.testing.assert_close(samples[0], plain.sample(5, generator=seeded()))


@flows
def test_without_a_device_all_of_a_flow_is_on_the_default(name: str) -> None:
    with default_device():
        flow = FLOWS[name](seed=1)
    assert devices(flow) == {"meta"}


@pytest.mark.parametrize("name", sorted(FLOWS.keys() - {"spline"}))  # zuko picks coordinates by a mask
def test_a_flow_on_the_default_device_trains_and_samples_there(name: str) -> None:
    with default_device():
        flow = FLOWS[name](seed=1)
        (-flow.log_prob(torch.randn(6, 4)).mean() + flow.penalty() + flow.logabsdet()).backward()
        samples = [*flow.sample_with_log_prob(5, generator=seeded()), flow.sample(5, generator=seeded())]
    assert {sample.device.type for sample in samples} == {"meta"}


@pytest.mark.parametrize("name", COUPLINGS)
def test_couplings_are_where_they_are_asked_to_be(name: str) -> None:
    with default_device():
        assert devices(COUPLINGS[name](seed=1)) == {"meta"}
        assert devices(COUPLINGS[name](seed=1, device="cpu")) == {"cpu"}
    here, asked = (COUPLINGS[name](seed=1, device=device) for device in (None, "meta"))
    assert (devices(here), devices(asked)) == ({"cpu"}, {"meta"})


def test_an_order_that_is_a_tensor_says_where_a_permutation_is() -> None:
    order = torch.tensor([1, 0, 2])
    with default_device():
        assert devices(Permutation(order)) == {"cpu"}
        assert devices(Permutation(order, "meta")) == {"meta"}


def test_a_permutation_keeps_its_order_when_the_tensor_changes() -> None:
    order = torch.tensor([1, 0, 2])
    layer = Permutation(order)
    order.zero_()
    assert layer.order.tolist() == [1, 0, 2]
