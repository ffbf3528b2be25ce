"""The lab of temperatures: the dial, tables of densities, and what is drawn at any temperature."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import opened, train

from p4lab.boltzmann import steerable_flow
from p4lab.errors import ConfigError
from p4lab.labs import Sight
from p4lab.labs.temperature import (
    DIALS,
    TEMPERATURE,
    TEMPERATURES,
    Marginals,
    Table,
    TemperatureConfig,
    centres,
    momenta_grid,
    read,
    side_of,
)
from p4lab.plots.layers import Heatmap, Path
from p4lab.problems.energies import DoubleWell
from p4lab.training import Engine

SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8, "batch_size": 32, "measure_every": 5}


def heatmap(drawing: Any) -> Any:
    return next(layer.values for layer in drawing.layers if isinstance(layer, Heatmap))


def paths(drawing: Any) -> dict[str, Any]:
    return {layer.label: layer.points for layer in drawing.layers if isinstance(layer, Path) and layer.label}


@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 1.0, TEMPERATURES[-1]])
@pytest.mark.parametrize("dial", DIALS)
def test_the_dial_steers_pictures_and_table(temperature: float, dial: str) -> None:
    with opened(TEMPERATURE, dial=dial, **SMALL) as lab:
        lab.touch("temperature", temperature)
        drawings: Any = lab.drawings()
        truth = DoubleWell()
        exact, rows = heatmap(drawings["exact"]), drawings["board"]
        x0, x1, y0, y1 = truth.bounds
        inside = float(np.sum(exact)) * (x1 - x0) * (y1 - y0) / exact.size
        assert inside == pytest.approx(1.0, abs=0.06)
        assert list(rows.columns)[:2] == [f"at T = {temperature:.2f}", "ΔF, right − left (kT)"]
        assert rows.rows[0].cells[1] == f"{truth.free_energy_difference(temperature):.3f}"
        for area in ("sizes", "differences"):
            line = paths(drawings[area])["the dial"]
            assert line[:, 0].tolist() == pytest.approx([temperature, temperature])
        assert lab.values()["temperature"] == temperature


@pytest.mark.parametrize("temperature", [0.2, 1e-6, 100.0, 1e300])
def test_temperatures_beyond_the_dial_are_refused(temperature: float) -> None:
    with opened(TEMPERATURE, **SMALL) as lab:
        with pytest.raises(ConfigError, match=r"expected a number from 0\.3 to 3\.2"):
            lab.touch("temperature", temperature)
        assert lab.values()["temperature"] == 1.0


def test_a_flow_trains_at_the_dials_stops_so_that_no_step_integrates(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, log_z = [], DoubleWell.log_z

    def noted(energy: DoubleWell, temperature: float = 1.0) -> float:
        seen.append(temperature)
        return log_z(energy, temperature)

    monkeypatch.setattr(DoubleWell, "log_z", noted)
    engine = Engine(TemperatureConfig(dial="energy", blocks=1, hidden=4, batch_size=8))
    engine.run(30)
    others = [temperature for temperature in seen if temperature != 1.0]
    assert len(others) > 20
    assert set(others) <= set(TEMPERATURES)
    assert min(others) < 0.5
    assert max(others) > 2.0


def test_a_density_with_nothing_in_sight_has_no_free_energy_difference_and_warns_nobody() -> None:
    truth = DoubleWell()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(Table(np.full((24, 24), -math.inf), truth).difference())
        far = Table(-2000.0 + truth.log_prob(centres(truth, 96), 1.0).numpy(), truth).difference()
    assert far == pytest.approx(truth.free_energy_difference(), abs=0.02)


@pytest.mark.parametrize("dial", [dial for dial in DIALS if dial != "prior"])
def test_a_flow_that_reads_the_temperature_learns_what_it_never_saw(dial: str) -> None:
    config = TemperatureConfig(dial=dial, blocks=2, hidden=16)
    engine, truth, side = Engine(config), config.truth(), 96
    engine.run(300)
    x0, x1, y0, y1 = truth.bounds
    log_p1 = truth.log_prob(centres(truth, side)).numpy()
    for temperature in (0.4, 2.5):
        log_p = truth.log_prob(centres(truth, side), temperature).numpy()
        log_q = read(engine.model, truth, side, temperature).log_p
        p = np.exp(log_p) * (x1 - x0) * (y1 - y0) / side**2
        # A flow that had learnt T = 1 to perfection, and nothing of T, would be as far away as p at T = 1 is.
        assert float((p * (log_p - log_q)).sum()) < 0.75 * float((p * (log_p - log_p1)).sum())


def test_numbers_that_do_not_turn_with_the_dial_say_so() -> None:
    with opened(TEMPERATURE, **SMALL) as lab:
        train(lab, 5)
        one = lab.numbers()
        lab.touch("temperature", TEMPERATURES[-1])
        assert lab.numbers() == one
    told = {number.name for number in TEMPERATURE.numbers if number.help.startswith("At T = 1: ")}
    assert told == {"forward", "reverse", "ess", "clipped"}


def test_turning_the_dial_moves_the_flow_without_training_it() -> None:
    with opened(TEMPERATURE, **SMALL) as lab:
        train(lab, 10)
        highest = []
        for temperature in (0.5, 1.0, 2.0):
            lab.touch("temperature", temperature)
            highest.append(float(heatmap(lab.drawings()["steered"]).max()))
        assert highest == sorted(highest, reverse=True)  # colder is sharper
        assert lab.sight().snapshot.step == 10


def test_exact_free_energies_stand_beside_the_flows() -> None:
    with opened(TEMPERATURE, **SMALL) as lab:
        train(lab, 20)
        drawings = lab.drawings()
        lines = paths(drawings["differences"])
        assert list(lines) == ["the dial", "exact, right minus left", "flow"]
        exact = lines["exact, right minus left"]
        assert exact[:, 1].tolist() == pytest.approx([DoubleWell().free_energy_difference(t) for t in exact[:, 0]])
        for name, points in paths(drawings["sizes"]).items():
            assert name == "the dial" or ((points[:, 1] > 0) & (points[:, 1] <= 100.001)).all()


def test_the_table_of_densities_is_that_of_the_moment_whatever_was_drawn_in_between() -> None:
    with opened(TEMPERATURE, **SMALL) as lab:
        draw = {picture.area: picture.draw for picture in TEMPERATURE.pictures}
        early = lab.player.frame(10)
        train(lab, 20)
        late, sight = lab.player.frame(10), lab.sight(early)
        expected: Any = draw["steered"](sight)
        draw["sizes"](Sight(late, sight.view, sight.memory))
        again: Any = draw["steered"](sight)
        np.testing.assert_array_equal(again.layers[0].values, expected.layers[0].values)


@pytest.mark.parametrize(("momenta", "tolerance"), [(0, 1e-5), (1, 0.01), (2, 0.01)])
def test_the_table_of_densities_is_the_marginal_at_every_temperature(momenta: int, tolerance: float) -> None:
    flow = steerable_flow(2, momenta, 2, hidden=8, dtype=torch.float64, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    truth = DoubleWell()
    densities = Marginals(flow, truth, 72)  # with this side the barrier lies between two cells
    x0, x1, y0, y1 = truth.bounds
    cell = (x1 - x0) * (y1 - y0) / 72**2
    for temperature in (0.5, 1.0):
        density = np.exp(densities.at(temperature).log_p)
        x = flow.sample(40_000, generator=generator, temperature=temperature)[:, :2]
        inside = (x[:, 0] > x0) & (x[:, 0] < x1) & (x[:, 1] > y0) & (x[:, 1] < y1)
        share = float(inside.double().mean())
        assert density.sum() * cell == pytest.approx(share, abs=0.01 + tolerance)
        in_b = truth.in_b(x[inside]).double().mean()
        assert densities.at(temperature).difference() == pytest.approx(float(-torch.logit(in_b)), abs=0.06)


@pytest.mark.parametrize("momenta", [0, 1, 2, 4])
@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 1.0, TEMPERATURES[-1]])
def test_momenta_are_integrated_out(momenta: int, temperature: float) -> None:
    nodes, log_weights = momenta_grid(momenta)
    log_p = -0.5 * nodes.square().sum(-1) / temperature - 0.5 * momenta * math.log(2 * math.pi * temperature)
    total = float((log_p + log_weights).logsumexp(0))
    assert total == pytest.approx(0.0, abs=(1e-12, 1e-3, 0.011, 0.5, 0.5)[momenta])  # beyond two momenta it is rough
    config = TemperatureConfig(momenta=momenta)
    assert side_of(config, True) <= side_of(config, False)


@pytest.mark.parametrize(("name", "new"), [("momenta", 4), ("mixing", "plu"), ("dial", "trade")])
def test_other_flows_can_be_drawn(name: str, new: Any) -> None:
    with opened(TEMPERATURE, **{**SMALL, name: new}) as lab:
        assert heatmap(lab.drawings()["steered"]).shape == (side_of(lab.sight().config, False),) * 2


def test_a_mixing_that_is_set_is_offered() -> None:
    config = TemperatureConfig(mixing="plu")
    assert list(config.settings["mixing"].offered(config, "plu").values())[-1] == "plu"
    assert "plu" not in config.settings["mixing"].offered(TemperatureConfig(), "p4inv")
