"""The command lines: options are declared once, what is documented is understood, and every command runs."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from p4lab.bench.__main__ import COMMANDS
from p4lab.bench.__main__ import main as bench
from p4lab.command import OPTIONS, Command, Names, choose, command
from p4lab.errors import ConfigError
from p4lab.experiments.__main__ import OTHERS
from p4lab.experiments.__main__ import main as experiments
from p4lab.results import read_all

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = {name: importlib.import_module(f"p4lab.experiments.{name}").main for name in OTHERS}
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "notebooks").glob("*.ipynb"),
    *(ROOT / "p4lab").rglob("*.py"),
]


def documented() -> list[str]:
    """Every command of benchmarks and experiments that a document or result file names, from the module's name on."""
    pattern = r"python -m p4lab\.((?:bench|experiments)\b[^`#\n]*)"
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS]
    texts += [command for result in read_all(ROOT).values() for command in result.commands]
    return sorted({found.strip() for text in texts for found in re.findall(pattern, text)})


# --- the commands there are -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", documented())
def test_what_is_documented_is_understood(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    room, *arguments = shlex.split(text.strip('"\\').rstrip("."))
    read: list[argparse.Namespace] = []
    monkeypatch.setattr(Command, "__call__", lambda self, given: read.append(self.read(given)))
    if "." in room:
        EXPERIMENTS[room.partition(".")[2]](arguments)
    else:
        {"bench": bench, "experiments": experiments}[room](arguments)
    assert len(read) == 1


def test_the_documents_name_every_experiment() -> None:
    assert {f"experiments.{name}" for name in OTHERS if name != "replicas"} <= {
        text.split()[0] for text in documented()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_tells_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        bench([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(f"--{option}" in text for option in ("quick", "threads", *COMMANDS[name].defaults))


@pytest.mark.parametrize("name", OTHERS)
def test_an_experiment_tells_its_options_from_both_ends(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for run in (lambda: EXPERIMENTS[name](["--help"]), lambda: experiments([name, "--help"])):
        with pytest.raises(SystemExit) as end:
            run()
        assert end.value.code == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert f"python -m p4lab.experiments.{name}" in texts[0]


def test_help_lists_all_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param("steps --dims 2 --rounds 1", "The same for a first layer", id="steps"),
        pytest.param("linear --tuning 0.01 --limit 0.01 --seeds 1", "| minus_identity | nn.Linear, Adam", id="linear"),
        pytest.param("methods --dims 16 --rounds 1 --methods plain+p4inv", "methods ahead of these", id="methods"),
        pytest.param(
            "race --tasks so --methods plain+p4inv --dim 4 --tuning 0.02 --limit 0.05 --seeds 1 --jobs 1",
            "training time only, 1 seeds",
            id="race",
        ),
        pytest.param("flows --rounds 1", "samples of the folded 2D flow: s", id="flows"),
        pytest.param(
            "orthogonal --quick --methods p4orthogonal+torch_cayley --limit 0.05 --dims 64",
            "d = 64: best of torch as it comes",
            id="orthogonal",
        ),
        pytest.param("properties --dims 16 --rounds 1", "permutation + logdet", id="properties"),
        pytest.param(f"against --checkout {ROOT} --dims 8 --rounds 1", f"to those of {ROOT.name}", id="against"),
    ],
)
def test_a_tiny_run(arguments: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    bench(arguments.split())
    text = capsys.readouterr().out
    assert "torch thread" in text.splitlines()[0]
    assert said in text


def test_all_is_three_benchmarks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("p4lab.bench.__main__.Bench.show", lambda self, options: shown.append((self.text, options)))
    bench(["--quick", "--methods", "plain"])
    assert [options["quick"] for _, options in shown] == [True] * 3
    assert shown[2][1]["methods"] == ("plain",)
    assert shown[0][1]["rounds"] == 3
    assert capsys.readouterr().out.count("torch thread") == 1


# --- how a command line is read ---------------------------------------------------------------------------------------


@command(
    "p4lab.test",
    "First line.\n\nMore.",
    {"seeds": 1},
    seeds=3,
    seconds=None,
    methods=Names(("a", "b", "c"), ("a", "b")),
)
def example(options: argparse.Namespace) -> None:
    """Print what was read."""
    print(options.seeds, options.seconds, *options.methods)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        pytest.param([], "3 None a b", id="defaults"),
        pytest.param(["--seeds", "5", "--methods", "c+a"], "5 None c a", id="given"),
        pytest.param(["--quick"], "1 None a b", id="quick"),
        pytest.param(["--quick", "--seeds", "2"], "2 None a b", id="quick-and-given"),
        pytest.param(["--limit", "0.5"], "3 0.5 a b", id="another-spelling"),
    ],
)
def test_options(arguments: list[str], printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    example(arguments)
    assert capsys.readouterr().out == f"{printed}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--seconds", "nan"], "--seconds nan: expected at least 0"),
        (["--methods", "a+d+e"], r"--methods a\+d\+e: d, e not known; choose of a, b, c"),
    ],
)
def test_bad_values_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        example(arguments)
    with pytest.raises(ConfigError, match=message):
        example.read(arguments)


def test_options_of_one_meaning_have_one_name() -> None:
    spellings = [spelling for name, option in OPTIONS.items() for spelling in (f"--{name}", *option.also)]
    assert len(spellings) == len(set(spellings))
    taken = {name for one in (*COMMANDS.values(), *EXPERIMENTS.values()) for name in one.defaults}
    assert taken | {"quick"} | {"problems"} == set(OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "reached"),
    [
        pytest.param(["two", "--seeds", "1"], ("two", ["--seeds", "1"]), id="first"),
        pytest.param(["--seeds", "1", "two"], ("two", ["--seeds", "1"]), id="behind-an-option"),
        pytest.param(["--quick", "two"], ("two", ["--quick"]), id="behind-a-switch"),
        pytest.param(["--file", "two"], ("one", ["--file", "two"]), id="the-value-of-an-option"),
        pytest.param([], ("one", []), id="none"),
    ],
)
def test_which_command_is_chosen(arguments: list[str], reached: tuple[str, list[str]]) -> None:
    calls: list[tuple[str, Any]] = []
    commands: Any = {name: lambda given, name=name: calls.append((name, given)) for name in ("one", "two")}
    choose(commands, "one", arguments)
    assert calls == [reached]


def test_an_unknown_command_is_named() -> None:
    with pytest.raises(SystemExit, match="nowhere is not known: choose of all, steps"):
        bench(["nowhere"])


def test_experiments_tell_of_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="nowhere is not known: choose of recurrent, molecules, temperature"):
        experiments(["nowhere", "--quick"])
    with pytest.raises(SystemExit):
        experiments(["--help"])
    text = capsys.readouterr().out
    assert "--problems PROBLEMS" in text
    assert all(name in text.partition("usage:")[0] for name in OTHERS)
