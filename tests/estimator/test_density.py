"""FlowDensity: scikit-learn's own checks, what its density means, tables in and out, and what is refused."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
from drawing import default_device
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from p4lab.errors import DeviceError, OptionError, ShapeError, SingularMatrixError, TrainingError
from p4lab.estimator import FlowDensity
from p4lab.estimator import train as training

SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8, "max_iter": 5, "random_state": 0}


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def table(n: int = 200) -> pd.DataFrame:
    """Return a table with columns of every kind, half of them with unknown values."""
    draw = random()
    size = draw.normal(size=n)
    return pd.DataFrame(
        {
            "size": size * 1e6,
            "weight": np.where(draw.random(n) < 0.25, np.nan, size + draw.normal(size=n)).astype("float32"),
            "legs": draw.choice([2, 4, 6], n, p=[0.5, 0.4, 0.1]),
            "price": pd.array(np.where(draw.random(n) < 0.25, None, draw.integers(0, 5000, n)), dtype="Int64"),
            "alive": draw.random(n) < 0.3,
            "known": pd.array(draw.choice([True, False, None], n), dtype="boolean"),
            "city": draw.choice(["Oslo", "Rome"], n, p=[0.9, 0.1]),
            "note": pd.Series(draw.choice(["a", None], n), dtype=object),
            "grade": pd.Categorical(draw.choice(["good", "bad"], n), ["bad", "fair", "good"], ordered=True),
        },
        index=pd.RangeIndex(100, 100 + n),
    )


def test_scikit_learns_own_checks_pass() -> None:
    results = check_estimator(FlowDensity(**SMALL), on_skip=None)
    skipped = [result["check_name"] for result in results if result["status"] != "passed"]
    assert skipped in ([], ["check_array_api_input"])  # that one is for SCIPY_ARRAY_API=1
    assert len(results) > 30


def test_grid_search_in_a_pipeline_finds_the_better_setting() -> None:
    x = random().choice([-3.0, 3.0], (300, 1)) + random(1).normal(size=(300, 2))
    pipeline = make_pipeline(StandardScaler(), FlowDensity(hidden=16, learning_rate=1e-2, random_state=0))
    search = GridSearchCV(pipeline, {"flowdensity__max_iter": [1, 100]}, cv=2).fit(x)
    assert search.best_params_ == {"flowdensity__max_iter": 100}
    gain = np.diff(search.cv_results_["mean_test_score"])
    assert 0.1 < gain < 1.0
    assert search.score(x) == pytest.approx(search.score_samples(x).mean())


def test_a_table_comes_back_with_names_dtypes_and_unknown_values() -> None:
    given = table()
    density = FlowDensity(**SMALL).fit(given)
    samples = density.sample(4000, random_state=1)
    assert list(density.feature_names_in_) == list(given.columns)
    pd.testing.assert_series_equal(samples.dtypes, given.dtypes)
    assert samples.index.equals(pd.RangeIndex(4000))
    np.testing.assert_allclose(samples.isna().mean(), given.isna().mean(), atol=0.05)
    for name in ("legs", "alive", "city", "grade"):
        shares = pd.concat([part[name].value_counts(normalize=True) for part in (samples, given)], axis=1).fillna(0.0)
        assert (shares.iloc[:, 0] - shares.iloc[:, 1]).abs().max() < 0.05
    for name in ("size", "weight", "price"):
        x, y = (part[name].dropna().astype(float) for part in (given, samples))
        assert abs(x.mean() - y.mean()) < 0.15 * x.std()
        assert abs(x.std() - y.std()) < 0.15 * x.std()
    assert samples["size"].corr(samples["weight"].astype(float)) > 0.2
    assert np.isfinite(density.score_samples(samples)).all()


def test_arrays_come_back_as_arrays_of_their_dtype() -> None:
    for dtype in (np.float32, np.uint8, bool):
        x = random().integers(0, 2, (50, 3)) + (random().random((50, 3)) if dtype == np.float32 else 0)
        samples = FlowDensity(**SMALL).fit(x.astype(dtype)).sample(20, random_state=0)
        assert (type(samples), samples.dtype, samples.shape) == (np.ndarray, dtype, (20, 3))


@pytest.mark.parametrize("flow", ["realnvp", "spline_flow", "p4inv_bent"])
def test_the_density_of_numbers_integrates_to_one(flow: str) -> None:
    x = random().normal(size=(200, 2)) @ [[1.0, 500.0], [0.0, 100.0]]
    density = FlowDensity(flow, blocks=2, hidden=8, max_iter=50, random_state=0).fit(x)
    a, b = np.linspace(-9, 9, 301), np.linspace(-4500, 4500, 601)
    grid = np.stack(np.meshgrid(a, b, indexing="ij"), -1)
    p = np.exp(density.score_samples(grid.reshape(-1, 2)).reshape(grid.shape[:2]))
    assert np.trapezoid(np.trapezoid(p, b), a) == pytest.approx(1, abs=2e-3)


def test_the_density_of_one_column_integrates_to_one_and_has_two_peaks() -> None:
    x = random().choice([-2.0, 4.0], (1000, 1)) + random(1).normal(size=(1000, 1))
    density = FlowDensity(max_iter=300, learning_rate=3e-2, random_state=0).fit(x)
    line = np.linspace(-15, 15, 3001)
    p = np.exp(density.score_samples(line[:, None]))
    assert np.trapezoid(p, line) == pytest.approx(1, abs=1e-3)
    low, valley, high = p[[1300, 1600, 1900]]
    assert valley < 0.3 * min(low, high)


def test_integers_categories_and_unknown_values_have_probabilities() -> None:
    draw = random()
    city = draw.choice(["Oslo", "Rome"], 1000)
    rooms = np.where(city == "Oslo", draw.poisson(1.0, 1000), draw.poisson(3.0, 1000))
    given = pd.DataFrame({"city": city, "rooms": pd.array(np.where(draw.random(1000) < 0.2, None, rooms), "Int64")})
    density = FlowDensity(blocks=4, max_iter=200, learning_rate=1e-2, n_draws=256, random_state=0).fit(given)
    every = [*range(-40, 60), None]
    rows = pd.DataFrame({"city": np.repeat(["Oslo", "Rome"], len(every)), "rooms": pd.array(every * 2, "Int64")})
    rows["p"] = np.exp(density.score_samples(rows))
    assert rows["p"].sum() == pytest.approx(1, abs=0.01)
    assert rows["p"][rows["rooms"].isna()].sum() == pytest.approx(given["rooms"].isna().mean(), abs=0.05)
    means = [
        (part["rooms"] * part["p"]).sum() / part["p"][part["rooms"].notna()].sum() for _, part in rows.groupby("city")
    ]
    assert means == pytest.approx([1, 3], abs=0.5)


def test_unknown_numbers_leave_the_density_of_the_others() -> None:
    """Over all numbers, and over not knowing the number, the density of a row integrates to that of the rest."""
    draw = random()
    x = draw.normal(size=(400, 2)) * [1.0, 10.0]
    x[draw.random(400) < 0.3, 1] = np.nan
    density = FlowDensity(blocks=2, hidden=8, max_iter=100, n_draws=256, random_state=0).fit(x)
    line = np.linspace(-80, 80, 801)
    known = density.score_samples(np.stack([np.full(801, 0.5), line], -1))
    total = np.trapezoid(np.exp(known), line) + np.exp(density.score_samples([[0.5, np.nan]]))
    assert np.log(total[0]) == pytest.approx(-0.5 * np.log(2 * np.pi) - 0.125, abs=0.15)


def test_a_gaussian_is_found_in_any_units() -> None:
    mix = np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.5], [0.0, 0.0, 0.3]])
    z, new = random().normal(size=(1000, 3)), random(1).normal(size=(4000, 3))
    truth = (-0.5 * new**2 - 0.5 * np.log(2 * np.pi)).sum(1).mean() - np.log(np.abs(np.diag(mix))).sum()
    for unit in (1.0, 1e-200, 1e200):
        density = FlowDensity(blocks=2, hidden=8, max_iter=100, random_state=0).fit(z @ mix * unit)
        kl = truth - 3 * np.log(unit) - density.score(new @ mix * unit)
        assert 0 < kl < 0.05


def test_a_row_far_from_all_others_is_unlikely_as_by_the_gaussian() -> None:
    x = random().normal(size=(300, 2)) ** 3
    density = FlowDensity(max_iter=60, learning_rate=1e-2, random_state=0).fit(x)
    assert density.best_iter_ > 0
    far = np.array([[40.0, 0.0], [0.0, -60.0], [50.0, 50.0]])
    covariance, mean = np.cov(x.T), x.mean(0)
    exponent = -0.5 * ((far - mean) @ np.linalg.inv(covariance) * (far - mean)).sum(1)
    log_gaussian = exponent - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    assert (density.score_samples(far) >= log_gaussian + np.log(0.05) - 0.05 * np.abs(exponent)).all()


def test_one_seed_gives_one_density_also_after_pickle() -> None:
    given = table()
    first, again = (FlowDensity(**SMALL).fit(given) for _ in range(2))
    other = FlowDensity(**SMALL | {"random_state": 1}).fit(given)
    scores = first.score_samples(given)
    np.testing.assert_array_equal(scores, again.score_samples(given))
    assert not np.array_equal(scores, other.score_samples(given))
    loaded = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(scores, loaded.score_samples(given))
    pd.testing.assert_frame_equal(first.sample(9, random_state=3), loaded.sample(9, random_state=3))


def test_default_devices_do_not_matter() -> None:
    given, density = table(), FlowDensity(**SMALL)
    scores = density.fit(given).score_samples(given)
    with default_device():
        np.testing.assert_array_equal(density.fit(given).score_samples(given), scores)
        assert len(density.sample(3, random_state=0)) == 3


def test_training_ends_early_with_the_best_weights() -> None:
    x = random().normal(size=(60, 3))
    density = FlowDensity(max_iter=500, patience=30, noise=0.0, random_state=0).fit(x)
    assert density.n_iter_ == density.best_iter_ + 30
    assert density.validation_scores_[density.best_iter_ // 10] == max(density.validation_scores_)
    to_the_end = FlowDensity(**SMALL, validation_fraction=0.0).fit(x)
    assert (to_the_end.n_iter_, to_the_end.best_iter_, to_the_end.validation_scores_) == (5, 5, [])


def test_an_interrupt_leaves_the_estimator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    fitted, fresh = FlowDensity(**SMALL).fit(table()), FlowDensity(**SMALL)
    scores, before = fitted.score_samples(table()), set(vars(fresh))
    monkeypatch.setattr(training, "fit", interrupted)
    for density in (fitted, fresh):
        with pytest.raises(KeyboardInterrupt):
            density.fit(random().normal(size=(30, 2)))
    np.testing.assert_array_equal(scores, fitted.score_samples(table()))
    assert set(vars(fresh)) == before
    with pytest.raises(NotFittedError):
        fresh.sample()


def test_a_loss_that_is_not_finite_ends_training() -> None:
    x = random().normal(size=(40, 2))
    with pytest.warns(ConvergenceWarning, match="not finite after 1 steps"):
        density = FlowDensity(**SMALL | {"learning_rate": 1e30}).fit(x)
    assert np.isfinite(density.score(x))
    with pytest.raises(TrainingError, match="lower learning_rate"):
        FlowDensity(**SMALL | {"learning_rate": 1e30}, validation_fraction=0).fit(x)


X = pd.DataFrame({"a": np.arange(40.0), "b": np.arange(40.0) ** 2})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        pytest.param(X.assign(c=1.5), OptionError, "column 'c' is constant, 1.5", id="constant"),
        pytest.param(X.assign(c=3 - X["a"]), SingularMatrixError, "columns 'a', 'c' determine", id="dependent"),
        pytest.param(X.assign(c=np.inf), OptionError, "'c' holds infinite", id="infinite"),
        pytest.param(X.assign(c=np.nan), OptionError, "'c' holds unknown values only", id="unknown"),
        pytest.param(X.assign(c=pd.Timestamp("2020-01-01")), OptionError, "'c' is datetime64.*days since", id="dates"),
        pytest.param(X.assign(c=1j), OptionError, "'c' is complex128", id="complex"),
        pytest.param(X.assign(c=[{}] * 40), OptionError, "'c': expected numbers, .*dict", id="objects"),
        pytest.param(X[[]], ShapeError, "at least one column", id="no columns"),
        pytest.param(X[:1], ShapeError, "1 sample", id="one row"),
    ],
)
def test_tables_without_a_density_are_refused(given: pd.DataFrame, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        FlowDensity(**SMALL).fit(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"city": "Paris"}, "'city' holds 'Paris', which fit has not seen", id="category"),
        pytest.param({"size": np.nan}, "'size' has unknown values, and had none", id="unknown number"),
        pytest.param({"city": None}, "'city' has unknown values, and had none", id="unknown category"),
        pytest.param({"legs": 2.5}, "'legs' holds 2.5, and was int64", id="fraction"),
        pytest.param({"size": "large"}, "'size' is str, and was float64", id="text"),
    ],
)
def test_rows_of_another_kind_are_refused(changes: dict[str, Any], message: str) -> None:
    density = FlowDensity(**SMALL).fit(table())
    with pytest.raises(OptionError, match=message):
        density.score_samples(table().assign(**changes))
    assert np.isfinite(
        density.score(table().assign(grade=table()["grade"].cat.set_categories(["fair"]).fillna("fair")))
    )


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("flow", "glow", OptionError),
        ("mixing", "lu", OptionError),
        ("blocks", 0, OptionError),
        ("max_iter", 2.5, OptionError),
        ("n_draws", True, OptionError),
        ("noise", -0.1, OptionError),
        ("learning_rate", float("nan"), OptionError),
        ("validation_fraction", 1, OptionError),
        ("device", "nowhere", DeviceError),
    ],
)
def test_options_out_of_range_are_named(name: str, value: Any, error: type) -> None:
    with pytest.raises(error, match=f"{name}={value!r}"):
        FlowDensity(**SMALL | {name: value}).fit(X)


def test_without_scikit_learn_the_rest_works_and_the_error_says_what_to_install() -> None:
    program = "import sys; sys.modules['sklearn'] = None; import p4lab.flows; print('so far'); import p4lab.estimator"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "so far\n"
    assert "MissingPackageError: sklearn is not installed" in result.stderr
    assert "pip install 'p4lab[lab]'" in result.stderr


def test_integers_that_float64_cannot_tell_apart_are_refused() -> None:
    table = pd.DataFrame({"id": 2**60 + 3 * np.arange(40), "b": np.linspace(0, 1, 40)})
    with pytest.raises(OptionError, match=r"'id' holds integers beyond 2\^53"):
        FlowDensity(**SMALL).fit(table)


@pytest.mark.parametrize("names", [[0, 1], [("a", 1), ("a", 2)]], ids=["integers", "two levels"])
def test_columns_whose_names_are_no_text_keep_their_order(names: list[Any]) -> None:
    given = pd.DataFrame(random().normal(size=(60, 2)) * [1.0, 100.0], columns=pd.Index(names))
    density = FlowDensity(**SMALL).fit(given)
    with pytest.raises(OptionError, match=r"columns \[.*\]: expected them in the order of fit, \["):
        density.score_samples(given[names[::-1]])
    assert np.isfinite(density.score_samples(given[names])).all()
