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


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = torch.promote_types(logits.dtype, torch.float32)
    if temperature != 1:
        logits = logits.to(wide) / temperature
    return logits.log_softmax(-1, dtype=wide)
