"""Attention maps of teacher and student, side by side, for the heads a run kept to look at."""

from typing import Any

import numpy as np

from .plots import map_pair
from .quantities import number
from .run import ArtefactError, Run
from .section import Figure

MAPS = "measurements/fidelity_maps.safetensors"


def map_figures(run: Run, fidelity: dict[str, Any]) -> list[list[Figure]]:
    """A figure for each of `fidelity["shown"]`, a row for each domain. ArtefactError: a map is missing."""
    maps = run.tensors(MAPS)
    return [
        [_figure(maps, head, _kl(fidelity, head)) for head in fidelity["shown"] if head["domain"] == domain]
        for domain in fidelity["domains"]
    ]


def _figure(maps: dict[str, np.ndarray], shown: dict[str, Any], kl: float | None) -> Figure:
    key = f"{shown['domain']}.{shown['layer']}.{shown['head']}"
    teacher, student = (_map(maps, f"{key}.{whose}") for whose in ("teacher", "student"))
    title = f"{shown['domain']}, layer {shown['layer']}, head {shown['head']}: the {shown['why']}, KL {number(kl)}"
    below = "; negative weights are pink" if (student < 0).any() else ""
    caption = f"{title}. Colour grows with the square root of the weight{below}."
    alt = f"Attention weights of teacher and student over the first {len(teacher)} tokens. {title}."
    return Figure(f"map-{shown['why']}-{key}", caption, alt, map_pair(teacher, student, ("teacher", "student"), alt))


def _map(maps: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in maps:
        raise ArtefactError(f"{MAPS} has no '{key}'")
    return maps[key]


def _kl(fidelity: dict[str, Any], shown: dict[str, Any]) -> float | None:
    kl: float | None = fidelity["domains"][shown["domain"]]["kl"][shown["layer"]][shown["head"]]
    return kl
