"""Molecules, with the extra p4lab[molecules]: energies, coordinates, data, flows and their training."""
