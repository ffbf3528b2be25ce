"""Benchmarks: tables of times in Markdown."""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from p4lab.baselines import METHODS
from p4lab.baselines.properties import PROPERTIES
from p4lab.bench import (
    gpu,
    linear_problems,
    methods,
    orthogonal_layers,
    properties,
    property_tuning,
    race,
    rectangular,
    steps,
    tuning,
    width,
)
from p4lab.bench.against import SIZES, against
from p4lab.bench.flows import ROUNDS, flows
from p4lab.bench.live import DEFAULT, live
from p4lab.bench.tables import machine
from p4lab.command import Command, Names, choose, command
from p4lab.options import named_options
from p4lab.problems.tasks import TASKS

ARGUMENTS = {
    "dims": "sizes",
    "methods": "names",
    "seconds": "limit",
    "jobs": "n_jobs",
    "write": "save",
    "steps": "n_steps",
}
"""What options are called where functions take them under another name."""


@dataclass(frozen=True)
class Bench:
    """A benchmark.

    Attributes:
        text: what it does.
        tables: by title, what makes each, whole or one part after the other; it gets those options that it has
            arguments for.
        quick: values of options for a look.
        options: the options with their defaults.
    """

    text: str
    tables: Mapping[str, Callable[..., str | Iterator[str]]]
    quick: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def command(self, name: str) -> Command:
        """Return the command line of the benchmark."""

        def work(options: argparse.Namespace) -> None:
            print(f"{machine()}\n", flush=True)
            self.show(vars(options))

        return command(f"p4lab.bench {name}", self.text, self.quick, threads=None, **self.options)(work)

    def show(self, options: Mapping[str, Any]) -> None:
        """Print the tables."""
        values = {ARGUMENTS.get(name, name): value for name, value in options.items()} | dict(options)
        values["seeds"] = range(options.get("seeds", 0))
        for title, make in self.tables.items():
            made = make(**{name: values[name] for name in named_options(make) & set(values)})
            print(f"\n### {title.format(**options)}\n", flush=True)
            for part in (made,) if isinstance(made, str) else made:
                print(f"{part}\n", flush=True)


def _orthogonal_steps(quick: bool, names: Sequence[str]) -> str:
    sizes, rounds = ((64, 256), 3) if quick else (orthogonal_layers.STEP_SIZES, 7)
    return orthogonal_layers.steps(sizes, rounds, names)


BENCHES = {
    "steps": Bench(
        "Time training steps and merges of P4Inv against layers that know less, or pay more.",
        {
            "Training step (forward, backward, Adam, merge every 10), batch 512, as a ratio to nn.Linear": steps.steps,
            "The same for a first layer (no input gradient)": steps.first_layer,
        },
        {"dims": (2, 64, 256, 512), "rounds": 3},
        {"dims": Names(steps.SIZES, kind=int), "rounds": 9},
    ),
    "linear": Bench(
        "Race to the targets of the paper's linear problems.",
        {"Linear problems, d = 101, batch 64: to mean squared error 1e-6": linear_problems.linear},
        {"seeds": 1, "seconds": 5.0},
        {"seeds": 5, "tuning": 4.0, "seconds": 20.0},
    ),
    "methods": Bench(
        "Time training steps of every method.",
        {"Training step of every method, log|det| in the loss, batch 512, as a ratio to nn.Linear": methods.methods},
        {"dims": (16, 64), "rounds": 2},
        {"methods": Names(METHODS), "dims": Names(methods.SIZES, kind=int), "rounds": 5},
    ),
    "race": Bench(
        "Race to a test loss on every task, each method with its best rate.",
        {"Time to target, batch 64, training time only, {seeds} seeds": race.race},
        {"seeds": 1, "tuning": 0.05, "seconds": 0.1},
        {
            "tasks": Names(TASKS),
            "methods": Names(METHODS, tuning.RACED),
            "dim": 64,
            "seeds": 3,
            "tuning": tuning.SECONDS,
            "seconds": race.LIMIT,
            "backend": None,
            "jobs": -1,
            "file": None,
            "write": False,
        },
    ),
    "width": Bench(
        "Race on wide tasks, each method with its best annealed rate and the same time.",
        {"Test loss after {seconds:g} s of training each, annealed, batch {batch}, {seeds} seeds": width.width},
        {"dims": (16,), "seeds": 1, "seconds": 0.2},
        {
            "tasks": Names(TASKS, width.DEFAULT_TASKS),
            "methods": Names(METHODS, width.DEFAULT_METHODS),
            "dims": Names(width.DIMS, width.DEFAULT_DIMS, kind=int),
            "seeds": 5,
            "seconds": width.SECONDS,
            "tuning": None,
            "batch": 64,
            "backend": None,
            "jobs": 1,
            "file": None,
        },
    ),
    "flows": Bench(
        "Time training and sampling of flows.",
        {"Flows: training and sampling": flows},
        {"rounds": 2},
        {"rounds": ROUNDS},
    ),
    "orthogonal": Bench(
        "Time training steps of orthogonal layers, and race them to rotations of each width.",
        {
            "Training step of orthogonal layers (forward, backward, Adam, merges), batch 512, as a ratio to "
            "nn.Linear": _orthogonal_steps,
            "To a rotation, batch 128, mean squared error 1e-6, each method tuned": orthogonal_layers.targets,
        },
        {"seeds": 1, "dims": tuple(orthogonal_layers.LIMITS)[:1]},
        {
            "methods": Names(orthogonal_layers.CONTENDERS),
            "dims": Names(orthogonal_layers.LIMITS, kind=int),
            "seeds": 3,
            "seconds": None,
        },
    ),
    "properties": Bench(
        "Time training steps of every P4 property.",
        {
            "Training step of every P4 property (forward, backward, Adam, merge every 10), batch 512, rank 8, "
            "as a ratio to nn.Linear": properties.properties
        },
        {"dims": (16, 64), "rounds": 2},
        {"dims": Names(properties.SIZES, kind=int), "rounds": 9},
    ),
    "rectangular": Bench(
        "Time training steps of layers that are not square.",
        {
            "Training step of layers from d to 4 d numbers (forward, backward, Adam, merges), batch 512, as a ratio to "
            "nn.Linear": rectangular.rectangular
        },
        {"dims": (64,), "rounds": 1},
        {
            "methods": Names(rectangular.CONTENDERS),
            "dims": Names(rectangular.SIZES, kind=int),
            "rounds": 5,
        },
    ),
    "property_tuning": Bench(
        "Find the optimizer and learning rate of every way to keep a property.",
        {"Ways to keep a property, width {dim}, {steps} steps": property_tuning.property_tuning},
        {"properties": ("circulant",), "dim": 8, "steps": 5},
        {"properties": Names(PROPERTIES), "dim": 64, "steps": 200},
    ),
    "gpu": Bench(
        "Time steps, merges, methods and races on an accelerator.",
        {
            "Training step (forward, backward, Adam, merge every 10), batch 512, as a ratio to "
            "nn.Linear": gpu.gpu_steps,
            "Training step of every method, log|det| in the loss, batch 512, as a ratio to nn.Linear": gpu.gpu_methods,
            "Time to target, batch 64, training time only, {seeds} seeds": gpu.gpu_race,
            "The same steps one by one and from a CUDA graph, as a ratio to nn.Linear one by one": gpu.gpu_graphs,
        },
        {"dims": (64, 512), "rounds": 3, "seeds": 1, "tuning": 0.05, "seconds": 0.1},
        {
            "dims": Names(methods.SIZES, kind=int),
            "methods": Names(METHODS, tuning.RACED),
            "rounds": 9,
            "tasks": Names(TASKS),
            "dim": 64,
            "seeds": 3,
            "tuning": tuning.SECONDS,
            "seconds": race.LIMIT,
        },
    ),
    "live": Bench(
        "Measure a live lab in a browser; in a checkout of p4lab.",
        {"The live lab in a browser: {notebook}": live},
        {},
        {"notebook": DEFAULT, "minutes": None},
    ),
    "against": Bench(
        "Time steps and merges of this checkout beside those of another one.",
        {"Times of this checkout as a ratio to those of {checkout.name}, batch 512": against},
        {"dims": (8, 64), "rounds": 3},
        {"checkout": None, "dims": Names(SIZES, kind=int), "rounds": 15},
    ),
}


@command("p4lab.bench", "Run steps, linear and methods.", {}, threads=None, methods=Names(METHODS))
def run_all(options: argparse.Namespace) -> None:
    """Print the README's first tables."""
    print(f"{machine()}\n", flush=True)
    for name in ("steps", "linear", "methods"):
        defaults = COMMANDS[name].read(["--quick"] * options.quick)
        BENCHES[name].show(vars(defaults) | {"methods": options.methods})


COMMANDS = {"all": run_all, **{name: bench.command(name) for name, bench in BENCHES.items()}}
"""The benchmarks by name, with the options that they take."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that is named, or else all of the README's first measurements."""
    choose(COMMANDS, "all", arguments)


if __name__ == "__main__":
    main()
