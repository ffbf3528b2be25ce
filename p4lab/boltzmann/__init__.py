"""Boltzmann distributions: weights, losses and temperature-steerable flows."""
