"""One run: build, train, judge."""

import dataclasses
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.errors import ConfigError
from p4lab.experiments.settings import DIGITS, Recipe, Run
from p4lab.flows import Flow, effective_parameters, matched, p4inv_bent, realnvp
from p4lab.p4 import RECOMMENDED, MergeSchedule, p4_modules
from p4lab.problems import DensityProblem, Digits, bits, density, density_metrics
from p4lab.problems.metrics import round_trip_error

WARM_UP = 0.02
REFINE_EVERY = 50


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
    steps, seconds, finite = fit(flow, problem, run)
    found = {"parameters": effective_parameters(flow), "steps": steps, "seconds": seconds, "finite": int(finite)}
    return {
        **found,
        **(digits_metrics(flow, problem) if isinstance(problem, Digits) else density_metrics(flow, problem)),
    }


def fit(flow: Flow, problem: Any, run: Run) -> tuple[int, float, bool]:
    """Train a flow in place; return steps, seconds, and whether all losses were finite: it stops at one that is not."""
    recipe = run.recipe
    trained = list(flow.parameters())
    optimizer = torch.optim.Adam(trained, lr=recipe.learning_rate, fused=True)
    schedule = MergeSchedule(flow, optimizer, recipe.merge_every, REFINE_EVERY) if p4_modules(flow) else None
    generator = torch.Generator().manual_seed(run.seed)
    start, step, broken = time.perf_counter(), 0, torch.zeros((), dtype=torch.bool)
    while step < run.steps:
        elapsed = time.perf_counter() - start
        if run.seconds and elapsed >= run.seconds:
            break
        progress = max((step + 1) / run.steps, elapsed / run.seconds if run.seconds else 0.0)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * rate(progress)
        optimizer.zero_grad()
        loss = problem.loss(flow, problem.batch(run.batch, generator))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
        broken = ~torch.isfinite(norm + loss.detach())
        if broken:  # the only wait for the device in a step: the optimizer must not see it
            break
        optimizer.step()
        if schedule:
            schedule.step()
        step += 1
    return step, time.perf_counter() - start, not bool(broken)


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
