"""The lab of densities: drawings as text, flows of equal size, pictures, table and curves."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, break_lane, opened, table, train
from simulated_page import Page

from p4lab.errors import ConfigError, OptionError
from p4lab.flows import effective_parameters
from p4lab.labs.density import (
    COARSE,
    DENSITIES_2D,
    DRAWING,
    ENTROPY,
    EXTENTS,
    FINE,
    FLOWS,
    KNOTS,
    LEVELS,
    LINES,
    ORDER,
    REACH,
    SECTORS,
    SIDE,
    DensityConfig,
    between,
    decode_drawing,
    encode_drawing,
    entropy,
    extent_of,
    latents,
    lattice,
    log_density,
    matching_width,
    quadrants,
    sketched,
    stages,
)
from p4lab.labs.lab import load_weights
from p4lab.plots.layers import Heatmap, Path, Points
from p4lab.problems.densities import DENSITIES
from p4lab.training import RunConfig, State, run

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


# --- the way through a flow -------------------------------------------------------------------------------------------


@pytest.fixture(params=FLOWS)
def model(request: pytest.FixtureRequest) -> Any:
    config = DensityConfig(flow=request.param, blocks=3, couplings=3, batch_size=32, learning_rate=0.05)
    return run(config, 15).model


def test_rows_of_a_density_go_upwards(model: Any) -> None:
    values = log_density(model, (-1, 3, -2, 2), 4)
    assert values[0, 0] == pytest.approx(model.log_prob(torch.tensor([[-0.5, -1.5]])).item(), abs=1e-4)


def test_the_way_leads_continuously_from_latent_to_data(model: Any) -> None:
    z = torch.cat([latents(0, 40), lattice().reshape(-1, 2)])
    assert lattice().shape == (2 * LINES, KNOTS, 2)
    assert lattice().abs().max() == REACH
    path = stages(model, z)
    start, end = between(path, 0.0)[0], between(path, 1.0)[0]
    assert np.abs(np.sort(start) - np.sort(z.numpy())).max() < 1e-5  # up to a swap of coordinates
    with torch.no_grad():
        np.testing.assert_allclose(end, model.inverse(z.float()), atol=1e-4)
    samples = [between(path, share)[0][:40] for share in np.linspace(0, 1, 40 * (len(path) - 1) + 1)]
    jumps = [np.abs(b - a).max() for a, b in itertools.pairwise(samples)]
    assert max(jumps) < np.abs(samples).max() / 10
    assert between(path, 1.0)[1] == len(path) - 1


def test_swaps_are_not_shown() -> None:
    flow = DensityConfig(flow="realnvp", blocks=3, couplings=3).model()
    path = stages(flow, latents(0, 7))
    assert len(path) == 4
    for points in path:  # RealNVP starts at the identity
        np.testing.assert_allclose(points, path[0], atol=1e-6)


def test_weights_of_another_flow_are_refused(model: Any) -> None:
    with pytest.raises(OptionError, match="another model"):
        load_weights(model, {"x": np.zeros(2)})


def test_quadrants_go_counterclockwise() -> None:
    assert quadrants(np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("far", "extent"), [(1.0, EXTENTS[0]), (4.5, EXTENTS[1]), (1e9, EXTENTS[-1]), (np.nan, EXTENTS[0])]
)
def test_the_frame_moves_in_steps(far: float, extent: float) -> None:
    assert extent_of(np.array([[0.0, far], [far, 0.0]])) == extent


# --- what is drawn ----------------------------------------------------------------------------------------------------


def layers(lab: Any, area: str, kind: type, **frame: Any) -> list[Any]:
    plot = lab.drawings(**frame)[area]
    return [layer for layer in plot.layers if isinstance(layer, kind)]


MAPS = ("truth", "of-realnvp", "of-p4inv_bent")
WAYS = ("way-realnvp", "way-p4inv_bent")


def test_truth_and_lanes_share_one_scale() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        for log in (True, False):
            lab.touch("log", log)
            maps = [layers(lab, area, Heatmap)[0] for area in MAPS]
            assert len({(layer.low, layer.high, layer.extent) for layer in maps}) == 1
            assert maps[0].label == ("log p (nats)" if log else "density p")
            assert maps[0].low <= np.min(maps[0].values) < np.max(maps[0].values) <= maps[0].high


def test_pictures_are_coarser_while_training() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        frame = lab.player.frame(20)
        for state, side in ((State.RUNNING, COARSE), (State.PAUSED, FINE)):
            (heatmap,) = layers(lab, "of-realnvp", Heatmap, frame=replace(frame, state=state))
            assert heatmap.values.shape == (side, side)


def test_training_changes_both_lanes_and_not_the_truth_and_time_travel_brings_them_back() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        first = lab.drawings()
        train(lab, 10)
        now = lab.drawings()
        lab.touch("scrub", 0)
        then = lab.drawings()
    for area in (*MAPS, *WAYS):
        one, two, three = (
            next(layer for layer in drawings[area].layers if isinstance(layer, Heatmap | Points))
            for drawings in (first, now, then)
        )
        assert one.same(three)
        assert one.same(two) == (area == "truth")


@pytest.mark.parametrize(("name", "kind", "area"), [("samples", Points, MAPS[1]), ("lattice", Path, WAYS[0])])
def test_samples_and_grid_can_be_hidden(name: str, kind: type, area: str) -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        assert layers(lab, area, kind)
        lab.touch(name, False)
        assert not layers(lab, area, kind)


def test_the_depth_slider_moves_samples_and_grid() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        train(lab, 20)
        grids = []
        for depth in (0.0, 0.5, 1.0):
            lab.touch("depth", depth)
            (path,), dots = layers(lab, WAYS[0], Path), layers(lab, WAYS[0], Points)
            assert len(dots) == len(SECTORS)
            grids.append(path.points)
        assert path.label == "grid of z after 2 of 2 layers"
        for before, after in itertools.pairwise(grids):
            assert np.nanmax(np.abs(after - before)) > 0.01


@pytest.mark.parametrize(
    ("name", "value", "passed"),
    [("blocks", 4, 9), ("dtype", "float64", 5), ("train_v", True, 5), ("rank", 1, 5), ("reset", "gaussian", 5)],
)
def test_another_architecture_can_be_drawn(name: str, value: Any, passed: int) -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        lab.touch(name, value)
        (path,) = layers(lab, WAYS[1], Path)
        assert path.label == f"grid of z after {passed} of {passed} layers"


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_table_tells_what_each_flow_is_worth() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        train(lab, 5)
        truth, *rows = table(lab)
        assert (truth[""], truth["pieces"]) == ("Eight Gaussians", "8 of 8")
        for lane, row in zip(ORDER, rows, strict=True):
            loss = lab.sight().lanes[lane].last("test_loss")
            assert row[""] == FLOWS[lane]
            assert row["test NLL"] == f"{loss:.3f}"
            assert row["KL to truth"] == f"{loss - entropy(DensityConfig()):.3f}"
            assert 50 < as_number(row["bridge mass"]) < 100
            assert as_number(row["round trip"]) < 1e-4


def test_the_curves_stand_above_the_entropy() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        train(lab, 20)
        figure = DENSITIES_2D.curves(lab.sight())
    legend = [trace["name"] for trace in figure["data"] if trace.get("showlegend")]
    assert legend == ["RealNVP", "P4Inv + Bent", "P4Inv + Bent, test"]
    layout, floor = figure["layout"], entropy(DensityConfig())
    label = layout["annotations"][-1]
    assert label["text"] == f"{ENTROPY}, {floor:.3f}"
    assert label["xanchor"] == "left", "on the right it would stand on the curves, once they have come down"
    assert layout["shapes"][-1]["y0"] == floor
    assert layout["yaxis"]["range"][0] < floor


def test_a_lane_that_stops_says_so() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        break_lane(lab, "realnvp")
        assert lab.message().startswith("RealNVP stopped: step 1")
        assert lab.numbers()["kl_realnvp"] == {"value": "stopped", "unit": ""}
        assert table(lab)[1][""] == "RealNVP (stopped)"


# --- drawing ----------------------------------------------------------------------------------------------------------


def sketch(page: Page) -> Any:
    return page.widget("p4-density-canvas")


def painted(page: Page, why: str) -> None:
    page.say(sketch(page), (blob().tobytes(),), drawn=why)


def test_train_on_this_starts_over_with_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        train(lab, 5)
        painted(Page(lab, monkeypatch), "use")
        lab.player.pause()
        config = lab.player.frame(30).snapshot.config
        assert isinstance(config, DensityConfig)
        assert (config.density, config.drawing) == (DRAWING, encode_drawing(blob()))
        assert table(lab)[0][""] == "Your own drawing"


def test_your_drawing_can_be_chosen_once_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        page = Page(lab, monkeypatch)
        with pytest.raises(ConfigError, match="there is no drawing yet"):
            lab.touch("density", DRAWING)
        painted(page, "stroke")
        lab.touch("density", DRAWING)
        assert lab.values()["drawing"] == encode_drawing(blob())


def test_the_canvas_follows_the_config_and_else_stays_as_it_is() -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        text = DensityConfig(density=DRAWING, drawing=encode_drawing(blob()), **SMALL).to_text()
        lab.touch("config", text)
        sight = lab.sight()
        (draw,) = (picture.draw for picture in DENSITIES_2D.pictures if picture.area == "canvas")
        np.testing.assert_array_equal(draw(sight), blob())
        assert draw(sight) is None


def test_the_truth_can_be_copied_to_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(DENSITIES_2D, **SMALL) as lab:
        page = Page(lab, monkeypatch)
        page.say(sketch(page), copy=1)
        assert sketch(page).ink.max() == LEVELS


def test_a_long_drawing_does_not_fill_the_table_of_runs() -> None:
    brief = DensityConfig.settings["drawing"].brief
    assert brief is not None
    assert (brief(encode_drawing(blob())), brief("")) == ("another drawing", "no drawing")
