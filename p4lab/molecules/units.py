"""Units: lengths in nm, energies in kJ/mol, temperatures in K; reduced energies E / (k_B T) have none."""

BOLTZMANN = 0.00831446261815324
"""Boltzmann's constant k_B, kJ/mol/K."""
