"""One run: build, train, judge."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import ConfigError
from p4lab.experiments.settings import DIGITS, Recipe, Run, plan_for
from p4lab.fit import Fit, fit
from p4lab.flows import Flow, effective_parameters, matched, p4inv_bent, realnvp
from p4lab.p4 import RECOMMENDED, MergeSchedule, p4_modules
from p4lab.problems import DensityProblem, Digits, bits, density, density_metrics
from p4lab.problems.metrics import round_trip_error

WARM_UP = 0.02
"""Share of a training over which the learning rate rises."""
REFINE_EVERY = 50
"""Merges between two refinements of the inverses."""


def build(problem: str, recipe: Recipe, seed: int, matched_to: int = 0) -> Flow:
    """Return the flow of a recipe, float32 on the CPU.

    Raises:
        ConfigError: unknown flow.
        OptionError: an option that the flow refuses.
    """
    dim = Digits.dim if problem == DIGITS else DensityProblem.dim
    preset = dataclasses.replace(RECOMMENDED, reset=recipe.reset, every=recipe.merge_every)
    if recipe.flow == "p4inv_bent":
        rank = recipe.rank or preset.rank_for(dim)
        return p4inv_bent(dim, recipe.blocks, preset, recipe.init, seed, rank=rank)
    if recipe.flow != "realnvp":
        raise ConfigError(f"flow {recipe.flow!r} is not known: choose p4inv_bent or realnvp")

    def coupled(hidden: int) -> Flow:
        return realnvp(dim, recipe.blocks, recipe.mixing, hidden, recipe.depth, seed, preset)

    flow: Flow = coupled(recipe.hidden) if recipe.hidden else matched(coupled, matched_to)
    return flow


def parameters(problem: str, recipe: Recipe) -> int:
    """Return the number of effective parameters of a recipe with a hidden width of its own."""
    return effective_parameters(build(problem, recipe, seed=0))


def runs_of(problem: str, methods: tuple[str, ...] | None = None, seeds: range = range(5), **changes: Any) -> list[Run]:
    """Return the runs of a problem, method by method.

    Args:
        problem: name of a density, or "digits".
        methods: of its plan (None: all of them); others are left out.
        seeds: one run for each.
        changes: ``steps``, ``seconds`` or ``batch`` other than the plan's.

    Raises:
        ConfigError: unknown problem.
    """
    plan = plan_for(problem)
    recipes = {name: recipe for name, recipe in plan.recipes.items() if methods is None or name in methods}
    target = parameters(problem, plan.recipes[plan.matched]) if plan.matched and recipes else 0
    settings = {"steps": plan.steps, "batch": plan.batch, **{k: v for k, v in changes.items() if v is not None}}
    return [
        Run(problem, name, seed, recipe, matched_to=0 if recipe.hidden or name == plan.matched else target, **settings)
        for name, recipe in recipes.items()
        for seed in seeds
    ]


def rate(progress: float) -> float:
    """Return the factor of the learning rate after a share of the training: up over 2 %, then a half cosine to 0."""
    return min(1.0, progress / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(run: Run) -> dict[str, Any]:
    """Train and judge one flow.

    Returns:
        Numbers by name: "parameters", "steps", "seconds" (of training), "finite" (1 if training went through, else 0),
        and the metrics: those of `p4lab.problems.density_metrics` (nats), or for digits "test_nll" and "train_nll"
        (nats per pixel), "bits_per_dim" and "round_trip".
    """
    problem = Digits(run.seed) if run.problem == DIGITS else DensityProblem(density(run.problem), run.seed)
    flow = build(run.problem, run.recipe, run.seed, run.matched_to)
    end = train_flow(flow, problem, run)
    return {
        "parameters": effective_parameters(flow),
        "steps": end.step,
        "seconds": end.elapsed,
        "finite": int(end.taken),
        **(digits_metrics(flow, problem) if isinstance(problem, Digits) else density_metrics(flow, problem)),
    }


def train_flow(flow: Flow, problem: Any, run: Run) -> Fit:
    """Train a flow in place; a loss or gradient that is not finite ends it."""
    recipe = run.recipe
    optimizer = torch.optim.Adam(flow.parameters(), lr=recipe.learning_rate, fused=True)
    merges = MergeSchedule(flow, optimizer, recipe.merge_every, REFINE_EVERY) if p4_modules(flow) else None
    generator = torch.Generator().manual_seed(run.seed)
    return fit(
        lambda: problem.loss(flow, problem.batch(run.batch, generator)),
        optimizer,
        run.steps,
        seconds=run.seconds or math.inf,
        schedules=[merges],
        rate=lambda now: recipe.learning_rate * rate(max((now.step + 1) / now.steps, now.elapsed / now.seconds)),
        clip=recipe.clip,
        not_finite="stop",
    )


@torch.no_grad()
def digits_metrics(flow: Flow, problem: Digits) -> dict[str, float]:
    """Return the metrics of a flow on the digits; the training digits are dequantized by one fixed draw."""
    test = float(problem.test_loss(flow))
    x = problem.batch(len(problem.train), torch.Generator().manual_seed(0))
    y: Tensor = problem.to_model(x)[0]
    return {
        "test_nll": test,
        "train_nll": float(problem.loss(flow, x)),
        "bits_per_dim": bits(test),
        "round_trip": round_trip_error(flow, y),
    }
