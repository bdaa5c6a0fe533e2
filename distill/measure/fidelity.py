"""How well each head's attention map is matched, on held-out text and the teacher's own queries and keys."""

from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..config import Measure
from ..data import Corpus
from ..flexformer.engine import scores
from ..flexformer.mixer import Mixer
from ..maploss import log_student, log_teacher, map_kl, negative_share, output_error
from ..rundir import RunDirectory
from ..teacher import Heads, Teacher

#: Added to a signed map's positive weights so that its KL can be stated at all; such a KL is not comparable.
CLIP = 1e-6


class HeadFidelity(NamedTuple):
    """Per head (H,); entropies and KL in nats, `smallest_denominator` as |z_i| / Σ_j |S_ij|."""

    kl: Tensor
    output_error: Tensor
    entropy_teacher: Tensor
    entropy_student: Tensor
    negative_share: Tensor
    smallest_denominator: Tensor


def measure_fidelity(
    teacher: Teacher, mixers: list[Mixer], corpus: Corpus, wanted: Measure, run: RunDirectory, device: torch.device
) -> None:
    """Writes measurements/fidelity.json and the maps of the best, median and worst head of each domain."""
    teacher.to(device)
    for mixer in mixers:
        mixer.to(device)
    domains: dict[str, Any] = {}
    shown: list[dict[str, Any]] = []
    maps: dict[str, Tensor] = {}
    tokens = 0
    for domain in corpus.validation:
        batch = next(iter(corpus.evaluation(domain, wanted.fidelity_blocks)))["input_ids"].to(device)
        tokens += batch.numel()
        layers = teacher.heads(batch)
        measured = [head_fidelity(mixer, heads) for mixer, heads in zip(mixers, layers, strict=True)]
        domains[domain] = table(measured)
        for why, layer, head in pick(torch.stack([each.kl for each in measured])):
            shown.append({"domain": domain, "layer": layer, "head": head, "why": why})
            both = look(mixers[layer], layers[layer], head, wanted.map_tokens)
            maps |= {f"{domain}.{layer}.{head}.{side}": tensor for side, tensor in both.items()}
    run.write_measurement(
        "fidelity",
        {
            "layers": len(mixers),
            "heads": max(mixer.map.shape.heads for mixer in mixers),
            "comparable": not mixers[0].map.signed,
            "domains": domains,
            "shown": shown,
            "tokens": tokens,
        },
    )
    save_file(maps, run.folder("measurements") / "fidelity_maps.safetensors")


@torch.no_grad()
def head_fidelity(mixer: Mixer, heads: Heads) -> HeadFidelity:
    features = mixer.features(heads.query.float(), heads.key.float(), heads.scaling)
    teacher, student, weights = log_teacher(heads), student_map(mixer, heads), scores(features)
    cancelled = weights.sum(-1).abs() / weights.abs().sum(-1).clamp(min=1e-30)
    return HeadFidelity(
        map_kl(teacher, student),
        output_error(heads, features),
        entropy(teacher),
        entropy(student),
        negative_share(features),
        cancelled.amin((0, 3)).flatten(),
    )


def student_map(mixer: Mixer, heads: Heads) -> Tensor:
    """log A; of a signed map, the log of its clipped and renormalised weights."""
    features = mixer.features(heads.query.float(), heads.key.float(), heads.scaling)
    if not mixer.map.signed:
        return log_student(mixer, features)
    clipped = (scores(features).clamp(min=0) + CLIP).tril()
    return (clipped / clipped.sum(-1, keepdim=True)).log()


def entropy(log_weights: Tensor) -> Tensor:
    """−Σ_j p log p, mean over batch and queries: (H,)."""
    return torch.special.entr(log_weights.exp()).sum(-1).mean((0, 3)).flatten()


def table(layers: list[HeadFidelity]) -> dict[str, Any]:
    """{quantity: [layer][head]}."""
    return {name: [getattr(layer, name).tolist() for layer in layers] for name in HeadFidelity._fields}


def pick(kl: Tensor) -> list[tuple[str, int, int]]:
    """The best, median and worst head of (L, H) as (why, layer, head)."""
    order = kl.flatten().argsort()
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    return [(why, int(at) // kl.shape[1], int(at) % kl.shape[1]) for why, at in chosen.items()]


def look(mixer: Mixer, heads: Heads, head: int, tokens: int) -> dict[str, Tensor]:
    """Both maps of one head on the first tokens of the first block: (tokens, tokens)."""
    with torch.no_grad():
        sides = {"teacher": log_teacher(heads), "student": student_map(mixer, heads)}
    return {
        side: log_weights[0].flatten(0, 1)[head, :tokens, :tokens].exp().cpu().contiguous()
        for side, log_weights in sides.items()
    }
