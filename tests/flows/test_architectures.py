"""Named architectures: what they consist of, where they start, and how many parameters they have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zuko
from torch import nn

from p4lab.boltzmann import steerable_flow
from p4lab.errors import OptionError
from p4lab.flows import (
    MIXINGS,
    AffineCoupling,
    Flow,
    Permutation,
    bent_stack,
    effective_parameters,
    glow,
    matched,
    p4inv_bent,
    realnvp,
    spline_flow,
    trainable,
)
from p4lab.molecules.flow import molecule_flow
from p4lab.p4 import PAPER, P4Inv

mixings = pytest.mark.parametrize("mixing", MIXINGS)
FIXED = torch.Generator().manual_seed(0)
X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("build", [realnvp, spline_flow])
@mixings
def test_starts_as_its_permutations(build, mixing: str) -> None:
    flow = build(5, 3, mixing, hidden=4, seed=1)
    z, logabsdet = flow(X)
    first, second = flow.linear_layers()
    assert len(flow.layers) == 5
    torch.testing.assert_close(z, second(first(X)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logabsdet, torch.zeros(7), rtol=0, atol=1e-5)
    if mixing != "permutation":
        torch.testing.assert_close(first(X), X.flip(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("blocks", [0, 2, 8])
def test_paired_stack_starts_as_an_orthogonal_map(blocks: int) -> None:
    flow = p4inv_bent(5, blocks, init="paired", seed=1)
    z, logabsdet = flow(X)
    images = [flow(rows)[0] for rows in (torch.eye(5), torch.zeros(1, 5))]
    torch.testing.assert_close(z, X @ (images[0] - images[1]) + images[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cdist(z, z), torch.cdist(X, X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logabsdet, torch.zeros(7), rtol=0, atol=1e-5)
    assert not torch.allclose(z.abs(), X.abs(), atol=0.1)


@mixings
def test_seed_decides_everything_and_the_networks_do_not_depend_on_the_mixing(mixing: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two, other = (realnvp(4, 3, mixing, hidden=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    swap = realnvp(4, 3, "swap", hidden=4, seed=1)
    couplings = [[layer for layer in flow.layers if isinstance(layer, AffineCoupling)] for flow in (one, swap, other)]
    for mine, theirs, others in zip(*couplings, strict=True):
        assert torch.equal(mine.network[0].weight, theirs.network[0].weight)
        assert not torch.equal(mine.network[0].weight, others.network[0].weight)
    for key, value in one.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, two.state_dict()[key]), key


SEEDED = {
    "p4inv_bent": lambda seed: p4inv_bent(3, 2, seed=seed, context=1, hidden=4),
    "realnvp, p4inv": lambda seed: realnvp(3, 2, "p4inv", hidden=4, seed=seed),
    "spline_flow": lambda seed: spline_flow(3, 2, hidden=4, seed=seed),
    "glow": lambda seed: glow((1, 4, 4), levels=1, blocks=2, hidden=4, seed=seed),
    "steerable_flow": lambda seed: steerable_flow(2, momenta=1, blocks=2, hidden=4, seed=seed),
    "molecule_flow": lambda seed: molecule_flow("spline_p4", torch.randn(9, 5, generator=FIXED.clone_state()), seed, 2),
    "permutation": lambda seed: MIXINGS["permutation"](9, seed),
}


def numbers_of(make: Callable[[Any], nn.Module], seed: object) -> list[torch.Tensor]:
    return [value for value in make(seed).state_dict().values() if torch.is_tensor(value)]


@pytest.mark.parametrize("make", SEEDED.values(), ids=SEEDED)
def test_a_seed_is_a_whole_number_a_generator_or_none(make: Callable[[Any], nn.Module]) -> None:
    def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))

    assert same(numbers_of(make, 3), numbers_of(make, np.int64(3)))
    generators = (torch.Generator().manual_seed(3) for _ in range(2))
    assert same(*(numbers_of(make, generator) for generator in generators))
    torch.manual_seed(0)
    one, other = numbers_of(make, None), numbers_of(make, None)
    torch.manual_seed(0)
    assert same(one, numbers_of(make, None))
    assert not same(one, other)


@pytest.mark.parametrize("make", SEEDED.values(), ids=SEEDED)
@pytest.mark.parametrize("seed", [1.5, "1"])
def test_another_seed_is_refused_by_name(make: Callable[[Any], nn.Module], seed: object) -> None:
    with pytest.raises(OptionError, match=f"seed={seed!r}: expected a whole number, a torch.Generator, or None"):
        make(seed)


def test_splines_do_not_touch_the_default_generator() -> None:
    before = torch.get_rng_state()
    one, two = spline_flow(2, 2, seed=1), spline_flow(2, 2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_options_reach_the_layers() -> None:
    flow = realnvp(4, 2, "p4inv", hidden=3, depth=1, preset=PAPER, dtype=torch.float64, bias=False)
    (mixing,) = flow.linear_layers()
    assert (mixing.rank, mixing.train_v, mixing.bias, mixing.u.dtype) == (1, True, None, torch.float64)
    assert flow.layers[0].network[0].weight.dtype is torch.float64
    assert [type(layer) for layer in flow.layers[0].network] == [nn.Linear, nn.SiLU, nn.Linear]


def test_random_permutations_differ_from_layer_to_layer() -> None:
    first, second = realnvp(16, 3, "permutation", hidden=2).linear_layers()
    assert isinstance(first, Permutation)
    assert not torch.equal(first.order, second.order)


@pytest.mark.parametrize("build", [realnvp, spline_flow])
@mixings
def test_every_parameter_takes_part(build, mixing: str) -> None:
    flow = build(4, 3, mixing, hidden=4, seed=1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    flow.log_prob(X[:, :4]).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize(
    ("build", "seen", "effective"),
    [
        pytest.param(lambda: p4inv_bent(2, 8), 9 * (2 + 2), 9 * (4 + 2), id="p4inv_bent"),
        pytest.param(lambda: p4inv_bent(6, 2, rank=2, train_v=True), 3 * (24 + 6), 3 * (36 + 6), id="train_v"),
        pytest.param(lambda: realnvp(2, 2, hidden=5, depth=1), 2 * (4 * 5 + 2), 2 * (4 * 5 + 2), id="realnvp"),
        pytest.param(lambda: realnvp(4, 2, "plu", hidden=1, depth=1), 22 + 32 + 8, 22 + 20, id="plu"),
        pytest.param(lambda: realnvp(4, 2, "orthogonal", hidden=1, depth=1), 22 + 20, 22 + 10, id="orthogonal"),
        pytest.param(lambda: realnvp(4, 2, "p4orthogonal", hidden=1, depth=1), 22 + 12, 22 + 10, id="p4orthogonal"),
        pytest.param(lambda: p4inv_bent(2, 2).fold(), 0, 0, id="folded"),
        pytest.param(lambda: Flow([shared := P4Inv(3), shared]), 6, 12, id="shared"),
    ],
)
def test_numbers_of_parameters(build, seen: int, effective: int) -> None:
    flow = build()
    assert (trainable(flow), effective_parameters(flow)) == (seen, effective)


def test_weights_behind_a_mask_do_not_count() -> None:
    """Those that count are those that a gradient reaches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = zuko.flows.MAF(4, 2, transforms=2, hidden_features=(8, 8), activation=nn.Tanh).double()
    x = X.double()
    (-flow(x[:, :2]).log_prob(x[:, :4]).mean()).backward()
    reached = sum(int((parameter.grad != 0).sum()) for parameter in flow.parameters())
    assert trainable(flow) > effective_parameters(flow) == reached


def test_layers_may_tell_their_degrees_of_freedom() -> None:
    class Told(P4Inv):
        degrees_of_freedom = 5

    assert effective_parameters(nn.Sequential(Told(3), nn.Linear(3, 2))) == 5 + 8


@pytest.mark.parametrize("target", [1, 47, 48, 60, 64, 65, 591, 1000, 123_456])
def test_matched_is_the_nearest_width(target: int) -> None:
    def build(hidden: int) -> Flow:
        return realnvp(2, 8, hidden=hidden, depth=1)

    model = matched(build, target)
    off = abs(effective_parameters(model) - target)
    for hidden in (model.layers[0].hidden - 1, model.layers[0].hidden + 1):
        if hidden >= 1:
            assert off <= abs(effective_parameters(build(hidden)) - target)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        pytest.param(lambda: matched(lambda hidden: nn.Linear(hidden, 1), 0), "target=0", id="no target"),
        pytest.param(lambda: bent_stack(-1, lambda: P4Inv(2)), "blocks=-1", id="negative blocks"),
    ],
)
def test_errors(make, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()


def test_zuko_is_imported_only_when_asked_for() -> None:
    program = "import sys, p4lab.flows as f; f.realnvp(2, 2); print('zuko' in sys.modules, f.as_lazy.__module__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "p4lab.flows.zuko"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute for 20,000 steps, unless many share the machine
@pytest.mark.parametrize("steps", [5_000, pytest.param(20_000, marks=pytest.mark.long)])
def test_inverse_in_float32_after_long_training(steps: int) -> None:
    """Eight P4Inv + Bent layers on two moons of points, merged every four steps."""
    from p4lab.p4 import RECOMMENDED

    flow = p4inv_bent(2, 8, seed=0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    merges = RECOMMENDED.schedule(flow, optimizer)
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(4096, generator=generator) * torch.pi
    side = torch.randint(2, (4096,), generator=generator) * 2.0 - 1
    data = torch.stack([angle.cos() + 0.5 * side, side * angle.sin() - 0.25 * side], 1)
    data = 1.5 * data + 0.1 * torch.randn(data.shape, generator=generator)
    start = -flow.log_prob(data).mean().item()
    for _ in range(steps):
        x = data[torch.randint(4096, (256,), generator=generator)]
        optimizer.zero_grad()
        (-flow.log_prob(x).mean()).backward()
        optimizer.step()
        merges.step()
    with torch.no_grad():
        end = -flow.log_prob(data).mean().item()
        z, logabsdet = flow(data)
        torch.testing.assert_close(flow.inverse(z), data, rtol=1e-5, atol=1e-5)
        x, back = flow.inverse_with_logabsdet(z)
        torch.testing.assert_close(back, -logabsdet, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(flow.fold().log_prob(data), flow.log_prob(data), rtol=1e-5, atol=1e-5)
    assert end < start - 0.5
