"""Runs as files: round trips, and files that are something else."""

import io
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from p4lab.errors import ConfigError, FileError, OptionError, RunFileError
from p4lab.training import DigitsConfig, Engine, Lanes, MatrixConfig, Run, Runs, load_run, save_run, table_bytes
from p4lab.training.runs import Factory

DIGITS = DigitsConfig(blocks=1, rank=2, batch_size=16, dtype="float64", merge_every=3, refine_every=2)


def routes(config: MatrixConfig) -> Lanes:
    return Lanes(config, "route", ("p4inv", "plain"))


KINDS: dict[str, tuple[Factory, object]] = {
    "engine": (Engine, DIGITS),
    "lanes": (routes, MatrixConfig(dtype="float64", optimizer="adam")),
}


def trained(kind: str, steps: int = 20) -> Run:
    factory, config = KINDS[kind]
    runs = Runs(factory, config)
    for _ in range(steps):
        runs.advance()
    runs.rename(1, "my run")
    return runs.active


def content(run: Run) -> bytes:
    stream = io.BytesIO()
    save_run(run, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_run_goes_on_as_the_saved_one_would(kind: str, tmp_path: Path) -> None:
    run = trained(kind)
    path = tmp_path / "a.p4run"
    save_run(run, path)
    loaded = load_run(path, KINDS[kind][0])
    assert (loaded.name, loaded.engine.step, loaded.engine.config) == ("my run", 20, run.engine.config)
    pd.testing.assert_frame_equal(loaded.engine.frame(), run.engine.frame())
    assert loaded.engine.records.all_events() == run.engine.records.all_events()
    assert loaded.engine.records.counts == run.engine.records.counts
    run.engine.run(15)
    loaded.engine.run(15)
    for table in ("steps", "measures"):
        for name, column in getattr(run.engine.records, table).columns.items():
            if name not in ("step_seconds", "seconds"):
                again = getattr(loaded.engine.records, table).columns[name]
                np.testing.assert_allclose(again, column, rtol=1e-6, atol=1e-12, err_msg=name)
    trail, again = run.engine.snapshot().trail, loaded.engine.snapshot().trail
    np.testing.assert_array_equal(trail.steps, again.steps)
    np.testing.assert_allclose(trail.values, again.values, atol=1e-9)


class Evil:
    """Something that would run code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return (print, ("this must not be printed",))


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "damaged or something else", id="empty"),
        pytest.param(b"hello, world" * 20, "damaged or something else", id="text"),
        pytest.param(pickle.dumps({"a": 1}), "damaged or something else", id="pickle"),
        pytest.param(saved({"format": Evil()}), r"something else \(it holds other things than tensors", id="code"),
        pytest.param(saved({"weights": torch.ones(2)}), "not a run that p4lab saved", id="foreign"),
        pytest.param(saved([1, 2]), "not a run that p4lab saved", id="no dict"),
        pytest.param(saved({"format": "p4lab run", "version": 99}), "version 99 of the format, expected 1", id="newer"),
        pytest.param(saved({"format": "p4lab run", "version": 1}), "does not fit here .KeyError", id="hollow"),
    ],
)
def test_something_else_is_refused(data: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFileError, match=message):
        load_run(data)
    assert capsys.readouterr().out == ""


def test_a_truncated_file_is_refused() -> None:
    whole = content(trained("engine", 4))
    for share in (0.1, 0.5, 0.99):
        with pytest.raises(RunFileError):
            load_run(whole[: int(share * len(whole))])


def test_a_run_of_another_lab_is_refused() -> None:
    lanes = content(trained("lanes", 4))
    with pytest.raises(RunFileError, match="does not fit here"):
        load_run(lanes, Engine)
    with pytest.raises(RunFileError, match="does not fit here"):
        load_run(content(trained("engine", 4)), routes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nowhere\.p4run' cannot be read: No such file"):
        load_run(tmp_path / "nowhere.p4run")
    with pytest.raises(OptionError, match="source=5: expected a path"):
        load_run(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_tables(kind: str) -> None:
    engine = trained(kind).engine
    frame = engine.frame().reset_index()
    csv = pd.read_csv(io.BytesIO(table_bytes(engine, "csv")))
    parquet = pd.read_parquet(io.BytesIO(table_bytes(engine, "parquet")))
    for table in (csv, parquet):
        assert list(table.columns) == list(frame.columns)
        np.testing.assert_allclose(table["loss"], frame["loss"])
    with pytest.raises(ConfigError, match="format='xlsx': expected csv or parquet"):
        table_bytes(engine, "xlsx")
