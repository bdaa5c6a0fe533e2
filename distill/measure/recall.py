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
    """{task: {"distance": [tokens], "teacher", "student": [share of tokens found]}}, as far as they fit the context.

    copy: tokens drawn at random, and again; every token of the second time is one that stood `distance` tokens before.
    passkey: a mark and a key, drawn at random, then `distance` tokens of held-out text, and the mark again: what
    follows is the key. Found is a token that is the likeliest.
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
    shares: dict[str, list[float]] = {who: [] for who in models}
    for distance in distances:
        tokens, asked = make(subject, distance)
        for who, model in models.items():
            shares[who].append(right(model, tokens, asked, subject.device))
    return {"distance": distances, **shares}


def copies(subject: Subject, distance: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, 2 d), and which of them are asked for: those that no beginning can be guessed from, i.e. all of the
    second time but its first."""
    once = drawn(subject, distance)
    asked = torch.arange(2 * distance) > distance
    return torch.cat([once, once], 1), asked


def passkeys(subject: Subject, distance: int) -> tuple[Tensor, Tensor]:
    """Tokens (B, …), and which of them are asked for: the key behind the second mark."""
    secret = drawn(subject, MARK + KEY)
    filler = text(subject, len(secret), distance)
    tokens = torch.cat([secret, filler, secret], 1)
    return tokens, torch.arange(tokens.shape[1]) >= tokens.shape[1] - KEY


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
def right(model: Any, tokens: Tensor, asked: Tensor, device: torch.device) -> float:
    """The share of the tokens asked for that are the likeliest where they stand; rows are read one at a time."""
    model.eval().to(device)
    shares = []
    for row in tokens:
        likeliest = model(input_ids=row[None].to(device), use_cache=False).logits[0, :-1].argmax(-1).cpu()
        shares.append((likeliest == row[1:])[asked[1:]].double().mean())
    return torch.stack(shares).mean().item()
