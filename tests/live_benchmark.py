"""The live lab in a real browser: throughput, redraws, latency, a slow browser, memory.

How each number is defined:

- throughput: steps per second of the lab's player with the page open and visible, over that of a player without views
  that trains the same engine in the same kernel; alternated, median of the rounds' ratios.
- redraws: changes per second of ``data-frames`` on the first fast picture. The widget sets it to the number of the
  newest frame from the kernel right after it drew that frame. Frames per second: calls of requestAnimationFrame.
- key to picture: from the `keydown` event's time stamp to the change of ``data-frames`` by the first frame made after
  the key acted; "Step" while paused, and the learning rate's slider while training at full speed.
- first picture: from Run All, with page and kernel idle, to the first ``data-frames``.
- slow browser: the page's CPU slowed 4 times; 10 key presses on the slider, 0.4 s apart; how many values the run took
  on, and the time from the click on Pause to the last redraw of any picture or plot.
- memory: growth from after the warm-up to the end, training all the time, each side's garbage collected first; the
  median of three samples at either end.
"""

import dataclasses
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from browser_page import Notebook, opened
from browser_server import Server, chromium, jupyterlab

from p4lab.bench.tables import table
from p4lab.command import say

SUPPORT = Path(__file__).parent
"""Where the kernel finds ``live_probe``."""
MEGABYTE = 2**20

# Notes what happens in the page from now on: times of key presses and clicks, redraws (time, frame number, kind).
RECORD = """(picture) => {
    window.__p4bench?.stop();
    const log = { start: performance.now(), ticks: 0, keys: [], clicks: [], redraws: [] };
    const first = document.querySelector(picture);
    const observers = [...document.querySelectorAll(".p4-lab [data-frames]")].map((node) => {
        const kind = node === first ? "picture" : "other";
        const seen = () => log.redraws.push([performance.now(), +node.dataset.frames, kind]);
        const observer = new MutationObserver(seen);
        observer.observe(node, { attributeFilter: ["data-frames"] });
        return observer;
    });
    const key = (event) => log.keys.push(event.timeStamp), click = (event) => log.clicks.push(event.timeStamp);
    addEventListener("keydown", key, true);
    addEventListener("click", click, true);
    let running = true;
    const tick = () => { log.ticks += 1; if (running) requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
    const stop = () => {
        running = false;
        observers.forEach((observer) => observer.disconnect());
        removeEventListener("keydown", key, true);
        removeEventListener("click", click, true);
    };
    window.__p4bench = { log, stop };
}"""
RECORDED = "() => ({ ...window.__p4bench.log, end: performance.now() })"
FIRST = """(picture) => new Promise((done) => {
    const start = performance.now();
    window.jupyterapp.commands.execute("notebook:run-all-cells");
    const seen = () => document.querySelector(picture);
    const look = () => (seen() ? done(performance.now() - start) : requestAnimationFrame(look));
    look();
})"""


@dataclass(frozen=True)
class Plan:
    """How long everything takes.

    Attributes:
        opens: fresh kernels for the first picture.
        rounds: alternations of the throughput.
        seconds: of one timing of throughput.
        watch: seconds of counting redraws.
        keys: presses of each kind.
        warmup: seconds before the first sample of memory.
        minutes: until the last.
    """

    opens: int = 3
    rounds: int = 9
    seconds: float = 4.0
    watch: float = 20.0
    keys: int = 20
    warmup: float = 60.0
    minutes: float = 10.0


QUICK = Plan(opens=1, rounds=2, seconds=2.0, watch=4.0, keys=6, warmup=5.0, minutes=0.1)


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the outcome, its target, and whether that is met."""

    what: str
    outcome: str
    target: str
    met: bool


def plan_of(quick: bool, minutes: float | None) -> Plan:
    """Return the plan that options ask for."""
    plan = QUICK if quick else Plan()
    return plan if minutes is None else dataclasses.replace(plan, minutes=minutes)


def measure(notebook: Path, plan: Plan) -> str:
    """Measure a notebook's lab, which must be called ``lab`` there, and return a Markdown table.

    Raises:
        BrowserSetupError: no Chromium, Playwright or JupyterLab.
    """
    with (
        tempfile.TemporaryDirectory(prefix="p4lab-bench-", ignore_cleanup_errors=True) as home,
        jupyterlab(notebook.parent, Path(home)) as server,
        chromium() as browser,
    ):
        rows = _measure(browser, server, notebook.name, plan)
        say(f"Chromium {browser.version}")
    return table(
        ["what", "measured", "target", "met"], [[r.what, r.outcome, r.target, "yes" if r.met else "NO"] for r in rows]
    )


def _measure(browser: Any, server: Server, name: str, plan: Plan) -> list[Row]:
    firsts = []
    for left in reversed(range(plan.opens)):
        with opened(browser, server) as page:
            page.open(name)
            page.page.wait_for_timeout(2000)
            firsts.append(page.page.evaluate(FIRST, page.PICTURE) / 1000)
            if not left:
                return [_first_picture(firsts), *_with_lab(page, plan)]
    raise ValueError(f"opens={plan.opens}: expected at least 1")


def _with_lab(page: Notebook, plan: Plan) -> list[Row]:
    page.wait_for_state("idle")
    page.page.wait_for_selector(".p4-plot .main-svg")
    page.page.wait_for_timeout(3000)
    page.execute(f"import sys; sys.path.append({str(SUPPORT)!r}); import live_probe as p4probe")
    rows: list[Row] = []
    for measure in (_throughput, _redraws, _keys, _slow_browser, _memory):
        rows += measure(page, plan)
        say(f"{measure.__name__.strip('_')} done")
    page.check_clean()
    return rows


# --- the measurements ---


def _first_picture(seconds: Sequence[float]) -> Row:
    median = statistics.median(seconds)
    return Row("Run All to first picture", f"{median:.1f} s{_spread(seconds, 's')}", "<= 6 s", median <= 6)


def _throughput(page: Notebook, plan: Plan) -> list[Row]:
    page.execute(f"p4timed = p4probe.Throughput(lab, {plan.rounds}, {plan.seconds}); p4timed.start()")
    page.page.wait_for_timeout(2000 * plan.rounds * (plan.seconds + 0.6))
    while page.ask("p4timed.done") != "True":
        page.page.wait_for_timeout(300)
    watched, alone, ratio = json.loads(page.ask("p4timed.result()"))
    outcome = f"{100 * ratio:.0f} % ({watched:.0f} of {alone:.0f} steps/s)"
    return [Row("training throughput with the lab open", outcome, ">= 80 %", ratio >= 0.8)]


def _redraws(page: Notebook, plan: Plan) -> list[Row]:
    _train(page)
    log = _recorded(page, plan.watch)
    page.pause()
    seconds = (log["end"] - log["start"]) / 1000
    redraws, ticks = len(_pictures(log)) / seconds, log["ticks"] / seconds
    return [
        Row("redraws of the fast picture", f"{redraws:.1f} / s", ">= 8 / s", redraws >= 8),
        Row("frames per second of the page", f"{ticks:.0f}", ">= 50", ticks >= 50),
    ]


def _keys(page: Notebook, plan: Plan) -> list[Row]:
    page.page.evaluate(RECORD, page.PICTURE)
    for _ in range(plan.keys):
        page.press("step", "Enter")
        page.page.wait_for_timeout(500)
    log = page.page.evaluate(RECORDED)
    steps = latencies(log["keys"], _pictures(log), [None] * plan.keys, {})

    page.execute("p4log = p4probe.Log(lab.screens)")
    _train(page)
    page.page.evaluate(RECORD, page.PICTURE)
    values = _move_slider(page, "LR" * (plan.keys // 2), 700)
    log = page.page.evaluate(RECORDED)
    page.pause()
    rates = dict(json.loads(page.ask("p4log.frames")))
    moves = latencies(log["keys"], _pictures(log), values, rates)
    return [latency("Step while paused: key to picture", steps), latency("slider in training: key to picture", moves)]


def _slow_browser(page: Notebook, plan: Plan) -> list[Row]:
    session = page.page.context.new_cdp_session(page.page)
    before = json.loads(page.ask("p4probe.learning_rates(lab)"))
    session.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    try:
        _train(page)
        page.page.evaluate(RECORD, page.PICTURE)
        values = _move_slider(page, "LLLLLRRRRR", 400)
        page.page.wait_for_timeout(1000)
        page.pause()
        page.page.wait_for_timeout(3000)
        log = page.page.evaluate(RECORDED)
    finally:
        session.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        session.detach()
    taken = json.loads(page.ask("p4probe.learning_rates(lab)"))[len(before) :]
    kept = sum((Counter(values) & Counter(taken)).values())
    last = (max(redraw[0] for redraw in log["redraws"]) - log["clicks"][-1]) / 1000
    return [
        Row("CPU slowed 4 times: slider moves that arrived", f"{kept} of {len(values)}", "all", kept == len(values)),
        Row("CPU slowed 4 times: Pause to last redraw", f"{max(0.0, last):.2f} s", "<= 1 s", last <= 1),
    ]


def _memory(page: Notebook, plan: Plan) -> list[Row]:
    _train(page)
    page.page.wait_for_timeout(1000 * plan.warmup)
    session = page.page.context.new_cdp_session(page.page)
    session.send("HeapProfiler.enable")
    samples = []
    pause = 60_000 * plan.minutes / 20
    for _ in range(21):
        session.send("HeapProfiler.collectGarbage")
        heap = session.send("Runtime.getHeapUsage")["usedSize"]
        nodes = session.send("Memory.getDOMCounters")["nodes"]
        samples.append((int(page.ask("p4probe.resident()")), heap, nodes))
        page.page.wait_for_timeout(pause)
    session.detach()
    page.pause()
    kernel, heap, nodes = (growth(column) for column in zip(*samples, strict=True))
    after = f"in {plan.minutes:g} min"
    return [
        Row(f"kernel memory, growth {after}", f"{kernel / MEGABYTE:+.1f} MB", "<= 5 MB", kernel <= 5 * MEGABYTE),
        Row(f"browser heap, growth {after}", f"{heap / MEGABYTE:+.1f} MB", "<= 5 MB", heap <= 5 * MEGABYTE),
        Row(f"document nodes, growth {after}", f"{nodes:+.0f}", "<= 1000", nodes <= 1000),
    ]


# --- what they share ---


def _train(page: Notebook) -> None:
    page.train()
    page.page.wait_for_timeout(1000)


def _recorded(page: Notebook, seconds: float) -> Any:
    page.page.evaluate(RECORD, page.PICTURE)
    page.page.wait_for_timeout(1000 * seconds)
    return page.page.evaluate(RECORDED)


def _move_slider(page: Notebook, moves: str, pause: float) -> list[float]:
    """Press arrow keys (L, R) on the learning rate, ``pause`` ms apart; return the value that each made it show."""
    values = []
    for move in moves:
        page.press("learning_rate", {"L": "ArrowLeft", "R": "ArrowRight"}[move])
        values.append(float(page.item("learning_rate").locator("output").inner_text()))
        page.page.wait_for_timeout(pause)
    return values


def _pictures(log: Any) -> list[tuple[float, int]]:
    return [(at, frame) for at, frame, kind in log["redraws"] if kind == "picture"]


def latencies(
    keys: Sequence[float],
    redraws: Sequence[tuple[float, int]],
    values: Sequence[float | None],
    made_with: dict[int, float],
) -> list[float]:
    """Return milliseconds from each key press to the first redraw that shows what it did; infinite if none came.

    Args:
        keys: times of the presses in ms.
        redraws: time in ms and number of the frame, in order.
        values: what each press set; None: any later frame shows it.
        made_with: by number of a frame, the value in force when it was made.
    """
    found = []
    ends = [*keys[1:], float("inf")]
    for key, end, value in zip(keys, ends, values, strict=True):
        times = [
            at
            for at, frame in redraws
            if key < at < end and (value is None or made_with.get(frame, value + 1) == value)
        ]
        found.append(times[0] - key if times else float("inf"))
    return found


def growth(samples: Sequence[float]) -> float:
    """Return the median of the last three samples less that of the first three."""
    return statistics.median(samples[-3:]) - statistics.median(samples[:3])


def latency(what: str, milliseconds: Sequence[float]) -> Row:
    median = statistics.median(milliseconds)
    outcome = f"{median:.0f} ms{_spread(milliseconds, 'ms')}"
    return Row(what, outcome, "median <= 120 ms", median <= 120)


def _spread(values: Sequence[float], unit: str) -> str:
    return f" ({min(values):.3g} to {max(values):.3g} {unit})" if len(values) > 1 else ""
