"""Recurrent networks ``h_t = modReLU(W h_{t-1} + V x_t)`` whose W is any square layer, orthogonal ones above all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines import GeotorchOrthogonal, Plain, TorchOrthogonal, TorchTrivialized
from p4lab.errors import OptionError
from p4lab.linalg import initial_matrix
from p4lab.options import check_known, named_options, options_of, takes_options_of
from p4lab.p4 import P4Orthogonal

STARTS = ("rotations", "orthogonal", "identity")
"""Names of the matrices that recurrent weights may start at."""


def modrelu(a: Tensor, bias: Tensor) -> Tensor:
    r"""Return ``sign(a) relu(|a| + b)`` elementwise: the identity at b = 0, a gap around 0 for b < 0.

    Source: Arjovsky, Shah, Bengio, arXiv:1511.06464, equation 8, for real numbers.

    Example:
        >>> modrelu(torch.tensor([-3.0, 0.5, 2.0]), torch.tensor(-1.0))
        tensor([-2.,  0.,  1.])
    """
    return torch.copysign(torch.relu(a.abs() + bias), a)


class Unrolled(torch.autograd.Function):
    r"""All states of ``h_t = modReLU(W h_{t-1} + d_t, b)`` from ``h_0 = 0``, as one node of the graph.

    Within an optimizer step W does not change, so that it is formed once before; its gradient

    .. math:: \sum_t g_t^T h_{t-1}

    is one product over all steps at the end. Both loops have one product with W per step and otherwise work in place.

    Cost for T steps of a batch of B: forward T B d^2, backward 2 T B d^2 (T B d^2 if W needs no gradient).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, drive: Tensor, bias: Tensor) -> Tensor:
        """Return the states, shape (T, B, d), for a drive ``V x_t`` of that shape."""
        states, transposed = torch.empty_like(drive), weight.t()
        for step, (d, h) in enumerate(zip(drive, states, strict=True)):
            a = torch.addmm(d, states[step - 1], transposed) if step else d
            torch.abs(a, out=h).add_(bias).relu_().copysign_(a)
        ctx.save_for_backward(weight, states)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the gradients of weight, drive and bias."""
        weight, states = ctx.saved_tensors
        passes = (states != 0).to(states.dtype)
        g = gradients[0] * passes
        for step in range(len(g) - 2, -1, -1):
            g[step].addcmul_(g[step + 1] @ weight, passes[step])
        to_weight = g[1:].flatten(0, 1).t() @ states[:-1].flatten(0, 1) if ctx.needs_input_grad[0] else None
        return to_weight, g, (g * states.sign()).sum((0, 1)) if ctx.needs_input_grad[2] else None


class RecurrentRotation(P4Orthogonal):
    """P4Orthogonal for a weight that is used many times between two optimizer steps.

    A network that multiplies by W in T time steps pays O(T B d k) if each applies Q and then R; here it takes `weight`
    once, O(d^2 k), and learns its directions from the gradient of that. Arguments and errors as for `P4Orthogonal`.
    """

    @property
    def weight(self) -> Tensor:
        """The effective weights ``R Q``, shape (d, d), differentiable. Cost O(d^2 k)."""
        z = self.frozen_weight.t()
        return self._watched(z, self.turn(z)).t()


class RecurrentNet(nn.Module):
    r"""Recurrent network with a square layer for its states.

    .. math:: h_t = \mathrm{modReLU}(W h_{t-1} + V x_t, b), \qquad y_t = C h_t + c, \qquad h_0 = 0

    Args:
        layer: has ``weight``, W of shape (d, d); it is asked for once in each forward pass.
        channels: length of x_t.
        outputs: length of y_t.
        seed: of V, normal with variance 1 / channels; b, C and c start at 0.

    Cost of a training step of T time steps and a batch of B: 3 T B d^2, and that of forming W.
    """

    def __init__(self, layer: Any, channels: int, outputs: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        like = layer.weight.detach()
        d = len(like)

        write = torch.randn(d, channels, generator=generator, dtype=torch.float64, device="cpu") * channels**-0.5
        self.layer = layer
        self.write = nn.Parameter(write.to(like))
        self.bias = nn.Parameter(like.new_zeros(d))
        self.readout = nn.Parameter(like.new_zeros(outputs, d))
        self.readout_bias = nn.Parameter(like.new_zeros(outputs))

    def states(self, x: Tensor) -> Tensor:
        """Return the states after each step, shape (T, B, d), for inputs of shape (T, B, channels)."""
        states: Tensor = Unrolled.apply(self.layer.weight, self.drive(x), self.bias)
        return states

    def drive(self, x: Tensor) -> Tensor:
        """Return what the inputs add to the states, ``V x_t``, shape (T, B, d)."""
        return F.linear(x, self.write)

    def read(self, states: Tensor) -> Tensor:
        """Return the outputs of states, shape (..., outputs)."""
        return F.linear(states, self.readout, self.readout_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs after each step, shape (T, B, outputs)."""
        return self.read(self.states(x))

    def through_time(self, loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the states, and how large the gradient of a loss is at each of them.

        .. math:: \left|\frac{\partial L}{\partial a_t}\right|_F, \qquad h_t = \mathrm{modReLU}(a_t, b)

        The weights are constants in this: no gradient of the model is touched.

        Args:
            loss: of the states, shape (T, B, d).
            x: inputs, shape (T, B, channels).

        Returns:
            States (T, B, d), and norms over batch and width (T,).
        """
        with torch.no_grad():
            weight, drive, bias = self.layer.weight, self.drive(x), self.bias.detach()
        drive.requires_grad_()
        with torch.enable_grad():
            states: Tensor = Unrolled.apply(weight, drive, bias)
            (gradient,) = torch.autograd.grad(loss(states), drive)
        return states.detach(), torch.linalg.vector_norm(gradient, dim=(1, 2))


@dataclass(frozen=True)
class Cell:
    """A kind of recurrent weights.

    Attributes:
        name: its key in `CELLS`.
        label: what plots and tables call it.
        build: from start, shape (d, d), rank, reset and further options (``dtype``, ``device``, ``seed``) to a layer.
        orthogonal: whether W stays orthogonal.
        source: where it comes from.
    """

    name: str
    label: str
    build: Callable[..., Any]
    orthogonal: bool
    source: str


@takes_options_of(RecurrentRotation, "dim", "init", "bias")
def _p4(start: Tensor, rank: int, reset: Any, **options: Any) -> RecurrentRotation:
    return RecurrentRotation(len(start), rank=rank, reset=reset, init=start, bias=False, **options)


def _baseline(kind: Callable[..., Any], **fixed: Any) -> Callable[..., Any]:
    @takes_options_of(kind, "dim", "init", "bias", *fixed)
    def build(start: Tensor, rank: int, reset: Any, **options: Any) -> Any:
        return kind(len(start), init=start, bias=False, **fixed, **options)

    return build


_TORCH = "torch.nn.utils.parametrizations.orthogonal"
CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("p4orthogonal", "P4Orthogonal", _p4, True, "p4lab"),
        Cell("matrix_exp", "matrix_exp (torch)", _baseline(TorchTrivialized), True, _TORCH),
        Cell("cayley", "Cayley (torch)", _baseline(TorchTrivialized, orthogonal_map="cayley"), True, _TORCH),
        Cell(
            "householder", "Householder (torch)", _baseline(TorchOrthogonal, orthogonal_map="householder"), True, _TORCH
        ),
        Cell("geotorch", "geotorch SO", _baseline(GeotorchOrthogonal), True, "geotorch.SO"),
        Cell("plain", "Unconstrained", _baseline(Plain), False, "torch.nn.Linear"),
    )
}
"""What the experiments compare; all take the same start."""


def start_of(name: str, dim: int, seed: int = 0) -> Tensor:
    """Return an orthogonal matrix to start at, float64.

    Args:
        name: "rotations" (blocks of 2 x 2 on the diagonal, each a rotation by an angle that is uniform on the circle;
            with an odd width a 1 in the end), "orthogonal" (uniform on SO(d) or its other half), "identity".
        dim: d.
        seed: of the random ones.

    Raises:
        OptionError: unknown name.

    Source of "rotations": Henaff, Szlam, LeCun, arXiv:1602.06662, section 4.
    """
    generator = torch.Generator().manual_seed(seed)
    if name not in STARTS:
        raise OptionError(f"start={name!r} is not known: choose one of {STARTS}")
    if name != "rotations":
        return initial_matrix(name, dim, generator).double()
    angles = (2 * torch.rand(dim // 2, generator=generator, dtype=torch.float64, device="cpu") - 1) * torch.pi
    matrix = torch.eye(dim, dtype=torch.float64, device="cpu")
    at = 2 * torch.arange(dim // 2, device="cpu")
    matrix[at, at] = matrix[at + 1, at + 1] = angles.cos()
    matrix[at + 1, at], matrix[at, at + 1] = angles.sin(), -angles.sin()
    return matrix


def recurrent_net(
    cell: str,
    dim: int,
    channels: int,
    outputs: int,
    start: str = "rotations",
    rank: int = 8,
    reset: str = "gradient",
    seed: int = 0,
    **options: Any,
) -> RecurrentNet:
    """Return a network; of one seed all cells start as the same function.

    Args:
        cell: a name of `CELLS`.
        dim: width d.
        channels, outputs: of the task.
        start: see `start_of`.
        rank, reset: of P4Orthogonal.
        seed: of all that is random.
        options: ``dtype`` and ``device``.

    Raises:
        OptionError: unknown cell or start, or an option that the cell's layer does not know.
        MissingPackageError: the cell's package is not installed.
    """
    if cell not in CELLS:
        raise OptionError(f"cell {cell!r} is not known: choose one of {', '.join(CELLS)}")
    build = CELLS[cell].build
    check_known(f"recurrent_net with cell {cell!r}", options, named_options(recurrent_net), options_of(build))
    layer = build(start_of(start, dim, seed), rank=rank, reset=reset, seed=seed, **options)
    return RecurrentNet(layer, channels, outputs, seed)


def recurrent_optimizer(net: RecurrentNet, rate: float, factor: float) -> torch.optim.Adam:
    """Return Adam with a rate of its own, ``factor`` times the others', for the recurrent weights."""
    layer = list(net.layer.parameters())
    others = [p for name, p in net.named_parameters() if not name.startswith("layer.")]
    groups: list[dict[str, Any]] = [{"params": layer, "lr": rate * factor}, {"params": others, "lr": rate}]
    return torch.optim.Adam(groups, lr=rate)
