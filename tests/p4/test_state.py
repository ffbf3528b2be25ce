"""State: modes, copies, saving, casting and generators change nothing that they should not."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from p4.dense_twin import amid_training, assert_bitwise, state_of

from p4lab.errors import DtypeError
from p4lab.p4 import MergeSchedule, P4Inv, fold

train_v = pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])
STEPS = 40


class Run:
    """A whole training run, whose every later bit follows from its state."""

    def __init__(self, reset: str, train_v: bool, seed: int) -> None:
        torch.manual_seed(seed)
        layers = [P4Inv(5, rank=2, init="orthogonal", reset=reset, train_v=train_v, seed=seed + i) for i in range(2)]
        self.model: torch.nn.Module = torch.nn.Sequential(layers[0], torch.nn.Tanh(), layers[1], torch.nn.Linear(5, 5))
        self.attach(self.model)

    def attach(self, model: torch.nn.Module) -> None:
        """Take over a model, with a new optimizer and schedules for it."""
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        self.rates = torch.optim.lr_scheduler.StepLR(self.optimizer, 7, gamma=0.8)
        self.merges = MergeSchedule(model, self.optimizer, every=3, refine_every=4)
        self.parts = {"model": model, "optimizer": self.optimizer, "rates": self.rates, "merges": self.merges}

    def train(self, start: int, stop: int) -> Run:
        for step in range(start, stop):
            x, y = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            loss = (self.model(x) - y).square().mean() - 0.01 * self.model[0].logabsdet()
            loss.backward()
            self.optimizer.step()
            self.rates.step()
            self.merges.step()
        return self

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> Run:
        state = torch.load(file, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return self


@pytest.mark.parametrize("at", [0, 1, 8, 9, 10, 12], ids="step{}".format)
@train_v
@resets
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(reset: str, train_v: bool, at: int) -> None:
    uninterrupted = Run(reset, train_v, seed=0).train(0, STEPS)
    file = Run(reset, train_v, seed=0).train(0, at).save()
    resumed = Run(reset, train_v, seed=100).load(file).train(at, STEPS)
    assert_bitwise(state_of(resumed.model), state_of(uninterrupted.model))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@train_v
@resets
def test_a_copied_run_is_bitwise_the_original(how: Callable, reset: str, train_v: bool) -> None:
    original = Run(reset, train_v, seed=0).train(0, 10)
    copied = Run(reset, train_v, seed=100)
    states = {name: copy.deepcopy(part.state_dict()) for name, part in original.parts.items() if name != "model"}
    copied.attach(how(original.model))
    for name, state in states.items():
        copied.parts[name].load_state_dict(state)
    copied.train(10, STEPS)
    untouched = state_of(original.model)
    assert_bitwise(state_of(copied.model), state_of(original.train(10, STEPS).model))
    assert any(not torch.equal(untouched[name], t) for name, t in state_of(original.model).items())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_between_backward_and_merge_takes_the_batch_along(how: Callable) -> None:
    layer = amid_training(6, 2, reset="gradient")
    layer(torch.randn(5, 6, dtype=torch.float64)).square().sum().backward()
    twin = how(layer)
    layer.merge()
    twin.merge()
    assert_bitwise(state_of(twin), state_of(layer))


@train_v
@resets
def test_switching_modes_changes_nothing(reset: str, train_v: bool) -> None:
    layer = amid_training(6, 2, reset=reset, train_v=train_v)
    before = state_of(layer)
    for mode in (False, True, True, False, True):
        layer.train(mode)
        layer(torch.randn(2, 6, dtype=torch.float64))
    assert_bitwise(state_of(layer), before)


@train_v
def test_eval_uses_the_perturbed_weights(train_v: bool) -> None:
    layer = amid_training(6, 2, train_v=train_v)
    x = torch.randn(4, 6, dtype=torch.float64)
    trained, unperturbed = layer(x), x @ layer.frozen_weight.T + layer.bias
    assert torch.equal(layer.eval()(x), trained)
    assert not torch.isclose(trained, unperturbed).any()


@pytest.mark.parametrize(
    ("cast", "dtype", "widened"),
    [
        pytest.param(lambda m: m.double(), torch.float64, True, id="double"),
        pytest.param(lambda m: m.float(), torch.float32, False, id="float"),
        pytest.param(lambda m: m.to(torch.float64), torch.float64, True, id="to-dtype"),
        pytest.param(lambda m: m.to("cpu"), torch.float32, False, id="to-device"),
        pytest.param(lambda m: m.double().float(), torch.float32, True, id="there-and-back"),
    ],
)
@resets
def test_casts_keep_logabsdet_in_float64(cast: Callable, dtype: torch.dtype, widened: bool, reset: str) -> None:
    layer = amid_training(6, 2, dtype=torch.float32, reset=reset)
    layer.frozen_logabsdet.add_(torch.pi / 1e9)  # digits that float32 has no room for
    before = layer.frozen_logabsdet.clone()
    layer(torch.randn(3, 6)).sum().backward()
    layer = cast(layer)
    assert layer.weight.dtype == layer(torch.randn(3, 6, dtype=dtype)).dtype == dtype
    assert layer.frozen_logabsdet.dtype == torch.float64
    expected = torch.linalg.slogdet(layer.frozen_weight.double()).logabsdet if widened else before
    torch.testing.assert_close(layer.frozen_logabsdet, expected, rtol=0, atol=1e-14)
    assert layer.merge().merged


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_a_refused_cast_leaves_the_layer_usable(cast: str) -> None:
    layer = amid_training(6, 2, dtype=torch.float32)
    before = state_of(layer)
    with pytest.raises(DtypeError, match=r"cannot be cast to torch\.(b?float16).*float32 or float64; use autocast"):
        getattr(layer, cast)()
    assert_bitwise(state_of(layer), before)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer.inverse(layer(x)), x, rtol=0, atol=1e-4)


@resets
@pytest.mark.parametrize("init", ["permutation", "orthogonal"])
def test_the_same_seed_draws_the_same(init: str, reset: str) -> None:
    a, b = (P4Inv(6, rank=2, init=init, reset=reset, seed=7) for _ in range(2))
    assert_bitwise(state_of(a), state_of(b))
    for layer in (a, b):
        layer.merge()
    assert_bitwise(state_of(a), state_of(b))


@resets
def test_a_seeded_layer_leaves_the_global_generator_alone(reset: str) -> None:
    before = torch.get_rng_state()
    layer = P4Inv(6, rank=2, init="orthogonal", reset=reset, seed=7)
    layer(torch.ones(3, 6)).sum().backward()
    layer.merge()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("source", ["global", "generator"])
def test_without_a_number_the_seed_comes_from_a_generator(source: str) -> None:
    def draw(seed: int) -> torch.Tensor:
        if source == "global":
            torch.manual_seed(seed)
            return P4Inv(6).v.clone()
        return P4Inv(6, seed=torch.Generator().manual_seed(seed)).v.clone()

    assert torch.equal(draw(1), draw(1))
    assert not torch.isclose(draw(1), draw(2)).any()


def test_layers_made_one_after_another_differ() -> None:
    assert not torch.isclose(P4Inv(6).v, P4Inv(6).v).any()


def test_the_callers_matrix_is_copied() -> None:
    init = torch.eye(6)
    layer = P4Inv(6, init=init, seed=0)
    init.zero_()
    assert torch.equal(layer.frozen_weight, torch.eye(6))
    layer.frozen_weight[0, 1] = 5
    assert torch.equal(layer.frozen_inverse, torch.eye(6))


def test_fold_is_an_ordinary_linear_layer() -> None:
    layer = amid_training(6, 2)
    linear = fold(layer)
    assert type(linear) is torch.nn.Linear
    assert torch.equal(linear.weight, layer.weight)
    assert linear.bias.data_ptr() != layer.bias.data_ptr()


def test_folding_a_model_keeps_shared_layers_shared_and_the_model_as_it_was() -> None:
    shared = amid_training(6, 2)
    model = torch.nn.Sequential(shared, torch.nn.Sequential(torch.nn.Tanh(), shared), amid_training(6))
    before, x = state_of(model), torch.randn(3, 6, dtype=torch.float64)
    folded = fold(model)
    assert not any(isinstance(m, P4Inv) for m in folded.modules())
    assert folded[0] is folded[1][1]
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert_bitwise(state_of(model), before)


def test_parameters_round_trip_through_a_vector() -> None:
    layer = amid_training(6, 2, train_v=True)
    before = state_of(layer)
    vector = torch.nn.utils.parameters_to_vector(layer.parameters())
    torch.nn.utils.vector_to_parameters(0 * vector, layer.parameters())
    assert not layer.u.any()
    torch.nn.utils.vector_to_parameters(vector, layer.parameters())
    assert_bitwise(state_of(layer), before)
