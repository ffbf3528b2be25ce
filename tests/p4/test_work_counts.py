"""What is computed: no d x d temporary, and nothing of cost d^3, in a training step or a merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from p4.dense_twin import amid_training, perturb
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from p4lab.p4 import P4Inv, P4Relative

D, BATCH = 192, 16  # wider than the blocks in which a merge converts A to float64
FACTORIZATIONS = ("lu", "inv", "solve", "det", "qr", "svd", "eig", "cholesky")
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")


class Recorder(TorchDispatchMode):
    """Notes each operation with the tensors that went in and those that came out in memory of their own."""

    def __init__(self, storages: Iterator[Tensor]) -> None:
        super().__init__()
        self.storages = {t.untyped_storage().data_ptr() for t in storages}
        self.operations: list[tuple[str, list[Tensor], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        storages = self.storages | {t.untyped_storage().data_ptr() for t in inputs}
        outputs = [
            t for t in tree_leaves(result) if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in storages
        ]
        self.operations.append((func._schema.name.removeprefix("aten::"), inputs, outputs))
        return result

    @property
    def temporaries(self) -> list[str]:
        return [name for name, _, outputs in self.operations if any(t.numel() >= D * D for t in outputs)]

    @property
    def cubic(self) -> list[str]:
        """Factorizations that see a d x d matrix, and products of two of them."""
        return [
            name
            for name, inputs, _ in self.operations
            if (any(f in name for f in FACTORIZATIONS) and any(t.numel() >= D * D for t in inputs))
            or (name in PRODUCTS and sum(t.numel() >= D * D for t in inputs[-2:]) == 2)
        ]

    @property
    def touching(self) -> list[str]:
        return [name for name, inputs, _ in self.operations if any(t.numel() >= D * D for t in inputs)]


def record(layer: nn.Module, work: Callable[[], object]) -> Recorder:
    with Recorder(iter([*layer.parameters(), *layer.buffers()])) as recorder:
        work()
    assert recorder.operations
    return recorder


train_v = pytest.mark.parametrize("train_v", [False, True], ids=["v-fixed", "v-trained"])
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])
ranks = pytest.mark.parametrize("rank", [1, 2, 8], ids="k{}".format)


def step(layer: P4Inv, direction: str, batch: tuple[int, ...]) -> Callable[[], None]:
    x = torch.randn(*batch, D, requires_grad=True)

    def work() -> None:
        output = layer(x) if direction == "forward" else layer.inverse(x)
        (output.square().mean() - layer.logabsdet() + layer.penalty()).backward()

    return work


steps = pytest.mark.parametrize("direction", ["forward", "inverse"])
batches = pytest.mark.parametrize("batch", [(BATCH,), (2, BATCH // 2), ()], ids=["matrix", "stack", "vector"])


@steps
@batches
@train_v
@resets
@ranks
def test_a_step_makes_no_d_x_d_temporary(
    rank: int, reset: str, train_v: bool, batch: tuple[int, ...], direction: str
) -> None:
    layer = amid_training(D, rank, dtype=torch.float32, train_v=train_v, reset=reset)
    assert not record(layer, step(layer, direction, batch)).temporaries


@steps
@train_v
@resets
@ranks
def test_a_step_does_nothing_cubic(rank: int, reset: str, train_v: bool, direction: str) -> None:
    layer = amid_training(D, rank, dtype=torch.float32, train_v=train_v, reset=reset)
    assert not record(layer, step(layer, direction, (BATCH,))).cubic


@train_v
@resets
@ranks
@pytest.mark.parametrize("verdict", ["merged", "skipped", "discarded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_merge_is_in_place_and_quadratic(
    dtype: torch.dtype, verdict: str, rank: int, reset: str, train_v: bool
) -> None:
    layer = amid_training(D, rank, dtype=dtype, train_v=train_v, reset=reset)
    layer(torch.randn(BATCH, D, dtype=dtype)).square().sum().backward()
    if verdict != "merged":
        too_large = 1e8 if dtype == torch.float32 else 1e16
        perturb(layer, torch.full((rank, D), torch.nan if verdict == "discarded" else too_large))
    addresses = layer.frozen_weight.data_ptr(), layer.frozen_inverse.data_ptr()
    reports = []
    recorder = record(layer, lambda: reports.append(layer.merge()))
    assert verdict in reports[0].status.name.lower()
    assert not recorder.temporaries
    assert not recorder.cubic
    assert addresses == (layer.frozen_weight.data_ptr(), layer.frozen_inverse.data_ptr())


@pytest.mark.parametrize("figure", ["logabsdet", "sign", "penalty"])
@ranks
def test_the_determinant_touches_no_d_x_d_tensor_when_v_is_fixed(rank: int, figure: str) -> None:
    layer = amid_training(D, rank, dtype=torch.float32)
    assert not record(layer, lambda: getattr(layer, figure)()).touching


@ranks
def test_its_gradient_touches_none_either(rank: int) -> None:
    layer = amid_training(D, rank, dtype=torch.float32)
    assert not record(layer, lambda: (layer.logabsdet() + layer.penalty()).backward()).touching


@ranks
def test_with_trained_v_the_determinant_is_quadratic(rank: int) -> None:
    layer = amid_training(D, rank, dtype=torch.float32, train_v=True)
    recorder = record(layer, lambda: layer.logabsdet().backward())
    assert recorder.touching
    assert not recorder.temporaries
    assert not recorder.cubic


@pytest.mark.parametrize(
    ("figure", "work"),
    [
        pytest.param("temporaries", lambda m: m(torch.randn(BATCH, D)).sum().backward(), id="weight-gradient"),
        pytest.param("cubic", lambda m: torch.linalg.slogdet(m.weight), id="slogdet"),
        pytest.param("cubic", lambda m: m.weight @ m.weight, id="product"),
        pytest.param("cubic", lambda m: torch.linalg.solve(m.weight, torch.ones(D)), id="solve"),
        pytest.param("touching", lambda m: m.weight.sum(), id="sum"),
    ],
)
def test_the_recorder_finds_what_it_looks_for(figure: str, work: Callable[[nn.Module], object]) -> None:
    linear = nn.Linear(D, D)
    assert getattr(record(linear, lambda: work(linear)), figure)


@steps
@pytest.mark.parametrize("tracked", [True, False], ids=["tracked", "stale"])
@pytest.mark.parametrize("turned", ["kept", "dropped"])
def test_the_whole_gradient_of_a_batch_costs_no_more(direction: str, tracked: bool, turned: str) -> None:
    """A training step and its merge: d x b products with A, and with its inverse if that was asked for."""
    layer = P4Relative(D, rank=2 * BATCH, init="orthogonal", seed=0)
    if not tracked and direction == "forward":
        layer.track_for = -1
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01 if turned == "kept" else 1e30)
    x, reports = torch.randn(BATCH, D, requires_grad=True), []

    def work() -> None:
        output = layer(x) if direction == "forward" else layer.inverse(x)
        (output.square().mean() - layer.logabsdet()).backward()
        optimizer.step()
        reports.append(layer.merge())

    recorder = record(layer, work)
    assert reports[0].merged == (turned == "kept")
    assert not recorder.temporaries
    assert not recorder.cubic
    products = [
        name for name, inputs, _ in recorder.operations if name in PRODUCTS and any(t.numel() >= D * D for t in inputs)
    ]
    assert len(products) == (6 if layer.track_for >= 0 else 4)
