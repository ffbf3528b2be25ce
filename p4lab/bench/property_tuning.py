"""Which optimizer and learning rate suits each way to keep a property: ``python -m p4lab.bench property_tuning``."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from p4lab.baselines.properties import PROPERTIES, WAYS
from p4lab.bench.tables import table
from p4lab.errors import TrainingError
from p4lab.labs.property import PropertyConfig, best_error
from p4lab.training import Engine

RATES = {"sgd": (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5), "adam": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)}
"""The grid of learning rates; those for "sgd" are relative to `Way.scale`."""
LOW = 1e-5
"""Errors below it count as this."""


def tune(prop: str, way: str, dim: int = 64, steps: int = 200, seed: int = 1000) -> list[dict[str, Any]]:
    """Return what becomes of each optimizer and rate of `RATES` with the lab's noise, the best first.

    Args:
        prop: the property.
        way: how it is kept.
        dim: width d.
        steps: of each run.
        seed: another one than the lab starts with.

    Returns:
        Rows with "optimizer", "rate", "merit" (mean of log10 of the error above the least possible one, over the run)
        and "error" (at the end).
    """
    rows = []
    for optimizer, rates in RATES.items():
        for rate in rates:
            errors = _errors(prop, way, dim, optimizer, rate, steps, seed)
            rows.append({"optimizer": optimizer, "rate": rate, "merit": _merit(errors), "error": errors[-1]})
    return sorted(rows, key=lambda row: row["merit"])


def _errors(prop: str, way: str, dim: int, optimizer: str, rate: float, steps: int, seed: int) -> list[float]:
    config = PropertyConfig(
        prop=prop,
        way=way,
        dim=dim,
        seed=seed,
        optimizer=optimizer,
        learning_rate=rate * PROPERTIES[prop].ways[way].scale(dim) if optimizer == "sgd" else rate,
    )
    engine = Engine(config)
    try:
        engine.run(steps)
    except TrainingError:
        return [math.inf]
    floor = best_error(prop, dim, seed, config.bound)
    return [error - floor for error in engine.records.measures.columns["test_loss"]]


def _merit(errors: list[float]) -> float:
    levels = np.log10(np.maximum(np.nan_to_num(errors, nan=math.inf), LOW))
    return float(levels.mean())


def property_tuning(properties: Sequence[str], dim: int, n_steps: int) -> str:
    """Return a Markdown table of the best optimizer and rate of every way to keep some properties."""
    rows = []
    for prop in properties:
        for way in WAYS:
            best, *others = tune(prop, way, dim, n_steps)
            next_best = ", ".join(f"{row['optimizer']} {row['rate']:g}: {row['merit']:.2f}" for row in others[:3])
            rows.append([prop, way, f"{best['optimizer']} {best['rate']:g}", f"{best['merit']:.2f}", next_best])
    return table(["property", "way", "best", "mean log10 of the error", "next"], rows)
