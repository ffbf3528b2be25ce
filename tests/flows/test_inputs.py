"""What is no tensor is refused by a named error that says what to do; what torch makes of tensors is let in."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flows.examples import ARCHITECTURES, amid_training
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from p4lab.boltzmann import steerable_flow
from p4lab.errors import DtypeError
from p4lab.flows import (
    ActNorm,
    AffineCoupling,
    BentIdentity,
    BentTransform,
    BijectionTransform,
    FoldedLinear,
    FromZuko,
    Permutation,
    Standardize,
    VolumePreservingCoupling,
    Whitening,
    bent,
    bent_inverse,
    spline_flow,
)
from p4lab.flows.torus import BesideAngles, TorusCoupling
from p4lab.p4 import P4Inv

ROWS = np.linspace(-1.0, 1.0, 24, dtype=np.float32).reshape(6, 4)
X = torch.from_numpy(ROWS)
OTHERS: dict[str, Any] = {
    "list": ROWS.tolist(),
    "numpy.ndarray": ROWS,
    "pandas.DataFrame": pd.DataFrame(ROWS),
    "NoneType": None,
}
others = pytest.mark.parametrize("kind", OTHERS)
LAYERS: dict[str, Callable[[], Any]] = {
    "Permutation": lambda: Permutation([2, 0, 1, 3]),
    "Standardize": lambda: Standardize(torch.zeros(4), torch.ones(4)),
    "Whitening": lambda: Whitening(torch.eye(4)),
    "FoldedLinear": lambda: FoldedLinear(torch.eye(4)),
    "ActNorm": lambda: ActNorm(4),
    "bent": BentIdentity,
    "bent_inverse": lambda: BentIdentity(inverted=True),
    "AffineCoupling": lambda: AffineCoupling(4, 8),
    "VolumePreservingCoupling": lambda: VolumePreservingCoupling(4, 8),
    "TorusCoupling": lambda: TorusCoupling(2, 2, 8),
    "BesideAngles": lambda: BesideAngles(P4Inv(2), 2),
    "spline": lambda: spline_flow(4, 1, hidden=8).layers[0],
    "FromZuko": lambda: FromZuko(torch.distributions.AffineTransform(1.0, 2.0)),
}
layers = pytest.mark.parametrize("name", LAYERS)
METHODS: dict[str, Callable[[Any, Any], Any]] = {
    "forward": lambda flow, x: flow(x),
    "log_prob": lambda flow, x: flow.log_prob(x),
    "inverse": lambda flow, x: flow.inverse(x),
    "inverse_with_logabsdet": lambda flow, x: flow.inverse_with_logabsdet(x),
    "to data": lambda flow, x: flow.stages(x),
    "to latent": lambda flow, x: flow.stages(x, "latent"),
}


def refusal(kind: str) -> Any:
    return pytest.raises(
        DtypeError, match=rf"got {kind.replace('.', '.*[.]')}, expected a torch.Tensor: convert it with"
    )


@others
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flows_refuse_what_is_no_tensor(name: str, method: str, kind: str) -> None:
    with refusal(kind):
        METHODS[method](flow_of(name), OTHERS[kind])


FLOWS: dict[str, nn.Module] = {}


def flow_of(name: str) -> nn.Module:
    return FLOWS.setdefault(name, amid_training(name, 4, torch.float32))


@others
@layers
def test_layers_refuse_what_is_no_tensor_in_both_directions(name: str, kind: str) -> None:
    layer = LAYERS[name]()
    with refusal(kind):
        layer(OTHERS[kind])
    with refusal(kind):
        layer.inverse(OTHERS[kind])


@others
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(bent, id="bent"),
        pytest.param(bent_inverse, id="bent_inverse"),
        pytest.param(Standardize.fit, id="Standardize.fit"),
        pytest.param(Whitening.fit, id="Whitening.fit"),
        pytest.param(lambda x: ActNorm(4).initialize(x), id="ActNorm.initialize"),
        pytest.param(FoldedLinear, id="weight"),
        pytest.param(lambda x: Standardize(x, torch.ones(4)), id="mean"),
        pytest.param(lambda x: Standardize(torch.ones(4), x), id="std"),
        pytest.param(BijectionTransform(Permutation([1, 0, 3, 2])).call_and_ladj, id="linear transform"),
        pytest.param(BijectionTransform(BentIdentity()).call_and_ladj, id="transform"),
        pytest.param(
            BijectionTransform(Permutation([1, 0, 3, 2]), inverted=True).call_and_ladj, id="inverse transform"
        ),
        pytest.param(lambda x: BijectionTransform(P4Inv(4)).log_abs_det_jacobian(x, x), id="log_abs_det_jacobian"),
        pytest.param(BentTransform().call_and_ladj, id="bent transform"),
        pytest.param(lambda x: steerable_flow(4, 1, 1, hidden=4).augment(x), id="augment"),
        pytest.param(lambda x: steerable_flow(3, 1, 1, hidden=4).log_prob(x), id="steerable log_prob"),
    ],
)
def test_functions_refuse_what_is_no_tensor(call: Callable[[Any], object], kind: str) -> None:
    with refusal(kind):
        call(OTHERS[kind])


@pytest.mark.parametrize("kind", ["list", "numpy.ndarray", "pandas.DataFrame"])
def test_the_advice_works(kind: str) -> None:
    flow, x = amid_training("realnvp-plu", 4, torch.float64), OTHERS[kind]
    with pytest.raises(DtypeError) as caught:
        flow.log_prob(x)
    (advice,) = re.findall(r"convert it with (.*)$", str(caught.value))
    converted = eval(advice, {"torch": torch, "x": x})
    torch.testing.assert_close(flow.log_prob(converted), flow.log_prob(X.double()))


# --- what torch makes of tensors --------------------------------------------------------------------------------------


def first(result: Any) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"spline"}))  # zuko picks coordinates by a mask
def test_tensors_of_transforms_are_let_in(name: str) -> None:
    layer = LAYERS[name]()
    rows = torch.func.vmap(lambda row: first(layer(row)))(X)
    torch.testing.assert_close(rows, first(layer(X)))
    torch.func.jacrev(lambda x: first(layer.inverse(x)))(X)


@pytest.mark.parametrize("name", sorted(LAYERS.keys() - {"spline", "FromZuko"}))  # zuko looks at values
def test_fake_tensors_are_let_in(name: str) -> None:
    layer, mode = LAYERS[name](), FakeTensorMode()
    state = {key: mode.from_tensor(t.detach()) for key, t in [*layer.named_parameters(), *layer.named_buffers()]}
    with mode:
        y = torch.func.functional_call(layer, state, (torch.empty(6, 4),))
    assert first(y).shape == (6, 4)


@pytest.mark.parametrize(
    "name", ["Permutation", "Standardize", "FoldedLinear", "bent", "AffineCoupling", "BesideAngles"]
)
def test_checks_compile_into_one_graph(name: str) -> None:
    layer = LAYERS[name]()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(first(compiled(X)), first(layer(X)))
