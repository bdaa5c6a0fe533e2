"""Can it find again what it has read? Tasks made of the model's own tokens, by the distance over which they reach."""

from typing import Any

import torch
from torch import Tensor

from .subject import Subject

#: The nearest distance; others double from here.
NEAREST = 16
#: Tokens of a passkey, and of the mark that it stands behind.
KEY, MARK = 4, 4


def measure_recall(subject: Subject, context: int) -> dict[str, Any]:
    """{task: {"distance": [tokens], "teacher", "student": {"found": [share], "gain": [nats], "error": [nats]}}}, as
    far as they fit the context.

    copy: tokens drawn at random, and again; every token of the second time is one that stood `distance` tokens before.
    passkey: a mark and a key, drawn at random, then `distance` tokens of held-out text, and the mark again: what
    follows is the key. Found is a token that is the likeliest; gain is how much higher its log p is than where the
    same stands after as much else, another row's first part, so that there is nothing to be recalled: it shows what a
    model that finds little has still kept. error: the standard error of the gain over rows.
    """
    return {
        "copy": found(subject, [d for d in doublings(context) if 2 * d <= context], copies),
        "passkey": found(subject, [d for d in doublings(context) if d + 2 * (KEY + MARK) <= context], passkeys),
    }


def doublings(limit: int) -> list[int]:
    distances, distance = [], NEAREST
    while distance <= limit:
        distances.append(distance)
        distance *= 2
    return distances


def found(subject: Subject, distances: list[int], make: Any) -> dict[str, Any]:
    models = {"teacher": subject.teacher.model, "student": subject.student}
    told: dict[str, dict[str, list[float]]] = {who: {"found": [], "gain": [], "error": []} for who in models}
    for distance in distances:
        tokens, control, asked = make(subject, distance)
        for who, model in models.items():
            hits, log_p = asked_for(model, tokens, asked, subject.device)
            gains = log_p - asked_for(model, control, asked, subject.device)[1]
            told[who]["found"].append(hits.mean().item())
            told[who]["gain"].append(gains.mean().item())
            told[who]["error"].append((gains.std() / len(gains) ** 0.5).item())
    return {"distance": distances, **told}


def copies(subject: Subject, distance: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, 2 d), the same after another row's first part, and the places of those that are asked for: all of the
    second time but its first, which nothing tells of."""
    once = drawn(subject, distance)
    return torch.cat([once, once], 1), torch.cat([others(once), once], 1), torch.arange(distance + 1, 2 * distance)


def passkeys(subject: Subject, distance: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `copies`: tokens (B, …), of which the key behind the second mark is asked for."""
    secret = drawn(subject, MARK + KEY)
    between = text(subject, len(secret), distance)
    tokens, control = (torch.cat([first, between, secret], 1) for first in (secret, others(secret)))
    return tokens, control, torch.arange(tokens.shape[1] - KEY, tokens.shape[1])


def others(rows: Tensor) -> Tensor:
    """For each row another one."""
    return rows.roll(1, 0)


def drawn(subject: Subject, length: int) -> Tensor:
    """Ordinary tokens at random: (B, length). The same ones in every run with the same vocabulary."""
    tokenizer = subject.teacher.tokenizer
    special = set(tokenizer.all_special_ids)
    ordinary = torch.tensor([token for token in range(len(tokenizer)) if token not in special])
    generator = torch.Generator().manual_seed(length)
    shape = (subject.config.measure.length.sequences, length)
    return ordinary[torch.randint(len(ordinary), shape, generator=generator)]


def text(subject: Subject, count: int, length: int) -> Tensor:
    """Held-out text of all domains in turn: (count, length)."""
    context = subject.config.data.context
    blocks = -(-length // context)
    each = {domain: list(subject.corpus.stretches(domain, blocks, count)) for domain in subject.domains}
    domains = [domain for domain in subject.domains if each[domain]]
    rows = []
    for place in range(count):
        there = each[domains[place % len(domains)]]
        rows.append(there[place // len(domains) % len(there)][:length])
    return torch.stack(rows)


@torch.no_grad()
def asked_for(model: Any, tokens: Tensor, asked: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of the tokens at the places `asked`: the share that are the likeliest there (B,), and their mean log p (B,). Rows
    are read one at a time."""
    model.eval().to(device)
    shares, likely = [], []
    for row in tokens:
        logits = model(input_ids=row[None].to(device), use_cache=False).logits[0, :-1].float().cpu()
        log_p = logits.log_softmax(-1).gather(-1, row[1:, None])[:, 0].double()
        shares.append((logits.argmax(-1) == row[1:])[asked - 1].double().mean())
        likely.append(log_p[asked - 1].mean())
    return torch.stack(shares), torch.stack(likely)
