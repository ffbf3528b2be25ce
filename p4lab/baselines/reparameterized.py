"""Factorizations of GL(n) in plain torch: PLU, QR, SVD and the matrix exponential."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines.layer import Baseline, Derived, start_matrix
from p4lab.baselines.reflections import check_rest, count_reflections, factorize, reflect


class PLU(Baseline):
    r"""Linear layer with triangular factors, as Glow's 1 x 1 convolutions have them.

    .. math:: W = P L \left(U + \mathrm{diag}(s \odot e^{r})\right), \qquad \log|\det W| = \sum_i r_i

    The permutation P and the signs s are those of the start and fixed: with them the sign of det W is, too. L has ones
    on its diagonal. Arguments and errors as for `p4lab.baselines.Dense`; any invertible start is in the family.

    Cost for a batch of B: forward 2 B d^2, `inverse` by two triangular solves, `logabsdet` O(d).
    Source: Kingma and Dhariwal, arXiv:1807.03039, section 3.2.
    """

    order: Tensor
    signs: Tensor

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
        p, lower, upper = torch.linalg.lu(start_matrix(init, dim, self._kind["dtype"], seed))
        self.register_buffer("order", p.argmax(1).to(self._kind["device"]))
        self.register_buffer("signs", upper.diagonal().sign().to(**self._kind))
        self.lower = nn.Parameter(lower.tril(-1).to(**self._kind))
        self.upper = nn.Parameter(upper.triu(1).to(**self._kind))
        self.log_scale = nn.Parameter(upper.diagonal().abs().log().to(**self._kind))

    @property
    def weight(self) -> Tensor:
        """The product of the factors. Cost O(d^3)."""
        lower, upper = self._factors()
        return (lower @ upper)[self.order]

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d)."""
        return self.log_scale.sum()

    def _factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.dim, dtype=self.lower.dtype, device=self.lower.device)
        return self.lower.tril(-1) + eye, _triangle(self.upper, self.signs, self.log_scale)

    def _map(self, x: Tensor) -> Tensor:
        lower, upper = self._factors()
        return F.linear(F.linear(x, upper), lower)[:, self.order]

    def _unmap(self, y: Tensor) -> Tensor:
        lower, upper = self._factors()
        z = y[:, self.order.argsort()].t()
        z = torch.linalg.solve_triangular(lower, z, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, z, upper=True).t()


class QR(Baseline):
    r"""Linear layer with a product of Householder reflections and a triangular factor.

    .. math:: W = H_1 \cdots H_k \left(U + \mathrm{diag}(s \odot e^{r})\right), \qquad \log|\det W| = \sum_i r_i

    The signs s are those of the start and fixed. Further arguments and errors as for `p4lab.baselines.Dense`.

    Args:
        reflections: k (None: d, with which every invertible start is in the family).

    Raises:
        OptionError: k outside of 1 ... d, or a start that k reflections do not bring to triangular form.

    Cost for a batch of B: O(B d (d + k) + 32 d k); `logabsdet` O(d).
    Source: Tomczak and Welling, arXiv:1611.09630; Hoogeboom et al., arXiv:1901.11137, section 3.3.
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
        start = start_matrix(init, dim, self._kind["dtype"], seed)
        vectors, rest = factorize(start, count_reflections(reflections, dim))
        check_rest(rest.tril(-1), len(vectors))
        self.register_buffer("signs", rest.diagonal().sign().to(**self._kind))
        self.vectors = nn.Parameter(vectors.to(**self._kind))
        self.upper = nn.Parameter(rest.triu(1).to(**self._kind))
        self.log_scale = nn.Parameter(rest.diagonal().abs().log().to(**self._kind))

    @property
    def weight(self) -> Tensor:
        """The product of the factors. Cost O(d^2 k)."""
        return reflect(_triangle(self.upper, self.signs, self.log_scale).t(), self.vectors).t()

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d)."""
        return self.log_scale.sum()

    def _map(self, x: Tensor) -> Tensor:
        return reflect(F.linear(x, _triangle(self.upper, self.signs, self.log_scale)), self.vectors)

    def _unmap(self, y: Tensor) -> Tensor:
        upper = _triangle(self.upper, self.signs, self.log_scale)
        z = reflect(y, self.vectors, transposed=True)
        return torch.linalg.solve_triangular(upper, z.t(), upper=True).t()


class SVD(Baseline):
    r"""Linear layer with singular values between two products of Householder reflections.

    .. math:: W = Q_1 \,\mathrm{diag}(s \odot e^{r})\, Q_2^T, \qquad \log|\det W| = \sum_i r_i

    The signs s are those of the start and fixed. Further arguments and errors as for `p4lab.baselines.Dense`.

    Args:
        reflections: number k of reflections in each of Q_1 and Q_2 (None: d, with which every invertible start is in
            the family).

    Raises:
        OptionError: k outside of 1 ... d, or a start whose singular vectors need more than k reflections.

    Cost for a batch of B: O(B d k + 32 d k), the inverse as well; `logabsdet` O(d).
    Source: Zhang et al., arXiv:1803.09327; Mathiasen et al., arXiv:2009.13977.
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
        u, s, vt = torch.linalg.svd(start_matrix(init, dim, self._kind["dtype"], seed))
        count = count_reflections(reflections, dim)
        (left, left_rest), (right, right_rest) = factorize(u, count), factorize(vt.t(), count)
        for rest in (left_rest, right_rest):
            check_rest(rest - rest.diagonal().sign().diag(), count)
        signs = left_rest.diagonal().sign() * right_rest.diagonal().sign()
        self.register_buffer("signs", signs.to(**self._kind))
        self.left = nn.Parameter(left.to(**self._kind))
        self.right = nn.Parameter(right.to(**self._kind))
        self.log_scale = nn.Parameter(s.log().to(**self._kind))

    @property
    def weight(self) -> Tensor:
        """The product of the factors. Cost O(d^2 k)."""
        eye = torch.eye(self.dim, dtype=self.left.dtype, device=self.left.device)
        return self._map(eye).t()

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d)."""
        return self.log_scale.sum()

    def _map(self, x: Tensor) -> Tensor:
        z = reflect(x, self.right, transposed=True)
        return reflect(z * (self.signs * self.log_scale.exp()), self.left)

    def _unmap(self, y: Tensor) -> Tensor:
        z = reflect(y, self.left, transposed=True)
        return reflect(z * (self.signs * (-self.log_scale).exp()), self.right)


class MatrixExponential(Derived, Baseline):
    r"""Linear layer with the exponential of a free matrix, to the right of a fixed base.

    .. math:: W = A \exp(M), \qquad W^{-1} = \exp(-M)\, A^{-1}, \qquad \log|\det W| = \log|\det A| + \mathrm{tr}\, M

    A is the start, M starts at 0. Not every matrix of the start's sign is one exponential away (A^-1 W with a simple
    negative eigenvalue is not); `rebase` moves on. Arguments and errors as for `p4lab.baselines.Dense`.

    Cost: O(d^3) in each step for the exponential and its gradient; `logabsdet` O(d).
    Source: Xiao and Liu, arXiv:2012.10166 (flows with matrix exponentials).
    """

    frame_stays = True
    source = "base"
    base: Tensor
    base_inverse: Tensor
    base_logabsdet: Tensor

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
        base = start_matrix(init, dim, self._kind["dtype"], seed).to(**self._kind)
        self.register_buffer("base", base)
        self.register_buffer("base_inverse", torch.empty_like(base))
        self.register_buffer("base_logabsdet", base.new_empty(()))
        self.renew()
        self.exponent = nn.Parameter(torch.zeros_like(base))

    @property
    def weight(self) -> Tensor:
        """The base times the exponential. Cost O(d^3)."""
        return self.base @ torch.linalg.matrix_exp(self.exponent)

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a differentiable scalar. Cost O(d)."""
        return self.base_logabsdet + self.exponent.trace()

    def rebased(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `rebase` sets back."""
        return (self.exponent,)

    @torch.no_grad()
    def rebase(self) -> None:
        """Take the present weights as the new base: ``A <- A exp(M)``, ``M <- 0``. Cost O(d^3)."""
        self.base.copy_(self.weight)
        self.renew()
        self.exponent.zero_()

    @torch.no_grad()
    def renew(self) -> None:
        """Compute inverse and log|det| of the base. Cost O(d^3)."""
        self.base_inverse.copy_(torch.linalg.inv(self.base))
        self.base_logabsdet.copy_(torch.linalg.slogdet(self.base).logabsdet)

    def _unmap(self, y: Tensor) -> Tensor:
        return F.linear(F.linear(y, self.base_inverse), torch.linalg.matrix_exp(-self.exponent))


def _triangle(upper: Tensor, signs: Tensor, log_scale: Tensor) -> Tensor:
    return upper.triu(1) + (signs * log_scale.exp()).diag()
