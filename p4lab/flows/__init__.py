"""Compositions of invertible layers for density estimation."""

from typing import TYPE_CHECKING, Any

from p4lab.flows.architectures import bent_stack, coupling_flow, p4inv_bent, realnvp, spline_flow
from p4lab.flows.bent import BentIdentity, bent, bent_inverse
from p4lab.flows.bijection import Bijection
from p4lab.flows.counting import effective_parameters, matched, trainable
from p4lab.flows.coupling import AffineCoupling, ContextAffine, VolumePreservingCoupling
from p4lab.flows.data import ActNorm, Standardize, Whitening
from p4lab.flows.flow import Flow
from p4lab.flows.glow import MultiScale, glow
from p4lab.flows.images import ConvolutionCoupling, OnChannels, Squeeze
from p4lab.flows.linear_layers import FoldedLinear, Linear, Permutation
from p4lab.flows.mixing import MIXINGS, Mixing
from p4lab.flows.periodic import PeriodicConvolution

if TYPE_CHECKING:
    from p4lab.flows.zuko import BentTransform, BijectionTransform, FromZuko, as_lazy, as_transform, to_zuko

__all__ = [
    "MIXINGS",
    "ActNorm",
    "AffineCoupling",
    "BentIdentity",
    "BentTransform",
    "Bijection",
    "BijectionTransform",
    "ContextAffine",
    "ConvolutionCoupling",
    "Flow",
    "FoldedLinear",
    "FromZuko",
    "Linear",
    "Mixing",
    "MultiScale",
    "OnChannels",
    "PeriodicConvolution",
    "Permutation",
    "Squeeze",
    "Standardize",
    "VolumePreservingCoupling",
    "Whitening",
    "as_lazy",
    "as_transform",
    "bent",
    "bent_inverse",
    "bent_stack",
    "coupling_flow",
    "effective_parameters",
    "glow",
    "matched",
    "p4inv_bent",
    "realnvp",
    "spline_flow",
    "to_zuko",
    "trainable",
]

_ZUKO = {"BentTransform", "BijectionTransform", "FromZuko", "as_lazy", "as_transform", "to_zuko"}
"""Names that are imported when somebody asks for them."""


def __getattr__(name: str) -> Any:
    if name in _ZUKO:  # when asked for, not before: importing zuko changes torch.distributions
        from p4lab.flows import zuko

        return getattr(zuko, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
