"""Names beside points, so that none covers another name or a point."""

from dataclasses import dataclass
from itertools import product
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Points, the unit of print: the height of letters, the width of a dot, and what is near or beside it.
SIZE, DOT, NEAR, BESIDE = 7.0, 6.0, 40, 7
#: Where a label may begin, as seen from its point.
PLACES = np.array(list(product((7, -7, 16, -16, 30, -30, 48, -48, 70, -70, 100, -100), range(-120, 121, 4))))


@dataclass
class Label:
    """x, y: the point in data. A label without text only keeps its place free."""

    text: str
    x: float
    y: float
    colour: str
    alpha: float = 1.0


def write_labels(axes: Axes, labels: list[Label]) -> None:
    """Each label to the nearest free place; where that is not beside its point, a thin line leads there.

    Call it when the limits of the axes are final.
    """
    canvas = cast(Figure, axes.figure)
    canvas.draw_without_rendering()
    to_points = 72 / canvas.dpi
    page = axes.get_window_extent().get_points().flatten() * to_points
    at = np.array([axes.transData.transform((label.x, label.y)) * to_points for label in labels]).reshape(-1, 2)
    taken = np.concatenate([at - DOT / 2, at + DOT / 2], 1)
    neighbours = (np.abs(at[:, None] - at).max(-1) < NEAR).sum(1)
    for i in np.argsort(-neighbours, kind="stable"):
        if labels[i].text:
            boxes = _boxes(at[i], labels[i].text)
            best = np.argmin(_cost(boxes, taken, page))
            taken = np.concatenate([taken, boxes[best : best + 1]])
            _write(axes, labels[i], PLACES[best])


def _boxes(at: np.ndarray, text: str) -> np.ndarray:
    """What a label covers at each of the places, as left, bottom, right, top: (places, 4).

    Its width is that of usual letters, since the page brings its own font.
    """
    width, height = 0.56 * SIZE * len(text), 1.25 * SIZE
    corner = at + PLACES - np.stack([np.where(PLACES[:, 0] < 0, width, 0), np.full(len(PLACES), height / 2)], 1)
    return np.concatenate([corner, corner + np.array([width, height])], 1)


def _cost(boxes: np.ndarray, taken: np.ndarray, page: np.ndarray) -> np.ndarray:
    """To cover something is worse than to be far, and to leave the page worse still: (places,)."""
    covered = _shared(boxes[:, None], taken).sum(1)
    outside = _shared(boxes, boxes) - _shared(boxes, page)
    return 10 * covered + 30 * outside + np.square(PLACES).sum(1)


def _shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The area common to boxes (…, 4)."""
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    area: np.ndarray = sides.clip(min=0).prod(-1)
    return area


def _write(axes: Axes, label: Label, place: np.ndarray) -> None:
    line = {"arrowstyle": "-", "lw": 0.5, "color": label.colour, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
    axes.annotate(
        label.text,
        (label.x, label.y),
        xytext=tuple(place),
        textcoords="offset points",
        ha="left" if place[0] > 0 else "right",
        va="center",
        fontsize=SIZE,
        color=label.colour,
        alpha=label.alpha,
        arrowprops=line if np.abs(place).max() > BESIDE else None,
    )
