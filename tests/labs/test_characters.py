"""The lab of one's own model: spectra that stay, vectors that turn, and text."""

from typing import Any

import numpy as np
import pytest
from lab_tools import opened, table

from p4lab.labs.characters import CHARACTERS, START, CharactersConfig, character_lanes
from p4lab.p4 import P4Orthogonal, P4Spectrum, P4Stiefel, p4_modules
from p4lab.problems import bits
from p4lab.problems.character_ways import KEEPING, WAYS, build, optimizer_of

SMALL: dict[str, Any] = {"dim": 16, "blocks": 1, "length": 8, "batch_size": 4, "rank": 4, "turn": 20.0}


def test_singular_values_stay_where_they_are_kept() -> None:
    with opened(CHARACTERS, **SMALL) as lab:
        lab.touch("rate_factor", 3.0)
        for _ in range(3):
            lab.touch("step")
        layers = lab.drawings()["spectra"].layers
        start, plain, again, kept = (np.asarray(layer.points)[:, 1] for layer in layers)
    np.testing.assert_allclose(kept, again, atol=1e-5)
    assert np.abs(plain - start).max() > 1e-3


def test_header_table_and_curves_are_in_bits_per_character() -> None:
    with opened(CHARACTERS, **SMALL) as lab:
        lab.touch("step")
        sight = lab.sight()
        lines = {trace["name"]: trace["y"] for trace in CHARACTERS.curves(sight)["data"] if trace.get("showlegend")}
        told = CHARACTERS.numbers
        (plain,) = (number for number in told if number.name == "bits_plain")
        assert plain.unit == "bits/char"
        last = lines["plain weights"][-1]
        assert last == pytest.approx(bits(sight.lanes["plain"].last("test_loss")))
        assert lab.numbers()["bits_plain"] == table(lab)[0]["bits per character"] == f"{last:.3f}"


def test_the_picture_of_vectors_begins_as_a_diagonal() -> None:
    with opened(CHARACTERS, **SMALL) as lab:
        tiles = lab.drawings()["turned"].tiles
        for tile in tiles:
            assert (np.diag(tile.images[0]) == 255).all()
        for _ in range(3):
            lab.touch("step")
        assert any((np.diag(tile.images[0]) < 255).any() for tile in lab.drawings()["turned"].tiles)


def test_another_projection_is_drawn() -> None:
    with opened(CHARACTERS, **SMALL) as lab:
        lab.touch("step")
        before = lab.drawings()["spectra"].layers[1].points
        lab.touch("projection", "0.up")
        assert not np.array_equal(lab.drawings()["spectra"].layers[1].points, before)


def test_both_lanes_write_a_line() -> None:
    with opened(CHARACTERS, **SMALL) as lab:
        lab.touch("step")
        rows: Any = lab.drawings()["texts"].rows
        assert [row.cells[0] for row in rows] == ["plain weights", KEEPING["spectrum"]]
        assert all(row.cells[1].startswith(START) and "\n" not in row.cells[1] for row in rows)
        assert next(row["steps"] for row in table(lab)) != "0"


@pytest.mark.parametrize("way", WAYS)
def test_what_turns_has_a_rate_of_its_own(way: str) -> None:
    model = build(way, 16, 1, 8, 4, seed=0)
    groups = optimizer_of(way, model).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert len(groups) == (1 if way == "plain" else 2)
    kinds = {"spectrum": {P4Spectrum}, "orthogonal": {P4Orthogonal, P4Stiefel}}.get(way, set())
    assert {type(layer) for layer in p4_modules(model)} == kinds


@pytest.mark.parametrize("keeps", KEEPING)
def test_every_way_learns_and_keeps_what_it_says(keeps: str) -> None:
    lanes = character_lanes(CharactersConfig(keeps=keeps, **SMALL | {"turn": 200.0}))
    engine = lanes.engines["kept"]
    while engine.step < 2 * engine.config.measure_every:  # how many steps a turn has is up to the machine
        lanes.run(1)
    lane = lanes.snapshot().lanes["kept"]
    losses = lane.curves["test_loss"][1]
    assert losses[-1] < losses[0]
    assert lane.last("residual") < 1e-4
