"""Runs as files: config, records and weights, loaded without running anybody's code."""

import io
import pickle
import zipfile
from array import array
from pathlib import Path
from typing import Any, BinaryIO

import torch

from p4lab.errors import ConfigError, OptionError, P4Error, RunFileError
from p4lab.files import read_whole, write_whole
from p4lab.packages import require
from p4lab.training.config import RunConfig
from p4lab.training.engine import Engine
from p4lab.training.lanes import Lanes
from p4lab.training.records import TRAILS, Event, Records, Table, Thinned
from p4lab.training.runs import Factory, History, Run

FORMAT = "p4lab run"
VERSION = 1
Target = str | Path | BinaryIO


def save_run(run: Run, target: Target) -> None:
    """Write a run to a file: settings, records, weights, optimizer and random generators.

    Args:
        run: which run.
        target: a path (by custom ending in .p4run) or a binary file.

    Raises:
        FileError: the path cannot be written; what was there is as before.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "name": run.name,
        "origin": run.origin,
        "config": run.engine.config.to_dict(),
        "state": run.engine.state(),
        "records": _packed(run.engine),
    }
    if not isinstance(target, str | Path):
        torch.save(content, target)
        return
    stream = io.BytesIO()
    torch.save(content, stream)
    write_whole(target, stream.getvalue())


def load_run(source: Target | bytes, factory: Factory = Engine) -> Run:
    """Read a run from a file of `save_run`; it goes on where it was.

    Args:
        source: a path, a binary file, or a file's content. Only tensors and plain values are read (``weights_only``),
            so a file from somebody else cannot run code.
        factory: makes the engine of a config; a file from a lab needs that lab's.

    Raises:
        RunFileError: not such a file, damaged, or of another kind of lab.
        FileError: the path cannot be read.
        OptionError: neither a path nor a file.
    """
    content = _read(source)
    try:
        config = RunConfig.from_dict(content["config"])
        engine = factory(config)
        engine.load_state(content["state"], _unpacked(content["records"]))
        name, origin = str(content["name"]), str(content["origin"])
    except (P4Error, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RunFileError(f"{_name(source)}: this run does not fit here ({type(error).__name__}: {error})") from error
    return Run(name, 0, engine, History(engine.moment()), origin)


def _read(source: Target | bytes) -> dict[str, Any]:
    data = source if isinstance(source, bytes) else _bytes_of(source)
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise zipfile.BadZipFile("not an archive")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if part := archive.testzip():
                raise zipfile.BadZipFile(f"{part} is damaged")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        if isinstance(error, pickle.UnpicklingError):  # torch's own words say how to load it all the same
            reason = "it holds other things than tensors and plain values"
        else:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFileError(
            f"{_name(source)}: expected a file that p4lab saved; this one is damaged or something else ({reason})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RunFileError(f"{_name(source)}: a torch file, but not a run that p4lab saved")
    if content.get("version") != VERSION:
        raise RunFileError(
            f"{_name(source)}: version {content.get('version')!r} of the format, expected {VERSION}; "
            "load it with the p4lab that saved it"
        )
    return content


def _bytes_of(source: Target) -> bytes:
    if isinstance(source, str | Path):
        return read_whole(source)
    if not hasattr(source, "read"):
        raise OptionError(f"source={source!r}: expected a path, a binary file, or the content of a file")
    return source.read()


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else "run file"


def _packed(engine: Engine | Lanes) -> dict[str, Any]:
    if isinstance(engine, Lanes):
        return {"lanes": {name: _packed(lane) for name, lane in engine.engines.items()}}
    records = engine.records
    return {
        "steps": _table(records.steps),
        "measures": _table(records.measures),
        "counts": dict(records.counts),
        "events": {
            kind: [(event.step, list(event.layers), event.text) for _, event in events.items()]
            for kind, events in records.events.items()
        },
        **{name: _thinned(getattr(records, name)) for name in TRAILS},
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        name: (column.typecode, torch.tensor(column, dtype=torch.float64)) for name, column in table.columns.items()
    }


def _thinned(thinned: Thinned[Any]) -> dict[str, Any]:
    items = [(step, torch.as_tensor(value)) for step, value in thinned.items()]
    return {"limit": thinned.limit, "stride": thinned.stride, "items": items}


def _unpacked(packed: dict[str, Any]) -> Any:
    if "lanes" in packed:
        return {name: _unpacked(lane) for name, lane in packed["lanes"].items()}
    records = Records(
        _untable(packed["steps"]),
        _untable(packed["measures"]),
        counts=dict(packed["counts"]),
    )
    for name in TRAILS:
        setattr(records, name, _unthinned(packed[name]))
    for kind, events in packed["events"].items():
        for step, layers, text in events:
            records.events[kind].add(step, Event(step, kind, tuple(layers), text))
    return records


def _untable(columns: dict[str, Any]) -> Table:
    table = Table({name: code for name, (code, _) in columns.items() if name != "step"})
    table.columns = {name: array(code, values.tolist()) for name, (code, values) in columns.items()}
    return table


def _unthinned(packed: dict[str, Any]) -> Thinned[Any]:
    thinned: Thinned[Any] = Thinned(packed["limit"])
    for step, value in packed["items"]:
        thinned.add(step, value.numpy())
    thinned.stride = packed["stride"]
    thinned.count = len(thinned) * thinned.stride
    return thinned


def table_bytes(engine: Engine | Lanes, kind: str) -> bytes:
    """Return the records of a run as a CSV or Parquet file.

    Args:
        engine: whose records.
        kind: "csv" or "parquet".

    Raises:
        ConfigError: unknown kind.
        MissingPackageError: pandas, or pyarrow for Parquet, is not installed.
    """
    if kind not in ("csv", "parquet"):
        raise ConfigError(f"format={kind!r}: expected csv or parquet")
    frame = engine.frame()
    if kind == "csv":
        return str(frame.to_csv()).encode()
    require("pyarrow", "lab")  # pandas writes with it, and would name several others
    stream = io.BytesIO()
    frame.reset_index().to_parquet(stream, index=False)
    return stream.getvalue()
