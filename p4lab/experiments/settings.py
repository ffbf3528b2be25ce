"""What is compared, and with which settings: the one place where they are chosen.

The recipes were tuned on seed `TUNING_SEED`, which no table uses:

- 2D, by the mean over all eight densities of the median KL of three or five starts, after 3000 steps on batches of seed
  100 and test points of 101 (2026-11-28; by a C program that trains the same flows with the same Adam, P4Inv layers as
  plain matrices, in 0.1 s a run; it is not part of p4lab). RealNVP: rates 0.01, 0.02, 0.04 with 8 couplings of
  depth 2, 0.01 to 0.04 with 16; 4, 6, 11 and 26 couplings of depth 2, 12 and 16 of depth 1, all of about 416
  parameters: KL 0.25 nats with 16 or 26 of depth 2 (hidden widths 3 and 2), 0.30 with 8. P4Inv + Bent, 64
  nonlinearities: rates 0.015, 0.03, 0.06 from orthogonal matrices (0.21 at 0.03); starts from rotations, one fixed
  angle, the identity (0.16), and pairs (0.13: a Bent identity, then its inverse, with the identity between them), these
  at rates 0.02 to 0.1. A second beta of 0.99 gave 0.12 for pairs and 0.28 for 16 couplings; both keep Adam's own. Of
  little use from orthogonal matrices: random biases, other orders of Bent identities, a scaled first layer, other
  first betas; those were not tried for RealNVP, so that P4Inv + Bent had about twice as many trials. Merges every 10
  and every 50 steps are the same (0.135, 0.134; directions redrawn as P4Inv does): so the cheaper ones.
- digits, by test NLL after 600 steps: rates 0.002, 0.005, 0.01 for every mixing. After 1500 steps the fixed swap
  overfits.
"""

from dataclasses import dataclass, field

from p4lab.bench.store import Described
from p4lab.errors import ConfigError
from p4lab.p4.linear import Reset
from p4lab.problems.densities import DENSITIES

TUNING_SEED = 100
DIGITS = "digits"
PROBLEMS = (*DENSITIES, DIGITS)
MULTIMODAL = ("eight_gaussians", "two_moons", "rings", "checkerboard", "pinwheel", "spirals", "picture")
"""Toy densities of more than one piece: for these, the mass of bridges between pieces matters most."""


@dataclass(frozen=True)
class Recipe:
    """A flow and how it is trained.

    Attributes:
        flow: "p4inv_bent" or "realnvp".
        blocks: its nonlinearities, or its couplings.
        hidden: width of the couplings' networks; 0 is the one that matches the parameters of ``matched_to``.
        depth: number of their hidden layers.
        mixing: what stands between couplings, a name of `p4lab.flows.MIXINGS`.
        rank: rank-one terms per layer of a P4Inv stack; 0 is the recommended preset's, as for P4Inv swaps.
        reset: how P4Inv directions are redrawn.
        init: initial matrices of a P4Inv stack, as `p4lab.flows.p4inv_bent` takes them.
        merge_every: optimizer steps between merges.
        learning_rate: peak of Adam's rate; it falls to 0 by a half cosine.
        clip: largest norm of the gradient.
    """

    flow: str = "realnvp"
    blocks: int = 8
    hidden: int = 0
    depth: int = 2
    mixing: str = "swap"
    rank: int = 0
    reset: Reset = "gradient"
    init: str = "orthogonal"
    merge_every: int = 25
    learning_rate: float = 5e-3
    clip: float = 10.0


@dataclass(frozen=True)
class Run(Described):
    """One training run, described in full.

    Attributes:
        problem: name of a density, or "digits".
        method: name of the recipe.
        seed: seed of data, start and batches.
        recipe: flow and training.
        steps: optimizer steps (with ``seconds``: at most so many).
        seconds: training time to stop at; 0 is no limit.
        batch: samples per step.
        matched_to: number of effective parameters that couplings of hidden width 0 come near to.
    """

    problem: str
    method: str
    seed: int
    recipe: Recipe
    steps: int
    seconds: float = 0.0
    batch: int = 256
    matched_to: int = 0


@dataclass(frozen=True)
class Plan:
    """Problems of one kind, the methods that are compared on them, and how long they train.

    Attributes:
        recipes: by method name, the reference method first.
        steps: optimizer steps of a run.
        batch: samples per step.
        matched: method to whose number of parameters couplings of hidden width 0 are brought ("" for none).
    """

    recipes: dict[str, Recipe] = field(hash=False)
    steps: int
    batch: int
    matched: str = ""


TOY = Plan(
    {
        "realnvp": Recipe("realnvp", blocks=16, depth=2, learning_rate=2e-2),
        "p4inv_bent": Recipe("p4inv_bent", blocks=64, rank=2, init="paired", merge_every=50, learning_rate=3e-2),
    },
    steps=3000,
    batch=256,
    matched="p4inv_bent",
)
MIXED_RATES = {"swap": 1e-2, "permutation": 2e-3, "plu": 1e-2, "p4inv": 1e-2, "orthogonal": 5e-3}
MIXED = Plan(
    {
        mixing: Recipe("realnvp", blocks=8, hidden=64, depth=1, mixing=mixing, merge_every=4, learning_rate=rate)
        for mixing, rate in MIXED_RATES.items()
    },
    steps=600,
    batch=128,
)


def plan_for(problem: str) -> Plan:
    """Return the plan that a problem belongs to.

    Raises:
        ConfigError: unknown problem.
    """
    if problem not in PROBLEMS:
        raise ConfigError(f"problem {problem!r} is not known: choose of {', '.join(PROBLEMS)}")
    return MIXED if problem == DIGITS else TOY
