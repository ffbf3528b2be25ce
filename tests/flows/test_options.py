"""Builders of flows refuse options that nobody knows; mixings without parameters ignore those that others know."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from flows.examples import ARCHITECTURES, amid_training

from p4lab.baselines import SoftDeterminant
from p4lab.errors import OptionError
from p4lab.flows import MIXINGS, AffineCoupling, Flow, Permutation, coupling_flow, p4inv_bent, realnvp, spline_flow
from p4lab.flows.mixing import FIXED, mixing_options
from p4lab.p4 import P4Inv, P4Orthogonal

BUILDERS = {
    "realnvp": lambda **options: realnvp(4, 3, **options),
    "spline_flow": lambda **options: spline_flow(4, 3, **options),
    "coupling_flow": lambda **options: coupling_flow(4, 3, lambda g: AffineCoupling(4, 8, 1, g), **options),
    "p4inv_bent": lambda **options: p4inv_bent(4, 3, **options),
}
builders = pytest.mark.parametrize("name", BUILDERS)
mixings = pytest.mark.parametrize("mixing", MIXINGS)
IGNORED = sorted((mixing_options("swap") or set()) - {"dim", "seed", "preset", "device"})


@builders
@pytest.mark.parametrize("option", ["bogus", "hiden", "rnak"])
def test_an_unknown_option_is_refused_with_all_known_ones(name: str, option: str) -> None:
    with pytest.raises(OptionError, match=rf"^{name} has no option '{option}'.*: it knows .*\bdevice\b.*\bdtype\b"):
        BUILDERS[name](**{option: 128})


@pytest.mark.parametrize(
    ("call", "closest"),
    [
        pytest.param(lambda: realnvp(4, 3, hiden=128), "hidden", id="own"),
        pytest.param(lambda: realnvp(4, 3, "p4inv", rnak=2), "rank", id="mixing's"),
        pytest.param(lambda: spline_flow(4, 3, bin=5), "bins", id="splines"),
        pytest.param(lambda: p4inv_bent(4, 3, train_w=True), "train_v", id="P4Inv's"),
    ],
)
def test_the_closest_known_option_is_named(call, closest: str) -> None:
    with pytest.raises(OptionError, match=rf"did you mean '{closest}'\?"):
        call()


@mixings
def test_every_mixing_refuses_what_nobody_knows(mixing: str) -> None:
    with pytest.raises(OptionError, match=rf"^{mixing} has no option 'hiden'"):
        MIXINGS[mixing](4, hiden=8)
    with pytest.raises(OptionError, match=r"^realnvp has no option 'hiden'"):
        realnvp(4, 1, mixing, hiden=8)  # of a flow without a mixing layer, too


@pytest.mark.parametrize("make", FIXED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("option", IGNORED)
def test_fixed_mixings_ignore_what_others_know(make, option: str) -> None:
    assert torch.equal(make(6, seed=0, **{option: 1}).order, make(6, seed=0).order)


def test_there_is_something_to_ignore() -> None:
    assert {"bias", "dtype", "rank", "init", "reset"} <= set(IGNORED)


@pytest.mark.parametrize(
    ("mixing", "option", "value"),
    [
        ("p4inv", "rank", 2),
        ("p4inv", "train_v", True),
        ("p4orthogonal", "rank", 2),
        ("p4inv", "reset_kind", "gaussian"),
    ],
)
def test_options_go_over_those_of_the_preset(mixing: str, option: str, value: object) -> None:
    (layer,) = realnvp(8, 2, mixing, **{option.removesuffix("_kind"): value}).linear_layers()
    assert getattr(layer, option) == value


def test_what_a_trained_mixing_does_not_know_is_not_ignored() -> None:
    with pytest.raises(OptionError, match="no option 'rank'"):
        realnvp(4, 2, "plu", rank=2)


def test_a_new_mixing_tells_its_options_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(dim: int, seed: Any = None, preset: Any = None, *, dtype: Any, device: Any, turn: int = 0) -> Permutation:
        return Permutation(torch.arange(dim).roll(turn))

    monkeypatch.setitem(MIXINGS, "mine", mine)
    monkeypatch.setitem(MIXINGS, "open", lambda dim, seed=None, preset=None, **options: mine(dim, **options))
    for mixing in ("mine", "open"):
        (layer,) = realnvp(4, 2, mixing, turn=1).linear_layers()
        assert layer.order.tolist() == [3, 0, 1, 2]
    with pytest.raises(OptionError, match=r"no option 'trun'.*did you mean 'turn'"):
        realnvp(4, 2, "mine", trun=1)
    assert "turn" in (mixing_options("swap") or ())


def test_signatures_name_the_options_of_the_layers() -> None:
    assert set(inspect.signature(P4Inv).parameters) <= set(inspect.signature(p4inv_bent).parameters)
    assert set(inspect.signature(P4Inv).parameters) <= set(inspect.signature(MIXINGS["p4inv"]).parameters)


# --- penalties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_penalties_take_known_options_and_refuse_others(name: str) -> None:
    flow = amid_training(name, 4)
    torch.testing.assert_close(flow.penalty(strength=0.2), 2 * flow.penalty(strength=0.1))
    with pytest.raises(OptionError, match=r"^penalty has no option 'strenght' \(did you mean 'strength'\?\)"):
        flow.penalty(strenght=0.2)


def test_each_layer_gets_the_penalty_options_that_it_knows() -> None:
    small = SoftDeterminant(3, init=1e-4 * torch.eye(3))
    flow = Flow([P4Orthogonal(3, seed=0), small])
    expected = small.penalty(strength=3.0, floor=-1.0)
    assert bool(expected > 1)
    torch.testing.assert_close(flow.penalty(strength=3.0, floor=-1.0), expected)
