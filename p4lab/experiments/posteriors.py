"""Learn posteriors with a known density from fresh pairs: conditional flows with P4Inv layers beside zuko's NSF.

    python -m p4lab.experiments.posteriors --file posteriors.jsonl
    python -m p4lab.experiments.posteriors --problems two_moons --methods nsf+spline --seconds 10

Flows have about as many parameters as the NSF, and each has the same processor time. The divergence is the mean of
log p(theta | x) - log q(theta | x) over held-out pairs, which is the mean over observations of KL(p(. | x), q(. | x)).
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import zuko
from torch import Tensor, nn

from p4lab.bench.store import Described, Result, perform
from p4lab.bench.tables import Runs, machine, method_table
from p4lab.command import Names, command
from p4lab.errors import ConfigError
from p4lab.experiments.train import rate
from p4lab.fit import fit
from p4lab.flows import Flow, FromZuko, Standardize, effective_parameters, matched, p4inv_bent, realnvp, spline_flow
from p4lab.p4 import RECOMMENDED, p4_modules
from p4lab.problems.metrics import kl
from p4lab.problems.posteriors import POSTERIORS, Pairs, Posterior

HELD_OUT = 10_000
"""Pairs by which a flow is judged; as many others tell how data are standardized."""
CLIP = 10.0
"""Largest norm of a gradient."""
RATE = 1e-2
"""Peak learning rate: of 1e-3, 3e-3 and 1e-2 the best on two moons for NSF, splines and RealNVP, in 6 s with seed 100;
on the linear Gaussian model the best for the first two, and within 10 % of it for RealNVP."""
BINS, HIDDEN = 8, 64
"""Bins of all splines, and the width of the NSF's two hidden layers, by which all others are matched."""


def nsf(dim: int, context: int, hidden: int, seed: int) -> zuko.flows.Flow:
    """Return zuko's neural spline flow: three autoregressive transformations."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return zuko.flows.NSF(dim, context, bins=BINS, transforms=3, hidden_features=(hidden, hidden))


def nsf_with_p4inv(dim: int, context: int, hidden: int, seed: int) -> Flow:
    """Return the transformations of zuko's NSF with a P4Inv layer between any two of them."""
    first, *others = nsf(dim, context, hidden, seed).transform.transforms
    layers = [FromZuko(first, context, dim)]
    for i, transform in enumerate(others):
        layers += [RECOMMENDED.layer(dim, init="identity", seed=seed + i), FromZuko(transform, context, dim)]
    return Flow(layers)


def splines(dim: int, context: int, hidden: int, seed: int) -> Flow:
    """Return six spline couplings with P4Inv layers between them, which begin as swaps."""
    return spline_flow(dim, 6, "p4inv", BINS, hidden, seed=seed, context=context)


def affine(dim: int, context: int, hidden: int, seed: int) -> Flow:
    """Return twelve affine couplings with P4Inv layers between them."""
    return realnvp(dim, 12, "p4inv", hidden, seed=seed, context=context)


def bent(dim: int, context: int, hidden: int, seed: int) -> Flow:
    """Return P4Inv layers, each with scales and shifts that depend on the context, and 32 Bent identities."""
    return p4inv_bent(dim, 32, init="paired", seed=seed, context=context, hidden=hidden)


METHODS: dict[str, tuple[str, Callable[[int, int, int, int], nn.Module]]] = {
    "nsf": ("NSF (zuko)", nsf),
    "nsf_p4inv": ("NSF (zuko), P4Inv between", nsf_with_p4inv),
    "spline": ("splines, P4Inv mixing", splines),
    "realnvp": ("RealNVP, P4Inv mixing", affine),
    "p4inv_bent": ("P4Inv + Bent", bent),
}
"""By name, what a flow is called, and what makes it of d, c, the hidden width of its networks and a seed."""


@dataclass(frozen=True)
class PosteriorRun(Described):
    """One training, described in full.

    Attributes:
        problem, method: names.
        seed: of the flow and of the pairs.
        seconds: of processor time; 0 for no limit.
        steps: optimizer steps, at most; 0 for no limit.
        batch: pairs of a step.
        learning_rate: at its peak.
    """

    problem: str
    method: str
    seed: int
    seconds: float
    steps: int
    batch: int
    learning_rate: float


def build(method: str, problem: Posterior, seed: int = 0) -> nn.Module:
    """Return the flow of a method, with about as many parameters as the NSF whose networks have width `HIDDEN`."""
    make, size = METHODS[method][1], (problem.dim, problem.context)
    target = effective_parameters(nsf(*size, HIDDEN, 0))
    flow: nn.Module = matched(lambda hidden: make(*size, hidden, seed), target)
    return flow


def log_prob(flow: Any, theta: Tensor, x: Tensor) -> Tensor:
    """Return log q(theta | x) in nats, shape (n,), of a flow of p4lab or zuko."""
    log_q: Tensor = flow(x).log_prob(theta) if isinstance(flow, zuko.flows.Flow) else flow.log_prob(theta, x)
    return log_q


class Scaled:
    """Pairs of a model with mean 0 and variance 1, in float32.

    Args:
        problem: the model.
    """

    def __init__(self, problem: Posterior) -> None:
        self.problem = problem
        pairs = problem.pairs(HELD_OUT, torch.Generator().manual_seed(1000))
        self.theta, self.x = Standardize.fit(pairs.theta), Standardize.fit(pairs.x)
        self.held_out = problem.pairs(HELD_OUT, torch.Generator().manual_seed(1001))
        self.log_p = problem.log_prob(*self.held_out)

    def pairs(self, n: int, generator: torch.Generator) -> Pairs:
        """Draw n pairs."""
        return self.scale(self.problem.pairs(n, generator))

    def scale(self, pairs: Pairs) -> Pairs:
        """Return pairs in the units of the flow."""
        return Pairs(self.theta(pairs.theta)[0].float(), self.x(pairs.x)[0].float())


@functools.cache
def scaled(problem: str) -> Scaled:
    """Return the pairs of a model by its name, made once."""
    return Scaled(POSTERIORS[problem]())


def train(run: PosteriorRun) -> Result:
    """Train and judge one flow.

    Returns:
        "parameters", "steps", "seconds", "finite" (1 if training went through, else 0), "kl" and "kl_error" (nats).
    """
    torch.set_num_threads(1)
    data, generator = scaled(run.problem), torch.Generator().manual_seed(run.seed)
    flow = build(run.method, data.problem, run.seed)
    optimizer = torch.optim.Adam(flow.parameters(), run.learning_rate)
    end = fit(
        lambda: -log_prob(flow, *data.pairs(run.batch, generator)).mean(),
        optimizer,
        run.steps or math.inf,
        seconds=run.seconds or math.inf,
        schedules=[RECOMMENDED.schedule(flow, optimizer) if p4_modules(flow) else None],
        rate=lambda now: run.learning_rate * rate(max((now.step + 1) / now.steps, now.elapsed / now.seconds)),
        clip=CLIP,
        not_finite="stop",
        clock=time.process_time,
    )
    with torch.no_grad():
        theta, x = data.scale(data.held_out)
        log_q = torch.cat(
            [log_prob(flow, *part).double() for part in zip(theta.split(1000), x.split(1000), strict=True)]
        )
    divergence = kl(data.log_p, log_q - data.theta.std.log().sum())
    return {
        "parameters": effective_parameters(flow),
        "steps": end.step,
        "seconds": end.elapsed,
        "finite": int(end.taken),
        "kl": divergence.value,
        "kl_error": divergence.error,
    }


def summary(run: PosteriorRun, result: Result) -> str:
    """Return a line about a finished run."""
    return f"{run.problem} {run.method} seed {run.seed}: KL {result['kl']:.4f}, {result['steps']} steps"


def report(runs: list[PosteriorRun], results: Mapping[str, Result]) -> str:
    """Return one table for each problem, as Markdown."""
    parts = []
    for problem in dict.fromkeys(run.problem for run in runs):
        of_methods: dict[str, Runs] = {
            METHODS[method][0]: [results[run.key()] for run in runs if (run.problem, run.method) == (problem, method)]
            for method in dict.fromkeys(run.method for run in runs)
        }
        table = method_table(
            of_methods,
            {"KL to the posterior, nats": ("kl", ".4f")},
            lambda run: not run["finite"],
            {"standard error": ("kl_error", ".4f"), "steps": ("steps", ".0f"), "CPU seconds": ("seconds", ".0f")},
        )
        parts.append(f"### {POSTERIORS[problem]().name}\n\n{table}")
    return "\n\n".join(parts)


@command(
    "p4lab.experiments.posteriors",
    __doc__,
    {"seeds": 1, "seconds": 2.0},
    problems=Names(POSTERIORS),
    methods=Names(METHODS),
    seeds=3,
    seconds=60.0,
    steps=None,
    batch=256,
    file=None,
    jobs=1,
)
def main(options: argparse.Namespace) -> None:
    """Train what is missing, and print the tables."""
    if not (options.seconds or options.steps):
        raise ConfigError("--seconds 0 without --steps: expected an end of each training")
    runs = [
        PosteriorRun(problem, method, seed, options.seconds, options.steps or 0, options.batch, RATE)
        for seed in range(options.seeds)
        for problem in options.problems
        for method in options.methods
    ]
    results = perform(runs, train, summary, options.file, options.jobs)
    print(f"{machine()}\n\n{report(runs, results)}")


if __name__ == "__main__":
    main()
