"""Copies of flows to be looked at."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from p4lab.errors import ConfigError
from p4lab.flows import p4inv_bent
from p4lab.training import Engine
from p4lab.training.density_setup import FLOWS, DensityConfig
from p4lab.training.flow_copy import KNOTS, LINES, REACH, FlowCopy

CONFIG: dict[str, Any] = {"blocks": 3, "couplings": 3, "batch_size": 32, "learning_rate": 0.05}


@pytest.fixture(params=FLOWS)
def engine(request: pytest.FixtureRequest) -> Engine:
    engine = Engine(DensityConfig(flow=request.param, **CONFIG))
    engine.run(15)
    return engine


@pytest.fixture
def copy(engine: Engine) -> FlowCopy:
    copy = FlowCopy(engine.config.model(), samples=40)  # type: ignore[attr-defined]
    copy.load(engine.snapshot().pictures)
    return copy


def test_a_copy_is_the_same_flow(engine: Engine, copy: FlowCopy) -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    model: Any = engine.model
    torch.testing.assert_close(copy.model.log_prob(x), model.log_prob(x))


def test_a_copy_is_left_alone_by_training(engine: Engine, copy: FlowCopy) -> None:
    before = copy.log_density((-4, 4, -4, 4), 6)
    engine.run(3)
    np.testing.assert_array_equal(copy.log_density((-4, 4, -4, 4), 6), before)


def test_rows_of_a_density_go_upwards(copy: FlowCopy) -> None:
    values = copy.log_density((-1, 3, -2, 2), 4)
    corner = copy.model.log_prob(torch.tensor([[-0.5, -1.5]]))
    assert values[0, 0] == pytest.approx(corner.item(), abs=1e-4)


def test_the_way_leads_from_latent_to_data(copy: FlowCopy) -> None:
    z = torch.from_numpy(copy.latent).float()
    start, lattice, passed = copy.at_depth(0.0)
    assert passed == 0
    assert np.abs(np.sort(start, axis=-1) - np.sort(copy.latent, axis=-1)).max() < 1e-5  # up to a swap of coordinates
    lines = lattice.reshape(2 * LINES, KNOTS + 1, 2)
    assert np.isnan(lines[:, -1]).all()
    assert np.nanmax(lattice) == REACH
    end, _, passed = copy.at_depth(1.0)
    assert passed == copy.layers
    with torch.no_grad():
        np.testing.assert_allclose(end, copy.model.inverse(z), atol=1e-4)


def test_the_way_is_continuous(copy: FlowCopy) -> None:
    samples = [copy.at_depth(share)[0] for share in np.linspace(0, 1, 40 * copy.layers + 1)]
    jumps = [np.abs(b - a).max() for a, b in itertools.pairwise(samples)]
    assert max(jumps) < np.abs(samples).max() / 10


def test_swaps_are_not_shown() -> None:
    copy = FlowCopy(DensityConfig(flow="realnvp", **CONFIG).model(), samples=7)
    assert copy.layers == 3
    middle = [copy.at_depth(share)[0] for share in (0, 1 / 3, 2 / 3, 1)]
    for points in middle:  # RealNVP starts at the identity
        np.testing.assert_allclose(points, middle[0], atol=1e-6)


def test_new_weights_show_at_once(engine: Engine, copy: FlowCopy) -> None:
    before = copy.at_depth(1.0)[0]
    engine.run(5)
    copy.load(engine.snapshot().pictures)
    assert np.abs(copy.at_depth(1.0)[0] - before).max() > 1e-3


def test_weights_of_another_flow_are_refused(copy: FlowCopy) -> None:
    with pytest.raises(ConfigError, match="another flow"):
        copy.load({"x": np.zeros(2)})


def test_a_flow_outside_of_the_plane_is_refused() -> None:
    with pytest.raises(ConfigError, match="dim 3: expected 2"):
        FlowCopy(p4inv_bent(3, 1))
