"""Parametrizations of GL(n) from packages: nflows and geotorch."""

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from p4lab.baselines.layer import Baseline, check_identity, outside, start_matrix
from p4lab.errors import OptionError
from p4lab.packages import require

NflowsKind = Literal["lu", "qr", "svd"]
"""Nflows has linear transforms by these factorizations."""


class Nflows(Baseline):
    """A linear transform of nflows: LULinear, QRLinear or SVDLinear, with as many reflections as matrices need.

    LULinear has no permutation and positive pivots, so that it holds only some of the matrices with det > 0. All three
    start at the identity: nflows cannot be given another start.

    Args:
        dim: width d.
        kind: "lu", "qr" or "svd".
        init: "identity" or a (d, d) tensor that is the identity.
        bias: whether there is an additive bias.
        seed: not used: the start is not random.
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError: unknown kind, or a start that is not the identity.
        MissingPackageError: nflows is not installed.

    Cost for a batch of B: O(B d^2), in d consecutive operations per Householder sequence; `logabsdet` O(d); the
    property ``weight`` O(d^3). Source: Durkan et al., nflows 0.14 (``nflows.transforms``).
    """

    def __init__(
        self,
        dim: int,
        kind: NflowsKind = "lu",
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        if kind not in get_args(NflowsKind):
            raise OptionError(f"kind={kind!r} is not known: choose one of {get_args(NflowsKind)}")
        start = start_matrix(init, dim, self._kind["dtype"], seed)
        check_identity(
            start, f"nflows {kind}", "its layers start at the identity", "take the method 'plu', 'qr' or 'svd'"
        )
        with torch.device("cpu"):
            self.transform = _nflows(kind, dim).to(**self._kind)
        self.transform.bias.requires_grad_(False)  # the bias of the baseline does its work

    @property
    def weight(self) -> Tensor:
        """The product of the factors. Cost O(d^3)."""
        return self.transform.weight()

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d)."""
        return self.transform.logabsdet()

    def _map(self, x: Tensor) -> Tensor:
        return self.transform(x)[0]

    def _unmap(self, y: Tensor) -> Tensor:
        with warnings.catch_warnings():
            # nflows 0.14 solves with torch.triangular_solve, which torch deprecates.
            warnings.filterwarnings("ignore", message=r".*triangular_solve is deprecated", category=UserWarning)
            return self.transform.inverse(y)[0]


def _nflows(kind: NflowsKind, dim: int) -> Any:
    if kind == "lu":
        return require("nflows.transforms.lu", "baselines").LULinear(dim, identity_init=True)
    # Its reflections come in equal pairs: an even number of them begins at the identity.
    count = dim + dim % 2
    if kind == "svd":
        return require("nflows.transforms.svd", "baselines").SVDLinear(dim, num_householder=count, identity_init=True)
    with torch.random.fork_rng(devices=[]):  # it draws a random start, which is then replaced
        transform = require("nflows.transforms.qr", "baselines").QRLinear(dim, num_householder=count)
    nn.init.zeros_(transform.upper_entries)
    nn.init.zeros_(transform.log_upper_diag)
    return transform


class GeotorchGL(Baseline):
    r"""Linear layer on geotorch's manifold of invertible matrices, a static or dynamic trivialization.

    .. math:: W = U \,\mathrm{diag}(\mathrm{softplus}(s) + 10^{-6})\, V^T, \qquad U = U_0 e^{X}, \; V = V_0 e^{Y}

    with skew X and Y. The sign of det W is that of the start (geotorch's name, GL+, is about a start with det > 0).
    `rebase` makes the present factors the new U_0 and V_0. Arguments and errors as for `p4lab.baselines.Dense`, and:

    Raises:
        OptionError: a start with a singular value below 1e-5, which geotorch refuses.
        MissingPackageError: geotorch is not installed.

    Cost: O(d^3) in each step (two matrix exponentials and their gradients); `logabsdet` O(d).
    Source: Lezcano-Casado, arXiv:1909.09501; geotorch 0.4 (``geotorch.GLp``).
    """

    frame_stays = False
    """A new base sorts the singular values anew: coordinates before and after `rebase` mean different things."""

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        geotorch = require("geotorch", "baselines")
        start = start_matrix(init, dim, self._kind["dtype"], seed)
        smallest = float(torch.linalg.svdvals(start)[-1])
        if not smallest > 1e-5:
            outside("geotorch GLp", f"smallest singular value {smallest:.3g}", "scale it up")
        kind: torch.dtype = self._kind["dtype"]
        # geotorch draws a random base, which is then replaced, looks at values, and uses torch's default device
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.map = holder(start.to(kind))
            manifold = geotorch.GLp((dim, dim)).to(kind)
            parametrize.register_parametrization(self.map, "weight", manifold, unsafe=True)
        self.map.to(self._kind["device"])

    @property
    def weight(self) -> Tensor:
        """The product of the factors. Cost O(d^3)."""
        return self.map.weight

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d)."""
        return self._singular_values(self.map.parametrizations.weight.original.diagonal()).log().sum()

    def rebased(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `rebase` sets back."""
        return (self.map.parametrizations.weight.original,)

    def rebase(self) -> None:
        """Take the present weights as the new base (geotorch's ``update_base``). Cost O(d^3)."""
        require("geotorch.utils", "baselines").update_base(self.map, "weight")

    def _singular_values(self, s: Tensor) -> Tensor:
        return self.map.parametrizations.weight[0].f(s)

    def _unmap(self, y: Tensor) -> Tensor:
        manifold: Any = self.map.parametrizations.weight[0]
        frame = manifold.frame(self.map.parametrizations.weight.original)
        u, s, v = (part(x) for part, x in zip(manifold, frame, strict=True))
        return ((y @ u) / self._singular_values(s)) @ v.t()


def holder(weight: Tensor) -> Any:
    """Return a module with a single parameter ``weight``, which a parametrization may replace."""
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module
