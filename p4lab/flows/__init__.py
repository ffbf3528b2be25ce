"""Compositions of invertible layers for density estimation."""

from p4lab.flows.architectures import bent_stack, p4inv_bent, trainable
from p4lab.flows.bent import BentIdentity, bent, bent_inverse
from p4lab.flows.flow import Flow

__all__ = ["BentIdentity", "Flow", "bent", "bent_inverse", "bent_stack", "p4inv_bent", "trainable"]
