"""Steps on and next to O(n) that need no retraction of a d x d matrix: random submanifolds, landing, POGO."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from p4lab.baselines.descent import FactoredDescent, check_rate, layers_of, relative, value_of, without
from p4lab.baselines.riemannian import CayleyLinear, NearLinear
from p4lab.errors import OptionError
from p4lab.options import check_known, named_options
from p4lab.p4 import RECOMMENDED
from p4lab.packages import require

Sampling = Literal["permutation", "orthogonal"]
"""A random submanifold turns r of the coordinates, or r orthonormal directions that are uniform on the sphere."""


class SubmanifoldDescent(FactoredDescent):
    r"""Gradient descent on a random r-dimensional rotation group in each step (RSDM), for models with `CayleyLinear`.

    .. math:: W \leftarrow W + P^T (Y - I_r) P\, W, \qquad Y = \mathrm{qf}\left(I_r - \eta
              \left(P G W^T P^T - P W G^T P^T\right)\right), \qquad P P^T = I_r

    qf is the orthogonal factor of a QR decomposition with a positive diagonal, so that det W keeps its sign; P is drawn
    anew in each step. The published method forms the gradient G. Here ``P G W^T P^T = (g P^T)^T (z P^T)`` comes from
    the factors that the layers keep (z = W x and the gradients g at the outputs): the same step, without G. The
    published rate is twice this one, which is on the scale of that of `p4lab.baselines.CayleyDescent`.

    Args:
        model: a module that contains `CayleyLinear` layers; the optimizer adopts them.
        lr: learning rate.
        rank: r, at most d (None: that of P4Inv's preset `p4lab.p4.RECOMMENDED`).
        sampling: "permutation" (r different coordinates) or "orthogonal" (r directions by a QR decomposition).
        seed: of the draws.

    Raises:
        OptionError: lr <= 0, rank < 1, an unknown sampling, or no such layers.

    Cost of a step for B samples: O(B r^2 + d r^2) by permutations, O(B d r + d^2 r) by orthogonal matrices; gradients
    that come from elsewhere than `forward` add O(d r^2) or O(d^2 r). Rounding of W adds up slowly: nothing corrects it.

    Source: Han, Poirion and Takeda, arXiv:2505.12378 (ICML 2025).
    """

    layer_type = CayleyLinear

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        rank: int | None = None,
        sampling: Sampling = "permutation",
        seed: int = 0,
    ) -> None:
        if rank is not None and (not isinstance(rank, int) or rank < 1):
            raise OptionError(f"rank={rank!r}: expected a whole number of at least 1, or None for a preset's")
        if sampling not in get_args(Sampling):
            raise OptionError(f"sampling={sampling!r} is not known: choose one of {get_args(Sampling)}")
        super().__init__(model, lr)
        self.rank, self.sampling = rank, sampling
        # In the group, state_dict carries it, and a resumed run goes on with the same draws.
        self.param_groups[0]["generator"] = torch.Generator().manual_seed(seed).get_state()

    def move(self, layer: CayleyLinear, lr: float) -> None:
        """Move the weights of one layer."""
        w, (z, g) = layer.matrix, layer.factors()
        rank = min(self.rank or RECOMMENDED.rank_for(layer.dim), layer.dim)
        if self.sampling == "permutation":
            rows = self._draw(torch.randperm, layer.dim)[:rank].to(w.device)
            z, g, part = z[:, rows], g[:, rows], w[rows]
            gradient = None if w.grad is None else w.grad[rows]
            w.index_copy_(0, rows, _turn(z, g, part, gradient, lr) @ part)
        else:
            p = torch.linalg.qr(self._draw(torch.randn, layer.dim, rank).to(w)).Q.t()
            z, g, part = z @ p.t(), g @ p.t(), p @ w
            gradient = None if w.grad is None else p @ w.grad
            change = _turn(z, g, part, gradient, lr)
            change.diagonal().sub_(1)
            w.addmm_(p.t(), change @ part)

    def _draw(self, draw: Callable[..., Tensor], *sizes: int) -> Tensor:
        group, generator = self.param_groups[0], torch.Generator()
        generator.set_state(group["generator"])
        drawn = draw(*sizes, generator=generator, device="cpu")
        group["generator"] = generator.get_state()
        return drawn


class LandingDescent(FactoredDescent):
    r"""Gradient descent next to O(n), which attracts the weights: no retraction, for models with `NearLinear` layers.

    .. math:: W \leftarrow W - s \left(S + \lambda \Delta\right) W, \qquad S = G W^T - W G^T, \qquad
              \Delta = W W^T - I, \qquad s = \min(\eta, s^*), \qquad \lambda = \rho / \eta

    The distance :math:`\delta = |\Delta|_F` stays within a tolerance t: one step changes it to at most

    .. math:: \delta - \alpha s + \beta s^2, \qquad \alpha = 2 \delta \left(\lambda (1 - \delta) - |S|_F\right), \qquad
              \beta = (|S|_F^2 + \lambda^2 \delta^2)(1 + \delta), \qquad
              s^* = \frac{\alpha + \sqrt{\alpha^2 + 4 \beta (t - \delta)}}{2 \beta}

    as long as :math:`\rho \le 1/2`. The published method has a fixed lambda and rates near 0.1; here losses are means
    over d, so that rates grow with d, and what has to stay fixed is their product rho. Its S is half of this one, and
    its beta is another bound. G W^T comes from the factors that the layers keep.

    Args:
        model: a module that contains `NearLinear` layers; the optimizer adopts them.
        lr: learning rate, eta.
        attraction: rho; 1/2 is a full step of Newton and Schulz towards O(n).
        tolerance: t, the largest distance.

    Raises:
        OptionError: lr <= 0, attraction outside of (0, 1/2], tolerance outside of (0, 1), or no such layers.

    Cost of a step for B samples: O(B d^2) and two products of d x d matrices.
    Source: Ablin and Peyre, arXiv:2102.07432 (AISTATS 2022).
    """

    layer_type = NearLinear

    def __init__(self, model: nn.Module, lr: float, attraction: float = 0.2, tolerance: float = 0.5) -> None:
        if not 0 < attraction <= 0.5:
            raise OptionError(
                f"attraction={attraction}: expected more than 0 and at most 1/2, from where on it overshoots"
            )
        if not 0 < tolerance < 1:
            raise OptionError(f"tolerance={tolerance}: expected more than 0 and less than 1, where W may be singular")
        super().__init__(model, lr)
        self.attraction, self.tolerance = attraction, tolerance

    def move(self, layer: NearLinear, lr: float) -> None:
        """Move the weights of one layer."""
        w, e, pull = layer.matrix, relative(layer), self.attraction / lr
        skew = e - e.t()
        off = w @ w.t()
        off.diagonal().sub_(1)
        size, distance = torch.linalg.matrix_norm(skew), torch.linalg.matrix_norm(off)
        alpha = 2 * distance * (pull * (1 - distance) - size)
        beta = (size.square() + (pull * distance).square()) * (1 + distance)
        room = (self.tolerance - distance).clamp_min(0)
        # Without a gradient, on O(n), all of this is 0, and so is the step.
        longest = (alpha + (alpha.square() + 4 * beta * room).sqrt()) / (2 * beta).clamp_min(torch.finfo(w.dtype).tiny)
        w.sub_(longest.clamp_max(lr) * (skew.add_(off, alpha=pull) @ w))


Base = Literal["SGD", "VectorAdam"]
"""POGO has these rules that make a direction of gradients."""


class Pogo(Optimizer):
    r"""POGO of the package pogo-torch for models with `NearLinear` layers; torch steps all other parameters.

    .. math:: M = W - \eta' \tfrac{1}{2} (V W^T - W V^T)\, W, \qquad W \leftarrow M + \tfrac{1}{2} (I - M M^T)\, M

    V is the direction that the rule makes of the gradient G. The distance from O(n) is of the order of the fourth power
    of the step, and never corrected to 0 exactly. Rates are on the scale of other methods here:
    :math:`\eta' = 2 \eta` with SGD, as their steps have no factor 1/2, and :math:`\eta' = d \eta` with VectorAdam,
    whose V has norm 1 where that of Adam has about d. Other parameters have torch's SGD or Adam with rate eta.

    Args:
        model: a module that contains `NearLinear` layers.
        lr: learning rate, eta.
        base: the rule, "SGD" or "VectorAdam".
        options: of the rule.

    Raises:
        OptionError: lr <= 0, an unknown rule or option, or no such layers.
        MissingPackageError: pogo-torch is not installed.

    Cost of a step: O(d^3), about seven products of d x d matrices.
    Source: Javaloy and Vergari, arXiv:2602.14656; pogo-torch 1.0 (``pogo.POGO``).
    """

    def __init__(self, model: nn.Module, lr: float, base: Base = "SGD", **options: Any) -> None:
        check_rate(lr)
        if base not in get_args(Base):
            raise OptionError(f"base={base!r} is not known: choose one of {get_args(Base)}")
        self.layers = layers_of(model, NearLinear)
        for layer in self.layers:
            layer.adopted = False  # the package wants the gradient itself
        kind = getattr(require("pogo.base", "baselines"), base)
        check_known(f"POGO with {base}", options, named_options(kind))
        super().__init__(model.parameters(), {"lr": lr})
        pogo = require("pogo", "baselines").POGO
        rule = kind(**options)
        self._turns = [pogo([layer.matrix], rule, lr, flatten_fn=lambda w: w[None]) for layer in self.layers]
        self._scales = [2 if base == "SGD" else layer.dim for layer in self.layers]
        others = without(model, self.layers)
        self._rest = (SGD if base == "SGD" else Adam)(others, lr=lr) if others else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every layer and parameter once; return what ``closure`` returned, if there is one."""
        loss = value_of(closure)
        lr = self.param_groups[0]["lr"]
        for layer, turn, scale in zip(self.layers, self._turns, self._scales, strict=True):
            memory, (group,) = self.state[layer.matrix], turn.param_groups
            turn.state = self.state  # one state for all, so that state_dict carries it
            group["lr"], group["step"] = scale * lr, memory.get("step", 0)
            turn.step()
            # The rules begin their memory at step 1, which without a gradient leaves none: it has to come again.
            memory["step"] = group["step"] if memory.keys() - {"step"} else 0
        if self._rest is not None:
            self._rest.state = self.state
            self._rest.param_groups[0]["lr"] = lr
            self._rest.step()
        return loss


def _turn(z: Tensor, g: Tensor, part: Tensor, gradient: Tensor | None, lr: float) -> Tensor:
    """Return Y, shape (r, r), of z P^T, g P^T, P W and P G, where G is what came from elsewhere than `forward`."""
    e = g.t() @ z
    if gradient is not None:
        e = e.addmm(gradient, part.t())
    eye = torch.eye(len(e), dtype=e.dtype, device=e.device)
    q, r = torch.linalg.qr(eye - lr * (e - e.t()))
    return q * r.diagonal().sign()
