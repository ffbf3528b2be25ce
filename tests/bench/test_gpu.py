"""The benchmark of accelerators, as far as it can be tested without one: on stand-ins, meta and fake tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench.graph_no_sync_program import CAUGHT, STEPS

from p4lab.bench import gpu, steps
from p4lab.bench.__main__ import main
from p4lab.bench.gpu import DrawnOnDevice, gpu_graphs, gpu_steps, products, recordable, recorded
from p4lab.bench.timing import by_clock, interleaved, timer_of
from p4lab.errors import DeviceError, TrainingError
from p4lab.p4 import MergeSchedule
from p4lab.training.race import clock_of

PROGRAM = Path(__file__).with_name("graph_no_sync_program.py")


# --- the accelerator ---


def test_without_an_accelerator_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p4lab.bench.gpu.devices", lambda: ("cpu",))
    with pytest.raises(SystemExit, match=r"no accelerator: torch .* finds neither CUDA nor MPS nor XPU"):
        main(["gpu"])


def test_the_first_accelerator_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p4lab.bench.gpu.devices", lambda: ("cpu", "xpu", "other"))
    assert gpu.accelerator() == "xpu"


def test_the_command_prints_all_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("p4lab.bench.gpu.accelerator", lambda: "cpu")
    options = ["--dims=16", "--rounds=1", "--tasks=so", "--dim=4", "--tuning=0.02", "--limit=0.05", "--seeds=1"]
    main(["gpu", "--methods=plain+p4inv", *options])
    titles = capsys.readouterr().out.split("### ")[1:]
    for text, expected in zip(
        titles, ("**float32**, cpu", "exact methods ahead of these", "**so**, d = 4", "no graphs on cpu"), strict=True
    ):
        assert expected in text


# --- time ---


class Device:
    """A stand-in for torch.cuda: its events read a clock that each call moves on."""

    def __init__(self) -> None:
        self.now, self.waits, device = 0.0, 0, self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.timed, self.at = enable_timing, None

            def record(self) -> None:
                self.at = device.now

            def synchronize(self) -> None:
                device.waits += 1

            def elapsed_time(self, end: Any) -> float:
                assert self.timed
                assert end.timed
                return 1000 * (end.at - self.at)

        self.Event = Event

    def synchronize(self) -> None:
        self.waits += 1

    def takes(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr("torch.get_device_module", {"cuda": device}.__getitem__)
    return device


def test_a_timer_reads_the_events_of_its_device_and_waits_once(device: Device) -> None:
    assert timer_of("cuda")(device.takes(0.25), 8) == 2.0
    assert device.waits == 1


def test_contenders_are_warmed_up_and_timed_by_the_device(device: Device) -> None:
    calls = {"fast": device.takes(0.25), "slow": device.takes(0.5)}
    assert interleaved(calls, rounds=2, seconds=1.0, timer=timer_of("cuda")) == {"fast": [0.25] * 2, "slow": [0.5] * 2}
    # Each once to warm up, once to see how long it takes, and then in each round until a second is over.
    assert device.now == pytest.approx(0.25 * (2 + 2 * 4) + 0.5 * (2 + 2 * 2))


def test_the_cpu_has_the_clock() -> None:
    assert timer_of("cpu") is by_clock
    assert clock_of("cpu") is None


def test_the_clock_of_a_race_waits_for_the_device(device: Device) -> None:
    clock = clock_of("cuda")
    assert clock is not None
    assert clock() <= clock()
    assert device.waits == 2


# --- precision ---


def test_the_precision_of_products_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    seen: list[str] = []

    def fail() -> None:
        seen.append(torch.get_float32_matmul_precision())
        raise TrainingError("stopped")

    with pytest.raises(TrainingError), products("high"):
        fail()
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(("name", "tables"), [("cuda", ["float32 highest", "TF32 high"]), ("mps", ["float32 highest"])])
def test_float32_and_tf32_are_told_apart(name: str, tables: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def table(sizes: Any, *, rounds: int, device: str) -> str:
        assert (sizes, rounds, device) == ((8,), 2, name)
        return torch.get_float32_matmul_precision()

    monkeypatch.setattr("p4lab.bench.gpu.accelerator", lambda: name)
    monkeypatch.setattr("p4lab.bench.steps.steps", table)
    text = gpu_steps((8,), 2)
    assert text.replace("**", "").replace(f", {name}\n\n", " ").split("\n\n") == tables


# --- tables ---


def test_steps_and_merges_are_made_and_done_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def timings(contenders: Mapping[str, Callable[[], object]], rounds: int, timer: Any) -> dict[str, list[float]]:
        assert timer == "events of meta"
        for name, call in contenders.items():
            call()  # where tensors have no values: reading one is an error
            done.append(name)
        return {name: [1e-3 * (place + 1)] * rounds for place, name in enumerate(contenders)}

    monkeypatch.setattr("p4lab.bench.steps.timer_of", lambda device: f"events of {device}")
    monkeypatch.setattr("p4lab.bench.steps.interleaved", timings)
    first, second = steps.steps((4,), batch=8, rounds=2, device="meta").split("\n\n")
    assert len(done) == 10
    assert "merge P4Inv recommended" in done
    cells = [[cell.strip() for cell in part.splitlines()[2].split("|")[1:-1]] for part in (first, second)]
    assert cells == [["4", "100", *"234567"], ["4", "8", "9", "10"]]


def test_samples_are_the_same_on_every_device() -> None:
    with torch.device("meta"):
        assert steps.batch_of(3, 2).device.type == "meta"
    assert torch.equal(steps.batch_of(3, 2), torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))


# --- graphs ---


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    tests = PROGRAM.parents[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent), *sys.path])}
    done = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", STEPS)
def test_steps_to_be_recorded_neither_wait_nor_copy(name: str, results: dict[str, str | None]) -> None:
    assert results[name] is None


@pytest.mark.parametrize("name", CAUGHT)
def test_what_waits_or_copies_is_caught(name: str, results: dict[str, str | None]) -> None:
    caught = results[name] or "nothing was raised"
    assert "copies from" in caught or "DataDependent" in caught


def test_directions_drawn_on_the_device_are_new_at_each_merge() -> None:
    layer = DrawnOnDevice(6, rank=2, seed=0)
    directions = []
    for _ in range(4):
        with torch.no_grad():
            layer.u.normal_(std=0.1)
        assert bool(layer.merge())
        directions.append(layer.v.detach().clone())
    assert len({tuple(v.flatten().tolist()) for v in directions}) == 4
    x = torch.randn(32, 6)
    assert torch.allclose(layer.inverse(layer(x)), x, atol=1e-4)

    # It is the device's generator that draws, not the layer's own.
    drawn = []
    for _ in range(2):
        torch.manual_seed(5)
        layer.reset()
        drawn.append(layer.v.detach().clone())
    assert torch.equal(*drawn)


class Graph:
    """A stand-in for CUDA's streams and graphs that writes down what is done where."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuses: bool = False) -> None:
        self.log: list[str] = []
        stream = SimpleNamespace(wait_stream=lambda other: self.log.append("wait"))
        monkeypatch.setattr("torch.cuda.Stream", lambda: stream)
        monkeypatch.setattr("torch.cuda.current_stream", lambda: stream)
        monkeypatch.setattr("torch.cuda.stream", lambda stream: self.inside("aside"))
        monkeypatch.setattr("torch.cuda.graph", lambda graph: self.inside("record"))
        monkeypatch.setattr("torch.cuda.CUDAGraph", lambda: SimpleNamespace(replay=lambda: self.log.append("replay")))
        self.refuses = refuses

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        self.log.append(name)
        yield
        self.log.append(f"end {name}")
        if name == "record" and self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")


def test_a_graph_is_recorded_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(monkeypatch)
    replay = recorded(lambda: graph.log.append("step"))
    replay()
    aside = ["wait", "aside", "step", "step", "step", "end aside", "wait"]
    assert graph.log == [*aside, "record", "step", "end record", "replay"]


def test_what_cannot_be_recorded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Graph(monkeypatch, refuses=True)
    with pytest.raises(DeviceError, match=r"cannot be recorded as a CUDA graph.*not permitted"):
        recorded(lambda: None)


def test_the_table_of_graphs_has_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(contenders: Any, sizes: Any, rounds: int, large: int, device: str) -> str:
        assert device == "cuda"
        return steps.growth(contenders, sizes, rounds, large)

    monkeypatch.setattr("p4lab.bench.gpu.accelerator", lambda: "cuda")
    monkeypatch.setattr("p4lab.bench.gpu.recorded", lambda call: call)
    monkeypatch.setattr("p4lab.bench.gpu.growth", on_cpu)
    one_by_one, graphs = gpu_graphs((4,), 1).split("\n\n")
    assert one_by_one.startswith("| d | nn.Linear [us] | P4Inv paper | P4Inv recommended |")
    assert graphs.startswith("| d | nn.Linear, graph | P4Inv paper, graph | P4Inv recommended, graph |")


def test_ten_steps_to_be_recorded_end_with_a_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    merges: list[int] = []
    merge = MergeSchedule.merge
    monkeypatch.setattr("p4lab.p4.MergeSchedule.merge", lambda self: (merges.append(self.steps), merge(self))[1])
    call = recordable(gpu.PRESETS["P4Inv recommended"], 4, batch=8)
    call()
    call()
    assert merges == [10, 20]
