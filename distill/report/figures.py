"""How every figure looks, and how it becomes an SVG that fits a light and a dark page."""

import io
import re
from collections.abc import Callable
from typing import Any
from xml.sax.saxutils import quoteattr

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

#: Of middle lightness, so that they read on white and on black; told apart with colour-blind eyes.
COLOURS = ("#2b8cbe", "#e08214", "#3aa17e", "#c264a4", "#8c7bd1", "#a08a3c")
MARKERS = ("o", "s", "^", "D", "v", "P")
#: Inches. A figure fits a telephone at its natural size; a wide page sets several side by side.
WIDTH = 4.4
#: Inches. A figure that takes a wide page for itself.
WIDE = 7.6
#: Stands for the colour of the text around the figure until the SVG is written.
INK = "#123456"

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "distill",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 10,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
}


def draw(paint: Callable[[Figure], None], height: float, alt: str, width: float = WIDTH) -> str:
    """The SVG of what `paint` puts on an empty figure, `height` and `width` in inches, with its alternative text.

    It takes colour and font from the text around it, and is the same text whenever the same things are painted.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(written.getvalue(), alt)


def standalone(svg: str) -> str:
    """The same figure as a file of its own, which must bring the colours and the font that a page would give it."""
    style = (
        "<style>svg{color:#33383d;font-family:system-ui,sans-serif}"
        "@media(prefers-color-scheme:dark){svg{color:#c9ced3}}</style>"
    )
    return svg.replace(">", ">" + style, 1)


def logarithmic(axes: Axes, unit: str = "") -> None:
    """Make the vertical axis logarithmic, with as many round ticks as its range can bear. Call it after plotting."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 3:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high / low < 100 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _for_a_page(svg: str, alt: str) -> str:
    """Inline SVG: no prolog, no rules for the whole page, no ids but those referred to."""
    svg = svg[svg.index("<svg ") :].replace(INK, "currentColor")
    svg = re.sub(r"\s*<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(alt)} stroke-linejoin="round" ', 1)
