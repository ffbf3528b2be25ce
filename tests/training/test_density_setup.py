"""The setup of the densities in the plane: drawings as text, configs, flows of equal size, lanes."""

from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError
from p4lab.flows import effective_parameters
from p4lab.problems.densities import DENSITIES
from p4lab.training import Engine, RunConfig, load_run, run, save_run
from p4lab.training.density_setup import (
    DRAWING,
    FLOWS,
    LEVELS,
    SIDE,
    DensityConfig,
    decode_drawing,
    encode_drawing,
    entropy,
    matching_width,
    side_by_side,
    sketched,
)
from p4lab.training.runs import Runs

SMALL: dict[str, Any] = {"blocks": 2, "couplings": 2, "batch_size": 32, "measure_every": 5}


def blob() -> np.ndarray[Any, np.dtype[np.uint8]]:
    ink = np.zeros((SIDE, SIDE), np.uint8)
    ink[2:6, 3:5] = LEVELS
    ink[20, 1] = 1
    return ink


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_a_drawing_survives_being_text() -> None:
    ink = np.random.default_rng(0).integers(0, LEVELS + 1, (SIDE, SIDE)).astype(np.uint8)
    text = encode_drawing(ink)
    assert len(text) == 384
    np.testing.assert_array_equal(decode_drawing(text), ink)


def test_a_drawing_survives_the_text_of_a_config() -> None:
    ink = np.random.default_rng(1).integers(0, LEVELS + 1, (SIDE, SIDE))
    config = DensityConfig(density=DRAWING, drawing=encode_drawing(ink))
    again = RunConfig.from_text(config.to_text())
    assert again == config
    assert isinstance(again, DensityConfig)
    np.testing.assert_array_equal(decode_drawing(again.drawing), ink)


@pytest.mark.parametrize(
    "ink",
    [
        np.zeros((SIDE, SIDE - 1)),
        np.full((SIDE, SIDE), LEVELS + 1),
        -np.ones((SIDE, SIDE)),
        np.full((SIDE, SIDE), np.nan),
    ],
    ids=["shape", "too much", "negative", "nan"],
)
def test_what_is_no_drawing_is_refused(ink: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected \(24, 24\), whole numbers from 0 to 15"):
        encode_drawing(ink)


@pytest.mark.parametrize(("text", "message"), [("no base64!", "expected base64"), ("AAAA", "expected 384")])
def test_text_that_is_no_drawing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode_drawing(text)
    with pytest.raises(ConfigError, match="drawing="):
        DensityConfig(density=DRAWING, drawing=text)


@pytest.mark.parametrize("drawing", ["", encode_drawing(np.zeros((SIDE, SIDE)))], ids=["none", "empty"])
def test_a_density_needs_ink(drawing: str) -> None:
    with pytest.raises(ConfigError, match="drawing"):
        DensityConfig(density=DRAWING, drawing=drawing)


def test_the_first_row_of_a_drawing_is_at_the_top() -> None:
    config = DensityConfig(density=DRAWING, drawing=encode_drawing(blob()))
    x = config.truth().sample(2000, torch.Generator().manual_seed(0))
    assert (x[:, 1] > 0).double().mean() > 0.9
    assert (x[:, 0] < 0).all()
    np.testing.assert_array_equal(sketched(config), blob())


@pytest.mark.parametrize("name", DENSITIES)
def test_every_density_can_be_put_on_the_canvas(name: str) -> None:
    ink = sketched(DensityConfig(density=name))
    assert ink.max() == LEVELS
    assert 0.02 < (ink > 0).mean() < 0.9


# --- flows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks", "couplings"), [(8, 2), (16, 4), (64, 4)])
def test_both_flows_have_as_good_as_the_same_number_of_parameters(blocks: int, couplings: int) -> None:
    config = DensityConfig(blocks=blocks, couplings=couplings)
    one, other = (effective_parameters(config.replace(flow=flow).model()) for flow in FLOWS)
    assert one == 6 * (blocks + 1)
    assert abs(one - other) <= 5 * couplings  # one more hidden unit in each coupling would be 5 parameters each
    assert matching_width(blocks, couplings) >= 1


@pytest.mark.parametrize("flow", FLOWS)
def test_flows_start_as_rotations_or_reflections(flow: str) -> None:
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    x, logabsdet = DensityConfig(flow=flow, blocks=4).model()(z)
    torch.testing.assert_close(x @ x.t(), z @ z.t(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logabsdet, torch.zeros(50), rtol=0, atol=1e-5)


@pytest.mark.parametrize("flow", FLOWS)
def test_the_loss_falls_towards_the_entropy(flow: str) -> None:
    config = DensityConfig(flow=flow, density="two_moons", measure_every=150, learning_rate=0.02, blocks=4)
    first, last = (np.array(run(config, 150).records.measures.columns["test_loss"])[[0, -1]]).tolist()
    floor = entropy(config)
    assert floor < last < first - 0.5


def test_the_same_config_gives_the_same_numbers_with_and_without_a_neighbour() -> None:
    lanes = side_by_side(DensityConfig(**SMALL))
    lanes.run(12)
    for flow in FLOWS:
        alone = run(DensityConfig(flow=flow, **SMALL), 12)
        assert alone.records.steps.columns["loss"] == lanes.engines[flow].records.steps.columns["loss"]


def test_looking_costs_a_copy_of_the_weights_and_changes_nothing() -> None:
    looked, other = (Engine(DensityConfig(**SMALL)) for _ in range(2))
    for _ in range(5):
        pictures = looked.snapshot().pictures
        looked.run()
        other.run()
    assert looked.records.steps.columns["loss"] == other.records.steps.columns["loss"]
    weights = {name for name, value in looked.model.state_dict().items() if torch.is_tensor(value)}
    assert set(pictures) == weights


def test_a_run_on_a_drawing_goes_on_from_its_file(tmp_path: Any) -> None:
    runs = Runs(side_by_side, DensityConfig(density=DRAWING, drawing=encode_drawing(blob()), **SMALL))
    runs.active.engine.run(6)
    save_run(runs.active, tmp_path / "a.p4run")
    loaded = load_run(tmp_path / "a.p4run", side_by_side)
    assert loaded.engine.config == runs.active.engine.config
    engines: list[Any] = [runs.active.engine, loaded.engine]
    for engine in engines:
        engine.run(3)
    for flow in FLOWS:
        one, other = (engine.engines[flow].records.steps.columns["loss"] for engine in engines)
        assert one == other


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": "nine_gaussians"}, "density='nine_gaussians'"),
        ({"flow": "spline"}, "flow='spline'"),
        ({"blocks": 0}, "blocks=0"),
        ({"couplings": 1}, "couplings=1"),
    ],
    ids=["density", "flow", "blocks", "couplings"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DensityConfig(**changes)
