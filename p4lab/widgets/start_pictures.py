"""The pictures of the first lab: equations and two planes; frames in, layers out."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from p4lab.plots.layers import Arrow, Handle, Heatmap, Layer, Path, Points, Term
from p4lab.problems.matrix import as_text
from p4lab.training import Frame, Snapshot
from p4lab.widgets.plane import Plane

Array = NDArray[np.float64]

CIRCLE = np.stack([np.cos(angle := np.linspace(0, 2 * np.pi, 97)[:-1]), np.sin(angle)], 1)
CONTOURS = np.concatenate([np.vstack([r * CIRCLE, r * CIRCLE[:1], [[np.nan] * 2]]) for r in (0.25, 0.5, 1.0, 1.5)])
WINDOWS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
PIXELS = 64


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
        self.moved: Callable[[str], None] = lambda target: None
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
            "u, all that trains", "on the loss that it sees; least at the cross", x_label="u₁", y_label="u₂", height=400
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
