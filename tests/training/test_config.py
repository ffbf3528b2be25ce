"""Run configs: round trips and refusals."""

import dataclasses
import json

import pytest

from p4lab.errors import ConfigError
from p4lab.p4 import PRESETS
from p4lab.training import LIVE, RunConfig, preset_values
from p4lab.training.config import RULES


def test_json_round_trip() -> None:
    config = RunConfig(seed=7, learning_rate=3e-4, skip=False, optimizer="sgd", reset="gaussian")
    assert RunConfig.from_json(config.to_json()) == config
    assert RunConfig.from_json("{}") == RunConfig()
    assert hash(config) == hash(RunConfig.from_dict(config.to_dict()))


def test_every_field_has_a_rule() -> None:
    assert set(RULES) == {field.name for field in dataclasses.fields(RunConfig)}
    assert set(LIVE) < set(RULES)


def test_a_whole_number_is_a_learning_rate() -> None:
    assert type(RunConfig(learning_rate=1).learning_rate) is float


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    config = RunConfig(seed=3).with_preset(name)
    assert config.seed == 3
    assert config.rank == PRESETS[name].rank_for(64)
    assert preset_values(name, "digits").items() <= config.to_dict().items()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("rank", 2.0),
        ("rank", True),
        ("seed", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "1e-3"),
        ("optimizer", "lion"),
        ("dtype", "float16"),
        ("device", "abacus"),
        ("skip", 1),
        ("merge_every", 0),
        ("problem", "moons"),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}: expected"):
        RunConfig.from_json(json.dumps({key: value}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('{"rnk": 3}', "rnk=3: there is no such setting; expected one of problem", id="unknown key"),
        pytest.param("{", "expected JSON", id="not json"),
        pytest.param("[1]", "expected a JSON object", id="not an object"),
    ],
)
def test_broken_json(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_json(text)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="preset='best': expected one of recommended, paper"):
        RunConfig().with_preset("best")
