"""The columns of a table as coordinates of a flow, both ways: numbers, integers, categories, and what is unknown."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from p4lab.errors import OptionError, ShapeError
from p4lab.estimator.cells import SMOOTH, Cells, Coordinate, Counts, Floats, Scale, shares

FEW = 32
"""Integers of a range of at most so many are counted one by one."""
LARGEST_INTEGER = 2**53
"""Larger integers have no float64 of their own."""
Series = Any
"""A pandas Series."""


class Category:
    """A column of a few values: each has a part of [0, 1] as large as its share of the rows, in their order.

    Unknown is one more value, the last, if the column has it.

    Args:
        name: of the column.
        column: its values.

    Raises:
        OptionError: values that cannot be told apart.
    """

    width = 1

    def __init__(self, name: Any, column: Series) -> None:
        self.name, self.dtype, self.gaps = name, column.dtype, bool(column.isna().any())
        try:
            values = [False, True] if pd.api.types.is_bool_dtype(self.dtype) else _categories(column)
        except TypeError as error:
            raise OptionError(f"column {name!r}: expected numbers, booleans, text or categories ({error})") from error
        self.values = pd.Index(values, dtype=object)
        counts = np.bincount(self.codes(column), minlength=len(values) + self.gaps) + SMOOTH
        self.edges = np.cumsum([0.0, *counts]) / counts.sum()

    def codes(self, column: Series) -> NDArray[np.int64]:
        """Return the number of each value.

        Raises:
            OptionError: a value that `fit` has not seen.
        """
        codes, unknown = self.values.get_indexer(column.astype(object)), column.isna().to_numpy()
        if unknown.any() and not self.gaps:
            raise _new_gaps(self.name)
        if len(strange := column[(codes < 0) & ~unknown]):
            raise OptionError(
                f"column {self.name!r} holds {strange.iloc[0]!r}, which fit has not seen: fit on rows that have it, or "
                "declare all categories by a dtype, pandas.CategoricalDtype([...])"
            )
        return np.where(unknown, len(self.values), codes)

    def coordinates(self, column: Series) -> list[Coordinate]:
        """Return the coordinate of the column; errors are those of `codes`."""
        codes = self.codes(column)
        width = np.diff(self.edges)[codes]
        return [Coordinate(self.edges[codes], width, np.full(len(codes), True), np.log(width))]

    def column(self, y: Floats) -> Series:
        """Return the values at coordinates y of shape (n, 1)."""
        codes = np.searchsorted(self.edges[1:-1], shares(y[:, 0]), side="right")
        return pd.Series(self.values.insert(len(self.values), None).take(codes).to_numpy(), dtype=self.dtype)


class Number:
    """A column of numbers, and whether they are known, if some are not.

    Args:
        name: of the column.
        column: its values.

    Raises:
        OptionError: values that are infinite, all unknown, or all the same without being integers.
    """

    def __init__(self, name: Any, column: Series) -> None:
        self.name, self.dtype, self.kind = name, column.dtype, column.infer_objects().dtype
        self.whole = pd.api.types.is_integer_dtype(self.kind)
        x = self.floats(column)
        known = x[~np.isnan(x)]
        self.gaps = Category(name, column.isna()) if len(known) < len(x) else None
        self.width = 1 if self.gaps is None else 2
        if not len(known):
            raise OptionError(f"column {name!r} holds unknown values only: drop it")
        low, high = known.min(), known.max()
        if low == high and not self.whole:
            raise OptionError(
                f"column {name!r} is constant, {low:g}, and has no density: drop it, or make it integer or a category"
            )
        self.ruler = Counts(known) if self.whole and high - low < FEW else Scale(known, self.whole)

    def floats(self, column: Series) -> Floats:
        """Return the values as float64, unknown ones as NaN.

        Raises:
            OptionError: no numbers, infinite ones, integers beyond 2^53, or fractions in a column of integers.
        """
        if not pd.api.types.is_numeric_dtype(column.infer_objects().dtype):
            raise OptionError(f"column {self.name!r} is {column.dtype}, and was {self.dtype} in fit: convert it")
        x: Floats = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(x).any():
            raise OptionError(f"column {self.name!r} holds infinite values: drop these rows, or fill them in")
        if self.whole and (np.abs(x) > LARGEST_INTEGER).any():
            raise OptionError(
                f"column {self.name!r} holds integers beyond 2^53, which the flow cannot tell apart: subtract "
                "the smallest one, or make it text or a category if it is a name"
            )
        if self.whole and (broken := x[~np.isnan(x) & (x != np.floor(x))]).size:
            raise OptionError(
                f"column {self.name!r} holds {broken[0]:g}, and was {self.dtype} in fit, where only integers have a "
                "probability: fit on floats if it is continuous"
            )
        return x

    def coordinates(self, column: Series) -> list[Coordinate]:
        """Return the coordinates of the column.

        Raises:
            OptionError: as `floats`; or unknown values in a column that had none in `fit`.
        """
        x = self.floats(column)
        unknown = np.isnan(x)
        if self.gaps is None and unknown.any():
            raise _new_gaps(self.name)
        # What is unknown may be anything from a standard normal distribution, and adds nothing to the density.
        anything = Coordinate(np.zeros(len(x)), np.ones(len(x)), unknown | True, np.zeros(len(x)))
        known = self.ruler.cells(np.where(unknown, self.ruler.values(np.zeros(1)), x))
        number = Coordinate(*(np.where(unknown, *parts) for parts in zip(anything, known, strict=True)))
        return [number] if self.gaps is None else [*self.gaps.coordinates(column.isna()), number]

    def column(self, y: Floats) -> Series:
        """Return the values at coordinates y of shape (n, width)."""
        x = self.ruler.values(y[:, -1])
        if self.whole:
            x = np.clip(x, *_limits(self.kind))
        if self.gaps is not None:
            x[self.gaps.column(y[:, :1]).to_numpy()] = np.nan
        return pd.Series(x).astype(self.kind).astype(self.dtype)


class Columns:
    """The columns of a table, as `Cells` and back.

    Args:
        frame: the table, a DataFrame.

    Attributes:
        columns: `Number` or `Category`, in order.
        names: of the columns, one for each coordinate.

    Raises:
        ShapeError: no columns.
        OptionError: a column that is neither numbers nor booleans, text or categories, or has no density.
    """

    def __init__(self, frame: Any) -> None:
        if not frame.shape[1]:
            raise ShapeError(f"table of shape {frame.shape}: expected at least one column")
        self.index = frame.columns
        self.columns = [_column(name, column) for name, column in frame.items()]
        self.names = [column.name for column in self.columns for _ in range(column.width)]

    def cells(self, frame: Any) -> Cells:
        """Return where rows lie. Cost O(n d) for n rows of d columns.

        Raises:
            OptionError: a value that does not belong into its column.
        """
        pairs = zip(self.columns, (frame.iloc[:, i] for i in range(len(self.columns))), strict=True)
        return Cells.of([part for column, values in pairs for part in column.coordinates(values)])

    def frame(self, y: Floats) -> Any:
        """Return the DataFrame of rows at points y of the flow's space, shape (n, coordinates)."""
        parts = np.split(y, np.cumsum([column.width for column in self.columns])[:-1], axis=1)
        values = [column.column(part) for column, part in zip(self.columns, parts, strict=True)]
        return pd.concat(values, axis=1).set_axis(self.index, axis=1)


def _column(name: Any, column: Series) -> Number | Category:
    types, dtype = pd.api.types, column.infer_objects().dtype
    if types.is_numeric_dtype(dtype) and not types.is_bool_dtype(dtype) and not types.is_complex_dtype(dtype):
        return Number(name, column)
    kinds = types.is_bool_dtype, types.is_string_dtype, types.is_object_dtype
    if isinstance(dtype, pd.CategoricalDtype) or any(kind(dtype) for kind in kinds):
        return Category(name, column)
    raise OptionError(
        f"column {name!r} is {dtype}: expected numbers, booleans, text or categories; make numbers of it (of a date, "
        "say, the days since the first one)"
    )


def _categories(column: Series) -> Any:
    """Return what a categorical column declares, of others the values that they have, in order if they have one."""
    return column.astype("category").cat.categories


def _limits(dtype: Any) -> tuple[float, float]:
    """Return the least and the largest float64 that an integer dtype can hold."""
    info = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
    high = float(info.max)
    return float(info.min), high if int(high) <= info.max else float(np.nextafter(high, 0))


def _new_gaps(name: Any) -> OptionError:
    return OptionError(
        f"column {name!r} has unknown values, and had none in fit: fit on rows that have some, or fill them in"
    )
