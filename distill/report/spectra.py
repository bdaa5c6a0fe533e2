"""What stage 1 did to the frequencies of every layer."""

from typing import Any

from .plots import ranges
from .quantities import number
from .section import Figure, Table


def spectrum_tables(spectra: dict[str, Any] | None) -> list[Table]:
    """What stage 1 did to the frequencies of every layer, the middle one and those that a tenth lies beyond."""
    rows = [
        [
            layer,
            name.replace("_", " "),
            span(told["norm_before"]),
            span(told["norm_after"]),
            span(told["cosine"]),
            number(told["directions_before"]),
            number(told["directions_after"]),
        ]
        for layer, names in (spectra or {}).items()
        for name, told in names.items()
    ]
    columns = ["Layer", "Frequencies", "Length before", "Length after", "Cosine with before"]
    columns += ["Directions before", "Directions after"]
    caption = "What stage 1 did to the frequencies: the middle one, and what a tenth lies below and above"
    return [Table(caption, columns, rows, labels=2)] if rows else []


def span(values: list[float]) -> str:
    low, middle, high = values
    return f"{number(middle)} ({number(low)} to {number(high)})"


def spectrum_figures(spectra: dict[str, Any] | None) -> list[list[Figure]]:
    """One for each kind of frequencies: their lengths before and after, by layer."""
    names = dict.fromkeys(name for each in (spectra or {}).values() for name in each)
    return [[spectrum_figure(spectra or {}, name) for name in names]] if names else []


def spectrum_figure(spectra: dict[str, Any], name: str) -> Figure:
    layers = [layer for layer, each in spectra.items() if name in each]
    spans = {when: [spectra[layer][name][f"norm_{when}"] for layer in layers] for when in ("before", "after")}
    title = f"Length of the {name.replace('_', ' ')}, before and after stage 1"
    told = "; ".join(f"{when} {', '.join(number(middle) for _, middle, _ in bars)}" for when, bars in spans.items())
    alt = f"{title}, the middle one of each layer: {told}."
    caption = f"{title}: the middle one of each layer, and what a tenth lies below and above."
    return Figure(f"spectrum-{name}", caption, alt, ranges(layers, spans, ("layer", "length"), alt))
