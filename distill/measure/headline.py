"""The figures that a decision rests on."""

from collections.abc import Iterable
from typing import Any

import torch

from ..config import Config
from ..data import Corpus
from ..flexformer.mixer import PARTS
from ..flexformer.model import Flexformer, FlexformerForCausalLM
from ..rundir import RunDirectory
from ..teacher import Teacher
from .perplexity import Reading, agreement, ratio, ratio_error
from .scores import compared

#: A reading per domain, by what was read with: teacher, swapped, stage1, matched, student, teacher_tuned; and the
#: student with one of its PARTS alone. Matched is the student before fine-tuning, where there was one.
Readings = dict[str, dict[str, Reading]]
#: What the KL from the teacher is called, of all that were held against it.
KL = {"kl": "student", "teacher_tuned_kl": "teacher_tuned"}


def measure_headline(
    teacher: Teacher,
    student: Flexformer,
    readings: Readings,
    tokens: dict[str, int],
    corpus: Corpus,
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
        for who in ("teacher", "swapped", "stage1", "matched", "student", "teacher_tuned")
    }
    divergences: dict[str, Any] = {
        name: {domain: reading.divergence for domain, reading in readings[who].items()} if who in readings else None
        for name, who in KL.items()
    }
    run.write_measurement(
        "headline",
        perplexities
        | divergences
        | {
            "ratio": {domain: ratio(*pair) for domain, pair in pairs.items()},
            "ratio_error": {domain: ratio_error(*pair) for domain, pair in pairs.items()},
            "agreement": {domain: agreement(*pair) for domain, pair in pairs.items()},
            "scores": {
                domain: compared(read_by(readings, domain), len(teacher.classes or []), corpus.positive)
                for domain in of_teacher
            }
            if teacher.task.scored
            else None,
            "evaluation_tokens": {domain: reading.tokens for domain, reading in of_teacher.items()},
            "partners": {domain: int(reading.targets.max()) + 1 for domain, reading in of_teacher.items()}
            if teacher.task.paired
            else None,
            "task": config.task,
            "context": config.data.context,
            "tokens": tokens,
            "seconds": run.seconds,
            "peak_bytes": run.peak_bytes,
            "parameters": parameters(teacher, student),
            "state_bytes": state_bytes(student),
            "parts": {
                part: {domain: reading.perplexity for domain, reading in readings[part].items()}
                for part in PARTS
                if part in readings
            },
            "cache_bytes_per_token": cache_bytes_per_token(teacher, range(len(teacher.layers))),
            "student_cache_bytes_per_token": cache_bytes_per_token(teacher, student.config.exact_layers),
            "mixer": config.mixer,
            "feature_dim": feature_dim(student),
        },
    )


def read_by(readings: Readings, domain: str) -> dict[str, Reading]:
    """Those whose labels are held against each other."""
    return {who: readings[who][domain] for who in ("teacher", "matched", "student", "teacher_tuned") if who in readings}


def parameters(teacher: Teacher, student: Flexformer) -> dict[str, int]:
    return {
        "teacher": teacher.model.num_parameters(),
        "student": student.num_parameters(),
        "mixers": sum(each.numel() for mixer in student.mixers.values() for each in mixer.parameters()),
    }


def feature_dim(student: Flexformer) -> int | None:
    """F as it is, on the mean over layers: `mixer.features` is only its upper bound. None where no layer is swapped."""
    found = [mixer.feature_dim for mixer in student.mixers.values()]
    return round(sum(found) / len(found)) if found else None


@torch.no_grad()
def state_bytes(student: Flexformer) -> int | None:
    """Bytes that decoding one sequence keeps, over all swapped layers and at any length; an encoder decodes none."""
    if not isinstance(student, FlexformerForCausalLM):
        return None
    cache = student.new_cache()
    student(input_ids=torch.zeros(1, 1, dtype=torch.long, device=student.device), cache=cache)
    return cache.state_bytes


def cache_bytes_per_token(teacher: Teacher, layers: Iterable[int]) -> int:
    """Bytes by which the key-value cache of these layers grows with each token, in the precision of the checkpoint.

    An encoder keeps none.
    """
    if not teacher.task.causal:
        return 0
    width = sum(2 * teacher.layers[i]["kv_heads"] * teacher.layers[i]["head_dim"] for i in layers)
    return width * teacher.stored.itemsize
