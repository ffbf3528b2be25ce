"""Parametrizations of the orthogonal group, exact and nearly: torch's, geotorch's, reflections, a truncated series."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from p4lab.baselines.layer import NearlyOrthogonal, OrthogonalBaseline, check_identity, start_matrix
from p4lab.baselines.packages import holder
from p4lab.baselines.reflections import check_rest, count_reflections, factorize, reflect
from p4lab.errors import OptionError
from p4lab.packages import require

Map = Literal["matrix_exp", "cayley", "householder"]
"""Torch parametrizes rotations by one of these maps."""


class TorchOrthogonal(OrthogonalBaseline):
    """Linear layer with torch's orthogonal parametrization, without a base ("static").

    .. math:: W = e^A, \\quad W = (I + A/2)(I - A/2)^{-1}, \\quad W = H_1 \\cdots H_d D \\qquad (A^T = -A)

    The first two reach det W = 1 only (the Cayley map not where W has an eigenvalue -1) and start at the identity.

    Args:
        dim: width d.
        orthogonal_map: "matrix_exp", "cayley" or "householder".
        init: "identity"; with "householder" also another name or an orthogonal (d, d) tensor.
        bias: whether there is an additive bias.
        seed: seed of a random ``init``.
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError: unknown map, a start that is not orthogonal, or one that the map cannot be given.

    Cost: O(d^3) in each step. Source: ``torch.nn.utils.parametrizations.orthogonal``; Lezcano-Casado and
    Martinez-Rubio, arXiv:1901.08428 (exponential), Helfrich et al., arXiv:1707.09520 (Cayley).
    """

    trivialized = False

    def __init__(
        self,
        dim: int,
        orthogonal_map: Map = "matrix_exp",
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        if orthogonal_map not in get_args(Map):
            raise OptionError(f"orthogonal_map={orthogonal_map!r} is not known: choose one of {get_args(Map)}")
        start = start_matrix(init, dim, self._kind["dtype"], seed, orthogonal=True)
        if not self.trivialized and orthogonal_map != "householder":
            check_identity(start, f"static {orthogonal_map}", "torch starts it at the identity", "take a dynamic one")
            start = torch.zeros_like(start)  # the skew matrix itself
        with torch.device("cpu"):  # torch looks at values, and makes tensors on its default device
            self.map = holder(start.to(self._kind["dtype"]))
            orthogonal(self.map, "weight", orthogonal_map, use_trivialization=self.trivialized)
        self.map.to(self._kind["device"])

    @property
    def weight(self) -> Tensor:
        """The orthogonal weights. Cost O(d^3)."""
        return self.map.weight


class TorchTrivialized(TorchOrthogonal):
    """Linear layer with torch's orthogonal parametrization on top of a base: ``W = Q_0 W'`` ("dynamic").

    `rebase` takes the present weights as the base Q_0. The sign of det W is that of the start, any orthogonal matrix.
    Arguments, errors and cost as for `TorchOrthogonal`. Source: Lezcano-Casado, arXiv:1909.09501.
    """

    trivialized = True
    frame_stays = True

    def rebased(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `rebase` sets back."""
        return (self.map.parametrizations.weight.original,)

    @torch.no_grad()
    def rebase(self) -> None:
        """Take the present weights as the new base (torch: by assigning the weight to itself). Cost O(d^3)."""
        self.map.weight = self.map.weight.detach()


class GeotorchOrthogonal(OrthogonalBaseline):
    """Linear layer on geotorch's orthogonal matrices: ``W = Q_0 e^A`` with skew A.

    Arguments as for `p4lab.baselines.Dense`; ``init`` has to be orthogonal.

    Raises:
        OptionError: a start that is not orthogonal.
        MissingPackageError: geotorch is not installed.

    Cost: O(d^3) in each step. Source: Lezcano-Casado, arXiv:1909.09501; geotorch 0.4 (``geotorch.SO``).
    """

    frame_stays = True

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
        start = start_matrix(init, dim, self._kind["dtype"], seed, orthogonal=True)
        kind: torch.dtype = self._kind["dtype"]
        # geotorch draws a random base, which is then replaced, looks at values, and uses torch's default device
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.map = holder(start.to(kind))
            manifold = geotorch.SO((dim, dim)).to(kind)
            parametrize.register_parametrization(self.map, "weight", manifold, unsafe=True)
        self.map.to(self._kind["device"])

    @property
    def weight(self) -> Tensor:
        """The orthogonal weights. Cost O(d^3)."""
        return self.map.weight

    def rebased(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `rebase` sets back."""
        return (self.map.parametrizations.weight.original,)

    def rebase(self) -> None:
        """Take the present weights as the new base (geotorch's ``update_base``). Cost O(d^3)."""
        require("geotorch.utils", "baselines").update_base(self.map, "weight")


class Householder(OrthogonalBaseline):
    r"""Linear layer that is a product of Householder reflections: orthogonal by design.

    .. math:: W = H_1 \cdots H_k D, \qquad D = \mathrm{diag}(\pm 1)

    D is that of the start and fixed, so that any k, odd or even, starts at the identity; det W keeps its sign. Further
    arguments as for `p4lab.baselines.Dense`; ``init`` has to be orthogonal.

    Args:
        reflections: k (None: d, with which every orthogonal start is in the family).

    Raises:
        OptionError: k outside of 1 ... d, or a start that is not orthogonal or needs more than k reflections.

    Cost for a batch of B: O(B d k + 32 d k), the inverse as well.
    Source: Tomczak and Welling, arXiv:1611.09630; Mhammedi et al., arXiv:1612.00188.
    """

    signs: Tensor

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        reflections: int | None = None,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        start = start_matrix(init, dim, self._kind["dtype"], seed, orthogonal=True)
        vectors, rest = factorize(start, count_reflections(reflections, dim))
        signs = rest.diagonal().sign()
        check_rest(rest - signs.diag(), len(vectors))
        self.register_buffer("signs", signs.to(**self._kind))
        self.vectors = nn.Parameter(vectors.to(**self._kind))

    @property
    def weight(self) -> Tensor:
        """The product of the reflections. Cost O(d^2 k)."""
        return reflect(self.signs.diag(), self.vectors).t()

    def _map(self, x: Tensor) -> Tensor:
        return reflect(x * self.signs, self.vectors)

    def _unmap(self, y: Tensor) -> Tensor:
        return reflect(y, self.vectors, transposed=True) * self.signs


class CayleyNeumann(NearlyOrthogonal):
    r"""Linear layer with a Cayley transform whose solve is a truncated Neumann series: nearly orthogonal.

    .. math:: W = (I + Q)(I + Q + \dots + Q^k), \qquad Q = U - U^T, \qquad U \text{ strictly upper triangular}

    An eigenvalue :math:`i t` of Q gives one of W of modulus :math:`|1 - (i t)^{k+1}|`, where the Cayley transform has
    1: next to O(n) for t < 1, which is an angle of :math:`2 \arctan t < 90` degrees, and off beyond. It starts at the
    identity. No two d x d matrices are multiplied: Q is applied to the batch k + 1 times, its transpose in `inverse`.

    Args:
        dim: width d.
        init: "identity" or a (d, d) tensor that is the identity.
        bias: whether there is an additive bias.
        seed: not used: the start is not random.
        dtype: float32 or float64.
        device: device of all tensors.
        terms: k, at least 1. With k = 3, 7, ... large Q shrink some outputs; with other k they enlarge them.

    Raises:
        OptionError: terms < 1, or a start that is not the identity.

    Cost for a batch of B: forward (k + 1) B d^2, backward twice that, `inverse` (k + 1) B d^2; ``weight`` O(k d^3).
    Source: Qiu et al., arXiv:2506.19847 (OFTv2), on top of frozen weights there.
    """

    def __init__(
        self,
        dim: int,
        init: str | Tensor = "identity",
        bias: bool = True,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        terms: int = 5,
    ) -> None:
        super().__init__(dim, bias, dtype, device)
        if not isinstance(terms, int) or terms < 1:
            raise OptionError(f"terms={terms!r}: expected a whole number of at least 1")
        start = start_matrix(init, dim, self._kind["dtype"], seed, orthogonal=True)
        check_identity(start, "Cayley-Neumann", "it starts at the identity", "take the method 'torch_cayley_dynamic'")
        self.terms = terms
        self.upper = nn.Parameter(torch.zeros(dim, dim, **self._kind))

    @property
    def weight(self) -> Tensor:
        """The product with the series. Cost O(k d^3)."""
        return self._map(torch.eye(self.dim, dtype=self.upper.dtype, device=self.upper.device)).t()

    def _map(self, x: Tensor) -> Tensor:
        return self._series(x, self._skew())

    def _unmap(self, y: Tensor) -> Tensor:
        return self._series(y, self._skew().t())

    def _skew(self) -> Tensor:
        upper = self.upper.triu(1)
        return upper - upper.t()

    def _series(self, x: Tensor, q: Tensor) -> Tensor:
        z = x
        for _ in range(self.terms):
            z = x + F.linear(z, q)
        return z + F.linear(z, q)
