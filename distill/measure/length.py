"""How good the student is at each length: by position, beyond the context of training, in recall and in generation."""

import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .generation import measure_generation
from .recall import measure_recall
from .subject import NotMeasured, Subject

#: The first position that has a bucket of its own; buckets double from here.
FIRST = 16


def measure_length(subject: Subject) -> dict[str, Any]:
    """{"contexts": [tokens], "ppl": {domain: {context: {who: perplexity, "error": of
    the logarithm of their ratio}}}, "positions": {domain: {"from": [tokens],
    who: [nats]}}, "recall": see `recall`, "generation": see `generation`}; who is teacher or student.

    Perplexity at every context is of the same text, read in stretches of the longest one or cut into shorter ones.
    Positions are the tokens that a target has before it, at the longest context.
    """
    if not subject.task.causal:
        raise NotMeasured("an encoder reads a text as a whole and generates none")
    if not subject.corpus.running:
        raise NotMeasured("conversations have no running text to be read at other lengths")
    contexts = contexts_of(subject)
    ppl: dict[str, Any] = {}
    positions: dict[str, Any] = {}
    with subject.run.timed("measure"):
        for domain in tqdm(subject.domains, "length", unit="domain", leave=False):
            ppl[domain], positions[domain] = read_lengths(subject, domain, contexts)
        recall = measure_recall(subject, contexts[-1])
        generation = measure_generation(subject)
    return {
        "context": subject.config.data.context,
        "contexts": contexts,
        "ppl": ppl,
        "positions": positions,
        "recall": recall,
        "generation": generation,
    }


def contexts_of(subject: Subject) -> list[int]:
    """The context of training and its doublings, as far as was asked for, as the teacher has positions and as every
    domain has text."""
    context, most = subject.config.data.context, subject.config.measure.length.times
    positions = getattr(subject.teacher.model.config, "max_position_embeddings", None) or most * context
    text = min(len(running) for running in subject.corpus.running.values())
    times, found = 1, []
    while times <= most and times * context <= positions and times <= text:
        found.append(times * context)
        times *= 2
    return found


def read_lengths(
    subject: Subject, domain: str, contexts: list[int]
) -> tuple[dict[int, dict[str, float]], dict[str, Any]]:
    """Perplexity at each context, and mean nats by position at the longest."""
    wanted, longest = subject.config.measure.length, contexts[-1]
    times = longest // subject.config.data.context
    stretches = list(subject.corpus.stretches(domain, times, max(1, wanted.blocks // times)))
    models = {"teacher": subject.teacher.model, "student": subject.student}
    nats = {
        who: {context: torch.stack([nll(model, each, context, subject) for each in stretches]) for context in contexts}
        for who, model in models.items()
    }
    # The same targets at every context: those that have one before them at the shortest.
    same = ~nats["teacher"][contexts[0]].isnan()
    ppl = {context: {who: nats[who][context][same].mean().exp().item() for who in models} for context in contexts}
    for context, told in ppl.items():
        told["error"] = error([nats[who][context] for who in ("student", "teacher")], same)
    edges = buckets(longest)
    return ppl, {"from": edges} | {who: by_position(nats[who][longest], edges) for who in models}


def error(nats: list[Tensor], same: Tensor) -> float:
    """The standard error over stretches of the mean gap between two, (stretches, N) each, over the targets of both."""
    student, teacher = nats
    gap = torch.where(same, student - teacher, 0.0).sum(1) / same.sum(1)
    return (gap.std() / len(gap) ** 0.5).item() if len(gap) > 1 else math.nan


@torch.no_grad()
def nll(model: Any, tokens: Tensor, context: int, subject: Subject) -> Tensor:
    """−log p of every token of a stretch, each read with those before it in its piece of `context` tokens: (N,), NaN
    for the first of each piece, before which there is none."""
    model.eval().to(subject.device)
    pieces = []
    for piece in tokens.split(context):
        batch = {"input_ids": piece[None].to(subject.device)}
        found = subject.task.nll(subject.task.predict(model, batch), batch)[0].double().cpu()
        pieces.append(torch.nn.functional.pad(found, (1, 0), value=torch.nan))
    return torch.cat(pieces)


def buckets(context: int) -> list[int]:
    """Where each begins: 1, FIRST, 2 FIRST, … below the context."""
    edges = [1]
    while (edge := FIRST if edges == [1] else 2 * edges[-1]) < context:
        edges.append(edge)
    return edges


def by_position(nats: Tensor, edges: list[int]) -> list[float]:
    """(stretches, N) → the mean of every bucket."""
    ends = [*edges[1:], nats.shape[1]]
    return [nats[:, begin:end].mean().item() for begin, end in zip(edges, ends, strict=True)]
