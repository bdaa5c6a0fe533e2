"""What learning did to the frequencies of the mixers: how long they are, and which way they point."""

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..flexformer.token_mixer import TokenMixer

#: By layer and by name: (heads, M, D), frequencies or projections, a row each.
Frequencies: TypeAlias = dict[int, dict[str, Tensor]]
#: Of what is told: the middle, and what a tenth lies below and above.
SHARES = (0.1, 0.5, 0.9)


def frequencies(mixers: dict[int, TokenMixer]) -> Frequencies:
    """Those of every layer as they are now; nothing of a mixer that has none."""
    found: Frequencies = {}
    for layer, mixer in mixers.items():
        made: Any = getattr(mixer, "map", None)
        tensors = {name: getattr(made, name) for name in getattr(made, "frequencies", ())}
        if rows := {name: each.detach().cpu().clone() for name, each in tensors.items() if each.dim() == 3}:
            found[layer] = rows
    return found


def spectra(before: Frequencies, after: Frequencies) -> dict[str, Any] | None:
    """{layer: {name: {"norm_before", "norm_after", "cosine": [at each of SHARES], "directions_before",
    "directions_after": number}}}; None where there are none.

    cosine: of every frequency with what it was. directions: how many a head's frequencies point to,
    (Σ λ)² / Σ λ² of the eigenvalues of Σ_m u_m u_mᵀ, u their unit vectors: 1 if all are parallel, D if they point
    everywhere alike.
    """
    found = {
        str(layer): {name: told(before[layer][name], each) for name, each in after[layer].items()}
        for layer in after
        if layer in before
    }
    return found or None


def told(before: Tensor, after: Tensor) -> dict[str, Any]:
    return {
        "norm_before": spread(before.norm(dim=-1)),
        "norm_after": spread(after.norm(dim=-1)),
        "cosine": spread(cosine_similarity(before, after, dim=-1)),
        "directions_before": directions(before),
        "directions_after": directions(after),
    }


def spread(values: Tensor) -> list[float]:
    """At each of SHARES of the values of all heads."""
    shares = torch.tensor(SHARES, dtype=torch.float64)
    return torch.quantile(values.double().flatten(), shares).tolist()


def directions(rows: Tensor) -> float:
    """Mean over heads."""
    unit = normalize(rows.double(), dim=-1)
    values = torch.linalg.eigvalsh(unit.mT @ unit)
    return (values.sum(-1).square() / values.square().sum(-1)).mean().item()
