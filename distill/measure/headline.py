"""The figures that a decision rests on."""

from typing import Any

import torch

from ..config import Config
from ..flexformer.model import FlexformerForCausalLM
from ..rundir import RunDirectory
from ..teacher import Teacher
from .perplexity import Reading, agreement, ratio, ratio_error

#: A reading per domain, by what was read with: teacher, swapped, stage1, student, teacher_tuned.
Readings = dict[str, dict[str, Reading]]


def measure_headline(
    teacher: Teacher,
    student: FlexformerForCausalLM,
    readings: Readings,
    tokens: dict[str, int],
    config: Config,
    run: RunDirectory,
) -> None:
    """Writes measurements/headline.json."""
    of_teacher, of_student = readings["teacher"], readings["student"]
    pairs = {domain: (of_student[domain], of_teacher[domain]) for domain in of_teacher}
    perplexities: dict[str, Any] = {
        f"{who}_ppl": {domain: reading.perplexity for domain, reading in readings[who].items()}
        if who in readings
        else None
        for who in ("teacher", "swapped", "stage1", "student", "teacher_tuned")
    }
    run.write_measurement(
        "headline",
        perplexities
        | {
            "ratio": {domain: ratio(*pair) for domain, pair in pairs.items()},
            "ratio_error": {domain: ratio_error(*pair) for domain, pair in pairs.items()},
            "agreement": {domain: agreement(*pair) for domain, pair in pairs.items()},
            "evaluation_tokens": {domain: reading.tokens for domain, reading in of_teacher.items()},
            "context": config.data.context,
            "tokens": tokens,
            "seconds": run.seconds,
            "parameters": parameters(teacher, student),
            "state_bytes": state_bytes(student),
            "cache_bytes_per_token": cache_bytes_per_token(teacher),
            "mixer": config.mixer,
        },
    )


def parameters(teacher: Teacher, student: FlexformerForCausalLM) -> dict[str, int]:
    return {
        "teacher": teacher.model.num_parameters(),
        "student": student.num_parameters(),
        "mixers": sum(each.numel() for mixer in student.mixers for each in mixer.parameters()),
    }


@torch.no_grad()
def state_bytes(student: FlexformerForCausalLM) -> int:
    """Bytes that decoding one sequence keeps, over all layers and at any length."""
    cache = student.new_cache()
    student(input_ids=torch.zeros(1, 1, dtype=torch.long, device=student.device), past_key_values=cache)
    return cache.nbytes


def cache_bytes_per_token(teacher: Teacher) -> int:
    """Bytes by which the teacher's key-value cache grows with each token, in the precision of its checkpoint."""
    width = sum(2 * layer["kv_heads"] * layer["head_dim"] for layer in teacher.layers)
    return width * teacher.stored.itemsize
