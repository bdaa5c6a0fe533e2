"""How well each head's attention map is matched, on held-out text and the teacher's own queries and keys."""

from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..capture import Heads
from ..config import Measure
from ..data import Corpus
from ..flexformer.token_mixer import TokenMixer
from ..maploss import log_student, log_teacher, map_kl, negative_share, output_error, per_head
from ..rundir import RunDirectory
from ..task import tokens_of
from ..teacher import Teacher
from ..whole import whole
from .spectra import Frequencies, frequencies, spectra

#: Added to a signed map's positive weights so that its KL can be stated at all; such a KL is not comparable.
CLIP = 1e-6


class HeadFidelity(NamedTuple):
    """Per head (H,), NaN where a mixer has none of it; entropies and KL in nats.

    smallest_denominator: |z_i| / Σ_j |S_ij|. far_teacher, far_student: share of the attention that goes beyond the
    window; gate: mean of gate(q_i), what the linear part is raised by beside it.
    """

    kl: Tensor
    output_error: Tensor
    entropy_teacher: Tensor
    entropy_student: Tensor
    negative_share: Tensor
    smallest_denominator: Tensor
    far_teacher: Tensor
    far_student: Tensor
    gate: Tensor


def measure_fidelity(
    teacher: Teacher,
    mixers: dict[int, TokenMixer],
    corpus: Corpus,
    wanted: Measure,
    run: RunDirectory,
    device: torch.device,
    drawn: Frequencies,
) -> None:
    """Writes measurements/fidelity.json and the maps of the best, median and worst head of each domain.

    A layer that is kept exact is a row of nothing. drawn: the frequencies before they were fitted, as far as known.
    """
    teacher.to(device)
    for mixer in mixers.values():
        mixer.to(device)
    kinds = list(mixers.values())
    domains: dict[str, Any] = {}
    shown: list[dict[str, Any]] = []
    maps: dict[str, Tensor] = {}
    tokens = 0
    for domain in corpus.validation:
        batch = next(iter(corpus.evaluation(domain, wanted.fidelity_blocks)))
        batch = {name: each.to(device) for name, each in batch.items()}
        tokens += tokens_of(batch)
        layers = teacher.heads(batch)
        measured = {layer: head_fidelity(mixer, layers[layer]) for layer, mixer in mixers.items()}
        domains[domain] = table(measured, len(layers))
        if all(mixer.averages for mixer in kinds):
            for why, layer, head in pick(measured, kinds[0].comparable):
                shown.append({"domain": domain, "layer": layer, "head": head, "why": why})
                both = look(mixers[layer], layers[layer], head, wanted.map_tokens)
                maps |= {f"{domain}.{layer}.{head}.{side}": tensor for side, tensor in both.items()}
    run.write_measurement(
        "fidelity",
        {
            "layers": len(teacher.layers),
            "heads": max(mixer.shape.heads for mixer in kinds),
            "comparable": all(mixer.comparable for mixer in kinds),
            "window": kinds[0].width,
            "domains": domains,
            "shown": shown,
            "tokens": tokens,
            "spectra": spectra(drawn, frequencies(mixers)),
        },
    )
    with whole(run.folder("measurements") / "fidelity_maps.safetensors") as file:
        save_file(maps, file)


@torch.no_grad()
def head_fidelity(mixer: Any, heads: Heads) -> HeadFidelity:
    teacher, error = log_teacher(heads), output_error(mixer, heads)
    none = torch.full_like(error, torch.nan)
    if not mixer.averages:
        return HeadFidelity(none, error, entropy(teacher, heads.padding), *[none] * 6)
    student, weights = student_map(mixer, heads), mixer.scores(heads.query, heads.key, heads.scaling, heads.padding)
    cancelled = weights.sum(-1).abs() / weights.abs().sum(-1).clamp(min=1e-30)
    if heads.padding is not None:
        cancelled = cancelled.masked_fill((heads.padding == 0)[:, None, None], torch.inf)
    beyond = [none] * 3
    if mixer.width:
        gate = mixer.window.gate(heads.query.float() * heads.scaling**0.5)
        shares = [far_share(weights, mixer.width, heads.padding) for weights in (teacher, student)]
        beyond = [*shares, per_head(gate[:, None], heads.padding)]
    return HeadFidelity(
        map_kl(teacher, student, heads.padding),
        error,
        entropy(teacher, heads.padding),
        entropy(student, heads.padding),
        negative_share(weights, heads.padding),
        cancelled.amin((0, 3)).flatten(),
        *beyond,
    )


def student_map(mixer: Any, heads: Heads) -> Tensor:
    """log A; where weights can be negative or nought, the log of the clipped and renormalised ones."""
    if mixer.comparable:
        return log_student(mixer, heads)
    clipped = mixer.scores(heads.query, heads.key, heads.scaling, heads.padding).clamp(min=0) + CLIP
    clipped = clipped.masked_fill(log_teacher(heads) == -torch.inf, 0)
    return (clipped / clipped.sum(-1, keepdim=True)).log()


def far_share(log_weights: Tensor, width: int, padding: Tensor | None = None) -> Tensor:
    """Σ_{j ≤ i − w} of the weights (B, K, G, N, N), mean over batch and the queries that have such keys: (H,).

    Padding, if there is any, comes last.
    """
    far = log_weights.exp().tril(-width).sum(-1)[..., width:]
    if padding is None:
        return far.mean((0, 3)).flatten()
    real = (padding[:, width:] != 0)[:, None, None]
    return (far * real).sum((0, 3)).flatten() / real.sum()


def entropy(log_weights: Tensor, padding: Tensor | None = None) -> Tensor:
    """−Σ_j p log p, mean over batch and queries: (H,)."""
    return per_head(torch.special.entr(log_weights.exp()).sum(-1), padding)


def table(measured: dict[int, HeadFidelity], layers: int) -> dict[str, Any]:
    """{quantity: [layer][head]}."""
    nothing = [torch.nan] * max(len(each.kl) for each in measured.values())
    return {
        name: [getattr(measured[i], name).tolist() if i in measured else nothing for i in range(layers)]
        for name in HeadFidelity._fields
    }


def pick(measured: dict[int, HeadFidelity], comparable: bool) -> list[tuple[str, int, int]]:
    """The best, median and worst head as (why, layer, head): by KL, or by output error where KL means nothing."""
    values = torch.stack([each.kl if comparable else each.output_error for each in measured.values()])
    layers, order = list(measured), values.flatten().argsort()
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [(why, layers[int(at) // values.shape[1]], int(at) % values.shape[1]) for why, at in chosen.items()]


def look(mixer: TokenMixer, heads: Heads, head: int, tokens: int) -> dict[str, Tensor]:
    """Both maps of one head on the first tokens of the first block, at most as many as it has: (tokens, tokens)."""
    real = None if heads.padding is None else heads.padding[0] != 0
    with torch.no_grad():
        sides = {"teacher": log_teacher(heads), "student": student_map(mixer, heads)}
    return {
        side: kept(log_weights[0].flatten(0, 1)[head], real)[:tokens, :tokens].exp().cpu().contiguous()
        for side, log_weights in sides.items()
    }


def kept(matrix: Tensor, real: Tensor | None) -> Tensor:
    """(N, N) without the rows and columns of padding."""
    return matrix if real is None else matrix[real][:, real]
