"""The picture of a sweep: what quality a state of some size buys, and which jobs nothing beats."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..report.compare.labels import Label, write_labels
from ..report.figures import COLOURS, INK, WIDE, draw, logarithmic
from ..report.quantities import size, times
from ..report.section import Figure
from ..report.verdict import listed
from .result import Result, front

CAPTION = (
    "Student over teacher perplexity, the geometric mean over domains, against the size of the decoding state, both on "
    "logarithmic scales; numbers are those of jobs. The line joins the jobs that no other beats in one without losing "
    "in the other."
)


def picture(found: list[Result]) -> Figure | None:
    """None where no job has both a ratio and a state."""
    best = front(found)
    if not best:
        return None
    alt = f"Ratio against state size. Beaten by none: {listed([told(each) for each in best])}."
    return Figure("front", CAPTION, alt, drawing(found, best, alt), wide=True)


def told(each: Result) -> str:
    return f"{each.job} ({times(each.value('ratio'))}, {size(each.value('state'))})"


def drawing(found: list[Result], best: list[Result], alt: str) -> str:
    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        labels: list[Label] = []
        for each in found:
            x, y = each.value("state"), each.value("ratio")
            if x and y:
                colour = COLOURS[0] if each in best else INK
                axes.plot(x, y, "o", color=colour, alpha=1 if each in best else 0.5)
                labels.append(Label(str(each.job.number), x, y, colour))
        line = [(each.value("state") or 0, each.value("ratio") or 0) for each in best]
        axes.plot(*zip(*line, strict=True), color=COLOURS[0], drawstyle="steps-post", linewidth=1, alpha=0.4)
        scales(axes, [label.x for label in labels], [label.y for label in labels])
        write_labels(axes, labels)

    return draw(paint, 4.4, alt, WIDE)


def scales(axes: Axes, x: list[float], y: list[float]) -> None:
    """With room around the points, and the teacher where it is near."""
    low, high = min(y), max(y)
    room = max(1.02, (high / low) ** 0.1)
    axes.set(xlabel="state of one sequence", ylabel="perplexity / teacher's", ylim=(low / room, high * room))
    logarithmic(axes, "×")
    if high / low < 1.05:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3f}×"))
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(x) / 1.3, max(x) * 1.3)
    axes.xaxis.set_major_locator(LogLocator(base=2) if max(x) >= 4 * min(x) else MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axes.xaxis.set_minor_locator(NullLocator())
