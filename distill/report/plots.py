"""The kinds of picture that sections draw. Each returns an SVG, see `figures.draw`."""

from dataclasses import dataclass
from itertools import cycle
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from .figures import COLOURS, INK, MARKERS, WIDTH, draw, logarithmic
from .quantities import count

#: More ink is more; the page shines through where there is little.
INKING = LinearSegmentedColormap.from_list("inking", [(0.14, 0.52, 0.66, 0.04), (0.14, 0.52, 0.66, 0.95)])
WEIGHTS = matplotlib.colormaps["viridis"].with_extremes(under="#e0569b", bad=(0, 0, 0, 0))


@dataclass
class Line:
    """A curve. One without a label stays in the background."""

    label: str
    x: np.ndarray
    y: np.ndarray


def staircase(steps: list[str], values: dict[str, list[float | None]], y_label: str, alt: str) -> str:
    """A quotient after each of the `steps`, one line per name, on a logarithmic axis; 1 is marked, None left out."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for (name, heights), colour, marker in zip(values.items(), cycle(COLOURS), cycle(MARKERS), strict=False):
            places, y = np.arange(len(steps)), np.array(heights, dtype=float)
            axes.step(places, y, where="mid", color=colour, linewidth=1.4, alpha=0.7)
            axes.plot(places, y, marker, color=colour, label=name)
        axes.set_xticks(range(len(steps)), steps)
        axes.set(xlim=(-0.5, len(steps) - 0.5), ylabel=y_label)
        logarithmic(axes, "×")
        canvas.legend(loc="outside upper left", ncols=3, handletextpad=0.2)

    return draw(paint, 3.1, alt)


def curves(
    lines: list[Line],
    x_label: str,
    y_label: str,
    alt: str,
    doubling: bool = False,
    scale: Literal["log", "linear", "shares"] = "log",
) -> str:
    """Curves over a count, such as tokens. scale: of the vertical axis; the logarithmic one leaves out what has no
    logarithm, that of shares goes from 0 to 1. doubling: the count is logarithmic, too, and its points are marked."""
    labels = [line.label for line in lines if line.label]
    # A label of several has a row to itself, but for the short ones of what is measured at doubled counts.
    rows = len(labels) if len(labels) > 1 and not doubling else 0

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        looks = cycle(zip(COLOURS, MARKERS, strict=True))
        for line in lines:
            y = np.where(line.y > 0, line.y, np.nan) if scale == "log" else line.y
            if line.label:
                colour, marker = next(looks)
                axes.plot(line.x, y, color=colour, label=line.label, marker=marker if doubling else "")
            else:
                axes.plot(line.x, y, color=INK, linewidth=0.7, alpha=0.3)
        axes.set(xlabel=x_label, ylabel=y_label)
        if scale == "shares":
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        elif scale == "log":
            logarithmic(axes)
        if doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(NullLocator())
            canvas.legend(loc="outside upper left", ncols=3, handletextpad=0.2)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(5))
            if rows:
                canvas.legend(loc="outside upper left", handletextpad=0.2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))

    return draw(paint, 2.7 + 0.2 * rows, alt)


def ranges(places: list[str], spans: dict[str, list[list[float]]], labels: tuple[str, str], alt: str) -> str:
    """For each of `places` and each name a bar from low to high, marked at its middle, side by side; spans: by name the
    [low, middle, high] of every place. labels: of both axes."""

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        looks = cycle(zip(COLOURS, MARKERS, strict=True))
        for i, ((name, bars), (colour, marker)) in enumerate(zip(spans.items(), looks, strict=False)):
            low, middle, high = np.array(bars, dtype=float).T
            x = np.arange(len(places)) + 0.22 * (i - (len(spans) - 1) / 2)
            axes.errorbar(
                x, middle, (middle - low, high - middle), fmt=marker, color=colour, elinewidth=1.4, label=name
            )
        axes.set_xticks(range(len(places)), places)
        axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
        canvas.legend(loc="outside upper left", ncols=3, handletextpad=0.2)

    return draw(paint, 2.7, alt)


def heat_map(
    values: np.ndarray,
    top: float,
    labels: tuple[str, str],
    unit: str,
    alt: str,
    names: tuple[list[str], list[str]] | None = None,
) -> str:
    """A matrix (rows, columns) as cells, coloured from 0 to `top` by their square root; NaN stays empty.

    labels: of rows and columns. names: of every row and column; None: they are numbered.
    """
    rows, columns = values.shape
    cell = min(0.46, (WIDTH - 1.1) / columns)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        image = axes.imshow(values, cmap=INKING, norm=PowerNorm(0.5, 0, top or 1), aspect="auto", interpolation="none")
        if columns <= 12:
            for (row, column), value in np.ndenumerate(values):
                axes.text(column, row, _in_cell(value), ha="center", va="center", fontsize=7 if columns > 8 else 9)
        axes.set(ylabel=labels[0], xlabel=labels[1])
        if names is None:
            axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
        else:
            axes.set_yticks(range(rows), names[0])
            axes.set_xticks(range(columns), names[1], rotation=30, ha="right", rotation_mode="anchor")
        _bare(axes)
        bar = canvas.colorbar(image, ax=axes, label=unit, pad=0.02, aspect=30, ticks=MaxNLocator(3))
        bar.outline.set_visible(False)

    return draw(paint, max(1.7, (0.8 if names is None else 1.4) + rows * max(cell, 0.13)), alt)


def map_pair(left: np.ndarray, right: np.ndarray, titles: tuple[str, str], alt: str) -> str:
    """Two attention maps (T, T) on one square-root scale; the future is left empty, weights below zero are pink."""
    future = np.triu(np.ones(left.shape, dtype=bool), 1)
    top = float(np.nanmax([left, right], where=~future, initial=0))

    def paint(canvas: Canvas) -> None:
        first, second = canvas.subplots(1, 2, sharey=True)
        for axes, weights, title in ((first, left, titles[0]), (second, right, titles[1])):
            image = axes.imshow(
                np.ma.masked_where(future, weights),
                cmap=WEIGHTS,
                norm=PowerNorm(0.5, 0, top or 1),
                interpolation="none",
            )
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("key position")
            _bare(axes)
        first.set_ylabel("query position")
        bar = canvas.colorbar(
            image, ax=[first, second], label="weight", pad=0.02, aspect=25, shrink=0.8, ticks=MaxNLocator(3)
        )
        bar.outline.set_visible(False)

    return draw(paint, 2.3, alt)


def _in_cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}"


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
