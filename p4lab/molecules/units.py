"""Units: lengths in nm, energies in kJ/mol, temperatures in K; reduced energies E / (k_B T) have none."""

import math

from p4lab.errors import OptionError

BOLTZMANN = 0.00831446261815324
"""Boltzmann's constant k_B, kJ/mol/K."""


def check_temperature(temperature: float) -> None:
    """Raise unless a temperature (K) is finite and above 0.

    Raises:
        OptionError: it is not.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise OptionError(f"temperature={temperature}: expected a finite one above 0 K")
