"""Molecules, with the extra p4lab[molecules]: energies, coordinates, data and flows of alanine dipeptide."""
