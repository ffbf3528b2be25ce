"""Train each lab for a short while, and keep what it showed as a page that plays by itself: for the gallery.

    python docs/replays.py                # all labs, two at a time; those that are there already are not made again
    python docs/replays.py --quick        # only those that take seconds

The pages lie in .docs_cache/replays, under a key of everything that they depend on. `mkdocs build` takes those that
are there, and says of others that they were not made.
"""

import argparse
import hashlib
import multiprocessing
import time
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".docs_cache" / "replays"
CARDS: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docs" / "gallery.yml").read_text(encoding="utf-8"))
SECONDS = 20.0
"""Processor time that a lab trains for, where its card does not name a number of steps."""
QUICK = ("start", "parameter", "break")
"""Replays that take seconds."""
SLICE = 0.5
"""Seconds of training between two looks at the clock."""


@cache
def key() -> str:
    """Return what replays of today's sources are kept under."""
    sources = [path for path in (ROOT / "p4lab").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    digest = hashlib.sha256()
    for path in sorted([*sources, ROOT / "docs" / "gallery.yml", Path(__file__).resolve()]):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def replay_of(name: str) -> Path:
    """Return where the replay of a lab is, or would be."""
    return CACHE / key() / f"{name}.html"


def train(lab: Any, steps: int | None) -> int:
    """Train a lab for so many steps, or for `SECONDS` of processor time, and return how many steps that were."""
    done, spent = 0, 0.0

    def some(runs: Any) -> tuple[int, float]:
        start, began = time.monotonic(), time.thread_time()
        count = 0
        while time.monotonic() - start < SLICE and (steps is None or done + count < steps):
            runs.advance()
            count += 1
        return count, time.thread_time() - began

    while (spent < SECONDS) if steps is None else (done < steps):
        count, seconds = lab.player.ask(some, 120.0)
        done, spent = done + count, spent + seconds
    return done


def make(name: str) -> str:
    """Make the replay of a lab, and return what became of it."""
    import torch

    from p4lab import widgets

    torch.set_num_threads(1)
    start = time.monotonic()
    lab = getattr(widgets, f"{name}_lab")(name=f"replay of {name}")
    try:
        steps = train(lab, CARDS[name].get("steps"))
        unfinished = CACHE / f"{name}.replay.html"
        lab.export(unfinished)
        if lab.error is not None:
            raise lab.error
    finally:
        lab.close()
    target = replay_of(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    size = unfinished.stat().st_size
    unfinished.rename(target)
    seconds, processor = time.monotonic() - start, time.process_time()
    return f"{name}: {steps} steps, {size / 1e6:.1f} MB, {seconds:.0f} s ({processor:.0f} s of processor time)"


def main() -> None:
    """Make the replays that are missing, and remove those of other sources."""
    parser = argparse.ArgumentParser(description="Make the replays of the gallery.")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--jobs", type=int, default=2, help="labs that train at a time")
    options = parser.parse_args()
    names = QUICK if options.quick else tuple(CARDS)
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob("*/*.html"):
        if old.parent.name != key():
            old.unlink()
    missing = [name for name in names if not replay_of(name).exists()]
    print(f"{len(names) - len(missing)} of {len(names)} replays are there", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        for line in pool.imap_unordered(make, missing, chunksize=1):
            print(line, flush=True)


if __name__ == "__main__":
    main()
