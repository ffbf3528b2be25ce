"""The dense twin of a structured layer, and one comparison of values and gradients that serves all of them.

A structured layer computes with factors; its twin computes with the explicit matrix and `torch.linalg`, in float64,
from copies of the same parameters. A new layer needs one function: from its named tensors to its effective weights
(`WEIGHTS`; those of the baselines are in baselines/twins.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from p4lab.p4 import P4Inv

DIMS = (1, 2, 3, 7, 32, 128)
RANKS = (1, 2, 8)
BATCHES = ((), (5,), (2, 3), (0,))
OPERATIONS = ("forward", "inverse", "logabsdet")

Tensors = dict[str, Tensor]


def p4inv_weight(t: Tensors) -> Tensor:
    return t["frozen_weight"] + t["u"].T @ t["v"]


WEIGHTS: dict[type[nn.Module], Callable[[Tensors], Tensor]] = {P4Inv: p4inv_weight}
ON_MANIFOLD: set[type[nn.Module]] = set()
"""Layers whose parameter is itself an orthogonal matrix: its gradient is that of the transpose, and of log|det| = 0."""


def well_conditioned(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random matrix with singular values from 1/2 to 2."""
    left, right = (torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64)).Q for _ in range(2))
    return (left * torch.logspace(-1, 1, dim, base=2, dtype=torch.float64) @ right).to(dtype)


def perturb(layer: P4Inv, u: Tensor, v: Tensor | None = None) -> P4Inv:
    """Put a layer amid training: give it this perturbation, with everything that the layer derives from it."""
    with torch.no_grad():
        layer.u.copy_(u)
        if v is not None:
            layer.v.copy_(v)
            if layer.q is not None:
                layer.q.copy_(layer.v @ layer.frozen_inverse)
    return layer


def amid_training(
    dim: int, rank: int = 1, dtype: torch.dtype = torch.float64, size: float = 0.3, **options: object
) -> P4Inv:
    """A P4Inv with a random matrix and non-zero u, v and bias; `size` is about |u^T v| per rank."""
    layer = P4Inv(dim, rank=rank, init=well_conditioned(dim), dtype=dtype, seed=1, **options)
    perturb(layer, size * torch.randn_like(layer.u) / layer.u.numel() ** 0.5)
    if layer.bias is not None:
        with torch.no_grad():
            layer.bias.normal_()
    return layer


def twin_tensors(layer: nn.Module) -> Tensors:
    """Independent float64 copies of a layer's parameters and buffers; what the layer trains, the twin can train."""
    copies = {name: p.detach().double().requires_grad_(p.requires_grad) for name, p in layer.named_parameters()}
    return copies | {name: b.detach().double() for name, b in layer.named_buffers()}


def twin_of(layer: nn.Module, operation: str, x: Tensor, tensors: Tensors) -> Tensor:
    """What explicit algebra says the operation must return."""
    weight = WEIGHTS[type(layer)](tensors)
    bias = tensors.get("bias", torch.zeros(len(weight), dtype=torch.float64))
    on_manifold = type(layer) in ON_MANIFOLD
    if operation == "forward":
        return x @ weight.T + bias
    if operation == "inverse":
        if on_manifold:
            return (x - bias) @ weight
        flat = (x - bias).reshape(-1, len(weight))
        return torch.linalg.solve(weight, flat.T).T.reshape(x.shape)
    return torch.linalg.slogdet(weight.detach() if on_manifold else weight).logabsdet


def result_of(layer: nn.Module, operation: str, x: Tensor) -> Tensor:
    return layer.logabsdet() if operation == "logabsdet" else getattr(layer, operation)(x)


def value_and_gradients(output: Tensor, inputs: Tensors) -> Tensors:
    """The output, and the pull-back of one fixed cotangent to every input that needs a gradient."""
    cotangent = torch.linspace(-1, 1.5, max(output.numel(), 1), dtype=torch.float64)[: output.numel()].reshape(
        output.shape
    )
    if not output.requires_grad:
        return {"value": output}
    trained = {name: t for name, t in inputs.items() if t.requires_grad}
    derivatives = torch.autograd.grad(output, tuple(trained.values()), cotangent.to(output.dtype), allow_unused=True)
    gradients = {f"d/d{name}": g for name, g in zip(trained, derivatives, strict=True) if g is not None}
    return {"value": output.detach()} | gradients


def assert_like_twin(
    layer: nn.Module, operation: str, batch: tuple[int, ...], dim: int, tolerance: float, floor: float = 0.0
) -> None:
    """Compare value and all gradients; the tolerance is relative to the largest entry of each, or to ``floor``.

    A gradient that one side does not have must vanish on the other one.
    """
    x = torch.randn(*batch, dim, dtype=next(layer.parameters()).dtype, requires_grad=True)
    wide = x.detach().double().requires_grad_()
    tensors = twin_tensors(layer)
    expected = value_and_gradients(twin_of(layer, operation, wide, tensors), {"x": wide, **tensors})
    actual = value_and_gradients(result_of(layer, operation, x), {"x": x, **dict(layer.named_parameters())})
    for name in expected.keys() | actual.keys():
        reference = expected[name] if name in expected else torch.zeros_like(actual[name]).double()
        value = actual[name].double() if name in actual else torch.zeros_like(reference)
        vanishes = name not in expected or name not in actual
        scale = max(float(reference.abs().max()) if reference.numel() else 1.0, 1.0 if vanishes else floor)
        error = (value - reference).abs()
        assert value.shape == reference.shape, name
        assert bool((error <= tolerance * scale).all()), f"{name} differs by {float(error.max()):.3g} of {scale:.3g}"


def state_of(layer: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of everything that a module keeps, generators included."""
    flat: dict[str, Tensor] = {}
    for name, value in layer.state_dict().items():
        flat |= (
            {f"{name}.{k}": t.clone() for k, t in value.items()} if isinstance(value, dict) else {name: value.clone()}
        )
    return flat


def assert_bitwise(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different
