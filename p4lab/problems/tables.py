"""Tables of numbers as density problems: scikit-learn's, or a user's own DataFrame, array or tensor."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.packages import require
from p4lab.problems.digits import Digits

TABLES = ("wine", "breast_cancer", "digits")
"""Tables of scikit-learn that `table_problem` knows by name."""
TEST_FRACTION = 0.2
"""Share of the rows that are kept for testing."""


class TableProblem:
    r"""Maximum likelihood on the rows of a table.

    Columns are standardized by the mean and standard deviation of the training rows; what is reported is the density of
    the row in its original units:

    .. math:: y_i = \frac{x_i - \mu_i}{\sigma_i}, \qquad \log p(x) = \log p_\mathrm{model}(y) - \sum_i \log \sigma_i

    Densities are for continuous columns: one with few distinct values can be given an arbitrarily high density.

    Args:
        values: rows of shape (n, d), finite, with no constant column.
        columns: d names.
        name: of the table.
        seed: seed of the split.
        test_fraction: share of the rows that are kept for testing.
        device: where the tensors live.
        dtype: their dtype.

    Attributes:
        dim: d.
        shown: how many samples pictures are made of.
        columns: names of the columns.
        train, test: standardized rows, shapes (n_train, d) and (n_test, d).
        mean, std: of the training rows, shape (d,).
        log_scale: sum of log sigma_i (nats), float64.

    Raises:
        ShapeError: not a table, or too few rows.
        OptionError: a value that is not finite, a column that is constant in the training rows, or test_fraction out of
            range.
    """

    shown = 500

    def __init__(
        self,
        values: Tensor,
        columns: Sequence[str],
        name: str = "table",
        seed: int = 0,
        test_fraction: float = TEST_FRACTION,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        values = values.detach().to("cpu", torch.float64)
        if values.ndim != 2 or not values.shape[1] or len(columns) != values.shape[1]:
            raise ShapeError(
                f"table of shape {tuple(values.shape)} with {len(columns)} column names: expected (rows, columns), at "
                "least one column, each with a name"
            )
        if not 0 < test_fraction < 1:
            raise OptionError(f"test_fraction={test_fraction}: expected a number between 0 and 1")
        self.name, self.columns, self.dim = name, tuple(columns), values.shape[1]
        bad = ~torch.isfinite(values)
        if bool(bad.any()):
            counts = {self.columns[i]: int(bad[:, i].sum()) for i in bad.any(0).nonzero().flatten().tolist()}
            raise OptionError(
                f"values that are missing or not finite: {_listed(counts)}. Drop these rows, or fill them in"
            )
        n_test = max(1, round(test_fraction * len(values)))
        if len(values) - n_test < 2:
            raise ShapeError(
                f"table of {len(values)} rows: expected at least 2 for training besides {n_test} for testing"
            )
        rows = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed), device="cpu")]
        test, train = rows[:n_test], rows[n_test:]
        mean, std = train.mean(0), train.std(0)
        flat = (train.amax(0) == train.amin(0)).nonzero().flatten().tolist()
        if flat:
            constants = {self.columns[i]: train[0, i].item() for i in flat}
            raise OptionError(
                f"constant columns (column: value in all training rows): {_listed(constants)}. They have no density; "
                "drop them"
            )
        self.mean, self.std = mean.to(device, dtype), std.to(device, dtype)
        self.train, self.test = (((part - mean) / std).to(device, dtype) for part in (train, test))
        self.log_scale = std.log().sum().item()

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw standardized training rows, shape (size, d), with replacement.

        Args:
            size: number of rows.
            generator: CPU generator; every device then draws the same.
        """
        rows = torch.randint(len(self.train), (size,), generator=generator, device="cpu")
        return self.train[rows.to(self.train.device)]

    def loss(self, model: Any, y: Tensor) -> Tensor:
        """Return the mean negative log-likelihood in nats per row, in original units, of standardized rows y."""
        return self.log_scale - model.log_prob(y).mean()

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the loss on the test rows (nats per row)."""
        return self.loss(model, self.test)

    @torch.no_grad()
    def train_loss(self, model: Any) -> Tensor:
        """Return the loss on all training rows (nats per row)."""
        return self.loss(model, self.train)

    def bits_per_dim(self, nats: float) -> float:
        """Convert nats per row to bits per column; it depends on the units that the columns have."""
        return nats / (self.dim * math.log(2))

    def to_data(self, y: Tensor) -> Tensor:
        """Return standardized rows, shape (..., d), in original units."""
        return y * self.std + self.mean

    def to_model(self, x: Tensor) -> Tensor:
        """Return rows in original units, shape (..., d), standardized."""
        return (x - self.mean) / self.std

    @torch.no_grad()
    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return the rows that belong to latent variables z of shape (n, d) ("samples"), original units, on the CPU."""
        return {"samples": self.to_data(model.inverse(z)).to("cpu", copy=True)}


def table_problem(
    source: Any,
    name: str | None = None,
    columns: Sequence[str] | None = None,
    seed: int = 0,
    test_fraction: float = TEST_FRACTION,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> "TableProblem | Digits":
    """Return a density problem made from a table.

    Args:
        source: "wine" (178 rows, 13 columns), "breast_cancer" (569, 30) or "digits" (the `Digits` problem) of
            scikit-learn; or a pandas DataFrame, an array, a tensor or nested lists of shape (rows, columns).
        name: of the table (None: scikit-learn's name, or "table").
        columns: names of the columns (None: those of the DataFrame, or 0, 1, ...).
        seed, test_fraction, device, dtype: as `TableProblem`; digits have a test fraction of their own.

    Raises:
        OptionError: an unknown name; columns that hold text, missing or infinite values, or are constant.
        ShapeError: not a table, or too few rows.

    Example:
        >>> problem = table_problem("wine")
        >>> problem.dim, len(problem.train), len(problem.test)
        (13, 142, 36)
    """
    if isinstance(source, str):
        if source == "digits":
            return Digits(seed, device, dtype)
        values, names = _sklearn(source)
        name = name or source
    else:
        values, names = _numbers(source)
    return TableProblem(values, columns or names, name or "table", seed, test_fraction, device, dtype)


def _sklearn(name: str) -> tuple[Tensor, list[str]]:
    if name not in TABLES:
        raise OptionError(
            f"table {name!r} is not known: choose one of {', '.join(TABLES)}, or give a DataFrame, an array or a tensor"
        )
    bunch = getattr(require("sklearn.datasets", "lab"), f"load_{name}")()
    return torch.as_tensor(bunch.data, device="cpu"), [str(column) for column in bunch.feature_names]


def _numbers(source: Any) -> tuple[Tensor, list[str]]:
    """Return a user's table as float64 and the names of its columns."""
    if isinstance(source, Tensor):
        if source.is_complex():
            raise OptionError(f"table of {source.dtype}: expected real numbers")
        values, names = source.double(), None
    elif hasattr(source, "columns") and hasattr(source, "dtypes"):
        values, names = _frame(source)
    else:
        try:
            array = np.asarray(source)
        except ValueError as error:
            raise ShapeError(f"table: expected rows of one length ({error})") from error
        if array.dtype.kind not in "biuf":
            array = _as_floats(array)
        values, names = torch.from_numpy(np.array(array, dtype=np.float64)), None
    if values.ndim != 2:
        raise ShapeError(f"table of shape {tuple(values.shape)}: expected (rows, columns)")
    return values, names or [str(i) for i in range(values.shape[1])]


def _frame(frame: Any) -> tuple[Tensor, list[str]]:
    types = require("pandas.api.types", "lab")

    names = [str(column) for column in frame.columns]
    text = {
        column: str(kind)
        for column, kind in zip(names, frame.dtypes, strict=True)
        if not types.is_numeric_dtype(kind) or types.is_complex_dtype(kind)
    }
    if text:
        raise OptionError(
            f"columns that are not numbers (column: dtype): {_listed(text)}. Encode them as numbers, or drop"
        )
    return torch.from_numpy(frame.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)), names


def _as_floats(array: Any) -> Any:
    """Convert an array of objects, say a mixture of ints and floats; text is refused even if it looks like a number."""
    if array.dtype.kind == "O" and array.ndim == 2:
        kinds = (int, float, bool, np.number)
        text = {
            str(i): type(bad[0]).__name__
            for i in range(array.shape[1])
            if (bad := [value for value in array[:, i] if value is not None and not isinstance(value, kinds)])
        }
        if not text:
            return array.astype(np.float64)
        raise OptionError(
            f"columns that are not numbers (column: type): {_listed(text)}. Encode them as numbers, or drop"
        )
    raise OptionError(f"table of {array.dtype}: expected real numbers; encode text as numbers, or drop it")


def _listed(items: dict[str, Any], most: int = 5) -> str:
    """Return "a: 1, b: 2 and 3 more"."""
    text = ", ".join(f"{key}: {value}" for key, value in list(items.items())[:most])
    return text + (f" and {len(items) - most} more" if len(items) > most else "")
