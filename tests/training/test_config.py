"""Run configs: round trips and refusals."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from p4lab.errors import ConfigError
from p4lab.p4 import PRESETS
from p4lab.training import CustomConfig, DigitsConfig, MatrixConfig, RunConfig, devices
from p4lab.training.config import setting, whole

CONFIGS = {
    "digits": DigitsConfig(seed=7, learning_rate=3e-4, skip=False, optimizer="sgd", reset="gaussian"),
    "digits, defaults": DigitsConfig(),
    "matrix": MatrixConfig(dim=3, target="1 0 0; 0.5 1e-3 -2; 0 0 1", route="through_inverse", sampled=True),
    "custom": CustomConfig(optimizer="AdamW", learning_rate=1 / 3),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_round_trips(config: RunConfig) -> None:
    for again in (
        RunConfig.from_json(config.to_json()),
        RunConfig.from_text(config.to_text()),
        type(config).from_text(f" {config.to_text()}\n"),
        RunConfig.from_dict(config.to_dict()),
    ):
        assert again == config
        assert type(again) is type(config)
        assert hash(again) == hash(config)


def test_a_text_is_short() -> None:
    assert DigitsConfig().to_text() == "digits"
    assert DigitsConfig(rank=8, skip=False).to_text() == "digits?rank=8&skip=false"


@pytest.mark.parametrize("kind", [DigitsConfig, MatrixConfig, CustomConfig])
def test_every_field_has_a_rule(kind: type[RunConfig]) -> None:
    assert set(kind.settings) == {field.name for field in dataclasses.fields(kind)}
    assert set(kind.live) < set(kind.settings)


def test_a_whole_number_is_a_learning_rate() -> None:
    assert type(DigitsConfig(learning_rate=1).learning_rate) is float


@pytest.mark.parametrize("rate", [0.0, 1e39, float("inf"), float("nan")])
def test_learning_rates_that_torch_cannot_take_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=.*: expected a number above 0, at most 1e15"):
        DigitsConfig(learning_rate=rate)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    config = DigitsConfig(seed=3)
    values = config.preset_values(name)
    assert values["rank"] == PRESETS[name].rank_for(64)
    assert config.replace(**values).seed == 3


def test_differences() -> None:
    assert DigitsConfig(rank=2, seed=1).differences(DigitsConfig(rank=3, seed=1)) == {"rank": (2, 3)}


def test_the_cpu_is_always_there() -> None:
    assert devices()[0] == "cpu"
    for device in devices():
        assert DigitsConfig(device=device).device == device


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
        ("refine_order", 4),
        ("skip", 1),
        ("merge_every", 0),
        ("problem", "moons"),
    ],
)
def test_a_value_out_of_range_is_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}={value!r}: expected"):
        RunConfig.from_json(json.dumps({"problem": "digits", key: value}))


@pytest.mark.parametrize("target", ["rotatoin", "1 0; 0", "1 nan; 0 1", ""])
def test_a_matrix_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="target="):
        MatrixConfig(target=target)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('{"problem": "digits", "rnk": 3}', "rnk=3: there is no such setting; expected", id="unknown key"),
        pytest.param("{", "expected JSON", id="not json"),
        pytest.param("[1]", "expected a JSON object", id="not an object"),
        pytest.param("{}", "problem='': expected one of digits, matrix", id="no problem"),
    ],
)
def test_broken_json(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "problem='': expected", id="empty"),
        pytest.param("moons?rank=2", "problem='moons': expected", id="unknown problem"),
        pytest.param("matrix?rank=2", "problem='matrix': expected digits", id="another problem"),
        pytest.param("digits?rank", "expected something like 'digits", id="no value"),
        pytest.param("digits?rank=two", "rank='two': expected a whole number", id="not a number"),
        pytest.param("digits?skip=no", "skip='no': expected true or false", id="not a switch"),
        pytest.param("digits?rnk=2", "rnk='2': there is no such setting", id="unknown key"),
        pytest.param("digits?rank=2&seed=1&rank=3", "expected each setting once, but rank came more", id="twice"),
    ],
)
def test_broken_text(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DigitsConfig.from_text(text)


@pytest.mark.parametrize("start", ["", "digits?rank", "digits?rank=", "digits?rank=1&rank=", "digits?rnk="])
def test_a_long_text_that_was_pasted_by_mistake_is_not_told_in_full(start: str) -> None:
    with pytest.raises(ConfigError) as refused:
        DigitsConfig.from_text(start + "x" * 5000)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (lambda: setting(3, "Size"), r"Own.size = setting\(3, ...\): say what it may be, by a rule such as whole"),
        (lambda: setting(3, "Size", choices=()), "say what it may be"),
        (lambda: setting(3, "Size", choices=lambda config: (1, 2)), "say what it may be"),
        (lambda: setting(3, "Size", choices=(1, 2)), "size=3: expected one of 1, 2"),
        (lambda: 3, r"Own.size = 3: declare it by setting\(3, label, rule\)"),
        (lambda: setting(3, "Size", hlep="x"), "hlep=...\\): expected some of label, rule, choices"),
        (lambda: setting(3, "Size", whole(1, 5), kind="dial"), "kind='dial': expected one of slider, choice"),
        (lambda: setting(3, "Size", int), "rule=<class 'int'>: expected a Rule"),  # type: ignore[arg-type]
    ],
)
def test_a_setting_that_says_too_little_or_nonsense_is_named(declared: Callable[[], Any], message: str) -> None:
    def make() -> None:
        kind = dataclasses.dataclass(frozen=True)(
            type("Own", (RunConfig,), {"__annotations__": {"size": int}, "size": declared(), "problem": "own"})
        )
        kind()

    with pytest.raises(ConfigError, match=message):
        make()


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="preset='best': expected one of recommended, paper"):
        DigitsConfig().preset_values("best")
