"""What the student says when it goes on by itself: likelihood on given text hides failures that this shows."""

import math
from typing import Any

import torch
from torch import Tensor

from ..flexformer.cache import CACHE
from .subject import Subject


def measure_generation(subject: Subject) -> dict[str, Any]:
    """By domain, on prompts of held-out text, half a context each: {"until", "identical": greedy decoding, tokens until
    student and teacher first part, mean, and the share of prompts where they do not; "nats": {"teacher", "student",
    "text"}: mean −log p under the teacher of what it samples itself, of what the student samples, and of how the text
    goes on; "error": the standard error over prompts of the student's above the teacher's; "tokens", "prompts"}."""
    wanted, found = subject.config.measure.length, {}
    half = subject.config.data.context // 2
    for domain in subject.domains:
        blocks = torch.stack(list(subject.corpus.stretches(domain, 1, wanted.prompts)))
        prompt, text = blocks[:, :half], blocks[:, half : half + wanted.new_tokens]
        new = text.shape[1]
        greedy = {who: go_on(model, prompt, new, subject, False) for who, model in models(subject).items()}
        sampled = {who: go_on(model, prompt, new, subject, True) for who, model in models(subject).items()}
        until = parted(greedy["teacher"], greedy["student"])
        likely = {who: nats(subject, prompt, each) for who, each in {**sampled, "text": text}.items()}
        worse = likely["student"] - likely["teacher"]
        found[domain] = {
            "until": until.double().mean().item(),
            "identical": (until == new).double().mean().item(),
            "nats": {who: each.mean().item() for who, each in likely.items()},
            "error": (worse.std() / len(worse) ** 0.5).item() if len(worse) > 1 else math.nan,
            "tokens": new,
            "prompts": len(blocks),
        }
    return found


def models(subject: Subject) -> dict[str, Any]:
    return {"teacher": subject.teacher.model, "student": subject.student}


@torch.no_grad()
def go_on(model: Any, prompt: Tensor, new: int, subject: Subject, sample: bool) -> Tensor:
    """Exactly `new` tokens after each prompt, the likeliest or drawn from the whole distribution: (B, new).

    Written out, for a tokenizer or a generation config may end a text early or reshape what is likely.
    """
    model.eval().to(subject.device)
    generator = torch.Generator(subject.device).manual_seed(subject.config.seed)
    step, cache, said = prompt.to(subject.device), None, []
    for _ in range(new):
        out = model(input_ids=step, use_cache=True, **{CACHE: cache})
        cache, logits = getattr(out, CACHE), out.logits[:, -1].float()
        step = (
            torch.multinomial(logits.softmax(-1), 1, generator=generator) if sample else logits.argmax(-1, keepdim=True)
        )
        said.append(step)
    return torch.cat(said, 1).cpu()


def parted(one: Tensor, other: Tensor) -> Tensor:
    """How many tokens they share before they part: (B,)."""
    return (one == other).long().cumprod(1).sum(1)


@torch.no_grad()
def nats(subject: Subject, prompt: Tensor, said: Tensor) -> Tensor:
    """Mean −log p under the teacher of what is said after each prompt: (B,)."""
    total = []
    for tokens in torch.cat([prompt, said], 1):
        logits = subject.teacher.model(input_ids=tokens[None].to(subject.device), use_cache=False).logits[0, :-1]
        log_p = logits.float().log_softmax(-1).gather(-1, tokens[1:, None].to(subject.device))[:, 0]
        total.append(-log_p[-said.shape[1] :].double().mean().cpu())
    return torch.stack(total)
