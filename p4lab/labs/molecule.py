"""A molecule: a flow learns its Boltzmann distribution from frames, from its energy, or from both."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from p4lab.errors import ConfigError
from p4lab.labs import numbers
from p4lab.labs.curves import training_figure
from p4lab.labs.lab import BELOW, SLOW, Axes, Bar, Board, Box, Control, Lab, Number, Picture, Try, weights_of
from p4lab.labs.molecule_data import ALANINE, Prepared, prepared
from p4lab.labs.molecule_pictures import (
    LOOK_EVERY,
    Look,
    MoleculeView,
    counted,
    energies,
    mean_energies,
    pair_texts,
    portrait,
    profile,
    sample,
    sizes,
    temperatures,
    terms,
    torsion_text,
    torsions,
)
from p4lab.molecules.checkpoint import SHIPPED, SHIPPED_METHOD, load_flow, start_at
from p4lab.molecules.dataset import TEMPERATURE
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.flow import molecule_flow
from p4lab.molecules.losses import by_energy
from p4lab.molecules.target import InternalEnergy
from p4lab.plots import Loss
from p4lab.plots.format import number
from p4lab.plots.layers import Plot
from p4lab.training import Engine
from p4lab.training.config import Rule, RunConfig, setting

TEST = 512
"""Test frames that a measurement looks at."""
SEGMENTS = 4
"""More pairs of torsions are chosen from a menu."""
LONGEST = 28
"""Letters of a title."""
MOSTLY = 0.9
"""Share of the energy where there are few frames: a flow soon learns those by heart."""
LOSS = Loss("loss (nats)", bits=False)


# --- what is trained --------------------------------------------------------------------------------------------------


class MoleculeProblem:
    r"""Learn p(x) ~ exp(-E(x) / kT) of a molecule.

    .. math:: L = (1 - s)\, E_\text{data}[-\log q(y)]
              + s\, E_{y \sim q}\left[u(y) - \log\left|\det \frac{\partial x}{\partial y}\right| + \log q(y)\right]

    What is shown of a run is made of the model's weights by whoever looks (`Observer`), so that looking costs the
    training no more than a copy of them.

    Args:
        data: the molecule, with its frames.
        by_energy: s, 0 (by example) to 1 (by energy).
        device: where the model lives.
        dtype: of the model.

    Attributes:
        energy: what computes E and its forces.
    """

    def __init__(self, data: Prepared, by_energy: float, device: torch.device | str, dtype: torch.dtype) -> None:
        self.dim = data.coordinates.dim
        self.by_energy, self.device, self.dtype = by_energy, torch.device(device), dtype
        self._coordinates, self._train = data.coordinates, data.train
        self._test = data.test[:TEST].to(self.device, dtype)
        self.energy = data.energy()
        self._target = InternalEnergy(data.coordinates, self.energy)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Draw training frames, with their rotors turned at random, and a seed for samples of the model."""
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
class MoleculeConfig(RunConfig):
    """Learn the Boltzmann distribution of a molecule.

    Raises:
        ConfigError: as `RunConfig`, or a pretrained flow where there is none.
    """

    problem: ClassVar[str] = "molecule"

    molecule: str = setting(ALANINE, "", Rule(str, bool, "what `p4lab.labs.molecule_data.Prepared.key` says"))
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
        if self.initial == "pretrained" and (self.architecture, self.molecule) != (SHIPPED_METHOD, ALANINE):
            raise ConfigError(
                f"initial='pretrained', architecture={self.architecture!r}, molecule={self.molecule!r}: the flow that "
                f"comes with p4lab is {SHIPPED_METHOD!r} of alanine dipeptide; choose that, or initial='new'"
            )

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return prepared(self.molecule).coordinates.dim

    def model(self) -> MoleculeFlow:
        """Return the flow at its start.

        Raises:
            ConfigError: the molecule is not known here.
            DataFileError: the data, or the flow that comes with p4lab, is missing or damaged.
            OptionError, SingularMatrixError: nothing turns, or there are too few frames, for this architecture.
        """
        data = prepared(self.molecule)
        flow = molecule_flow(self.architecture, data.train, self.seed, data.coordinates.circular)
        if self.initial == "pretrained":
            start_at(flow, load_flow(SHIPPED)[0])
        return flow.to(**self.where)

    def parts(self) -> tuple[MoleculeProblem, MoleculeFlow]:
        """Return the problem, and the flow."""
        return MoleculeProblem(prepared(self.molecule), self.by_energy, **self.where), self.model()

    def update(self, problem: MoleculeProblem) -> None:
        """Set the share of the energy."""
        problem.by_energy = self.by_energy


# --- numbers, and the whole -------------------------------------------------------------------------------------------


def _ess(sight: Look) -> dict[str, str]:
    samples, kelvin = portrait(sight), sight.view.temperature
    ess, clipped = samples.sizes(kelvin)
    unit = "%" if kelvin == samples.temperature else f"% at {kelvin:g} K"
    return {"value": f"{100 * ess:.0f} | {100 * clipped:.0f}", "unit": unit}


def _rare(sight: Look) -> str:
    samples = portrait(sight)
    maps = samples.data.molecule.maps
    phi, _ = maps[min(sight.view.pair, len(maps) - 1)]
    raw, weighted = samples.rare(phi, sight.view.temperature)
    told = f"{100 * weighted:.1f}" if samples.tell(sight.view.temperature) else "–"
    return f"{100 * raw:.1f} | {told}"


OTHER_TEMPERATURE = Try(
    "What if it were warmer?",
    "Drag *Temperature*. The samples are weighted anew, nothing is trained: torsions, energies and free energies are "
    "those of the other temperature, as long as enough samples count. *ESS* says how many; it falls fast.",
    {"page:pictures": "Temperature"},
)
ONE_MOLECULE = Try(
    "One molecule",
    "Drag the sample to turn it. It moves while the flow trains, and another one comes every few "
    "seconds: none knows of the one before.",
    {"page:pictures": "Energy and sample"},
)
OF_ALANINE = (
    Try(
        "By example only",
        "Press *Start*. The likelihood of the test frames hardly changes, yet the ESS sinks below 90% "
        "within 100 steps: examples do not say how narrow the bonds are.",
        {"initial": "pretrained", "by_energy": 0.0, "learning_rate": 0.0001, "restart": True},
    ),
    Try(
        "Forces mend it",
        "Set this up while it trains: half by example, half by energy again. Within 60 steps some of the "
        "ESS is back. At 1 the frames are not looked at any more.",
        {"by_energy": 0.5},
    ),
    Try(
        "The rare state",
        "φ > 0 holds 2.3% of the molecules, but 1.7% of the frames, for their simulation was short. "
        "Compare the flow with the reference, which is far longer, and see what weighting makes of it.",
        {"page:pictures": "Free energies"},
    ),
    OTHER_TEMPERATURE,
    Try(
        "From nothing",
        "Press *Start*. A new flow learns by example; after some 300 steps pull *By energy* to 0.5 and "
        "*Learning rate* down to 0.0005. *Architecture* offers four.",
        {"initial": "new", "by_energy": 0.0, "learning_rate": 0.002, "restart": True},
    ),
    ONE_MOLECULE,
)
OF_OTHERS = (
    Try(
        "A new flow",
        "Press *Start*. Nine tenths of the loss come from the forces on the flow's own samples, one tenth from the "
        "frames. Within some hundred steps energies come down to those of the simulation, and the *ESS* begins to "
        "climb.",
        {"by_energy": MOSTLY, "learning_rate": 0.001, "restart": True},
    ),
    Try(
        "By example only",
        "Press *Start*. A short simulation has few frames: the train loss goes on falling, but soon the test NLL "
        "rises, for they are learnt by heart. A longer simulation is a better teacher: *nanoseconds=2*.",
        {"by_energy": 0.0, "learning_rate": 0.002, "restart": True},
    ),
    OTHER_TEMPERATURE,
    ONE_MOLECULE,
)


def trainer(key: str) -> Callable[[MoleculeConfig], Engine]:
    """Return what trains configs of one molecule, and refuses those of others."""

    def engine(config: MoleculeConfig) -> Engine:
        if config.molecule != key:
            raise ConfigError(
                f"molecule={config.molecule!r}: this lab is of {key!r}; open the other one by molecule_lab, with the "
                "frames that it was trained with"
            )
        return Engine(config)

    return engine


def offers(temperature: float, label: str, pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what the controls offer: temperatures, and pairs of torsions, by their texts."""
    return {
        "speed": {"choices": SLOW},
        "temperature": {"choices": {kelvin: f"{kelvin:g} K" for kelvin in temperatures(temperature)}},
        "pair": {
            "label": label,
            "choices": dict(enumerate(pairs)),
            "kind": "segments" if len(pairs) <= SEGMENTS else "choice",
        },
    }


def pictures(first: Axes, bar: Sequence[str], along: tuple[str, str]) -> tuple[Picture, ...]:
    """Return the pictures: what the torsions are drawn on, the controls above, and how the titles of profiles end."""

    def side(title: str, x: str, y: str, draw: Callable[[Look], Plot | None], area: str, page: str) -> Picture:
        return Picture(Axes(title, "", x, y, False, 210), draw, LOOK_EVERY, area, page)

    together, profiles, heat = "Energy and sample", "Free energies", "Temperature"
    names = zip(along, ("first", "second"), strict=True)
    return (
        Picture(Bar(bar), area="bar"),
        Picture(first, torsions, LOOK_EVERY, "map"),
        side("Energy", "E (kJ/mol)", "share", energies, "energies", together),
        Picture(
            Box("A sample", "nm; drag to turn", ("", "", ""), height=210, home=(-60, 12)),
            sample,
            area="sample",
            page=together,
        ),
        *(
            side(f"Free energy{name}", "", "F (kT)", partial(profile, axis=axis), area, profiles)
            for axis, (name, area) in enumerate(names)
        ),
        side("ESS", "T (K)", "% of samples", sizes, "ess", heat),
        side("Mean energy", "T (K)", "E (kJ/mol)", mean_energies, "mean", heat),
        Picture(Board("Energy by term"), terms, LOOK_EVERY, "terms", BELOW),
    )


def ramachandran(known: str, x_label: str = "φ (degrees)", y_label: str = "ψ (degrees)") -> Axes:
    """Return what torsions of a peptide are drawn on, over something known."""
    return Axes("Ramachandran plot", f"over ln p of the {known}", x_label, y_label, height=480)


PRETRAINED = MoleculeConfig(initial="pretrained", by_energy=0.5, learning_rate=1e-4)
"""The flow of alanine dipeptide that comes with p4lab, trained on by example and by energy."""
PEPTIDE = (" along φ", " along ψ")

MOLECULE = Lab(
    name="molecule",
    title="Alanine dipeptide",
    subtitle="A Boltzmann generator at 300 K",
    config=PRETRAINED,
    view=MoleculeView(view="training"),
    offers=offers(TEMPERATURE, "Residue", ("Ala",)),
    trainer=trainer(ALANINE),
    groups={
        "Flow": ("architecture", "initial"),
        "Training": ("by_energy", "learning_rate", "batch_size", "merge_every"),
        "Run": ("speed",),
    },
    more={"Run": ("seed", "device"), "Diagnostics": ("view",)},
    controls={
        # Only one architecture has a flow that was trained before: another starts anew, and "Pretrained" means that.
        "architecture": Control(
            MoleculeConfig.settings["architecture"],
            lambda config: config.architecture,
            lambda config, name: {"architecture": name} | ({} if name == SHIPPED_METHOD else {"initial": "new"}),
        ),
        "initial": Control(
            MoleculeConfig.settings["initial"],
            lambda config: config.initial,
            lambda config, name: {
                "initial": name,
                **({"architecture": SHIPPED_METHOD} if name == "pretrained" else {}),
            },
        ),
    },
    tries=OF_ALANINE,
    pictures=pictures(ramachandran("reference"), ("temperature",), PEPTIDE),
    numbers=(
        *numbers.steps(),
        Number(
            "test",
            "test NLL",
            lambda sight: number(sight.snapshot.last("test_loss"), ".2f"),
            "nats",
            "Of frames kept aside, 512 at most",
        ),
        Number("ess", "ESS", _ess, "%", "Effective sample size; behind the bar: top 0.1 % clipped"),
        Number(
            "shift",
            "energy above data",
            lambda sight: number(portrait(sight).shift, "+.1f"),
            "kJ/mol",
            "Mean over the samples, not reweighted",
        ),
        Number("rare", "φ > 0", _rare, "%", "Share of samples; behind the bar: reweighted, if enough of them count"),
    ),
    curves=lambda sight: training_figure(sight, LOSS),
    loss=LOSS,
    hint=counted,
    share=0.6,
    style=".p4-pictures { grid-template-columns: minmax(0, 1.9fr); }",
)
"""The lab of alanine dipeptide."""


def lab_of(data: Prepared) -> Lab[MoleculeConfig, MoleculeView]:
    """Return the lab of a molecule that is prepared."""
    if data.key == ALANINE:
        return MOLECULE
    molecule, temperature, name = data.molecule, data.frames.temperature, data.molecule.name
    peptide = molecule.maps[0][0].startswith("phi")
    across, upward = (f"{torsion_text(torsion)} (degrees)" for torsion in molecule.maps[0])
    if peptide:
        axes = ramachandran("simulation", across, upward)
    elif across == upward:
        axes = Axes("Torsion", "of frames and samples", across, "share in 10°", False, 480)
    else:
        axes = Axes("Torsions", "over ln p of the simulation", across, upward, height=480)
    return dataclasses.replace(
        MOLECULE,
        title=name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}",
        subtitle=f"A Boltzmann generator at {temperature:g} K",
        config=MoleculeConfig(molecule=data.key, by_energy=MOSTLY, learning_rate=1e-3),
        view=MoleculeView(view="training", temperature=temperature),
        offers=offers(temperature, "Residue" if peptide else "Torsions", pair_texts(molecule)),
        trainer=trainer(data.key),
        groups={**MOLECULE.groups, "Flow": ("architecture",)},
        tries=OF_OTHERS,
        pictures=pictures(
            axes,
            ("pair", "temperature") if len(molecule.maps) > 1 else ("temperature",),
            PEPTIDE if peptide else ("", ""),
        ),
        numbers=[one for one in MOLECULE.numbers if peptide or one.name != "rare"],
    )
