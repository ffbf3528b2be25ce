"""Tables: standardization, split, the density in original units, and what is refused."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems import Digits, TableProblem, table_problem


class Normal:
    """A flow that does nothing."""

    def log_prob(self, y: Tensor) -> Tensor:
        return -y.square().sum(-1) / 2 - y.shape[-1] / 2 * math.log(2 * math.pi)

    def inverse(self, z: Tensor) -> Tensor:
        return z


def rows(n: int = 50) -> Tensor:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x * torch.tensor([1.0, 10.0, 0.1]) + torch.tensor([0.0, 500.0, -3.0])


def problem_of(source: object, **options: object) -> TableProblem:
    problem = table_problem(source, dtype=torch.float64, **options)  # type: ignore[arg-type]
    assert isinstance(problem, TableProblem)
    return problem


@pytest.mark.parametrize(("name", "count", "dim"), [("wine", 178, 13), ("breast_cancer", 569, 30)])
def test_tables_of_scikit_learn(name: str, count: int, dim: int) -> None:
    problem = problem_of(name)
    assert (problem.dim, problem.name, len(problem.columns)) == (dim, name, dim)
    assert len(problem.train) + len(problem.test) == count
    assert len(problem.test) == round(0.2 * count)
    torch.testing.assert_close(problem.train.mean(0), torch.zeros(dim, dtype=torch.float64))
    torch.testing.assert_close(problem.train.std(0), torch.ones(dim, dtype=torch.float64))


def test_digits_are_the_digits_problem() -> None:
    assert isinstance(table_problem("digits"), Digits)


SOURCES = {
    "tensor": rows(),
    "float32-tensor": rows().float(),
    "array": rows().numpy(),
    "list": rows().tolist(),
    "frame": pd.DataFrame(rows().numpy(), columns=["a", "b", "c"]),
    "objects": rows().numpy().astype(object),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_table_gives_the_same_problem(kind: str) -> None:
    problem = problem_of(SOURCES[kind])
    expected = problem_of(rows())
    torch.testing.assert_close(problem.train, expected.train, atol=1e-3, rtol=0)
    assert problem.columns == (("a", "b", "c") if kind == "frame" else ("0", "1", "2"))


def test_names_of_columns_and_table_can_be_given() -> None:
    problem = problem_of(rows(), name="mine", columns=("x", "y", "z"))
    assert (problem.name, problem.columns) == ("mine", ("x", "y", "z"))


def test_integers_booleans_and_nullable_columns_are_numbers() -> None:
    frame = pd.DataFrame(
        {"a": [1, 2, 3, 4] * 4, "b": [True, False] * 8, "c": pd.array([1, 2, 5, 3] * 4, dtype="Int64")}
    )
    assert problem_of(frame).dim == 3


def test_the_loss_is_in_original_units() -> None:
    problem = problem_of(rows())
    x = problem.to_data(problem.test)
    scale = problem.std
    exact = -torch.distributions.Normal(problem.mean, scale).log_prob(x).sum(-1).mean()
    torch.testing.assert_close(problem.test_loss(Normal()), exact)
    torch.testing.assert_close(problem.to_model(x), problem.test)
    assert problem.bits_per_dim(3 * math.log(2)) == pytest.approx(1)


def test_other_units_shift_the_loss_by_their_logarithm() -> None:
    first, second = problem_of(rows()), problem_of(1000 * rows())
    difference = second.train_loss(Normal()) - first.train_loss(Normal())
    assert difference.item() == pytest.approx(3 * math.log(1000))


def test_split_by_seed() -> None:
    problem, same, other = problem_of(rows()), problem_of(rows()), problem_of(rows(), seed=1)
    assert torch.equal(problem.test, same.test)
    assert not torch.equal(problem.to_data(problem.test), other.to_data(other.test))
    together = [torch.cat([p.to_data(p.train), p.to_data(p.test)]).sort(0).values for p in (problem, other)]
    torch.testing.assert_close(*together)
    assert len(problem_of(rows(), test_fraction=0.5).test) == 25


def test_batches_are_training_rows() -> None:
    problem = problem_of(rows())
    x = problem.batch(100, torch.Generator().manual_seed(0))
    assert x.shape == (100, 3)
    assert torch.cdist(x, problem.train).amin(1).max() < 1e-6
    assert torch.equal(x, problem.batch(100, torch.Generator().manual_seed(0)))


def test_pictures_are_rows_in_original_units() -> None:
    problem = problem_of(rows())
    samples = problem.pictures(Normal(), torch.zeros(2, 3, dtype=torch.float64))["samples"]
    torch.testing.assert_close(samples, problem.mean.expand(2, 3))


def with_value(value: float) -> Tensor:
    x = rows()
    x[3:5, 1] = value
    return x


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        pytest.param("iris", {}, OptionError, "table 'iris' is not known: choose one of wine", id="name"),
        pytest.param(with_value(math.nan), {}, OptionError, "not finite: 1: 2. Drop", id="nan"),
        pytest.param(with_value(math.inf), {"columns": ("a", "b", "c")}, OptionError, "b: 2", id="inf"),
        pytest.param(rows() * torch.tensor([1, 1, 0]), {}, OptionError, "constant columns .* 2: ", id="constant"),
        pytest.param(
            pd.DataFrame({"x": [1.0, 2.0], "city": ["a", "b"]}), {}, OptionError, "not numbers .* city: ", id="text"
        ),
        pytest.param(
            pd.DataFrame({"x": [1.0, 2.0], "day": pd.to_datetime(["2020-01-01", "2021-01-01"])}),
            {},
            OptionError,
            "day: datetime64",
            id="dates",
        ),
        pytest.param(
            pd.DataFrame({"x": pd.array([1, None, 3, 4] * 5, dtype="Int64")}), {}, OptionError, "x: 5", id="missing"
        ),
        pytest.param(np.array([[1.0, "a"], [2.0, "b"]], dtype=object), {}, OptionError, "1: str", id="objects"),
        pytest.param(np.array([["a", "b"]]), {}, OptionError, "expected real numbers", id="strings"),
        pytest.param([[1.0, 2.0], [3.0]], {}, ShapeError, "rows of one length", id="ragged"),
        pytest.param(torch.zeros(3, 2, dtype=torch.complex64), {}, OptionError, "complex64", id="complex"),
        pytest.param(torch.arange(10.0), {}, ShapeError, r"\(10,\): expected \(rows, columns\)", id="vector"),
        pytest.param(torch.zeros(10, 0), {}, ShapeError, "at least one column", id="no-columns"),
        pytest.param(rows(2), {}, ShapeError, "table of 2 rows", id="few-rows"),
        pytest.param(rows(), {"columns": ("a",)}, ShapeError, "with 1 column names", id="names"),
        pytest.param(rows(), {"test_fraction": 1.0}, OptionError, "test_fraction=1.0", id="fraction"),
    ],
)
def test_what_is_refused(source: object, options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        problem_of(source, **options)
