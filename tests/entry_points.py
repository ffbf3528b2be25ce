"""Try what people reach for; print, as JSON, what each says that fails: `tests/test_delivery.py` reads it.

It runs where the core of p4lab is installed alone, so that it uses nothing of the tests.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import p4lab.labs
from p4lab.baselines import METHODS
from p4lab.bench.race import sweep
from p4lab.labs import Lab
from p4lab.molecules import dataset
from p4lab.molecules.molecule import Molecule
from p4lab.problems import DENSITIES, TABLES, Images, density, table_problem
from p4lab.problems.tasks import TASKS, task
from p4lab.training import DigitsConfig, MatrixConfig, run, table_bytes
from p4lab.training.race import RaceConfig


def build(name: str) -> None:
    """Build a method's layer and each of its optimizers."""
    layer = METHODS[name].build(4, seed=0)
    for optimizer in METHODS[name].optimizers.values():
        optimizer(layer, 1e-3)


def entry_points() -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is tried, by name."""
    yield "train digits", lambda: run(DigitsConfig(), 1)
    yield "train a matrix", lambda: run(MatrixConfig(), 1)
    yield "records as a table", lambda: run(MatrixConfig(), 1).frame()
    yield "records as Parquet", lambda: table_bytes(run(MatrixConfig(), 1), "parquet")
    yield "sweep", lambda: sweep(RaceConfig(methods="plain", dim=4), (0,), steps=1, n_jobs=1)
    yield "sweep on a cluster", lambda: sweep(RaceConfig(methods="plain", dim=4), (0,), steps=1, backend="dask")
    yield "images", Images
    yield "widgets", lambda: importlib.import_module("p4lab.widgets")
    yield "estimator", lambda: importlib.import_module("p4lab.estimator")
    yield "molecule", partial(Molecule.from_sequence, "A")
    yield "data of the molecule", dataset.load
    yield "nested lists as a table", lambda: table_problem([[float(i), float(i * i)] for i in range(20)])
    yield from ((f"table {name}", partial(table_problem, name)) for name in TABLES)
    yield from ((f"density {name}", partial(density, name)) for name in DENSITIES)
    yield from ((f"method {name}", partial(build, name)) for name in METHODS)
    yield from ((f"task {name}", partial(task, name, 64 if name == "digits" else 16)) for name in TASKS)
    for module in pkgutil.iter_modules(p4lab.labs.__path__, "p4lab.labs."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Lab):
                yield f"lab {value.name}", partial(value.trainer, value.config)
    for name in ("bench", "experiments"):
        folder = Path(str(importlib.import_module(f"p4lab.{name}").__file__)).parent
        for path in sorted(folder.glob("[a-z]*.py")):
            yield f"{name} {path.stem}", partial(importlib.import_module, f"p4lab.{name}.{path.stem}")


found: dict[str, list[str] | None] = {}
for name, act in entry_points():
    try:
        act()
        found[name] = None
    except Exception as error:
        found[name] = [type(error).__name__, str(error)]
print(json.dumps(found))
