"""Models of other people, with P4 layers put into them and taken out again."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from p4.dense_twin import assert_bitwise, state_of
from p4.interrupts import interrupted_at
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

from p4lab import RELATIVE, AveragedWeights, Conversion, MergeSchedule, P4Inv, convert, flows, fold
from p4lab.errors import DeviceError, DtypeError, OptionError, P4Error, ReplicaError, ShapeError, SingularMatrixError
from p4lab.linalg import orthogonality_error
from p4lab.p4 import (
    FAMILIES,
    Changes,
    P4Linear,
    P4Lipschitz,
    P4Orthogonal,
    P4PositiveDefinite,
    P4Reflections,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
    p4_modules,
)


class ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.shortcut = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu()) + self.shortcut(x)


class OwnForward(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (self.weight > 0))


class WithMore(nn.Linear):
    """Starts as W x + b, and does not stay so."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__(dim_in, dim_out)
        self.more = nn.Parameter(torch.zeros(dim_out, dim_in))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x, self.more)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class DropConnect(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, training=self.training), self.bias)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4))


def encoder() -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def nice() -> nn.Module:
    import zuko

    return zuko.flows.NICE(4, 2, transforms=2, hidden_features=(8, 8))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    run: Callable[[Any, Tensor], Tensor] = lambda model, x: model(x)
    loss: Callable[[Tensor], Tensor] = lambda y: (y - 1).square().mean()

    def start(self) -> tuple[nn.Module, Tensor, Tensor]:
        model, x = self.make().eval(), torch.randn(self.shape)
        return model, x, self.run(model, x).detach()


CASES = (
    Case("mlp", mlp, (8, 6)),
    Case("residual block", ResidualBlock, (3, 4, 5, 5)),
    Case("lstm", lambda: nn.LSTM(3, 6, 2, bidirectional=True), (5, 4, 3), lambda model, x: model(x)[0]),
    Case("attention", lambda: nn.MultiheadAttention(8, 2, kdim=8), (5, 4, 8), lambda model, x: model(x, x, x)[0]),
    Case("encoder", encoder, (3, 5, 8)),
    Case("flow", nice, (9, 4), lambda model, x: model(x[:, :2]).log_prob(x), lambda y: -y.mean()),
)
every_case = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def train(case: Case, model: nn.Module, x: Tensor, steps: int = 20) -> MergeSchedule:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    merges = MergeSchedule(model, optimizer, every=6)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = case.loss(case.run(model.train(), x))
        loss.backward()
        optimizer.step()
        merges.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    return merges


@every_case
def test_its_function_stays_in_conversion_merges_and_folding(case: Case) -> None:
    model, x, before = case.start()
    plain = copy.deepcopy(model)
    report = convert(model, "spectrum", seed=0)
    assert all(weight.kept for weight in report.weights)
    assert report.left == ()
    close(case.run(model, x), before)
    merges = train(case, model, x)
    trained = case.run(model, x)
    assert (trained - before).abs().max() > 0.01
    assert all(layer.batch is not None for layer in p4_modules(model))
    assert all(merges.merge())
    close(case.run(model, x), trained)
    folded = fold(model)
    close(case.run(folded, x), trained)
    assert list(folded.state_dict()) == list(plain.state_dict())
    for module, twin in zip(folded.modules(), plain.modules(), strict=True):
        assert (type(module), vars(module).keys()) == (type(twin), vars(twin).keys())
        assert list(module._parameters) == list(twin._parameters)
    fresh = case.make().eval()
    fresh.load_state_dict(folded.state_dict())
    close(case.run(fresh, x), trained)


@every_case
def test_it_is_saved_and_loaded_and_copied(case: Case) -> None:
    model, x, _ = case.start()
    convert(model, "orthogonal", seed=0)
    train(case, model, x)
    other = case.make().eval()
    convert(other, "orthogonal", seed=1)
    other.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (other, torch.load(file, weights_only=False), copy.deepcopy(model)):
        assert torch.equal(case.run(twin, x), case.run(model, x))
        assert_bitwise(state_of(twin), state_of(model))


@every_case
def test_the_property_holds_whatever_is_trained(case: Case) -> None:
    model, x, _ = case.start()
    report = convert(model, "orthogonal", seed=0)
    assert not any(weight.kept for weight in report.weights)
    train(case, model, x)
    weights = fold(model).state_dict()
    for converted in report.weights:
        weight = weights[converted.name if converted.name in weights else f"{converted.name}.weight"].flatten(1)
        for matrix in weight.chunk(len(converted.layers)):
            assert orthogonality_error(matrix if len(matrix) >= len(matrix.t()) else matrix.t()) < 1e-5


def test_weights_that_have_the_property_are_kept() -> None:
    model = nn.LSTM(6, 6)
    for block in (*model.weight_ih_l0.chunk(4), *model.weight_hh_l0.chunk(4)):
        nn.init.orthogonal_(block.detach())
    x = torch.randn(5, 2, 6)
    before = model(x)[0]
    report = convert(model, "orthogonal", seed=0)
    assert [(weight.name, weight.kept) for weight in report.weights] == [("weight_ih_l0", True), ("weight_hh_l0", True)]
    close(model(x)[0], before)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("property", ["orthogonal", "lipschitz", "spectrum"])
def test_the_fast_path_of_a_transformer_agrees(property: str) -> None:
    model, x = encoder(), torch.randn(3, 5, 8)
    convert(model, property, seed=0)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [4]])
    for mask in (None, padding):
        trained = model.train()(x, src_key_padding_mask=mask)
        slow = model.eval()(x, src_key_padding_mask=mask)
        with torch.no_grad():
            fast = model(x, src_key_padding_mask=mask)
        kept = ~padding if mask is not None else slice(None)
        close(slow, trained)
        close(fast[kept], slow[kept])


KINDS = (P4Inv, P4Orthogonal, P4Reflections, P4SpecialLinear, P4PositiveDefinite, P4Lipschitz, P4Stiefel, P4Spectrum)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_weight_that_is_read_tells_of_its_gradient_as_a_batch_does(kind: type[P4Linear]) -> None:
    dims = (4, 5) if kind in (P4Lipschitz, P4Stiefel, P4Spectrum) else (5,)
    layer = kind(*dims, rank=2, reset="gradient", seed=0, dtype=torch.float64)
    nn.init.normal_(layer.u, std=0.3)
    nn.init.normal_(layer.bias)
    x, target = torch.randn(7, layer.dim_in, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    omega = torch.randn_like(layer.v)
    sketches = []
    for run in (layer, lambda x: F.linear(x, layer.watched_weight(), layer.bias)):
        (run(x) - target).square().sum().backward()
        sketches.append(layer.sketch(omega, layer.batch, Changes()))
    torch.testing.assert_close(*sketches)


def test_a_compiled_model_computes_the_same() -> None:
    torch.compiler.reset()
    model, x = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), torch.randn(2, 4, 3, 3)
    convert(model, "invertible", seed=0)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    close(compiled(x), model(x))
    (layer,) = p4_modules(model)
    layer.reset()
    compiled(x).square().sum().backward()
    assert layer.u.grad.any()
    assert layer.batch is None  # there is no room for all columns of W, and some would be wrong
    assert layer.merge()


@pytest.mark.parametrize("name", FAMILIES)
def test_one_call_from_a_linear_layer_and_one_back(name: str) -> None:
    kind, linear = FAMILIES[name].kind, nn.Linear(5, 5, dtype=torch.float64).eval()
    linear.weight.requires_grad_(False)
    layer = kind.of(linear)
    assert [p.requires_grad for p in layer.perturbation()] == [False]
    assert layer.violation() < 1e-9
    x = torch.randn(3, 5, dtype=torch.float64)
    back = layer.fold()
    assert (type(back), back.training, back.weight.requires_grad, back.bias.requires_grad) == (
        nn.Linear,
        False,
        False,
        True,
    )
    torch.testing.assert_close(back(x), layer(x))
    again = kind.of(back)  # which has the property
    torch.testing.assert_close(again(x), layer(x))
    if name != "circulant":  # whose bias is one number
        assert torch.equal(back.bias, linear.bias)


def test_matrices_that_are_nearly_singular_have_a_nearest_orthogonal_one() -> None:
    linear = nn.Linear(3, 3, bias=False)
    q = nn.init.orthogonal_(torch.empty(3, 3))
    linear.weight.data = q * torch.tensor([1.0, 0.1, 1e-5])
    close(P4Orthogonal.of(linear).weight, q)
    close(P4Stiefel.of(linear.weight[:, :2]).weight, q[:, :2])


def test_what_is_shared_hooked_frozen_and_referred_to_stays_so() -> None:
    shared = nn.Linear(4, 4).double().requires_grad_(False)
    shared.note, bias, calls = "mine", shared.bias, []
    handle = shared.register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    convert(model, "invertible", seed=0)
    layer = model[0]
    assert (layer, layer.note, layer.in_features) == (model[2][0], "mine", 4)
    assert layer.bias is bias
    assert not any(p.requires_grad for p in model.parameters())
    model(torch.randn(2, 4, dtype=torch.float64))
    assert len(calls) == 2
    folded = fold(model)
    assert folded[0] is folded[2][0]
    assert not any(p.requires_grad for p in folded.parameters())
    folded(torch.randn(2, 4, dtype=torch.float64))
    assert len(calls) == 4
    handle.remove()
    model(torch.randn(2, 4, dtype=torch.float64))
    assert len(calls) == 4


def test_a_flow_that_folds_itself_folds_what_was_converted() -> None:
    flow = flows.realnvp(dim=2, blocks=2, mixing="p4inv")
    x = torch.randn(5, 2)
    before = flow.log_prob(x)
    report = convert(flow, "spectrum", seed=0)
    assert any("init is zero" in left.reason for left in report.left)
    close(flow.log_prob(x), before)
    folded = fold(flow)
    assert not p4_modules(folded)
    close(folded.log_prob(x), before)


def test_targets_are_paths_weights_patterns_types_and_functions() -> None:
    def names(model: nn.Module, property: Any, targets: Any, **options: Any) -> list[str]:
        return [weight.name for weight in convert(model, property, targets, seed=0, **options).weights]

    assert names(encoder(), "spectrum", "*.linear1") == ["layers.0.linear1", "layers.1.linear1"]
    assert names(nn.LSTM(6, 6, 2), "orthogonal", "weight_hh_*") == ["weight_hh_l0", "weight_hh_l1"]
    assert names(nn.MultiheadAttention(4, 2), "orthogonal", nn.MultiheadAttention) == [
        "in_proj_weight",
        "out_proj.weight",
    ]
    assert names(mlp(), "invertible", lambda path, module: getattr(module, "out_features", 0) == 6) == ["0"]
    assert names(mlp(), P4Spectrum, ["2", nn.Conv2d, "0"][::2], rank=1) == ["0", "2"]
    assert names(mlp(), RELATIVE, None) == ["0"]
    model = mlp()
    assert names(model, "spectrum", model[2]) == ["2"]
    model = nn.LSTM(6, 6)
    names(model, "orthogonal", "weight_hh_l0")
    names(model, "lipschitz", "weight_ih_l0", bound=0.5)
    kinds = {P4Orthogonal, P4Lipschitz}
    assert {type(layer) for layer in p4_modules(model)} == kinds
    assert list(fold(model).state_dict()) == list(nn.LSTM(6, 6).state_dict())


def test_what_cannot_take_part_is_left_and_told_of() -> None:
    model = nn.Sequential(nn.Embedding(3, 6), nn.Linear(6, 6), OwnForward(6, 6), nn.Linear(6, 3), nn.LayerNorm(3))
    report = convert(model, "volume", seed=0)
    assert [weight.name for weight in report.weights] == ["1"]
    assert [left.name for left in report.left] == ["0", "2", "3.weight"]
    assert "3.weight is left: the weight has shape (3, 6)" in repr(report)
    assert "1       Linear  6 x 6  P4SpecialLinear, rank 3" in repr(report)
    report = convert(nn.Sequential(OwnForward(6, 6), nn.Linear(6, 3)), "spectrum", nn.Linear, seed=0)
    assert [left.name for left in report.left] == ["0"]


def spoiled(spoil: Callable[[nn.Sequential], object]) -> nn.Sequential:
    model = mlp()
    spoil(model)
    return model


def wrapped() -> nn.Module:
    """As DistributedDataParallel wraps a model, without the process group that it wants."""
    model = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(model)
    model.module = mlp()
    return model


@torch.inference_mode()
def made_for_inference() -> nn.Module:
    return mlp()


def tie(model: nn.Sequential) -> None:
    model.append(nn.Linear(6, 6))
    model[3].weight = model[0].weight


ERRORS = {
    "property": (mlp, "orthogonall", None, {}, OptionError, "'orthogonall' is not known: choose one of 'invertible'"),
    "option": (mlp, "invertible", None, {"rnk": 2}, OptionError, "did you mean 'rank'"),
    "value": (mlp, "invertible", "0", {"rank": 0}, OptionError, "0.weight: rank=0"),
    "no such name": (mlp, "invertible", "1.0", {}, OptionError, "'1.0' means nothing .* '0', '0.weight'"),
    "no weights": (mlp, "invertible", "1", {}, OptionError, "'1' cannot be converted: Tanh has no weight"),
    "no such type": (mlp, "invertible", nn.LSTM, {}, OptionError, "means nothing"),
    "shape": (mlp, "invertible", nn.Linear, {}, ShapeError, r"2.weight: .* \(4, 6\): P4Inv needs a square"),
    "bare": (lambda: nn.Linear(2, 2), "orthogonal", None, {}, OptionError, r"P4Orthogonal.of\(linear\)"),
    "half": (lambda: mlp().half(), "orthogonal", "0", {}, DtypeError, "0.weight: .*float16"),
    "all twice": (
        lambda: spoiled(lambda model: convert(model, "spectrum")),
        "spectrum",
        None,
        {},
        OptionError,
        "nothing in Sequential can be converted: its matrices are P4 layers already",
    ),
    "none": (lambda: nn.Sequential(nn.ReLU()), "orthogonal", None, {}, OptionError, "no matrices, or no targets"),
    "meta": (lambda: mlp().to("meta"), "orthogonal", "0", {}, DeviceError, "0.weight: .*meta"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(3, 1)), "spectrum", "0", {}, OptionError, "0.weight: .* run a batch"),
    "tied": (lambda: spoiled(tie), "orthogonal", "0", {}, OptionError, "0.weight and 3.weight are one Parameter"),
    "weight_norm": (
        lambda: spoiled(lambda model: parametrizations.weight_norm(model[0])),
        "orthogonal",
        "0",
        {},
        OptionError,
        "0.weight: .*remove_parametrizations",
    ),
    "singular": (
        lambda: spoiled(lambda model: nn.init.ones_(model[0].weight)),
        "orthogonal",
        "0",
        {},
        SingularMatrixError,
        "0.weight: no orthogonal matrix is nearest",
    ),
    "not finite": (
        lambda: spoiled(lambda model: nn.init.constant_(model[0].weight, torch.nan)),
        "lipschitz",
        "0",
        {},
        SingularMatrixError,
        "0.weight: .* NaN",
    ),
    "masked": (lambda: nn.Sequential(OwnForward(2, 2)), "orthogonal", "0", {}, OptionError, "'0' .* may mask"),
    "masked weight": (lambda: nn.Sequential(OwnForward(2, 2)), "orthogonal", "0.weight", {}, OptionError, "may mask"),
    "standardized": (lambda: nn.Sequential(Standardized(2, 2, 3)), "spectrum", "0", {}, OptionError, "of its own"),
    "dropped": (lambda: nn.Sequential(DropConnect(9, 9)).eval(), "spectrum", "0", {}, OptionError, "may mask"),
    "in a list": (
        lambda: spoiled(lambda model: setattr(model, "steps", [model[0]])),
        "spectrum",
        "0",
        {},
        OptionError,
        r"'0' cannot be converted: it is also in steps\[0\], .* nn.ModuleList",
    ),
    "weight in a list": (
        lambda: spoiled(lambda model: setattr(model[1], "groups", [{"params": [model[0].weight]}])),
        "spectrum",
        "0.weight",
        {},
        OptionError,
        r"'0.weight' .* its weight is also in 1.groups\[0\]\['params'\]\[0\]",
    ),
    "made for inference": (made_for_inference, "spectrum", "0", {}, OptionError, "0.weight: .*never train"),
    "lora": (lambda: nn.Sequential(WithMore(2, 2)), "orthogonal", "0", {}, OptionError, "more in it than a weight"),
    "wrapped": (wrapped, "orthogonal", None, {}, OptionError, "convert the model before"),
    "embedding": (lambda: nn.Sequential(nn.Embedding(2, 2)), "orthogonal", None, {}, OptionError, "Embedding"),
    "bilinear": (lambda: nn.Sequential(nn.Bilinear(2, 2, 2)), "orthogonal", "0", {}, OptionError, "no weight of its"),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), "spectrum", "0", {}, OptionError, "depthwise"),
    "rows": (lambda: nn.GRU(2, 130), RELATIVE, "weight_hh_l0", {}, OptionError, "weight_hh_l0: .* rank=dim"),
    "twice": (
        lambda: spoiled(lambda model: convert(model, "spectrum")),
        "spectrum",
        "0",
        {},
        OptionError,
        "'0' cannot be converted: it is a P4Spectrum already",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_names_what_and_where_and_changes_nothing(name: str) -> None:
    make, property, targets, options, error, text = ERRORS[name]
    model = make()
    modules = list(model.modules())
    with pytest.raises(error, match=text) as caught:
        convert(model, property, targets, **options)
    assert isinstance(caught.value, P4Error)
    assert list(model.modules()) == modules


def test_computed_weights_cannot_be_set() -> None:
    model = nn.LSTM(4, 4)
    convert(model, "orthogonal", "weight_hh_l0", seed=0)
    with pytest.raises(OptionError, match=r"LSTM.weight_hh_l0 .* start_at\(weight\)"):
        model.weight_hh_l0 = nn.Parameter(torch.zeros(16, 4))


def test_an_interrupt_leaves_a_model_before_or_after() -> None:
    x, seen = torch.randn(2, 3, 6), set()
    for moment in range(1, 10_000, 61):
        model = nn.Sequential(nn.LSTM(6, 6))
        model.append(nn.Linear(6, 6))
        before, keys = model[1](model[0](x)[0]), list(model.state_dict())
        struck = interrupted_at(moment, lambda model=model: convert(model, "spectrum", seed=0))
        close(model[1](model[0](x)[0]), before)
        converted = list(model.state_dict()) != keys
        assert len(p4_modules(model)) == (9 if converted else 0)
        seen.add((bool(struck), converted))
        if not struck:
            break
    assert (True, False) in seen
    assert not struck


def of_conv() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 2, 1))
    convert(model, "spectrum", seed=0)
    return model


WITHOUT_GRADIENTS = {
    "commit": (Changes, Changes.commit),
    "fold": (lambda: P4Spectrum(2, 2), fold),
    "fold what was converted": (of_conv, fold),
    "of": (lambda: nn.Linear(2, 2), P4Spectrum.of),
}


@pytest.mark.parametrize("name", WITHOUT_GRADIENTS)
def test_an_interrupt_leaves_gradients_on(name: str) -> None:
    make, function = WITHOUT_GRADIENTS[name]
    start, modes = make(), []

    def run() -> None:
        try:
            function(start)
        finally:
            modes.append(torch.is_grad_enabled())

    while interrupted_at(len(modes) + 1, run):
        pass
    assert len(modes) > 5
    assert all(modes)


def test_an_interrupt_leaves_no_weight_of_a_pass_behind() -> None:
    model, x = of_conv(), torch.randn(3, 2, 4)
    (layer,) = p4_modules(model)
    for moment in range(1, 1000):
        struck = interrupted_at(moment, lambda: model(x))
        nn.init.normal_(layer.u)
        assert torch.equal(model[0].weight[..., 0], layer.weight)
        if not struck:
            break
    assert moment > 10
    assert not struck


def test_threads_that_share_a_module_make_weights_of_their_own() -> None:
    model, x = nn.LSTM(4, 4, 2), torch.randn(3, 2, 4)
    convert(model, "orthogonal", seed=0)
    amid, done = threading.Event(), threading.Event()

    @torch.no_grad()
    def serve() -> None:
        model(x)

    server = threading.Thread(target=serve)

    def first(*_: object) -> None:
        if torch.is_grad_enabled():
            server.start()
            assert amid.wait(60)

    def last(*_: object) -> None:
        if not torch.is_grad_enabled():
            amid.set()
            assert done.wait(60)

    model.p4["weight_ih_l0"].register_forward_hook(first)
    model.p4["weight_hh_l1"].register_forward_hook(last)
    y = model(x)[0]  # begins before, and ends while, the other thread is amid its pass
    done.set()
    server.join()
    y.square().sum().backward()
    assert all(layer.u.grad is not None for layer in p4_modules(model))


def test_what_is_converted_for_inference_trains() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1)), nn.Conv1d(4, 4, 1)), torch.randn(2, 4)
    with torch.inference_mode():
        convert(model, "spectrum", seed=0)
    model(x).square().sum().backward()
    assert all(layer.u.grad.any() and layer.merge() for layer in p4_modules(model))


def test_what_stands_where_torch_does_not_look_is_left() -> None:
    model = mlp()
    model.first = model[0].forward
    for pattern in ("*.weight", "*"):
        report = convert(nn.ModuleDict({"m": copy.deepcopy(model)}), "spectrum", pattern, seed=0)
        assert [weight.name for weight in report.weights] == ["m.2"]
        assert "m.0 is left: Linear: it is also in m.first, where" in repr(report)
    conv = nn.Sequential(nn.Conv1d(2, 2, 1))
    conv.steps = [conv[0]]  # which stays itself
    assert convert(conv, "spectrum", seed=0).left == ()


def test_threads_of_data_parallel_are_refused() -> None:
    with pytest.raises(ReplicaError, match=r"throws its replicas away, .* P4Inv remembers .* DistributedDataParallel"):
        P4Inv(2)._replicate_for_data_parallel()  # as nn.DataParallel does, given two devices


def test_averages_and_functional_calls_work() -> None:
    case = CASES[2]
    model, x, _ = case.start()
    convert(model, "orthogonal", "weight_hh_*", seed=0)
    average = AveragedWeights(model)
    train(case, model, x)
    average.update()
    close(case.run(average.model(), x), case.run(model, x))
    parameters = {name: 2 * p.detach() for name, p in model.named_parameters()}
    moved = functional_call(model, parameters, (x,))[0]
    model.load_state_dict(parameters, strict=False)
    close(moved, case.run(model, x))


def test_a_report_is_a_value() -> None:
    report = convert(mlp(), "lipschitz", seed=0, bound=0.25)
    assert isinstance(report, Conversion)
    first = report.weights[0]
    assert (first.name, first.kind, first.shape, first.kept) == ("0", "Linear", (6, 6), False)
    assert 0 < first.moved < 1
    assert 0 < first.relative < 1
