"""Recurrent networks: the unrolled recursion against autograd, their weights, starts, and errors."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.linalg import orthogonality_error
from p4lab.p4 import MergeSchedule, P4Orthogonal
from p4lab.problems.recurrent import (
    CELLS,
    STARTS,
    RecurrentNet,
    RecurrentRotation,
    Unrolled,
    modrelu,
    recurrent_net,
    recurrent_optimizer,
    start_of,
)

T, B, D = 6, 3, 5
EVERY_CELL = pytest.mark.parametrize("cell", CELLS)


def parts(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, drive and bias whose states are not near the kink of modReLU."""
    generator = torch.Generator().manual_seed(seed)
    weight = start_of("orthogonal", D, seed)
    drive = torch.randn(T, B, D, generator=generator, dtype=torch.float64)
    bias = torch.tensor([-0.2, 0.0, 0.1, -0.05, 0.0], dtype=torch.float64)
    return weight.requires_grad_(), drive.requires_grad_(), bias.requires_grad_()


def plainly(weight: Tensor, drive: Tensor, bias: Tensor) -> Tensor:
    h, states = torch.zeros_like(drive[0]), []
    for d in drive:
        h = modrelu(d + h @ weight.t(), bias)
        states.append(h)
    return torch.stack(states)


def net(cell: str = "p4orthogonal", **changes: Any) -> RecurrentNet:
    return recurrent_net(cell, **{"dim": 8, "channels": 3, "outputs": 2, "dtype": torch.float64, "rank": 2, **changes})


def inputs() -> Tensor:
    return torch.randn(T, B, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


# --- the recursion ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_states_and_gradients_are_those_of_autograd(seed: int) -> None:
    weight, drive, bias = parts(seed)
    ours, plain = Unrolled.apply(weight, drive, bias), plainly(weight, drive, bias)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert (ours == 0).any()  # some states are in the gap, and let no gradient through
    cotangent = torch.randn_like(plain)
    slopes, expected = (torch.autograd.grad(states, (weight, drive, bias), cotangent) for states in (ours, plain))
    for one, other in zip(slopes, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(Unrolled.apply, parts())


@pytest.mark.parametrize("which", range(3), ids=["weight", "drive", "bias"])
def test_each_gradient_alone(which: int) -> None:
    those = [part.detach().requires_grad_(i == which) for i, part in enumerate(parts())]
    (alone,) = torch.autograd.grad(Unrolled.apply(*those).square().sum(), those[which])
    together = torch.autograd.grad(Unrolled.apply(*(given := parts())).square().sum(), given)
    torch.testing.assert_close(alone, together[which])


def test_a_single_step_has_no_gradient_for_the_weight() -> None:
    weight, drive, bias = parts()
    (gradient,) = torch.autograd.grad(Unrolled.apply(weight, drive[:1], bias).sum(), weight)
    assert not gradient.any()


def test_modrelu_is_the_identity_without_a_bias_and_leaves_a_gap_with_one() -> None:
    a = torch.linspace(-2, 2, 9)
    assert torch.equal(modrelu(a, torch.zeros(9)), a)
    assert modrelu(a, torch.full((9,), -1.0)).tolist() == [-1, -0.5, 0, 0, 0, 0, 0, 0.5, 1]


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["gradient", "gaussian"])
def test_the_rotation_is_p4orthogonal(reset: Any) -> None:
    ours, theirs = (
        kind(8, rank=2, init=start_of("orthogonal", 8), reset=reset, bias=False, seed=0, dtype=torch.float64)
        for kind in (RecurrentRotation, P4Orthogonal)
    )
    x = torch.randn(4, 8, dtype=torch.float64)
    for layer in (ours, theirs):
        layer.u.data.copy_(torch.linspace(-1, 1, 16).view(2, 8))
    torch.testing.assert_close(x @ ours.weight.t(), theirs(x))
    torch.testing.assert_close(ours.weight, theirs.weight)
    (x @ ours.weight.t()).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.u.grad, theirs.u.grad)


def test_merges_are_invisible_and_directions_follow_the_gradient() -> None:
    model = net()
    model.bias.data.fill_(-0.01)
    x = inputs()
    optimizer = recurrent_optimizer(model, 1e-2, 1.0)
    merges = MergeSchedule(model, optimizer, every=3)
    for _ in range(6):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            before, frozen = model(x), model.layer.frozen_weight.clone()
            reports = merges.step()
            torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-12)
        assert all(reports)
        assert torch.equal(model.layer.frozen_weight, frozen) == (not reports)
    assert float(orthogonality_error(model.layer.weight.detach())) < 1e-13
    # The gradient at the network's own weights, seen through the rows v, is more than random frames see.
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    weight = model.layer.weight.detach().requires_grad_()
    states = Unrolled.apply(weight, model.drive(x), model.bias)
    (g,) = torch.autograd.grad((model.read(states) - 1).square().mean(), weight)
    skew = g @ weight.detach().t()
    skew = skew - skew.t()
    seen, random = [], []
    for seed in range(30):
        layer = copy.deepcopy(model.layer)
        other = torch.Generator().manual_seed(seed).get_state()
        layer.set_extra_state({**layer.get_extra_state(), "generator": other})
        layer.reset()
        frame = torch.linalg.qr(torch.randn_like(layer.v.t())).Q.t()
        seen.append(torch.linalg.matrix_norm(layer.v @ skew))
        random.append(torch.linalg.matrix_norm(frame @ skew))
    assert torch.stack(seen).mean() > 1.2 * torch.stack(random).mean()


@EVERY_CELL
def test_all_cells_start_as_the_same_function_and_learn(cell: str) -> None:
    x, model = inputs(), net(cell)
    for parameter in (model.readout, model.readout_bias):
        parameter.data.fill_(0.5)
    reference = net("plain")
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("layer.")}, strict=False)
    torch.testing.assert_close(model(x), reference(x), rtol=1e-6, atol=1e-6)
    optimizer = recurrent_optimizer(model, 1e-2, 1.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (model(x) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    error = float(orthogonality_error(model.layer.weight.detach()))
    assert (error < 1e-6) == CELLS[cell].orthogonal


@EVERY_CELL
def test_weights_that_train_get_the_gradient_of_autograd(cell: str) -> None:
    model, x = net(cell), inputs()
    model.readout.data.fill_(0.3)
    own = torch.autograd.grad(model(x).square().sum(), list(model.layer.parameters()))
    plain = model.read(plainly(model.layer.weight, model.drive(x), model.bias)).square().sum()
    for one, other in zip(own, torch.autograd.grad(plain, list(model.layer.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_the_optimizer_has_a_rate_for_recurrent_weights() -> None:
    model = net("plain")
    recurrent, others = recurrent_optimizer(model, 1e-2, 0.1).param_groups
    assert (recurrent["lr"], others["lr"]) == (pytest.approx(1e-3), 1e-2)
    assert [p.shape for p in recurrent["params"]] == [(8, 8)]
    assert len(others["params"]) == 4


# --- gradients through time -------------------------------------------------------------------------------------------


def test_gradients_through_time_are_those_of_autograd_and_touch_nothing() -> None:
    model, x = net("plain"), inputs()
    model.bias.data.fill_(-0.1)
    states, norms = model.through_time(lambda h: h[-1].square().sum(), x)
    drive = model.drive(x).detach().requires_grad_()
    reference = plainly(model.layer.weight.detach(), drive, model.bias.detach())
    (g,) = torch.autograd.grad(reference[-1].square().sum(), drive)
    torch.testing.assert_close(states, reference.detach())
    torch.testing.assert_close(norms, torch.linalg.vector_norm(g, dim=(1, 2)))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not states.requires_grad


@pytest.mark.parametrize(("scale", "kept"), [(1.0, True), (0.9, False), (1.1, False)])
def test_orthogonal_weights_keep_the_gradient(scale: float, kept: bool) -> None:
    model = net("plain")
    for parameter in model.layer.parameters():
        parameter.data.mul_(scale)
    _, norms = model.through_time(lambda h: h[-1].sum(), inputs())
    expected = norms[-1] * scale ** torch.arange(T - 1, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(norms, expected, rtol=1e-10, atol=0)
    assert torch.allclose(norms, norms[-1]) == kept


# --- starts and errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 5, 8])
@pytest.mark.parametrize("name", STARTS)
def test_every_start_is_orthogonal_and_repeats(name: str, dim: int) -> None:
    start = start_of(name, dim, 3)
    assert start.shape == (dim, dim)
    assert float(orthogonality_error(start)) < 1e-12
    assert torch.equal(start, start_of(name, dim, 3))
    assert (name == "identity") == torch.equal(start, start_of(name, dim, 4))


def test_rotations_act_on_pairs() -> None:
    start = start_of("rotations", 5)
    assert (start != 0).sum() == 2 * 4 + 1
    assert float(torch.linalg.det(start)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"start": "zero"}, "start='zero' is not known"), ({"cell": "lstm"}, "cell 'lstm' is not known")],
    ids=["start", "cell"],
)
def test_unknown_names_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        net(**changes)


@EVERY_CELL
@pytest.mark.parametrize("option", ["dytpe", "init"])
def test_unknown_options_are_refused(cell: str, option: str) -> None:
    with pytest.raises(OptionError, match=rf"^recurrent_net with cell '{cell}' has no option '{option}'.*it knows"):
        net(cell, **{option: torch.float64})


@EVERY_CELL
def test_the_same_seed_gives_the_same_network(cell: str) -> None:
    one, same, other = (net(cell, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.write, same.write)
    assert torch.equal(one.layer.weight, same.layer.weight)
    assert not torch.equal(one.write, other.write)
