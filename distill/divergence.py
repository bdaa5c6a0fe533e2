"""How far one prediction of tokens is from another."""

import torch
from torch import Tensor


def divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL = Σ_v p (log p − log s) in nats, p = softmax(teacher/T), s = softmax(student/T): logits (…, V) → (…).

    float32 at least, whatever the logits are. These tensors are the largest of a training step, so each is passed over
    as seldom as can be.
    """
    target, found = (log_softmax(logits, temperature) for logits in (teacher, student))
    return (target.exp() * (target - found)).sum(-1)


def logit_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher‖student) at temperature T: logits (…, V) → mean over all predictions."""
    return temperature**2 * divergence(teacher, student, temperature).mean()


def top_k_kl(log_likeliest: Tensor, tokens: Tensor, student: Tensor) -> Tensor:
    """KL of the k likeliest tokens and of all others as one: Σ_k p (log p − log s) + r (log r − log s_r), the mean.

    r = 1 − Σ_k p. log_likeliest, tokens (…, k): log p and which they are; student: logits (…, V). Never more than the
    whole KL, and all of it where k = V.
    """
    wide = student.to(torch.promote_types(student.dtype, torch.float32))
    every = wide.logsumexp(-1)
    chances = log_likeliest.exp()
    likeliest = (chances * (log_likeliest - wide.gather(-1, tokens) + every[..., None])).sum(-1)
    rest = (1 - chances.sum(-1)).clamp(min=0)
    if tokens.shape[-1] == student.shape[-1]:
        return likeliest.mean()
    others = wide.scatter(-1, tokens, -torch.inf).logsumexp(-1) - every
    return (likeliest + torch.special.xlogy(rest, rest) - rest * others).mean()


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    if temperature != 1:
        logits = logits.to(wide) / temperature
    return logits.log_softmax(-1, dtype=wide)
