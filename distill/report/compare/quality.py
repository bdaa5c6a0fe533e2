"""The picture of a comparison: what quality a state of some size buys."""

import math
from itertools import cycle, product
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ...names import file_name
from ..figures import COLOURS, INK, MARKERS, WIDE, draw, logarithmic
from ..quantities import size, times
from ..section import Figure
from ..verdict import listed
from .case import CEILING, family, is_control
from .compared import Compared
from .labels import SIZE, Label, write_labels

#: How many times the systems' median log ratio the picture reaches up to, and how many times beyond the states of
#: systems it reaches to the sides. What lies further out would press the others together: the caption tells it.
REACH, ASIDE = 4.0, 2.0
#: The least ratio that the picture reaches up to.
TOP = 1.25


def quality_figure(found: Compared, domain: str) -> Figure:
    shown, left_out = _within_reach(found, domain)
    best = min(shown, key=lambda mixer: found.value(mixer, domain, "ratio") or math.inf, default=None)
    lowest = f" The lowest ratio is {times(found.value(best, domain, 'ratio'))}, {best}." if best else ""
    without = f" Not shown: {listed(left_out)}." if left_out else ""
    against, smaller = ("state size", "size of the decoding state") if found.decodes else ("features", "features F")
    alt = f"{found.teacher}, {domain}: ratio against {against}, both on logarithmic scales.{lowest}"
    caption = (
        f"{domain}: student over teacher perplexity against the {smaller}, both on logarithmic "
        "scales; lower and further left is better. Controls are grey, at the left edge where theirs is smaller still; "
        f"lines join one mixer in several sizes; bars are the spread over seeds.{without}"
    )
    name = f"{file_name(found.teacher)}-{file_name(domain)}"
    return Figure(name, caption, alt, _drawing(found, domain, shown, alt), wide=True)


def _within_reach(found: Compared, domain: str) -> tuple[dict[str, float], list[str]]:
    """Where on the x axis to draw the mixers, and those left out with their ratio. Controls smaller than every system
    are drawn at the edge. One part of a hybrid alone has no state to be drawn at.
    """
    at = {
        mixer: (found.value(mixer, domain, "ratio") or math.inf, found.extent(mixer) or 0)
        for mixer in found.systems + found.controls
        if found.row(mixer, domain, "ratio") and found.row(mixer, domain, "state_bytes")
    }
    placed = [each for mixer, each in at.items() if each[1] and each[0] < math.inf and not is_control(mixer)]
    placed = placed or [each for each in at.values() if each[1] and each[0] < math.inf]
    if not placed:
        return {}, [_told(mixer, ratio) for mixer, (ratio, _) in at.items()]
    top = max(TOP, math.exp(REACH * median(math.log(ratio) for ratio, _ in placed)))
    low, high = min(x for _, x in placed) / ASIDE, max(x for _, x in placed) * ASIDE
    shown = {mixer: max(x, low) for mixer, (ratio, x) in at.items() if ratio <= top and 0 < x <= high}
    return shown, [_told(mixer, ratio) for mixer, (ratio, _) in at.items() if mixer not in shown]


def _told(mixer: str, ratio: float) -> str:
    return f"{mixer} ({times(ratio) if ratio < math.inf else 'no finite ratio'})"


def _drawing(found: Compared, domain: str, shown: dict[str, float], alt: str) -> str:
    families: dict[str, list[str]] = {}
    for mixer in shown:
        families.setdefault(family(mixer), []).append(mixer)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        looks = cycle(product(MARKERS, COLOURS))
        labels: list[Label] = []
        for name, mixers in families.items():
            control = is_control(mixers[0])
            marker, colour = ("x", INK) if control else next(looks)
            sizes = sorted(mixers, key=shown.__getitem__)
            x = [shown[mixer] for mixer in sizes]
            y = [found.value(mixer, domain, "ratio") or np.nan for mixer in sizes]
            spread = [found.spread(mixer, domain, "ratio") or np.nan for mixer in sizes]
            beyond = (found.extent(sizes[0]) or 0) < x[0]
            style: dict[str, Any] = {"color": colour, "alpha": 0.6 if control else 1.0}
            axes.errorbar(x, y, spread, linewidth=1, elinewidth=0.8, marker="<" if beyond else marker, **style)
            # A family is named once, where its best is.
            named = int(np.argmin(y))
            labels += [
                Label(name if i == named else "", *at, colour, style["alpha"])
                for i, at in enumerate(zip(x, y, strict=True))
            ]
        ceiling = found.value(CEILING, domain, "ratio") or 1.0
        _scales(axes, [label.x for label in labels], [ceiling, *(label.y for label in labels)], found.decodes)
        _marks(axes, found, domain)
        write_labels(axes, labels)

    return draw(paint, 5.8, alt, WIDE)


def _scales(axes: Axes, x: list[float], y: list[float], decodes: bool) -> None:
    """Both logarithmic, with room for names around the points and for a ratio of 1."""
    label = "state of one sequence" if decodes else "features F"
    low, high = min([1.0, *y]), max([1.1, *y])
    axes.set(ylim=(low / 1.02, high * 1.02 * (high / low) ** 0.02), xlabel=label)
    axes.set_ylabel("perplexity / teacher's")
    logarithmic(axes, "×")
    axes.set_xscale("log", base=2)
    if x:
        axes.set_xlim(min(x) / 1.6, max(x) * 1.6)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value) if decodes else f"{value:.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _marks(axes: Axes, found: Compared, domain: str) -> None:
    """The teacher, the ceiling where it is not the same, and the key-value cache at the context of the evaluation."""
    exact = found.value(CEILING, domain, "ratio")
    lines = [("teacher", 1.0, "bottom" if exact and exact < 1 else "top" if exact and exact > 1 else "center")]
    if exact and exact != 1:
        lines.append(("exact", exact, "top" if exact < 1 else "bottom"))
    for name, ratio, side in lines:
        axes.axhline(ratio, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        at = (1.01, ratio)
        axes.annotate(name, at, xycoords=axes.get_yaxis_transform(), va=side, fontsize=SIZE)
    for context, each in _caches(found):
        low, high = axes.get_xlim()
        axes.set_xlim(low, max(high, context * each * 1.25))
        axes.axvline(context * each, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        at = (context * each, 1.01)
        name = f"teacher's cache\nat {context:,.0f} tokens"
        axes.annotate(name, at, xycoords=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=SIZE)


def _caches(found: Compared) -> set[tuple[float, float]]:
    """(context, bytes per token) as measured; more than one where contexts differ."""
    known = {
        (found.of_mixer(mixer, "context") or 0, found.of_mixer(mixer, "cache_bytes_per_token") or 0)
        for mixer in found.mixers
    }
    return {(context, each) for context, each in known if context and each}
