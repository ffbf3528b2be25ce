"""What the lab of molecules shows of a flow: torsions and energies of its samples, at any temperature."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.boltzmann import clipped_ess, ess, weighted_histogram
from p4lab.boltzmann.weights import BLOCKS, normalized
from p4lab.labs.estimates import CERTAIN
from p4lab.labs.lab import Sight, View, load_weights
from p4lab.labs.molecule_data import ALANINE, Prepared, prepared
from p4lab.molecules.dataset import BINS, phi_positive
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.evaluate import LARGEST_ENERGY, Samples, draw
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.terms import EnergyTerms
from p4lab.molecules.units import BOLTZMANN
from p4lab.plots.format import DASH, number
from p4lab.plots.gallery import finite, step_up
from p4lab.plots.layers import Dots, Heatmap, Layer, Line, Path, Plot, Points, Row, Rows
from p4lab.training.config import POSITIVE, Rule, setting

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
SPARSE = 10_000
"""Fewer frames are counted in `PROFILE_BINS` each way."""
ERRORS = 20
"""Blocks of frames that error bars are made of: neighbours in time are alike."""
FEW = 50
"""Fewer effective samples say nothing."""
TURN = 0.5
"""Radians per second by which the molecule turns."""
HOLD = 4.0
"""Seconds for which a sample is shown."""
ELEMENTS = {
    "C": "grey",
    "N": "blue",
    "O": "red",
    "H": "ink",
    "S": "#c9a227",
    "P": "orange",
    "F": "green",
    "Cl": "green",
}
"""Colours of atoms; all others are purple."""
LARGE, SMALL = 15.0, 8.0
"""Size of atoms, and of hydrogens, in pixels, of a molecule with a reach of `USUAL`."""
USUAL = 0.46
TOPS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
"""How high histograms of a torsion may be."""
GREEK = {"phi": "φ", "psi": "ψ", "chi1": "χ1", "chi2": "χ2"}


@dataclass(frozen=True)
class MoleculeView(View):
    """What is looked at, and at which temperature."""

    pair: int = setting(
        0,
        "Residue",
        Rule(int, lambda value: value >= 0, "the number of a pair of torsions, from 0 on"),
        kind="segments",
        live=True,
        help="Whose torsions are shown",
    )
    temperature: float = setting(
        300.0,
        "Temperature",
        POSITIVE,
        live=True,
        help="The samples are weighted for this temperature: nothing is trained for it",
    )


Look = Sight[Any, MoleculeView]


# --- what a flow is like ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Portrait:
    """Samples of a flow, and what they say.

    Attributes:
        data: of the molecule.
        samples: the samples, with their weights at the temperature of the frames.
    """

    data: Prepared
    samples: Samples

    @property
    def x(self) -> Tensor:
        """Positions of the samples, shape (n, n_atoms, 3), nm."""
        return self.samples.x

    @property
    def temperature(self) -> float:
        """What the flow is trained for (K)."""
        return self.data.frames.temperature

    @property
    def energy(self) -> NDArray[np.float64]:
        """Energies (kJ/mol), shape (n,); inf where there is none."""
        return self.samples.energy.numpy()

    @property
    def shift(self) -> float:
        """Mean energy of the samples above that of the data (kJ/mol), raw; energies above 10^4 count as that."""
        return float(self.samples.energy.clamp(max=LARGEST_ENERGY).mean()) - self.data.mean

    def log_weights(self, temperature: float) -> Tensor:
        r"""Return log-weights towards the Boltzmann distribution at a temperature, shape (n,), up to a constant.

        .. math:: \log w_T = \log w_{T_0} + \frac{E}{k_B} \left(\frac{1}{T_0} - \frac{1}{T}\right)
        """
        log_w = self.samples.log_weights
        known = log_w.isfinite()
        change = torch.where(known, self.samples.energy, 0.0) / BOLTZMANN * (1 / self.temperature - 1 / temperature)
        return torch.where(known, log_w + change, -torch.inf)

    def weights(self, temperature: float) -> NDArray[np.float64]:
        """Return weights that sum to 1, shape (n,)."""
        return normalized(self.log_weights(temperature)).numpy()

    def sizes(self, temperature: float) -> tuple[float, float]:
        """Return the effective sample size as a share of n, raw and with the top 0.1 % of the weights clipped."""
        log_w = self.log_weights(temperature)
        return float(ess(log_w)), float(clipped_ess(log_w))

    def effective(self, temperature: float) -> float:
        """Return how many samples are effective."""
        return len(self.x) * self.sizes(temperature)[0]

    def tell(self, temperature: float) -> bool:
        """Return whether enough samples are effective to say anything."""
        return self.effective(temperature) >= FEW

    def degrees(self, torsion: str) -> NDArray[np.float64]:
        """Return a torsion of the samples, shape (n,)."""
        return np.degrees(self.samples.torsions[torsion].numpy())

    def rare(self, torsion: str, temperature: float) -> tuple[float, float]:
        """Return the share of samples with this phi in (0, 2.4), raw and weighted."""
        inside = phi_positive(self.samples.torsions[torsion]).numpy()
        return float(inside.mean()), float((self.weights(temperature) * inside).sum())


class Observer:
    """Looks at flows of a molecule through their weights, with a copy of the flow and an energy of its own.

    Args:
        samples: how many are drawn at a time.
        key: of the molecule, see `p4lab.labs.molecule_data.Prepared`.
    """

    def __init__(self, samples: int = 1000, key: str = ALANINE) -> None:
        self.samples = samples
        self._data = prepared(key)
        self._energy = self._data.energy()
        self._terms = EnergyTerms(self._data.molecule)
        self._kind: Any = None
        self._model: MoleculeFlow | None = None

    @torch.no_grad()
    def look(self, config: Any, weights: Mapping[str, NDArray[Any]]) -> Portrait:
        """Return samples of the flow with these weights; the latent variables are always the same.

        Args:
            config: what the flow is like.
            weights: `MoleculeProblem.pictures`.
        """
        kind = (config.architecture, config.seed, config.dtype)
        if self._model is None or kind != self._kind:
            self._model, self._kind = config.replace(device="cpu", initial="new").model(), kind
        load_weights(self._model, weights)
        data = self._data
        samples = draw(
            self._model,
            data.coordinates,
            self._energy,
            self.samples,
            config.seed,
            data.frames.temperature,
            chunk=self.samples,
        )
        return Portrait(data, samples)

    def terms(self, portrait: Portrait) -> dict[str, Tensor]:
        """Return the energies of samples by term (kJ/mol); those above 10^4 count as that."""
        return {name: values.clamp(max=LARGEST_ENERGY) for name, values in self._terms(portrait.x).items()}

    def close(self) -> None:
        """Free what OpenMM holds."""
        self._energy.close()
        self._terms.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _observer(sight: Look) -> Observer:
    observer: Observer = sight.keep("observer", sight.config.molecule, lambda: Observer(key=sight.config.molecule))
    return observer


def portrait(sight: Look) -> Portrait:
    """Return what the flow is like at this moment; while it trains, a little late: looking takes time."""
    observer = _observer(sight)
    moment = sight.moment()

    def look() -> Portrait:
        new: Portrait = sight.keep(
            "portrait of a moment", moment, lambda: observer.look(sight.config, sight.snapshot.pictures)
        )
        return new

    late = sight.frame.run, int(time.monotonic() / LOOK_EVERY)
    latest: Portrait = sight.keep("portrait", late if sight.running else moment, look)
    return latest


def temperatures(trained: float) -> tuple[float, ...]:
    """Return what the dial offers: from 50 K below the temperature that a flow is trained for to 200 K above it."""
    return tuple(trained + 10 * k for k in range(-5, 21) if trained + 10 * k > 0)


def counted(sight: Look) -> str | None:
    """Return how many samples count at the dial's temperature; nothing at that of the training."""
    samples, kelvin = portrait(sight), sight.view.temperature
    if kelvin == samples.temperature:
        return None
    effective, n = samples.effective(kelvin), len(samples.x)
    text = f"At {kelvin:g} K, {effective:.0f} of {n:,} samples count"
    return f"{text}. The flow is as it was." if samples.tell(kelvin) else f"{text}: too few to say anything."


# --- torsions ---------------------------------------------------------------------------------------------------------


def torsion_text(name: str) -> str:
    """Return how a torsion of `Molecule.torsions` reads.

    Example:
        >>> torsion_text("phi 2"), torsion_text("BUT-C1, BUT-C2, BUT-C3, BUT-C4")
        ('φ 2', 'C1–C2–C3–C4')
    """
    kind, _, rest = name.partition(" ")
    if kind in GREEK:
        return f"{GREEK[kind]} {rest}".rstrip()
    atoms = [atom.partition("-")[2] for atom in name.split(", ")]
    return "–".join(min(atoms, atoms[::-1]))  # a torsion is the same from both ends


def pair_texts(molecule: Molecule) -> tuple[str, ...]:
    """Return how each of `Molecule.maps` reads: the residue, or the numbers of the two torsions."""
    numbers = {name: number for number, name in enumerate(molecule.torsions, start=1)}
    return tuple(
        _residue(molecule.atom_names[molecule.torsions[a][2]]) if a.startswith("phi") else f"{numbers[a]}, {numbers[b]}"
        for a, b in molecule.maps
    )


def _residue(atom: str) -> str:
    name, _, _ = atom.partition("-")
    letters = name.rstrip("0123456789")
    return f"{letters.capitalize()} {name[len(letters) :]}".rstrip()


def _pair(sight: Look, data: Prepared) -> tuple[str, str]:
    maps = data.molecule.maps
    return maps[min(sight.view.pair, len(maps) - 1)]


def _label(torsion: str) -> str:
    return f"{torsion_text(torsion)} (degrees)"


def log_map(data: Prepared, pair: tuple[str, str]) -> NDArray[np.float64]:
    """Return ln p of two torsions above its depth, from the reference or the frames: rows are the second, upwards."""
    if data.reference is not None:
        shares = data.reference.histogram
    else:
        bins = BINS if len(data.frames) >= SPARSE else PROFILE_BINS
        edges = np.linspace(-DEGREES, DEGREES, bins + 1)
        shares = np.histogram2d(data.torsions[pair[0]], data.torsions[pair[1]], (edges, edges))[0]
    with np.errstate(divide="ignore"):
        logs = np.log(shares.T)
    return cast(NDArray[np.float64], np.maximum(logs - logs.max(), -DEPTH))


def torsions(sight: Look) -> Plot:
    """Draw two torsions of the flow's samples over the reference, or the histogram of the one that there is."""
    samples, kelvin = portrait(sight), sight.view.temperature
    data = samples.data
    pair = _pair(sight, data)
    if pair[0] == pair[1]:
        return _histogram(samples, pair[0], kelvin)
    shown, label = np.arange(len(samples.x)), "samples of the flow"
    if kelvin != samples.temperature:
        shown, label = resampled(samples.weights(kelvin)), f"samples weighted for {kelvin:g} K"
    points = np.stack([samples.degrees(pair[0]), samples.degrees(pair[1])], axis=1)[shown]
    log_p = sight.keep(f"log_map of {pair}", data.key, lambda: log_map(data, pair))
    layers: list[Layer] = [
        Heatmap(log_p, CIRCLE, low=-DEPTH, high=0.0, label="ln (p / max p)"),
        Points(points, "orange", size=3, label=label),
    ]
    return Plot(layers, CIRCLE, (_label(pair[0]), _label(pair[1])))


def resampled(weights: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return numbers of samples, each as often as its weight asks for; none if all weights vanish.

    Source: systematic resampling, with the first place in the middle of its stratum.
    """
    if not weights.sum() > 0:
        return np.arange(0)
    places = (np.arange(len(weights)) + 0.5) / len(weights)
    return np.minimum(np.searchsorted(weights.cumsum(), places), len(weights) - 1)


def _histogram(samples: Portrait, torsion: str, kelvin: float) -> Plot:
    edges = np.linspace(-DEGREES, DEGREES, PROFILE_BINS + 1)
    parts = [
        Path(shares(samples.data.torsions[torsion], edges), "ink", label="simulation"),
        Path(shares(samples.degrees(torsion), edges), "orange", label="flow"),
        weighted(samples, samples.degrees(torsion), edges, kelvin),
    ]
    highest = max(float(np.nanmax(np.asarray(part.points)[:, 1], initial=0)) for part in parts)
    return Plot(parts, (-DEGREES, DEGREES, 0.0, step_up(1.1 * highest, TOPS)), (_label(torsion), "share in 10°"))


def weighted(samples: Portrait, values: NDArray[Any], edges: NDArray[Any], kelvin: float) -> Path:
    """Return the histogram of values of the samples, weighted for a temperature; nothing where too few count."""
    points = shares(values, edges, samples.weights(kelvin))
    if not samples.tell(kelvin):
        points[:, 1] = np.nan
    return Path(points, "blue", dashed=True, label=weighted_text(samples, kelvin))


def weighted_text(samples: Portrait, kelvin: float) -> str:
    """Return what samples are called that are weighted for a temperature."""
    if not samples.tell(kelvin):
        return "too few to reweight"
    return "reweighted" if kelvin == samples.temperature else f"reweighted to {kelvin:g} K"


# --- free energies ----------------------------------------------------------------------------------------------------


def shares(values: NDArray[Any], edges: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """Return a histogram of weighted values as points, shape (bins, 2); without weights all weigh the same."""
    weights = np.full(len(values), 1 / len(values)) if weights is None else weights
    return np.stack([(edges[1:] + edges[:-1]) / 2, np.histogram(values, edges, weights=weights)[0]], axis=1)


def free_energy(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -ln of a histogram's shares in kT, as points, as if there were 36 bins; NaN where there is nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = -np.log(points[:, 1] * len(points) / PROFILE_BINS)
    return np.stack([points[:, 0], finite(energy)], axis=1)


def known_profile(data: Prepared, torsion: str, axis: int) -> tuple[NDArray[np.float64], ...]:
    """Return the free energy along a torsion that the reference, or the frames, have, and its lower and upper bound."""
    if data.reference is not None:
        total = data.reference.histogram.sum(1 - axis)
        # bins of one row vary together less than they add up to
        error = np.sqrt((data.reference.histogram_error**2).sum(1 - axis))
    else:
        degrees = torch.from_numpy(data.torsions[torsion])
        counts = weighted_histogram(degrees, _edges(), blocks=min(ERRORS, len(degrees)))
        total, error = (part.numpy() * 2 * DEGREES / PROFILE_BINS for part in (counts.density, counts.error))
    centres = (np.arange(len(total)) + 0.5) * 2 * DEGREES / len(total) - DEGREES
    return tuple(free_energy(np.stack([centres, total + sign * error], axis=1)) for sign in (0.0, 1.0, -1.0))


def _edges() -> Tensor:
    return torch.linspace(-DEGREES, DEGREES, PROFILE_BINS + 1, dtype=torch.float64, device="cpu")


def weighted_profile(samples: Portrait, torsion: str, kelvin: float) -> NDArray[np.float64]:
    """Return the free energy along a torsion at a temperature, as points; NaN where it is not known to 1 kT."""
    degrees = torch.from_numpy(samples.degrees(torsion))
    weighed = weighted_histogram(degrees, _edges(), samples.log_weights(kelvin), min(BLOCKS, len(degrees)))
    points = np.stack([weighed.centres.numpy(), weighed.density.numpy() * 2 * DEGREES / PROFILE_BINS], axis=1)
    certain = (weighed.free_energy_error < CERTAIN) & torch.tensor(samples.tell(kelvin), device="cpu")
    return np.where(certain.numpy()[:, None], free_energy(points), np.nan)


def profile(sight: Look, axis: int) -> Plot | None:
    """Draw the free energy along one torsion of the pair: what is known, with its error, flow, and flow reweighted."""
    samples, kelvin = portrait(sight), sight.view.temperature
    pair = _pair(sight, samples.data)
    torsion = pair[axis]
    if axis and pair[0] == torsion:
        return None
    known = sight.keep(f"profile {torsion}", samples.data.key, lambda: known_profile(samples.data, torsion, axis))
    middle, low, high = known
    source = "simulation" if samples.data.reference is None else "reference"
    flow = shares(samples.degrees(torsion), _edges().numpy())
    layers = [
        Path(low, "grey", width=1),
        Path(high, "grey", width=1),
        Path(middle, "ink", label=f"{source}, with its error"),
        Path(free_energy(flow), "orange", label="flow"),
        Path(weighted_profile(samples, torsion, kelvin), "blue", dashed=True, label=weighted_text(samples, kelvin)),
    ]
    return Plot(layers, (-DEGREES, DEGREES, 0.0, DEPTH + 1), (_label(torsion), "F (kT)"))


# --- energies ---------------------------------------------------------------------------------------------------------


def energies(sight: Look) -> Plot:
    """Draw histograms of the energy: data, flow, and flow reweighted."""
    samples, kelvin = portrait(sight), sight.view.temperature
    data = samples.data
    edges = data.energy_edges
    simulated = sight.keep("energies of frames", data.key, lambda: shares(data.frames.energy.numpy(), edges))
    return Plot(
        [
            Path(simulated, "ink", label="simulation"),
            Path(shares(samples.energy, edges), "orange", label="flow"),
            weighted(samples, samples.energy, edges, kelvin),
        ]
    )


def terms(sight: Look) -> Rows:
    """Return the energy by term: of frames, of the flow, and of the flow reweighted."""
    samples, kelvin = portrait(sight), sight.view.temperature
    of_flow = sight.keep("terms", samples, lambda: _observer(sight).terms(samples))
    of_frames, weights = samples.data.terms, samples.weights(kelvin)
    raw = np.full(len(weights), 1 / len(weights))

    def row(name: str, frames: Tensor, flow: Tensor, **look: Any) -> Row:
        simulated = moments(frames.numpy())
        drawn, reweighed = moments(flow.numpy(), raw), moments(flow.numpy(), weights)
        cells = [name, _told(simulated), _told(drawn), number(drawn[0] - simulated[0], "+.1f")]
        return Row([*cells, _told(reweighed) if samples.tell(kelvin) else DASH], **look)

    columns = {
        "kJ/mol": "Mean ± standard deviation of the energy by term",
        "simulation": f"Of frames at {samples.temperature:g} K",
        "flow": "Of the flow's samples as they are; energies above 10,000 count as that",
        "flow − simulation": "Of the means",
        weighted_text(samples, kelvin): f"Of the samples weighted for {kelvin:g} K",
    }
    rows = [row(name, of_frames[name], of_flow[name]) for name in of_frames]
    whole = row("all", torch.stack([*of_frames.values()]).sum(0), samples.samples.energy.clamp(max=LARGEST_ENERGY),
                active=True)  # fmt: skip
    return Rows(columns, [*rows, whole], "Energy by term")


def moments(values: NDArray[Any], weights: NDArray[Any] | None = None) -> tuple[float, float]:
    """Return mean and standard deviation of weighted values; without weights all weigh the same."""
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))


def _told(of: tuple[float, float]) -> str:
    return f"{number(of[0], ',.1f')} ± {number(of[1], ',.1f')}"


# --- temperatures -----------------------------------------------------------------------------------------------------


def _dial(sight: Look, low: float, high: float) -> Path:
    kelvin = sight.view.temperature
    return Path([[kelvin, low], [kelvin, high]], "red", width=1.5)


def sizes(sight: Look) -> Plot:
    """Draw the effective sample size over temperature, and where it is too small."""
    samples = portrait(sight)
    kelvins = temperatures(samples.temperature)
    found = 100 * np.array([samples.sizes(kelvin) for kelvin in kelvins])
    least = 100 * FEW / len(samples.x)
    layers: list[Layer] = [
        _dial(sight, 0.0, 105.0),
        Path([[kelvins[0], least], [kelvins[-1], least]], "grey", width=1, dashed=True, label=f"{FEW} samples"),
        Path(np.stack([kelvins, found[:, 1]], 1), "grey", label="clipped"),
        Path(np.stack([kelvins, found[:, 0]], 1), "blue", label="ESS"),
    ]
    return Plot(layers, (kelvins[0], kelvins[-1], 0.0, 105.0))


def mean_energies(sight: Look) -> Plot:
    """Draw the mean energy over temperature, where enough samples count; its slope is the heat capacity."""
    samples = portrait(sight)
    data, kelvins = samples.data, temperatures(samples.temperature)
    energy = samples.samples.energy.clamp(max=LARGEST_ENERGY).numpy()
    means = [moments(energy, samples.weights(kelvin))[0] if samples.tell(kelvin) else np.nan for kelvin in kelvins]
    # a harmonic molecule gains half a k_B for each coordinate
    half = 0.5 * data.coordinates.dim * BOLTZMANN
    low, high = (data.mean + 1.5 * half * (kelvin - samples.temperature) for kelvin in (kelvins[0], kelvins[-1]))
    layers: list[Layer] = [
        _dial(sight, low, high),
        Path(np.stack([kelvins, means], 1), "blue", label="flow, reweighted"),
        Points([[samples.temperature, data.mean]], "ink", label="simulation"),
    ]
    return Plot(layers, (kelvins[0], kelvins[-1], low, high))


# --- a sample ---------------------------------------------------------------------------------------------------------


def sample(sight: Look) -> Plot:
    """Draw a sample; it turns while the flow trains."""
    samples, now = portrait(sight), time.monotonic()
    data, first = samples.data, samples.x[:POSITIONS].numpy()
    x = aligned(first[int(now / HOLD) % len(first)], data.upright)
    sine, cosine = np.sin(TURN * now), np.cos(TURN * now)
    x = x @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    graph, scale = data.molecule.graph, min(1.0, USUAL / data.reach)
    bonds = np.full((3 * len(graph.bonds), 3), np.nan)
    for k, (i, j) in enumerate(graph.bonds):
        bonds[3 * k], bonds[3 * k + 1] = x[i], x[j]
    layers: list[Layer] = [Line(bonds, "grey", width=max(2.0, 4 * scale))]
    layers += [
        Dots(x[places], ELEMENTS.get(element, "purple"), scale * (SMALL if element == "H" else LARGE), label=element)
        for element, places in atoms_of(graph.elements).items()
    ]
    return Plot(layers, 3 * (-data.reach, data.reach))


def atoms_of(elements: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the atoms of each element: carbon, nitrogen, oxygen and hydrogen first."""
    order = dict.fromkeys([*(element for element in ELEMENTS if element in elements), *elements])
    return {element: [k for k, other in enumerate(elements) if other == element] for element in order}


def aligned(x: NDArray[Any], onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return positions turned onto others, both (n, 3), nm (Kabsch's algorithm); as they are if not finite."""
    if not np.isfinite(x).all():
        return np.asarray(x, np.float64)
    centred = torch.as_tensor(x, dtype=torch.float64)
    centred = centred - centred.mean(0)
    u, _, v = torch.linalg.svd(centred.t() @ torch.from_numpy(onto))
    u[:, -1] *= torch.linalg.det(u @ v).sign()
    return cast(NDArray[np.float64], (centred @ (u @ v)).numpy())
