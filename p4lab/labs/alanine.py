"""Alanine dipeptide: a flow learns its Boltzmann distribution from frames, from its energy, or from both."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann import clipped_ess, ess
from p4lab.boltzmann.weights import normalized
from p4lab.errors import ConfigError
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import SLOW, Axes, Box, Control, Lab, Number, Picture, Sight, View, load_weights, weights_of
from p4lab.molecules import alanine
from p4lab.molecules.checkpoint import SHIPPED, SHIPPED_METHOD, load_flow, start_at
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.dataset import BINS, Frames, load, phi_positive, reference, split
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.evaluate import LARGEST_ENERGY, draw
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.losses import by_energy
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import InternalEnergy
from p4lab.plots import Loss
from p4lab.plots.format import number
from p4lab.plots.gallery import finite
from p4lab.plots.layers import Dots, Heatmap, Layer, Line, Path, Plot, Points
from p4lab.training import Engine
from p4lab.training.config import Rule, RunConfig, setting

TEST = 512
"""Test frames that a measurement looks at."""
POSITIONS = 8
"""Samples whose positions are kept to be drawn."""
LOOK_EVERY = 2.0
"""Seconds between two looks at a flow that trains."""
DEGREES = 180.0
CIRCLE = (-DEGREES, DEGREES, -DEGREES, DEGREES)
DEPTH = 8.0
"""How far, in kT, free energies are shown."""
PROFILE_BINS = 36
"""Bins of free energies along a torsion."""
ENERGY_EDGES = np.linspace(-95.0, 55.0, 51)
"""Bins of energies (kJ/mol)."""
TURN = 0.5
"""Radians per second by which the molecule turns."""
HOLD = 4.0
"""Seconds for which a sample is shown."""
ELEMENTS = {"C": ("grey", 15.0), "N": ("blue", 15.0), "O": ("red", 15.0), "H": ("ink", 8.0)}
"""Colour and size of atoms."""
BOX = 0.36
"""Half the side of the box around the molecule (nm)."""
LOSS = Loss("loss (nats)", bits=False)


# --- what is trained --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """The data in the coordinates of the flows.

    Attributes:
        coordinates: the map.
        train: training frames as coordinates, shape (n, 60), float32.
        test: test frames, likewise.
        frames: all of them, with their energies.
        mean: mean energy of the data (kJ/mol).
    """

    coordinates: Coordinates
    train: Tensor
    test: Tensor
    frames: Frames
    mean: float


@lru_cache(maxsize=1)
def prepared() -> Prepared:
    """Return the data that come with p4lab, ready for training; made once.

    Raises:
        DataFileError: the file is missing or damaged.
    """
    frames = load()
    train, _, test = split(frames)
    coordinates = Coordinates.fit(train.x.double())
    with torch.no_grad():
        trained, tested = (coordinates.encode(part.x.double())[0].float() for part in (train, test))
    return Prepared(coordinates, trained, tested, frames, float(frames.energy.mean()))


class AlanineProblem:
    r"""Learn p(x) ~ exp(-E(x) / kT) of alanine dipeptide at 300 K.

    .. math:: L = (1 - s)\, E_\text{data}[-\log q(y)]
              + s\, E_{y \sim q}\left[u(y) - \log\left|\det \frac{\partial x}{\partial y}\right| + \log q(y)\right]

    What is shown of a run is made of the model's weights by whoever looks (`AlanineView`), so that looking costs the
    training no more than a copy of them.

    Args:
        by_energy: s, 0 (by example) to 1 (by energy).
        device: where the model lives.
        dtype: of the model.

    Attributes:
        energy: what computes E and its forces.
    """

    dim = Coordinates.dim

    def __init__(self, by_energy: float, device: torch.device | str, dtype: torch.dtype) -> None:
        data = prepared()
        self.by_energy, self.device, self.dtype = by_energy, torch.device(device), dtype
        self._coordinates, self._train = data.coordinates, data.train
        self._test = data.test[:TEST].to(self.device, dtype)
        self.energy = OpenMMEnergy()
        self._target = InternalEnergy(data.coordinates, self.energy)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Draw training frames, with their methyl hydrogens permuted at random, and a seed for samples of the model."""
        rows = torch.randint(len(self._train), (size,), generator=generator, device="cpu")
        seed = int(torch.randint(2**31, (), generator=generator, device="cpu"))
        y = self._coordinates.augment(self._train[rows], generator)
        return y.to(self.device, self.dtype), seed

    def loss(self, model: MoleculeFlow, x: tuple[Tensor, int]) -> Tensor:
        """Return the mixed loss (nats), a differentiable scalar.

        Raises:
            TrainingError: OpenMM failed.
        """
        y, seed = x
        loss = y.new_zeros(())
        if self.by_energy < 1:
            loss = loss - (1 - self.by_energy) * model.log_prob(y).mean()
        if self.by_energy > 0:
            samples = torch.Generator().manual_seed(seed)
            loss = loss + self.by_energy * by_energy(model, self._target, len(y), samples)
        return loss

    @torch.no_grad()
    def test_loss(self, model: MoleculeFlow) -> Tensor:
        """Return the mean negative log-likelihood of 512 test frames (nats)."""
        return -model.log_prob(self._test).mean()

    def pictures(self, model: MoleculeFlow, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights. ``z`` is not used."""
        return weights_of(model)

    def release(self) -> None:
        """Free what OpenMM holds; training on opens it again."""
        self.energy.close()


@dataclass(frozen=True)
class AlanineConfig(RunConfig):
    """Learn alanine dipeptide at 300 K.

    Raises:
        ConfigError: as `RunConfig`, or a pretrained flow of an architecture for which there is none.
    """

    problem: ClassVar[str] = "alanine"

    learning_rate: float = setting(5e-4, choices=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3))
    batch_size: int = setting(256, choices=(64, 128, 256, 512))
    merge_every: int = setting(RunConfig.merge_every, choices=(1, 2, 5, 10, 20, 50, 100))
    measure_every: int = 20
    architecture: str = setting(
        "spline_p4",
        "Architecture",
        choices={
            "realnvp": "RealNVP",
            "realnvp_p4inv": "RealNVP, P4Inv swaps",
            "spline": "Splines",
            "spline_p4": "Splines, P4Inv mixing",
        },
        look="wide",
    )
    initial: str = setting("new", "Start", choices={"pretrained": "Pretrained", "new": "New"}, kind="segments")
    by_energy: float = setting(
        0.0,
        "By energy",
        Rule(float, lambda value: math.isfinite(value) and 0 <= value <= 1, "a number from 0 to 1"),
        choices=(0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0),
        own=True,
        live=True,
        help="Share of the loss that comes from energies and forces; the rest comes from frames",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.initial == "pretrained" and self.architecture != SHIPPED_METHOD:
            raise ConfigError(
                f"initial='pretrained', architecture={self.architecture!r}: the flow that comes with p4lab is "
                f"{SHIPPED_METHOD!r}; choose that, or initial='new'"
            )

    @property
    def width(self) -> int:
        """The 60 coordinates."""
        return Coordinates.dim

    def model(self) -> MoleculeFlow:
        """Return the flow at its start.

        Raises:
            DataFileError: the data, or the flow that comes with p4lab, is missing or damaged.
        """
        flow = molecule_flow(self.architecture, prepared().train, self.seed)
        if self.initial == "pretrained":
            start_at(flow, load_flow(SHIPPED)[0])
        return flow.to(**self.where)

    def parts(self) -> tuple[AlanineProblem, MoleculeFlow]:
        """Return the problem, and the flow."""
        return AlanineProblem(self.by_energy, **self.where), self.model()

    def update(self, problem: AlanineProblem) -> None:
        """Set the share of the energy."""
        problem.by_energy = self.by_energy


PRETRAINED = AlanineConfig(initial="pretrained", by_energy=0.5, learning_rate=1e-4)
"""The flow that comes with p4lab, trained on by example and by energy."""


# --- what a flow is like ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Portrait:
    """Samples of a flow, and what they say.

    Attributes:
        phi, psi: torsions of the samples (radians), shape (n,).
        energy: their energies (kJ/mol), shape (n,); inf where there is none.
        weights: importance weights, shape (n,), their sum is 1.
        ess, clipped: effective sample size as a share of n, raw and with the top 0.1 % of the weights clipped.
        rare: share of phi > 0, raw and reweighted.
        shift: mean energy of the samples above that of the data (kJ/mol), raw.
        below: share of samples below the data's highest energy.
        positions: a few samples, shape (m, 22, 3), nm.
    """

    phi: NDArray[np.float32]
    psi: NDArray[np.float32]
    energy: NDArray[np.float64]
    weights: NDArray[np.float64]
    ess: float
    clipped: float
    rare: tuple[float, float]
    shift: float
    below: float
    positions: NDArray[np.float32]


class AlanineView:
    """Looks at flows of alanine dipeptide through their weights, with a copy of the flow and an energy of its own.

    Args:
        samples: how many are drawn at a time.
    """

    def __init__(self, samples: int = 1000) -> None:
        self.samples = samples
        self._energy = OpenMMEnergy()
        self._kind: Any = None
        self._model: MoleculeFlow | None = None

    @torch.no_grad()
    def look(self, config: AlanineConfig, weights: Mapping[str, NDArray[Any]]) -> Portrait:
        """Return samples of the flow with these weights; the latent variables are always the same.

        Args:
            config: what the flow is like.
            weights: `AlanineProblem.pictures`.
        """
        kind = (config.architecture, config.seed, config.dtype)
        if self._model is None or kind != self._kind:
            self._model, self._kind = config.replace(device="cpu", initial="new").model(), kind
        load_weights(self._model, weights)
        data = prepared()
        samples = draw(self._model, data.coordinates, self._energy, self.samples, config.seed, chunk=self.samples)
        normal = normalized(samples.log_weights)
        rare = phi_positive(samples.phi).double()
        positions, _ = data.coordinates.decode(samples.y[:POSITIONS].double())
        return Portrait(
            samples.phi.numpy(),
            samples.psi.numpy(),
            samples.energy.numpy(),
            normal.numpy(),
            float(ess(samples.log_weights)),
            float(clipped_ess(samples.log_weights)),
            (float(rare.mean()), float((normal * rare).sum())),
            float(samples.energy.clamp(max=LARGEST_ENERGY).mean()) - data.mean,
            float((samples.energy < data.frames.energy.max()).double().mean()),
            positions.float().numpy(),
        )

    def close(self) -> None:
        """Free what OpenMM holds."""
        self._energy.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Look = Sight[AlanineConfig, View]


def portrait(sight: Look) -> Portrait:
    """Return what the flow is like at this moment; while it trains, a little late: looking takes time."""
    view: AlanineView = sight.keep("looks with", None, AlanineView)
    moment = sight.moment()

    def look() -> Portrait:
        new: Portrait = sight.keep(
            "portrait of a moment", moment, lambda: view.look(sight.config, sight.snapshot.pictures)
        )
        return new

    late = sight.frame.run, int(time.monotonic() / LOOK_EVERY)
    latest: Portrait = sight.keep("portrait", late if sight.running else moment, look)
    return latest


# --- pictures ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def reference_map() -> NDArray[np.float64]:
    """Return ln p of the reference above its depth, shape (64, 64): rows are psi from low to high, columns phi."""
    with np.errstate(divide="ignore"):
        logs = np.log(reference().histogram.T)
    return cast(NDArray[np.float64], np.maximum(logs - logs.max(), -DEPTH))


def ramachandran(sight: Look) -> Plot:
    """Draw the flow's samples over the reference."""
    samples = portrait(sight)
    layers: list[Layer] = [
        Heatmap(reference_map(), CIRCLE, low=-DEPTH, high=0.0, label="ln (p / max p)"),
        Points(np.degrees(np.stack([samples.phi, samples.psi], axis=1)), "orange", size=3, label="samples of the flow"),
    ]
    return Plot(layers, CIRCLE)


def shares(values: NDArray[Any], edges: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return a histogram of weighted values as points, shape (bins, 2); without weights all weigh the same."""
    weights = np.full(len(values), 1 / len(values)) if weights is None else weights
    return np.stack([(edges[1:] + edges[:-1]) / 2, np.histogram(values, edges, weights=weights)[0]], axis=1)


@lru_cache(maxsize=1)
def simulated_energies() -> NDArray[np.float64]:
    """Return the histogram of the data's energies, as points."""
    return shares(prepared().frames.energy.numpy(), ENERGY_EDGES)


def energies(sight: Look) -> Plot:
    """Draw histograms of the energy: data, flow, and flow reweighted."""
    samples = portrait(sight)
    return Plot(
        [
            Path(simulated_energies(), "ink", label="simulation"),
            Path(shares(samples.energy, ENERGY_EDGES), "orange", label="flow"),
            Path(shares(samples.energy, ENERGY_EDGES, samples.weights), "blue", dashed=True, label="reweighted"),
        ]
    )


def free_energy(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -ln of a histogram's shares in kT, as points, as if there were 36 bins; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = -np.log(points[:, 1] * len(points) / PROFILE_BINS)
    return np.stack([points[:, 0], finite(energy)], axis=1)


@lru_cache(maxsize=2)
def reference_profile(axis: int) -> tuple[NDArray[np.float64], ...]:
    """Return the reference's free energy along phi (axis 0) or psi (axis 1), and its lower and upper bound."""
    known = reference()
    total = known.histogram.sum(1 - axis)
    error = np.sqrt((known.histogram_error**2).sum(1 - axis))  # bins of one row vary together less than they add up to
    centres = (np.arange(BINS) + 0.5) * 2 * DEGREES / BINS - DEGREES
    return tuple(free_energy(np.stack([centres, total + sign * error], axis=1)) for sign in (0.0, 1.0, -1.0))


def profile(sight: Look, axis: int) -> Plot:
    """Draw the free energy along a torsion: reference with its error, flow, and flow reweighted."""
    samples = portrait(sight)
    edges = np.linspace(-DEGREES, DEGREES, PROFILE_BINS + 1)
    degrees = np.degrees((samples.phi, samples.psi)[axis])
    middle, low, high = reference_profile(axis)
    layers = [
        Path(low, "grey", width=1),
        Path(high, "grey", width=1),
        Path(middle, "ink", label="reference, with its error"),
        Path(free_energy(shares(degrees, edges)), "orange", label="flow"),
        Path(free_energy(shares(degrees, edges, samples.weights)), "blue", dashed=True, label="reweighted"),
    ]
    return Plot(layers, (-DEGREES, DEGREES, 0.0, DEPTH + 1))


def molecule(sight: Look) -> Plot:
    """Draw a sample; it turns while the flow trains."""
    samples, now = portrait(sight), time.monotonic()
    x = aligned(samples.positions[int(now / HOLD) % len(samples.positions)])
    sine, cosine = np.sin(TURN * now), np.cos(TURN * now)
    x = x @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    bonds = np.full((3 * len(alanine.bonds()), 3), np.nan)
    for k, (i, j) in enumerate(alanine.bonds()):
        bonds[3 * k], bonds[3 * k + 1] = x[i], x[j]
    atoms = np.array(alanine.ELEMENTS)
    layers: list[Layer] = [Line(bonds, "grey", width=4)]
    layers += [Dots(x[atoms == name], color, size, label=name) for name, (color, size) in ELEMENTS.items()]
    return Plot(layers, (-BOX, BOX, -BOX, BOX, -BOX, BOX))


@lru_cache(maxsize=1)
def _upright() -> NDArray[np.float64]:
    """Return the start geometry about its centre, its long axis along x."""
    x = alanine.start().numpy()
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    return cast(NDArray[np.float64], x @ (axes * np.linalg.det(axes)).T)


def aligned(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return positions (22, 3), nm, turned onto the start geometry (Kabsch's algorithm); as they are if not finite."""
    if not np.isfinite(x).all():
        return np.asarray(x, np.float64)
    centred = torch.as_tensor(x, dtype=torch.float64)
    centred = centred - centred.mean(0)
    u, _, v = torch.linalg.svd(centred.t() @ torch.from_numpy(_upright()))
    u[:, -1] *= torch.linalg.det(u @ v).sign()
    return cast(NDArray[np.float64], (centred @ (u @ v)).numpy())


# --- numbers, and the whole -------------------------------------------------------------------------------------------


def _of(read: Callable[[Portrait], str]) -> Callable[[Look], str]:
    return lambda sight: read(portrait(sight))


ALANINE = Lab(
    name="alanine",
    title="Alanine dipeptide",
    subtitle="A Boltzmann generator at 300 K",
    config=PRETRAINED,
    view=View(view="training"),
    offers={"speed": {"choices": SLOW}},
    trainer=Engine,
    groups={
        "Flow": ("architecture", "initial"),
        "Training": ("by_energy", "learning_rate", "batch_size", "merge_every"),
        "Run": ("seed", "device", "speed"),
        "Diagnostics": ("view",),
    },
    controls={
        # Only one architecture has a flow that was trained before: another starts anew, and "Pretrained" means that.
        "architecture": Control(
            AlanineConfig.settings["architecture"],
            lambda config: config.architecture,
            lambda config, name: {"architecture": name} | ({} if name == SHIPPED_METHOD else {"initial": "new"}),
        ),
        "initial": Control(
            AlanineConfig.settings["initial"],
            lambda config: config.initial,
            lambda config, name: {
                "initial": name,
                **({"architecture": SHIPPED_METHOD} if name == "pretrained" else {}),
            },
        ),
    },
    pictures=(
        Picture(
            Axes("Ramachandran plot", "samples over ln p of the reference", "φ (degrees)", "ψ (degrees)", height=480),
            ramachandran,
            LOOK_EVERY,
            "map",
        ),
        Picture(Axes("Energy", "", "E (kJ/mol)", "share", False, 210), energies, LOOK_EVERY, "energies"),
        Picture(
            Box("A sample", "in nm; drag to turn", ("", "", ""), height=210, home=(-60, 12)), molecule, area="molecule"
        ),
        *(
            Picture(
                Axes(f"Free energy along {torsion}", "", f"{torsion} (degrees)", "F (kT)", False, 210),
                partial(profile, axis=axis),
                LOOK_EVERY,
                area,
            )
            for axis, (torsion, area) in enumerate((("φ", "phi"), ("ψ", "psi")))
        ),
    ),
    numbers=(
        *numbers.steps(),
        Number(
            "test",
            "test NLL",
            lambda sight: number(sight.snapshot.last("test_loss"), ".2f"),
            "nats",
            "Of 512 frames kept aside",
        ),
        Number(
            "ess",
            "ESS",
            _of(lambda samples: f"{100 * samples.ess:.0f} | {100 * samples.clipped:.0f}"),
            "%",
            "Effective sample size; behind the bar: top 0.1 % clipped",
        ),
        Number(
            "shift",
            "energy above data",
            _of(lambda samples: number(samples.shift, "+.1f")),
            "kJ/mol",
            "Mean over the samples, not reweighted",
        ),
        Number(
            "rare",
            "φ > 0",
            _of(lambda samples: " | ".join(f"{100 * share:.1f}" for share in samples.rare)),
            "%",
            "Share of samples; behind the bar: reweighted",
        ),
    ),
    curves=lambda sight: training_figure(sight, LOSS),
    loss=LOSS,
    layout="wide",
    style="""
.p4-layout .p4-pictures {
  grid-template-columns: minmax(0, 1.6fr) minmax(0, 1fr); gap: 14px 20px;
}
@container (min-width: 1080px) {
  .p4-layout .p4-pictures {
    grid-template-columns: minmax(0, 1.35fr) minmax(0, 1fr) minmax(0, 1fr);
  }
}
.p4-layout .p4-pictures > :first-child { grid-row: span 2; }
.p4-alanine-map .p4-picture { container-type: inline-size; }
.p4-alanine-map .p4-picture .p4-stage { height: calc(100cqi - 36px) !important; }
""",
)
"""The lab of alanine dipeptide."""
