"""Compositions of P4Inv layers for density estimation."""

from p4lab.flows.architectures import p4inv_bent, trainable
from p4lab.flows.bent import BentIdentity, bent, bent_inverse
from p4lab.flows.flow import Flow

__all__ = ["BentIdentity", "Flow", "bent", "bent_inverse", "p4inv_bent", "trainable"]
