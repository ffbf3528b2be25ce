"""Every method of a race, built, stepped and scheduled in the same way: P4Inv and its competitors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, cast, get_args

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from p4lab.baselines.dense import Dense, Plain, SoftDeterminant, SoftOrthogonal
from p4lab.baselines.descent import CayleyDescent, RelativeAdam, RelativeGradient
from p4lab.baselines.designed import Butterfly, Coupling, Woodbury
from p4lab.baselines.orthogonal import (
    CayleyNeumann,
    GeotorchOrthogonal,
    Householder,
    Map,
    TorchOrthogonal,
    TorchTrivialized,
)
from p4lab.baselines.orthogonal_descent import Base, LandingDescent, Pogo, SubmanifoldDescent
from p4lab.baselines.packages import GeotorchGL, Nflows, NflowsKind
from p4lab.baselines.reparameterized import PLU, QR, SVD, MatrixExponential
from p4lab.baselines.riemannian import CayleyLinear, NearLinear, RelativeLinear, StiefelLinear
from p4lab.baselines.schedule import Rebase
from p4lab.baselines.self_normalizing import SelfNormalizing
from p4lab.errors import OptionError
from p4lab.options import check_known, named_options, options_of, refusing, takes_options_of
from p4lab.p4 import (
    EVERYTHING,
    PAPER,
    RECOMMENDED,
    RELATIVE,
    RIEMANNIAN,
    MergeSchedule,
    Preset,
)
from p4lab.packages import require

Group = Literal["invertible", "orthogonal", "nearly_orthogonal", "designed", "penalized"]
"""A method is of one of these groups, as `Method` says."""
ORTHOGONAL_GROUPS: tuple[Group, ...] = ("orthogonal", "nearly_orthogonal")
"""Methods of these groups reach rotations and reflections only, but for a small error."""
Schedule = MergeSchedule | Rebase
"""Schedules have a ``step()`` for after each optimizer step."""


def _torch(optimizer: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    @takes_options_of(optimizer, "params")
    def make(layer: nn.Module, lr: float, **options: Any) -> Optimizer:
        return optimizer([p for p in layer.parameters() if p.requires_grad], lr=lr, **options)

    return make


def _geoopt(name: str) -> Callable[..., Optimizer]:
    def make(layer: nn.Module, lr: float, **options: Any) -> Optimizer:
        optimizer = getattr(require("geoopt", "baselines").optim, name)
        # A mixin hands all that it does not know on to the class after it.
        starts = [vars(kind)["__init__"] for kind in optimizer.__mro__ if "__init__" in vars(kind)]
        check_known(name, options, *(named_options(start) - {"self"} for start in starts))
        return cast(Optimizer, optimizer(layer.parameters(), lr=lr, **options))

    return make


def _pogo(base: Base) -> Callable[..., Optimizer]:
    def make(layer: nn.Module, lr: float, **options: Any) -> Optimizer:
        return Pogo(layer, lr, base, **options)

    return make


TORCH = {"sgd": _torch(SGD), "adam": _torch(Adam)}
"""Methods have these optimizers unless they name others."""


@dataclass(frozen=True)
class Method:
    """A way to have a linear layer (or a nonlinear one, by design) with inverse and log-determinant.

    Attributes:
        name: its key in `METHODS`.
        label: what plots and tables call it.
        group: "invertible" (on GL(n)), "orthogonal" (on O(n)), "nearly_orthogonal" (next to it), "designed" (a
            smaller family, or a nonlinear map) or "penalized" (the property is wished for, not ensured).
        exact_inverse: whether the layer has an inverse that is exact to rounding, at any time in training.
        exact_logabsdet: the same for log|det|.
        cubic: whether a training step whose loss contains log|det| makes an O(d^3) call (for batches smaller than d).
        cubic_inverse: whether `inverse` makes one (None: there is no exact inverse).
        build: from a width and options to a layer. All take ``seed``, ``dtype`` and ``device``, linear ones ``init``
            and ``bias`` as well; an unknown option is an `OptionError`.
        source: paper or package.
        optimizers: what makes an optimizer of a layer, by name.
        schedule_of: what makes the schedule that has to step after the optimizer.
        preset: settings of a P4 method, whose schedule it has then.
        linear: whether the layer has a ``weight`` and one log|det|; otherwise log|det| takes x and belongs to samples.
        exact_when_evaluated: whether log|det|, though not exact in training, is exact in evaluation: in eval mode, or
            where no gradients are recorded. What training needs of it is then its gradient alone.
    """

    name: str
    label: str
    group: Group
    exact_inverse: bool
    exact_logabsdet: bool
    cubic: bool
    cubic_inverse: bool | None
    build: Callable[..., Any]
    source: str
    optimizers: Mapping[str, Callable[..., Optimizer]] = field(default_factory=lambda: TORCH)
    schedule_of: Callable[[nn.Module, Optimizer | None], Schedule] | None = None
    preset: Preset | None = None
    linear: bool = True
    exact_when_evaluated: bool = False

    def __post_init__(self) -> None:
        if self.preset is not None:
            object.__setattr__(self, "schedule_of", self.preset.schedule)
        object.__setattr__(self, "build", refusing(f"method {self.name!r}", self.build))

    @property
    def has_likelihood(self) -> bool:
        """Whether likelihoods can be trained on, and tested exactly."""
        return self.exact_logabsdet or self.exact_when_evaluated

    def optimizer(self, layer: nn.Module, lr: float, name: str = "adam", **options: Any) -> Optimizer:
        """Return the method's optimizer of that kind for a layer; options go to its constructor.

        Raises:
            OptionError: the method has no such optimizer, or that has no such option.
            MissingPackageError: its package is not installed.
        """
        if name not in self.optimizers:
            raise OptionError(f"method {self.name!r} has no optimizer {name!r}: choose one of {tuple(self.optimizers)}")
        make = self.optimizers[name]
        check_known(f"optimizer {name!r} of method {self.name!r}", options, options_of(make))
        return make(layer, lr, **options)

    def schedule(self, layer: nn.Module, optimizer: Optimizer | None = None) -> Schedule | None:
        """Return what has to ``step()`` after each optimizer step, or None if nothing has to."""
        return None if self.schedule_of is None else self.schedule_of(layer, optimizer)


class _Knows(NamedTuple):
    exact_inverse: bool
    exact_logabsdet: bool
    cubic: bool
    cubic_inverse: bool | None
    exact_when_evaluated: bool = False


_FREE = _Knows(True, True, cubic=False, cubic_inverse=False)
_CUBIC = _Knows(True, True, cubic=True, cubic_inverse=True)
_NOTHING = _Knows(False, False, cubic=False, cubic_inverse=None)
_RELATIVE = _Knows(True, True, cubic=False, cubic_inverse=True)
_RETRACTED = _Knows(True, True, cubic=True, cubic_inverse=False)

_EVALUATED = _Knows(False, False, cubic=False, cubic_inverse=None, exact_when_evaluated=True)
_EVALUATED_CUBIC = _EVALUATED._replace(cubic=True)

_REBASE = partial(Rebase, every=100)
_TORCH_ORTHOGONAL = "torch.nn.utils.parametrizations.orthogonal"


def _method(
    name: str, label: str, group: Group, knows: _Knows, build: Callable[..., Any], source: str, **options: Any
) -> Method:
    return Method(name, label, group, **knows._asdict(), build=build, source=source, **options)


_PAPER = "arXiv:2010.07033"
_DESCENT = {"sgd": TORCH["sgd"]}


def _p4(name: str, label: str, preset: Preset, source: str = f"p4lab, {_PAPER}", **options: Any) -> Method:
    build = takes_options_of(preset.kind, *preset.settings(1))(preset.layer)
    return _method(name, label, build=build, source=source, preset=preset, **options)


def _free_gl() -> list[Method]:
    add = partial(_method, group="invertible", knows=_FREE)
    return [
        _p4("p4inv_paper", "P4Inv, rank 1 (paper)", PAPER, group="invertible", knows=_FREE, source=_PAPER),
        _p4("p4inv", "P4Inv", RECOMMENDED, group="invertible", knows=_FREE),
        _p4("p4inv_all", "P4Inv, all directions", EVERYTHING, group="invertible", knows=_CUBIC),
        _p4("p4relative", "P4Relative", RELATIVE, group="invertible", knows=_FREE, optimizers=_DESCENT),
        add("plu", "PLU (Glow)", build=PLU, source="arXiv:1807.03039"),
        add("qr", "QR, Householder", build=QR, source="arXiv:1901.11137"),
        add("svd", "SVD, Householder", build=SVD, source="arXiv:1803.09327, arXiv:2009.13977"),
        *(
            add(f"nflows_{kind}", f"{kind.upper()} (nflows)", build=partial(Nflows, kind=kind), source="nflows 0.14")
            for kind in get_args(NflowsKind)
        ),
        add(
            "relative",
            "relative gradient",
            knows=_RELATIVE,
            build=RelativeLinear,
            source="Cardoso and Laheld 1996, arXiv:2006.15090",
            optimizers={"sgd": RelativeGradient},
        ),
        add("plain", "plain weights", knows=_NOTHING, build=Plain, source="torch.nn.Linear"),
    ]


def _cubic_gl() -> list[Method]:
    add = partial(_method, group="invertible", knows=_CUBIC)
    exponential, geotorch = "arXiv:2012.10166", "geotorch 0.4, arXiv:1909.09501"
    return [
        add("dense", "dense, slogdet + solve", build=Dense, source="torch.linalg"),
        add("exponential", "exponential", build=MatrixExponential, source=exponential),
        add(
            "exponential_dynamic",
            "exponential, re-based",
            build=MatrixExponential,
            source=f"{exponential}, arXiv:1909.09501",
            schedule_of=_REBASE,
        ),
        add("geotorch_gl", "GL+ (geotorch)", build=GeotorchGL, source=geotorch),
        add(
            "geotorch_gl_dynamic",
            "GL+ (geotorch), re-based",
            build=GeotorchGL,
            source=geotorch,
            schedule_of=_REBASE,
        ),
        add(
            "relative_adam",
            "relative gradient, Adam",
            build=RelativeLinear,
            source="arXiv:2006.15090",
            optimizers={"adam": RelativeAdam},
        ),
    ]


def _torch_orthogonal() -> list[Method]:
    add = partial(_method, group="orthogonal", knows=_CUBIC)
    labels: dict[Map, str] = {"matrix_exp": "exponential", "cayley": "Cayley", "householder": "Householder"}
    static = [
        add(
            f"torch_{kind}",
            f"{label} (torch)",
            build=partial(TorchOrthogonal, orthogonal_map=kind),
            source=_TORCH_ORTHOGONAL,
        )
        for kind, label in labels.items()
    ]
    dynamic = [
        add(
            f"torch_{kind}_dynamic",
            f"{label} (torch), re-based",
            build=partial(TorchTrivialized, orthogonal_map=kind),
            source=f"{_TORCH_ORTHOGONAL}, arXiv:1909.09501",
            schedule_of=_REBASE,
        )
        for kind, label in labels.items()
    ]
    return static + dynamic


def _orthogonal() -> list[Method]:
    add = partial(_method, group="orthogonal")
    return [
        # From 3 * 128 + 1 directions on it needs no cubic call.
        _p4("p4riemannian", "P4Riemannian", RIEMANNIAN, group="orthogonal", knows=_RETRACTED, optimizers=_DESCENT),
        *_torch_orthogonal(),
        add(
            "geotorch_so_dynamic",
            "exponential (geotorch), re-based",
            knows=_CUBIC,
            build=GeotorchOrthogonal,
            source="geotorch 0.4, arXiv:1909.09501",
            schedule_of=_REBASE,
        ),
        add(
            "geoopt_stiefel",
            "Riemannian (geoopt)",
            knows=_RETRACTED,
            build=StiefelLinear,
            source="geoopt 0.5, arXiv:2005.02819",
            optimizers={"sgd": _geoopt("RiemannianSGD"), "adam": _geoopt("RiemannianAdam")},
        ),
        add(
            "cayley_descent",
            "Cayley retraction",
            knows=_FREE,
            build=CayleyLinear,
            source="Wen and Yin 2013",
            optimizers={"sgd": CayleyDescent},
        ),
        add(
            "rsdm",
            "random submanifolds (RSDM)",
            knows=_FREE,
            build=CayleyLinear,
            source="arXiv:2505.12378",
            optimizers={"sgd": SubmanifoldDescent},
        ),
        add(
            "householder",
            "Householder products",
            knows=_FREE,
            build=Householder,
            source="arXiv:1611.09630, arXiv:1612.00188",
        ),
    ]


def _nearly_orthogonal() -> list[Method]:
    add = partial(_method, group="nearly_orthogonal", knows=_EVALUATED_CUBIC)
    return [
        add(
            "landing",
            "landing",
            build=NearLinear,
            source="arXiv:2102.07432",
            optimizers={"sgd": LandingDescent},
        ),
        add(
            "pogo",
            "POGO",
            build=NearLinear,
            source="pogo-torch 1.0, arXiv:2602.14656",
            optimizers={"sgd": _pogo("SGD"), "adam": _pogo("VectorAdam")},
        ),
        add(
            "cayley_neumann",
            "Cayley-Neumann (OFTv2)",
            knows=_EVALUATED,
            build=CayleyNeumann,
            source="arXiv:2506.19847",
        ),
    ]


def _designed_and_penalized() -> list[Method]:
    design = partial(_method, group="designed", knows=_FREE)
    penalize = partial(_method, group="penalized", knows=_CUBIC)
    nice = partial(Coupling, affine=False)
    return [
        design("woodbury", "Woodbury", build=Woodbury, source="arXiv:2002.12229"),
        design("butterfly", "butterfly", build=Butterfly, source="arXiv:2209.13774, arXiv:1903.05895"),
        design("nice", "NICE couplings", build=nice, source="arXiv:1410.8516", linear=False),
        design("realnvp", "RealNVP couplings", build=Coupling, source="arXiv:1605.08803", linear=False),
        penalize(
            "self_normalizing",
            "self-normalizing",
            knows=_EVALUATED,
            build=SelfNormalizing,
            source="ICML 2021, arXiv:2011.07248",
        ),
        penalize("soft_orthogonal", "orthogonality penalty", build=SoftOrthogonal, source="arXiv:1810.09102"),
        penalize("soft_determinant", "log|det| penalty", build=SoftDeterminant, source="arXiv:2010.07033, 2.3"),
    ]


METHODS: dict[str, Method] = {
    method.name: method
    for method in (*_free_gl(), *_cubic_gl(), *_orthogonal(), *_nearly_orthogonal(), *_designed_and_penalized())
}
"""Here are all methods by name, in the order in which tables list them."""
