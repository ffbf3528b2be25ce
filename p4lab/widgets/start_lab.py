"""The first lab: freeze, perturb, merge, on a 2 x 2 matrix."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.errors import ConfigError
from p4lab.plots import Loss
from p4lab.problems.matrix import MatrixModel, MatrixProblem, as_text
from p4lab.training import Engine, Frame, MatrixConfig, RunConfig, Snapshot, State
from p4lab.widgets.channel import FOLDER
from p4lab.widgets.controls import Group, Item
from p4lab.widgets.dashboard import Dashboard, Picture, Style
from p4lab.widgets.formula import Formula, Term
from p4lab.widgets.layers import Layer
from p4lab.widgets.panels import Readout, loss_text
from p4lab.widgets.plane import Arrow, Handle, Heatmap, Path, Plane, Points

Array = NDArray[np.float64]

CONFIG = MatrixConfig(
    target="0.4 -1.3; 1.1 0.7",
    reset="gradient",
    learning_rate=0.1,
    merge_every=15,
    measure_every=1,
    dtype="float64",
)
SPEED = 5.0
LOSS = Loss("loss |W − T|² / 2", log=True, bits=False, test=False)
CIRCLE = np.stack([np.cos(angle := np.linspace(0, 2 * np.pi, 97)[:-1]), np.sin(angle)], 1)
CONTOURS = np.concatenate([np.vstack([r * CIRCLE, r * CIRCLE[:1], [[np.nan] * 2]]) for r in (0.25, 0.5, 1.0, 1.5)])
WINDOWS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
PIXELS = 64


def start_lab(config: MatrixConfig | None = None, name: str | None = None, **changes: Any) -> Dashboard:
    """Return the first lab: what freezing, perturbing and merging do to a 2 x 2 matrix, at five steps a second.

    Args:
        config: settings of the first run; dim, route and rank must stay 2, "p4inv" and 1.
        name: see `Dashboard`.
        changes: settings that differ from ``config``, as in ``start_lab(merge_every=5)``.

    Raises:
        ConfigError: unknown setting, or a value out of range.
    """
    config = (config or CONFIG).replace(**changes)
    if (config.dim, config.route, config.rank) != (2, "p4inv", 1):
        raise ConfigError(f"config={config.to_text()!r}: expected dim=2, route=p4inv and rank=1")
    strip, images, search = _Strip(), ImagePicture(), SearchPicture()
    lab = Dashboard(
        config,
        _engine,
        title="Freeze, perturb, merge",
        subtitle="Only u trains. Drag the orange rings: they are the target.",
        settings=_settings(config),
        pictures=[
            Picture(strip, lambda frame: strip.show(equations(frame.snapshot))),
            Picture(images.widget, images.draw),
            Picture(search.widget, search.draw),
        ],
        style=Style(LOSS, readouts=_readouts()),
        name=name,
    )
    lab.root.add_class("p4-start")
    images.moved = lambda target: lab.player.set(target=target)
    lab.player.limit(SPEED)
    return lab


class _Strip(Formula):
    _css = "".join((FOLDER / name).read_text(encoding="utf-8") for name in ("formula.css", "start_lab.css"))


class _Carried(MatrixProblem):
    """Adds what a P4Inv layer carries along to the pictures."""

    @torch.no_grad()
    def pictures(self, model: MatrixModel, z: torch.Tensor) -> dict[str, torch.Tensor]:
        layer: Any = model
        carried = {
            "frozen_inverse": layer.frozen_inverse,
            "weight_inverse": layer.weight_inverse,
            "frozen_det": layer.frozen_sign * layer.frozen_logabsdet.exp(),
        }
        return super().pictures(model, z) | {name: tensor.double().clone() for name, tensor in carried.items()}


def _engine(config: RunConfig) -> Engine:
    problem, model = config.parts()
    carried = _Carried(problem.start, problem.target, problem.sampled, problem.dtype, problem.device)
    return Engine(config, carried, model)


# --- what is shown ---------------------------------------------------------------------------------------------------


def equations(snapshot: Snapshot) -> list[list[Term | str]]:
    """Return the three equations of P4Inv with their present numbers: matrix, inverse, determinant."""
    p = snapshot.pictures
    u, v, back = p["u"].T, p["v"], p["frozen_inverse"]
    factor = 1 + float((v @ back @ u).item())
    det = float(p["frozen_det"])
    return [
        [
            Term("W", p["weight"], "blue"),
            "=",
            Term("A", p["frozen"], "grey", flash=True),
            "+",
            Term("u", u, "purple"),
            Term("vᵀ", v),
        ],
        [
            Term("W⁻¹", p["weight_inverse"], "blue"),
            "=",
            Term("A⁻¹", back, "grey", flash=True),
            "−",
            Term("A⁻¹u vᵀA⁻¹ / f", back - p["weight_inverse"], "purple"),
        ],
        [
            Term("det W", det * factor, "blue"),
            "=",
            Term("det A", det, "grey", flash=True),
            "·",
            Term("f = 1 + vᵀA⁻¹u", factor, "purple"),
        ],
    ]


class ImagePicture:
    """What frozen, effective and target matrix make of the unit circle and the unit vectors.

    Attributes:
        widget: the picture.
        moved: called with the target, as text, when one of its columns is dragged.
    """

    def __init__(self) -> None:
        self.widget = Plane(
            "The plane under A, W and T",
            "unit circle, e₁ and e₂",
            height=400,
            on_moved=self._dragged,
        )
        self.moved = lambda target: None
        self._target: Array = np.eye(2)

    def _dragged(self, name: str, point: tuple[float, ...]) -> None:
        self._target = self._target.copy()
        self._target[:, int(name)] = np.round(point, 2)
        self.moved(as_text(torch.from_numpy(self._target)))

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        p = frame.snapshot.pictures
        frozen, weight, target = p["frozen"], p["weight"], p["target"]
        self._target = np.asarray(target)
        trail = frame.snapshot.trail.values
        merges = frame.snapshot.merge_points
        told = tuple(f"merge after step {step}" for step in merges.steps for _ in range(2))
        corners = merges.values.transpose(0, 2, 1).reshape(-1, 2) if len(merges.steps) else np.zeros((0, 2))
        gap = np.full((1, 2), np.nan)
        way = np.concatenate([trail[:, :, 0], gap, trail[:, :, 1]])
        layers: list[Layer] = [
            Path(CIRCLE @ frozen.T, "grey", closed=True, label="frozen A"),
            Path(CIRCLE @ target.T, "orange", dashed=True, closed=True, label="target T"),
            Path(CIRCLE @ weight.T, "blue", width=2.5, closed=True, label="effective W = A + u vᵀ"),
            Path(way, "rgba(90, 145, 230, 0.55)", width=1.2),
            Points(corners, "blue", "ring", 6, told, label="W at a merge"),
        ]
        for j in (0, 1):
            layers.append(Arrow((0, 0), frozen[:, j], "grey", 1.6))
            layers.append(Arrow((0, 0), weight[:, j], "blue", 2.4))
            layers.append(Arrow(frozen[:, j], weight[:, j], "purple", 2, label="the perturbation, along u"))
        layers += [Handle(str(j), target[:, j], label=f"T e{'₁₂'[j]}") for j in (0, 1)]
        self.widget.show(layers)


class SearchPicture:
    """The vector u, the only thing that trains, on the loss that it sees between two merges.

    Attributes:
        widget: the picture.
    """

    def __init__(self) -> None:
        self.widget = Plane(
            "u, all that trains", "on the loss that it sees: pale is low", x_label="u₁", y_label="u₂", height=400
        )
        self._half = 0.0

    def draw(self, frame: Frame) -> None:
        """Show a frame."""
        p = frame.snapshot.pictures
        u, v, error = p["u"][0], p["v"][0], p["frozen"] - p["target"]
        best = -error @ v / (v @ v)
        way = _since_merge(frame.snapshot, p["frozen"], v)
        half = self._window(1.3 * max(np.abs(way).max(initial=0.0), np.abs(best).max()))
        grid = np.linspace(-half, half, PIXELS)
        a = np.stack(np.meshgrid(grid, grid), -1)
        loss = (np.square(error).sum() + 2 * a @ (error @ v) + np.square(a).sum(-1) * (v @ v)) / 2
        layers: list[Layer] = [
            Heatmap(loss, (-half, half, -half, half), log=True),
            Path(best + CONTOURS * half, "rgba(128, 140, 155, 0.5)", width=1),
            Points([best], "green", "cross", 10, label="best u for this v"),
            Points([(0, 0)], "ink", "ring", 8, ("u = 0: W = A",), label="u = 0, where each merge leads back"),
            Path(way, "purple", width=2),
            Arrow((0, 0), u, "purple", 2.5, label="u"),
            *_wall(p["frozen_inverse"].T @ v, half),
        ]
        self.widget.show(layers, (-half, half, -half, half))

    def _window(self, reach: float) -> float:
        """Return half the side of a window that holds ``reach``: the one before, if it fits well."""
        if not 0.2 * self._half < reach <= self._half:
            self._half = next((size for size in WINDOWS if size >= reach), reach)
        return self._half


def _since_merge(snapshot: Snapshot, frozen: Array, v: Array) -> Array:
    """Return the u of every step since the last merge, ``u = (W - A) v / |v|^2``, shape (n, 2)."""
    merges = snapshot.merge_points.steps
    trail = snapshot.trail
    now = trail.values[trail.steps >= (merges[-1] if len(merges) else 0)]
    return (now - frozen) @ v / (v @ v)


def _wall(normal: Array, half: float) -> list[Layer]:
    """Return the line ``det W = 0``, that is ``1 + normal . u = 0``, if it crosses the window."""
    size = float(normal @ normal)
    point, along = -normal / size, np.array([-normal[1], normal[0]]) / math.sqrt(size)
    line = Path([point - 4 * half * along, point + 4 * half * along], "red", dashed=True, label="det W = 0")
    return [line] if np.abs(normal).sum() * half > 1 else []


# --- what is set -----------------------------------------------------------------------------------------------------


def _settings(config: MatrixConfig) -> list[Group]:
    def grid(name: str, *values: float) -> tuple[Any, ...]:
        return tuple(sorted({*values, getattr(config, name)}))

    speeds = (1.0, 2.0, SPEED, 20.0, None)
    return [
        Group(
            "Try",
            [
                Item(
                    "slider",
                    "merge_every",
                    "Merge every",
                    unit="steps",
                    choices=grid("merge_every", 1, 2, 5, 10, 15, 30, 60),
                ),
                Item(
                    "slider",
                    "learning_rate",
                    "Learning rate",
                    choices=grid("learning_rate", 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
                    help="Step size of plain gradient descent on u",
                ),
                Item(
                    "segments",
                    "speed",
                    "Steps per second",
                    choices=speeds,
                    texts=("1", "2", "5", "20", "max"),
                    help="Slow motion",
                ),
            ],
        ),
        Group("Directions", [Item("number", "seed", "Seed", live=False, help="Other directions v")]),
    ]


def _readouts() -> list[Readout]:
    def item(name: str, label: str, help: str = "", unit: str = "") -> Item:
        return Item("readout", name, label, help=help, unit=unit)

    return [
        Readout(item("count", "step", "Optimizer steps"), lambda frame: f"{frame.snapshot.step:,}"),
        Readout(
            item("rate", "speed", unit="steps/s"),
            lambda frame: f"{frame.steps_per_second:.0f}" if frame.state is State.RUNNING else "–",
        ),
        Readout(
            item("train", "loss", "|W − T|² / 2 before the last step"),
            lambda frame: loss_text(frame.snapshot.last("loss"), LOSS),
        ),
        Readout(item("merges", "merges"), lambda frame: f"{frame.snapshot.counts['merge']:,}"),
        Readout(item("next", "next merge in", unit="steps"), _next_merge),
        Readout(
            item("skips", "skipped", "Merges refused, because A would become nearly singular"),
            lambda frame: f"{frame.snapshot.counts['skip'] + frame.snapshot.counts['discard']:,}",
        ),
    ]


def _next_merge(frame: Frame) -> str:
    snapshot = frame.snapshot
    tried = [event.step for event in snapshot.events if event.kind in ("merge", "skip") and event.step <= snapshot.step]
    return str(max(1, (tried[-1] if tried else 0) + snapshot.config.merge_every - snapshot.step))
