"""Pictures of a table that trains live: histograms and pairs of columns, data beside samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lab_tools import train

from p4lab.errors import ConfigError
from p4lab.flows import p4inv_bent, realnvp
from p4lab.labs import Axes, Picture
from p4lab.p4 import RECOMMENDED
from p4lab.plots.layers import Path, Plot, Points
from p4lab.problems import table_problem
from p4lab.widgets import Dashboard, train_live


def frame(d: int = 8, n: int = 300) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    columns = {f"length {k} (cm)": 10.0**k * (3 + draw.normal(size=n)) for k in range(d - 1)}
    return pd.DataFrame({**columns, "rooms": draw.integers(1, 6, n)})


def live(table: pd.DataFrame, **options: Any) -> Dashboard:
    torch.manual_seed(0)
    model = realnvp(table.shape[1], blocks=2, hidden=8, mixing="swap")
    return train_live(table_problem(table), model, torch.optim.Adam(model.parameters(), 1e-3), name="table", **options)


@pytest.fixture
def lab() -> Iterator[Dashboard]:
    lab = live(frame())
    yield lab
    assert lab.error is None
    lab.close()


def inside(rectangles: Any) -> np.ndarray:
    """Return the heights of bars, each of which has five points."""
    return rectangles.points.reshape(-1, 5, 2)[:, 1, 1]


def test_histograms_show_the_shares_of_data_and_samples(lab: Dashboard) -> None:
    train(lab, 3)
    table, shown = frame(), lab.drawings()
    samples = lab.player.frame(10).snapshot.pictures["samples"]
    assert samples.shape == (500, 8)
    for k in range(6):
        plot = shown[f"column-{k}"]
        data, model = plot.layers
        assert plot.labels == (table.columns[k], "% of rows")
        assert inside(data).sum() == pytest.approx(100)
        x0, x1, y0, y1 = plot.bounds
        assert (x0 < table.iloc[:, k].min()) & (table.iloc[:, k].max() < x1)
        edges = data.points.reshape(-1, 5, 2)[:, [0, 2], 0]
        within = (samples[:, k] >= edges[0, 0]) & (samples[:, k] <= edges[-1, 1])
        assert model.points[1:-1:2, 1].sum() == pytest.approx(100 * within.mean(), abs=0.5)
        assert (y0, max(inside(data).max(), model.points[:, 1].max()) <= y1) == (0, True)


def test_integers_have_bars_side_by_side(lab: Dashboard) -> None:
    lab.touch("page", 1)
    shown = lab.drawings()
    assert [shown[f"column-{k}"] is None for k in range(6)] == [False, False, True, True, True, True]
    data, model = shown["column-1"].layers
    assert shown["column-1"].labels[0] == "rooms"
    counts = frame()["rooms"].value_counts(normalize=True, sort=False).sort_index()
    np.testing.assert_allclose(inside(data), 100 * counts, rtol=1e-5)
    corners = [part.points.reshape(-1, 5, 2)[:, [0, 2], 0] for part in (data, model)]
    assert (corners[0][:, 1] <= corners[1][:, 0]).all()
    assert (np.round(corners[0].mean(1)) == np.arange(1, 6)).all()


def test_two_columns_are_chosen_by_name(lab: Dashboard) -> None:
    plot = lab.drawings()["pair"]
    correlations = frame().corr().abs().to_numpy() - np.eye(8)
    assert plot.labels == tuple(frame().columns[sorted(np.unravel_index(correlations.argmax(), (8, 8)))])
    lab.touch("across", 3)
    lab.touch("upward", 7)
    plot, table = lab.drawings()["pair"], frame().to_numpy()
    data, model = plot.layers
    assert (plot.labels, data.label, model.label) == (("length 3 (cm)", "rooms"), "table", "samples")
    assert isinstance(model, Points)
    gaps = np.abs(data.points[:, None] - table[None][:, :, [3, 7]]) / [1e3, 1]
    assert gaps.max(-1).min(1).max() < 1e-3  # each point is a row of the table
    with pytest.raises(ConfigError, match="column"):
        lab.touch("across", -1)


def test_what_is_not_finite_is_left_out() -> None:
    lab = live(frame(3))
    try:
        for parameter in lab.model.parameters():
            parameter.data.fill_(float("nan"))
        shown = lab.drawings()
        assert np.isnan(shown["pair"].layers[1].points).all()
        assert not shown["column-0"].layers[1].points[:, 1].any()
    finally:
        lab.close()


def test_pictures_of_ones_own_take_the_place_of_the_tables() -> None:
    own = Picture(
        Axes("First row"), lambda sight: Plot([Points(sight.snapshot.pictures["samples"][:1, :2])]), area="own"
    )
    lab = live(frame(3), pictures=[own])
    try:
        assert set(lab.drawings()) == {"own"}
        assert "across" not in lab.values()
    finally:
        lab.close()


def test_one_column_has_one_histogram_and_its_loss_is_in_nats() -> None:
    flow = p4inv_bent(1, 2)
    optimizer = torch.optim.Adam(flow.parameters())
    lab = train_live(table_problem(frame(1)), flow, optimizer, RECOMMENDED.schedule(flow, optimizer), name="one")
    try:
        assert set(lab.drawings()) == {"column-0"}
        assert isinstance(lab.drawings()["column-0"].layers[0], Path)
        assert lab.lab.loss.label == "loss −log p (nats per row)"
    finally:
        lab.close()
