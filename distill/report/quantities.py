"""How a quantity is written for a reader. An absent one is a dash."""

DASH = "–"
#: Keeps a number and its unit on one line.
NBSP = "\N{NO-BREAK SPACE}"


def number(value: float | None) -> str:
    """Three significant digits: 0.0123, 1.10, 21.3, 10,423, 2.1e-07."""
    if value is None:
        return DASH
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.1e}"
    if abs(value) >= 99.95:
        return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"
    return f"{value:#.3g}" if value else "0"


def times(value: float | None) -> str:
    """A quotient to two decimals: 1.12×."""
    if value is None:
        return DASH
    return f"{value:.2f}×" if value < 10 else f"{number(value)}×"


def quotient(value: float | None, by: float | None) -> str:
    """`times`, where both are known and `by` is not 0."""
    return times(value / by if value is not None and by else None)


def with_error(value: float | None, error: float | None) -> str:
    """A quotient and its standard error: 1.118 ± 0.004."""
    if value is None:
        return DASH
    if value >= 10:
        return number(value) if error is None else f"{number(value)} ± {number(error)}"
    return f"{value:z.3f}" if error is None else f"{value:z.3f} ± {error:.3f}"


def share(value: float | None) -> str:
    """A part of one as a percentage: 81.3 %."""
    return DASH if value is None else f"{100 * value:.1f}{NBSP}%"


def count(value: float | None) -> str:
    """A number of things: 950, 4.1 k, 124 M."""
    if value is None:
        return DASH
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{_short(value / unit)}{NBSP}{suffix}"
    return f"{value:.0f}"


def size(value: float | None) -> str:
    """Bytes: 410 KiB, 3 MiB."""
    if value is None:
        return DASH
    for power, suffix in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if value >= 1024**power:
            return f"{_short(value / 1024**power)}{NBSP}{suffix}"
    return f"{value:.0f}{NBSP}B"


def duration(seconds: float | None) -> str:
    """Time: 8.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{seconds:.1f}{NBSP}s"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes}{NBSP}min{NBSP}{rest:02d}{NBSP}s"
        if minutes < 60
        else f"{minutes // 60}{NBSP}h{NBSP}{minutes % 60:02d}{NBSP}min"
    )


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
