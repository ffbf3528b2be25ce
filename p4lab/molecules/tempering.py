"""Flows of molecules that read a temperature: taught at one by frames, and at all others by energies."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from p4lab.boltzmann.tempered import KINDS, PULL, TemperedFlow, self_consistency, spread_out, widening
from p4lab.errors import OptionError
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.losses import by_energy, by_forces
from p4lab.molecules.openmm_energy import OpenMMEnergy
from p4lab.molecules.target import Examples, InternalEnergy
from p4lab.molecules.train import Record, Stage, Training, train


def temper(
    flow: MoleculeFlow,
    examples: Examples,
    coordinates: Coordinates,
    energy: OpenMMEnergy,
    kind: str,
    hottest: float,
    first_steps: int = 300,
    steps: int = 600,
    rows: int = 256,
    rate: float = 2e-3,
    seed: int = 0,
    merge_every: int = 8,
    on_record: Callable[[Record], object] | None = None,
) -> Training:
    r"""Train a flow at the temperature T_0 of its examples first, then up to a hotter one.

    Each step of the second stage takes examples with their forces at T_0 (`by_forces`), and samples of the flow at one
    other temperature, up to the hottest; which ones spreads from T_0 in the first half of the stage. With "energy"
    these learn from the forces there (`by_energy`); with "trade" from energies alone (`by_consistency`).

    Args:
        flow: tempered: its context is log(T / T_0).
        examples: of T_0, with forces.
        coordinates: what they are in.
        energy: at T_0; its temperature is another one while the flow trains.
        kind: of `p4lab.boltzmann.tempered.KINDS`.
        hottest: temperature (K), above T_0.
        first_steps: of the first stage, by forces alone.
        steps: of the second one.
        rows: examples, and samples, of a step; with "trade" half as many samples, and 2 ``rows`` for the mean energy.
        rate: peak learning rate; half of it in the second stage.
        seed: of batches and samples.
        merge_every: steps between two merges of P4 layers.
        on_record: called after each step.

    Returns:
        As `p4lab.molecules.train.train`; of its flow `TemperedFlow` makes one with a dial in units of T_0.

    Raises:
        OptionError: an unknown kind, no context of length 1, a hottest temperature that is not above T_0, or too few
            rows.

    Cost: ``rows`` energies with forces for each step of "energy", twice as many without them for "trade".
    """
    if kind not in KINDS:
        raise OptionError(f"kind={kind!r} is not known: choose one of {KINDS}")
    reference, steered = energy.temperature, TemperedFlow(flow)
    if not reference < hottest < math.inf:
        raise OptionError(f"hottest={hottest} K: expected a number above that of the examples, {reference} K")
    if kind == "trade" and rows < 2:  # known before the first stage, and not after it
        raise OptionError(f"rows={rows}: expected at least 2, half of which are samples of the flow")
    target, step = InternalEnergy(coordinates, energy), 0

    def reduced(y: Tensor) -> tuple[Tensor, Tensor]:
        x, volume = coordinates.decode(y.double())
        return energy(x), volume

    def loss(stage: Stage, generator: torch.Generator) -> Tensor:
        nonlocal step
        total = by_forces(flow, *examples.batch(stage.examples, generator), steered.at(1.0))
        if stage.kind == "forces":
            return total
        step += 1
        t = spread_out(step, 1.0, hottest / reference, widening(step, steps))
        if kind == "trade":
            return total + PULL * self_consistency(steered, reduced, t, stage.samples // 2, generator)
        energy.temperature = t * reference
        try:
            return total + by_energy(flow, target, stage.samples, generator, steered.at(t))
        finally:
            energy.temperature = reference

    stages = [Stage("forces", steps=first_steps, examples=rows, rate=rate)] * bool(first_steps)
    stages.append(Stage("mixed", steps=steps, examples=rows, samples=rows, rate=rate / 2))
    return train(flow, examples, target, stages, None, seed, on_record, merge_every, loss=loss)
