"""The estimator: fit, score_samples, sample."""

import copy
import dataclasses
import math
import warnings
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from p4lab.errors import DeviceError, OptionError, ShapeError
from p4lab.estimator.columns import Columns
from p4lab.estimator.train import FLOWS, Plan, train
from p4lab.flows import MIXINGS

CHUNK = 65_536
"""Points that are scored at a time."""


class FlowDensity(DensityMixin, BaseEstimator):
    r"""The density of the rows of a table, by a normalizing flow, as an estimator of scikit-learn.

    .. math:: \log p(x) = \log p_\text{flow}(y) + \sum_j \log\left|\frac{\partial y_j}{\partial x_j}\right|

    ``fit`` takes a DataFrame whose columns are numbers, integers, booleans, text or categories, in any units, with or
    without unknown values; or an array of numbers. ``sample`` returns the same: names, dtypes and unknown values.

    What the density means: of a column of floats it is a density, in nats per unit of the column, whatever happens
    inside; of integers, booleans, text and categories the probability of the value. An unknown value is a value, too:
    the density of a row with unknown values is the probability that these are unknown and no others, times the density
    of those that are known. So p sums and integrates to 1 over all rows there can be. Where a column of floats repeats
    a number, or has few of them, the density there grows without bound as training goes on: make such a column
    integer (``Int64`` if values are unknown) or a category.

    Inside, categories and integers of a narrow range have a part of a Gaussian as large as their share, other integers
    fill the cell up to the next one, and all of it is standardized and whitened. The flow starts as the Gaussian with
    the mean and covariance of the table ("p4inv_bent" with an even number of blocks does). Some rows are held out, and
    the weights are kept with which they are the most likely: so that of a table too small for a flow the Gaussian
    remains. With a share of 5 % the Gaussian stays in any case: far from all rows a flow alone cannot be trusted.

    Args:
        flow: "realnvp", "spline_flow" or "p4inv_bent" (`p4lab.flows`); of a single coordinate always one spline.
        mixing: what stands between couplings, a name of `p4lab.flows.MIXINGS` (not for "p4inv_bent").
        blocks: number of couplings, or of Bent identities.
        hidden: width of the couplings' networks.
        whiten: whether the flow starts with the table's covariance, by Ledoit and Wolf, or with its variances.
        noise: standard deviation, in units of a column's, of Gaussian noise that is added to rows in training, against
            overfitting.
        max_iter: largest number of optimizer steps; Adam's rate falls to 0 over so many by a half cosine.
        batch_size: rows of a step.
        learning_rate: first rate of Adam.
        validation_fraction: share of the rows that are held out; with 0 training goes on to the end and is not judged.
        patience: steps without progress on the rows held out after which training ends.
        n_draws: points of a row's cell over which its density is averaged, if it has integers, categories or unknown
            values.
        device: where training and scoring happen.
        random_state: seed, `numpy.random.RandomState` or None, as everywhere in scikit-learn.

    Attributes:
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
        mixture_: `p4lab.estimator.train.Guarded`, float64: its ``flow`` is the `p4lab.flows.Flow`.
        columns_: `p4lab.estimator.columns.Columns`: rows as points of the flow's space, and back.
        n_iter_, best_iter_: optimizer steps done, and those after which the weights were kept.
        validation_scores_: mean log-density of the rows held out (nats per row, a lower bound), every 10 steps.

    Raises:
        OptionError: an option out of range; a column that is constant, infinite, unknown throughout, or of a kind that
            has no density here, such as dates; in scoring, what `fit` has not seen, and columns in another order.
        SingularMatrixError: columns that are linear functions of others.
        TrainingError: a loss that is not finite, if no rows are held out; else a ConvergenceWarning, and the best
            weights are kept.
        DeviceError: no such device.
        MissingPackageError: on import, if scikit-learn or pandas is missing.

    An error, or Ctrl-C, in ``fit`` leaves the estimator as it was. Cost: that of the flow; one point for each row and
    step in training, ``n_draws`` for each row in scoring.

    Source: Theis et al., arXiv:1511.01844 (integers as cells); Burda et al., arXiv:1509.00519 (the average over
    points); Ledoit and Wolf (2004); Hesterberg (1995), the Gaussian's share.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"size": [1.2, 0.7, None, 2.0] * 10, "legs": [2, 4, 4, 6] * 10})
        >>> density = FlowDensity(max_iter=20, random_state=0).fit(table)
        >>> density.score_samples(table).shape, density.sample(3).dtypes.astype(str).to_dict()
        ((40,), {'size': 'float64', 'legs': 'int64'})
    """

    def __init__(
        self,
        flow: str = "realnvp",
        *,
        mixing: str = "p4inv",
        blocks: int = 6,
        hidden: int = 32,
        whiten: bool = True,
        noise: float = 0.1,
        max_iter: int = 1000,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        validation_fraction: float = 0.2,
        patience: int = 250,
        n_draws: int = 64,
        device: Any = "cpu",
        random_state: Any = None,
    ) -> None:
        self.flow = flow
        self.mixing = mixing
        self.blocks = blocks
        self.hidden = hidden
        self.whiten = whiten
        self.noise = noise
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.n_draws = n_draws
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train on the rows of X, a DataFrame or an array of shape (n, d), n >= 2; y is not used."""
        plan, device = self._plan(), _device(self.device)
        fitted = copy.copy(self)  # whatever happens on the way, this estimator stays as it was
        frame = fitted._frame(X, reset=True)
        columns = Columns(frame)
        outcome = train(plan, columns.cells(frame), columns.names, _generator(self.random_state), device)
        if not outcome.finite:
            warnings.warn(
                f"the loss was not finite after {outcome.steps} steps, where training ended: a lower learning_rate may "
                "help",
                ConvergenceWarning,
                stacklevel=2,
            )
        fitted.columns_, fitted.mixture_, fitted.validation_scores_ = columns, outcome.mixture, outcome.scores
        fitted.n_iter_, fitted.best_iter_ = outcome.steps, outcome.best
        fitted._framed = isinstance(X, pd.DataFrame)
        self.__dict__.update(fitted.__dict__)
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return log p of the rows of X (nats; see the class for what it is a density of), shape (n,).

        Raises:
            NotFittedError: `fit` comes first.
            OptionError: values that `fit` has not seen.
        """
        check_is_fitted(self)
        cells = self.columns_.cells(self._frame(X, reset=False))
        n_draws, dim = 1 if cells.exact else self.n_draws, cells.low.shape[1]
        # The same points in every cell: the density of a row does not depend on the rows around it.
        with torch.device("cpu"):
            u = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0).draw(n_draws, dtype=torch.float64)
        device, scores = self.mixture_.flow.like().device, []
        for part in cells.split(max(1, CHUNK // n_draws)):
            y, log_volume = part.points(u[:, None])
            with torch.no_grad():
                log_p = self.mixture_.log_prob(y.to(device)).cpu() + log_volume
            scores.append(log_p.logsumexp(0) - math.log(n_draws))
        return torch.cat(scores).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of `score_samples`, so that GridSearchCV makes it large; y is not used."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draw rows, independent of each other, like those that `fit` was given.

        Args:
            n_samples: number of rows, at least 1.
            random_state: seed, `numpy.random.RandomState` or None.

        Returns:
            A DataFrame with the names and dtypes of `fit`'s, or an array of shape (n_samples, d).

        Raises:
            NotFittedError: `fit` comes first.
            OptionError: n_samples out of range.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise OptionError(f"n_samples={n_samples!r}: expected a whole number of at least 1")
        y = self.mixture_.sample(int(n_samples), generator=_generator(random_state))
        frame = self.columns_.frame(y.cpu().numpy())
        return frame if self._framed else frame.to_numpy()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "mixture_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if "mixture_" in state:  # what was trained on an accelerator is loaded on machines without one
            state["mixture_"] = copy.deepcopy(state["mixture_"]).cpu()
        return state

    def _frame(self, X: Any, reset: bool) -> pd.DataFrame:
        """Return the rows as a DataFrame, once scikit-learn has seen to their names and number."""
        least = 2 if reset else 1
        if not isinstance(X, pd.DataFrame):
            X = validate_data(self, X, reset=reset, ensure_all_finite="allow-nan", ensure_min_samples=least)
            return pd.DataFrame(X)
        if len(X) < least:
            raise ShapeError(f"table with {len(X)} sample(s), that is rows: expected at least {least}")
        validate_data(self, X, reset=reset, skip_check_array=True)
        if not reset and self._framed:  # scikit-learn compares names that are text, and no others
            ours, theirs = list(self.columns_.index), list(X.columns)
            if theirs != ours and set(theirs) == set(ours):
                raise OptionError(f"columns {theirs!r:.80}: expected them in the order of fit, {ours!r:.80}")
        return X

    def _plan(self) -> Plan:
        """Return the settings of training.

        Raises:
            OptionError: one of the estimator's arguments is out of range.
        """
        for name, choices in (("flow", FLOWS), ("mixing", MIXINGS)):
            if getattr(self, name) not in choices:
                raise OptionError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(choices)}")
        for name in ("blocks", "hidden", "max_iter", "batch_size", "patience", "n_draws"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise OptionError(f"{name}={value!r}: expected a whole number of at least 1")
        for name, holds, range_ in (
            ("learning_rate", lambda value: value > 0, "above 0"),
            ("noise", lambda value: value >= 0, "of at least 0"),
            ("validation_fraction", lambda value: 0 <= value < 1, "of at least 0 and less than 1"),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or not math.isfinite(value) or not holds(value):
                raise OptionError(f"{name}={value!r}: expected a finite number {range_}")
        return Plan(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Plan)})


def _generator(random_state: Any) -> torch.Generator:
    return torch.Generator().manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))


def _device(name: Any) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:
        raise DeviceError(
            f"device={name!r} is not there ({str(error).splitlines()[0]}): expected 'cpu', say"
        ) from error
