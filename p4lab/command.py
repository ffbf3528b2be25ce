"""Command lines: each option is declared here, once, and a command says which of them it takes.

    @command("p4lab.bench race", __doc__, {"seeds": 1}, tasks=Names(TASKS), seeds=3)
    def main(options): ...

Then ``main(["--tasks", "so", "--seeds", "5"])`` runs it, and ends the process with a sentence where a `P4Error` says
why it cannot. With ``--results FILE``, which every command takes, the tables that it prints go to a file, too.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from p4lab.errors import ConfigError, P4Error
from p4lab.results import recorded


@dataclass(frozen=True)
class Option:
    """An option of commands.

    Attributes:
        help: what it is.
        kind: what makes a value of its text; bool is a switch.
        least: the smallest value (None: any).
        also: other spellings.
    """

    help: str
    kind: Callable[[str], Any] = str
    least: float | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Names:
    """What an option chooses of: one name, or several joined by "+".

    Attributes:
        offered: all there are.
        default: what is chosen if nothing is said (None: all).
        one: whether a single name is asked for.
        kind: what makes a value of a name.
    """

    offered: Iterable[Any]
    default: Any = None
    one: bool = False
    kind: Callable[[str], Any] = str

    def read(self, flag: str, text: str | None) -> Any:
        """Return the name, or the tuple of names, that a text chooses.

        Raises:
            ConfigError: an unknown name.
        """
        offered = tuple(map(str, self.offered))
        if text is None:
            return self.default if self.one else tuple(self.offered if self.default is None else self.default)
        names = (text,) if self.one else tuple(text.split("+"))
        if unknown := [name for name in names if name not in offered]:
            raise ConfigError(f"{flag} {text}: {', '.join(unknown)} not known; choose of {', '.join(offered)}")
        values = tuple(map(self.kind, names))
        return values[0] if self.one else values


OPTIONS: dict[str, Option] = {
    # What is run.
    "quick": Option("little of everything: a look, no result", bool),
    "problems": Option("densities and digits, or posteriors"),
    "tasks": Option("what is learnt"),
    "systems": Option("what is learnt"),
    "methods": Option("what is compared"),
    "ways": Option("what flows learn from"),
    "properties": Option("of a matrix"),
    "cells": Option("kinds of recurrent weights that are compared"),
    "budgets": Option("how long is trained"),
    "dims": Option("widths d"),
    "dim": Option("width d", int),
    "delay": Option("delay T of a sequence", int),
    "blocks": Option("number of blocks", int, 1),
    "length": Option("items of a sequence that are looked at", int, 2),
    "batch": Option("samples of a step (with replicas: of each process)", int, 1, ("--rows",)),
    "seeds": Option("number of seeds: 0, 1, ...", int, 1),
    "molecule": Option("a sequence, such as AAA, or a PDB file"),
    "molecules": Option("sequences or PDB files, joined by +"),
    "notebook": Option("file name in notebooks/, or a path"),
    "checkout": Option("folder of another checkout, such as a git worktree", Path),
    # For how long.
    "steps": Option("optimizer steps of a run, at most", int, 1),
    "seconds": Option("of training for each run, at most", float, 0, ("--limit",)),
    "tuning": Option("seconds of training for each trial of rates; 0 takes those that are known", float, 0),
    "clock": Option("what tells the seconds: those of the processor are the ones that repeat on a busy machine"),
    "rounds": Option("in which everything is timed once, in random order", int, 1),
    "samples": Option("of a flow, by which it is judged", int, 1),
    "nanoseconds": Option("length of each simulation that is learnt from, or compared with", float, 0),
    "minutes": Option("how long the memory is watched", float, 0),
    # Where.
    "threads": Option("torch threads (default: torch's own choice)", int, 1),
    "jobs": Option("runs at a time; -1 is one for each core, or as many as a cluster takes", int),
    "backend": Option("of joblib, or dask: the cluster of DASK_SCHEDULER_ADDRESS (default: processes on this machine)"),
    # What is kept.
    "results": Option("JSON file for the tables that are printed, with the command, the day and the machine", Path),
    "file": Option("JSON lines: finished runs are kept here, and not done again", Path),
    "known": Option("tell what --file has, and run nothing", bool),
    "folder": Option("where simulations are kept, to be used again (default: they are not)", Path),
    "save": Option("file for what was trained", Path, also=("--checkpoint",)),
    "resume": Option("file of --save to go on from", Path),
    "write": Option("keep the tuned rates for the race notebook", bool),
}


@dataclass(frozen=True)
class Command:
    """A function with a command line; calling it runs it.

    Attributes:
        name: what is written behind ``python -m``.
        text: what it does; the first paragraph is shown.
        work: gets the values of the options.
        defaults: by option; for one that chooses, its `Names`.
        quick: values with ``--quick`` of options that are not given.
    """

    name: str
    text: str
    work: Callable[[argparse.Namespace], None]
    defaults: Mapping[str, Any]
    quick: Mapping[str, Any]

    def parser(self) -> argparse.ArgumentParser:
        """Return what reads the command line; an option that is not given is None."""
        parser = argparse.ArgumentParser(prog=f"python -m {self.name}", description=self.text.partition("\n\n")[0])
        for name, default in self.defaults.items():
            option = OPTIONS[name]
            more: dict[str, Any] = {"action": "store_true"} if option.kind is bool else {"metavar": name.upper()}
            if option.kind is not bool and not isinstance(default, Names):
                more["type"] = option.kind
            parser.add_argument(f"--{name}", *option.also, dest=name, default=None, help=_help(option, default), **more)
        return parser

    def read(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the values of all options.

        Raises:
            ConfigError: an unknown name, or a number out of range.
        """
        options = self.parser().parse_args(arguments)
        quick = self.quick if getattr(options, "quick", None) else {}
        for name, default in self.defaults.items():
            value, least = getattr(options, name), OPTIONS[name].least
            if value is not None and least is not None and not value >= least:
                raise ConfigError(f"--{name} {value}: expected at least {least:g}")
            if value is None and name in quick:
                value = quick[name]
            elif isinstance(default, Names):
                value = default.read(f"--{name}", value)
            elif value is None:
                value = default
            setattr(options, name, value)
        return options

    def line(self, arguments: Sequence[str] | None = None) -> str:
        """Return the command line for a result file: without that file, and of paths their last part."""
        words = iter(sys.argv[1:] if arguments is None else arguments)
        kept = ["python", "-m", *self.name.split()]
        for word in words:
            flag, equals, value = word.partition("=")
            if flag != "--results":
                kept.append(f"{flag}={Path(value).name}" if equals else Path(word).name if os.sep in word else word)
            elif not equals:
                next(words)
        return shlex.join(kept)

    def __call__(self, arguments: Sequence[str] | None = None) -> None:
        """Read the command line and do the work; a `P4Error` ends the process with what it says."""
        try:
            options = self.read(arguments)
            if getattr(options, "threads", None):
                torch.set_num_threads(options.threads)
            file = getattr(options, "results", None)
            with recorded(file, self.line(arguments)) if file else nullcontext():
                self.work(options)
        except P4Error as error:
            sys.exit(str(error))


def command(
    name: str, text: str | None, quick: Mapping[str, Any] | None = None, **defaults: Any
) -> Callable[[Callable[[argparse.Namespace], None]], Command]:
    """Make a `Command` of the function below; the options that it takes are keywords, with their defaults.

    With values for ``quick`` (as few as none) it takes ``--quick``, and in any case ``--results``.

    Example:
        >>> @command("p4lab.example", "Say how often.", seeds=3, methods=Names(("plain", "dense")))
        ... def main(options):
        ...     print(options.seeds, *options.methods)
        >>> main(["--methods", "dense"])
        3 dense
    """
    options = {**({} if quick is None else {"quick": False}), **defaults, "results": None}
    return lambda work: Command(name, text or "", work, options, quick or {})


def choose(commands: Mapping[str, Command], default: str, arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named, first or behind some options; without a name, the default."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    switches = tuple(f"--{name}" for name, option in OPTIONS.items() if option.kind is bool)
    for place, (before, word) in enumerate(zip(["", *words], words, strict=False)):
        if word in commands and (not before.startswith("-") or "=" in before or before in switches):
            commands[word](words[:place] + words[place + 1 :])
            return
    if words and not words[0].startswith("-"):
        sys.exit(f"{words[0]} is not known: choose of {', '.join(commands)}")
    if {"-h", "--help"} & set(words):
        print("commands, each with its own --help:")
        for name, one in commands.items():
            print(f"  {name}{' (if none is named)' * (name == default)}: {one.text.splitlines()[0]}")
        print()
    commands[default](words)


def say(text: str) -> None:
    """Tell how far a command is, on stderr: what it finds goes to stdout."""
    print(f"  {text}", file=sys.stderr, flush=True)


def _help(option: Option, default: Any) -> str:
    if isinstance(default, Names):
        joined = "" if default.one else ", joined by +"
        some = default.default if default.one else "+".join(map(str, default.default or ())) or "all"
        text = f"{option.help}{joined}, of {', '.join(map(str, default.offered))} (default: {some})"
    else:
        text = option.help + f" (default: {default})" * (default is not None and option.kind is not bool)
    return text.replace("%", "%%")
