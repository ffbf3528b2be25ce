"""The layers of unit determinant amid training, and their effective weights by explicit float64 algebra."""

from __future__ import annotations

from collections.abc import Callable

import torch
from p4.dense_twin import WEIGHTS, Tensors
from torch import Tensor

from p4lab.p4 import MergeSchedule, P4Givens, P4Linear, P4Orthogonal, P4Reflections, P4SpecialLinear

KINDS: tuple[type[P4Linear], ...] = (P4Orthogonal, P4Reflections, P4Givens, P4SpecialLinear)
ORTHOGONAL = KINDS[:3]
WITH_DIRECTIONS = (P4Orthogonal, P4Reflections, P4SpecialLinear)


def cayley(t: Tensors) -> Tensor:
    half = (t["u"].T @ t["v"] - t["v"].T @ t["u"]) / 2
    eye = torch.eye(len(half), dtype=torch.float64)
    return torch.linalg.solve(eye + half, eye - half) @ t["frozen_weight"]


def reflections(t: Tensors) -> Tensor:
    product = torch.eye(t["v"].shape[1], dtype=torch.float64)
    for w in (*t["v"], *(t["v"] + t["u"] / 2)):
        product = product - 2 * torch.outer(product @ w, w) / (w @ w)
    return product @ t["frozen_weight"]


def givens(t: Tensors) -> Tensor:
    weight = t["frozen_weight"]
    for order, angles in zip(t["order"].long().tolist(), t["u"], strict=True):
        turn = torch.eye(len(order), dtype=torch.float64)
        for i, j, angle in zip(order, order[len(order) // 2 :], angles, strict=False):
            turn[i, i] = turn[j, j] = angle.cos()
            turn[i, j], turn[j, i] = -angle.sin(), angle.sin()
        weight = turn @ weight
    return weight


def shears(t: Tensors) -> Tensor:
    v = t["v"]
    projector = torch.eye(v.shape[1], dtype=torch.float64) - v.T @ torch.linalg.solve(v @ v.T, v)
    return t["frozen_weight"] + (t["u"] @ projector).T @ v @ t["frozen_weight"]


WEIGHTS |= {P4Orthogonal: cayley, P4Reflections: reflections, P4Givens: givens, P4SpecialLinear: shears}


def unimodular(dim: int) -> Tensor:
    """A random matrix of determinant 1 with singular values from about 1/2 to 2."""
    left, right = (torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q for _ in range(2))
    a = left * torch.logspace(-1, 1, dim, base=2, dtype=torch.float64) @ right
    a = a / torch.linalg.slogdet(a).logabsdet.div(dim).exp()
    a[0] *= torch.linalg.slogdet(a).sign
    return a


def orthogonal(dim: int) -> Tensor:
    """A random orthogonal matrix of determinant 1."""
    q = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q
    q[:, 0] *= torch.linalg.slogdet(q).sign
    return q


def amid(
    kind: type[P4Linear], dim: int, rank: int = 2, dtype: torch.dtype = torch.float64, **options: object
) -> P4Linear:
    """A layer with a random matrix and non-zero u and bias."""
    init = unimodular(dim) if kind is P4SpecialLinear else orthogonal(dim)
    layer = kind(dim, rank=rank, init=init, dtype=dtype, seed=1, **options)
    with torch.no_grad():
        layer.u.normal_(std=0.5 / max(1, layer.u.shape[1]) ** 0.5)
        if layer.bias is not None:
            layer.bias.normal_()
    return layer


def perturb(layer: P4Linear, size: float = 0.1) -> P4Linear:
    """Move u away from 0."""
    with torch.no_grad():
        layer.u.normal_(std=size / max(1, layer.u.shape[1]) ** 0.5)
    return layer


def descend(
    layer: P4Linear, loss: Callable[[], Tensor], steps: int, lr: float, every: int = 4, momentum: float = 0.0
) -> list[float]:
    """Train by stochastic gradient descent with merges and return the losses."""
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=momentum)
    merges = MergeSchedule(layer, optimizer, every=every)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        merges.step()
        losses.append(float(value.detach()))
    return losses
