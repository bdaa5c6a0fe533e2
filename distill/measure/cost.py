"""What student and teacher cost on the machine at hand, by length, and what the student took to make."""

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from ..loading import location
from ..positions import within_positions
from ..stages.stage import embeddings
from .origin import hardware
from .steps import STEP_OF, WHO, Step, tokens
from .subject import NotMeasured, Subject
from .turns import in_turn, while_there_is_room

#: What a teacher that `goal=teacher` has made says of its own cost.
TRAINING = "training.json"
#: The shortest length that is timed; others double from here.
SHORTEST = 128
#: Rounds that are timed, of which the median counts, after so many to warm up.
TURNS = 3, 1
#: Steps of decoding, of which each takes a part of the time.
DECODED = 8
#: What each part of a step takes, as multiples of a forward pass, 2 floating-point operations for each weight:
#: backwards as many for what goes on to the layer before, and as many again for the gradient of a weight.
FORWARD, BACKWARD, GRADIENT = 1, 1, 1


def measure_cost(subject: Subject) -> dict[str, Any]:
    """{"contexts": [tokens], "prefill", "decode": {who: [seconds]}, "kept_bytes", "peak_bytes": {who: [bytes]},
    "hardware", "flops_per_token", "flops": {stage}, "teacher_training"}; who is teacher or student.

    One text of random tokens. Prefill reads it whole; decode is its last token, with what was kept of those
    before it: a state or a cache, of kept_bytes for the whole text. An encoder does not decode. peak_bytes: of a GPU
    while it reads. flops counts what goes through weights, and not attention's own. Ends before the length that there
    is no memory for.
    """
    lengths, passed = lengths_of(subject), passes(subject)
    took = training(location(subject.config.teacher))
    with subject.run.timed("measure"), precision(subject), torch.no_grad():
        found = costs(subject, lengths)
    if not found["prefill"]:
        raise NotMeasured(f"there is no memory to read {lengths[0]} tokens at once")
    done = list(found["prefill"])
    per_token = flops_per_token(subject.student)
    headline = json.loads((subject.run.path / "measurements/headline.json").read_text(encoding="utf-8"))
    return {
        **{
            name: {who: [by[length][who] for length in done] for who in WHO} if by else None
            for name, by in found.items()
        },
        "contexts": done,
        "wanted": lengths,
        "hardware": hardware(subject.device),
        "precision": subject.config.trainer["precision"],
        "flops_per_token": per_token,
        "passes": {stage: passed[stage] for stage in headline["tokens"]},
        "flops": {stage: passed[stage] * per_token * seen for stage, seen in headline["tokens"].items()},
        "tokens": headline["tokens"],
        "seconds": headline["seconds"],
        "teacher_training": took,
    }


def lengths_of(subject: Subject) -> list[int]:
    """Doubling, up to what was asked for; where positions are learned, as far as there are any, and no further than a
    mixer is made for."""
    longest = within_positions(subject.teacher.model, subject.config.measure.cost.longest)
    longest = min(longest, *(subject.config.mixer.get(key) or longest for key in ("length", "horizon")))
    found = [min(SHORTEST, longest)]
    while 2 * found[-1] <= longest:
        found.append(2 * found[-1])
    return found


def precision(subject: Subject) -> Any:
    """What the trainer computes in: bfloat16 where it says so, else what the weights are.

    Without the cache of weights that were cast: it keeps those that are trained, which a frozen teacher's are not.
    """
    mixed = str(subject.config.trainer["precision"]).startswith("bf16")
    return torch.autocast(subject.device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)


def passes(subject: Subject) -> dict[str, int]:
    """What one token takes in each stage, as a multiple of its way forwards through the weights."""
    logits = subject.config.stages.logits
    teacher = 0 if logits.cache else FORWARD
    student = FORWARD * (2 if logits.gradient_checkpointing else 1) + BACKWARD
    return {
        "allocation": FORWARD,
        "attention": FORWARD,
        "logits": teacher + student + (GRADIENT if logits.train == "all" else 0),
        "finetune": FORWARD + BACKWARD + GRADIENT,
    }


def costs(subject: Subject, lengths: list[int]) -> dict[str, dict[int, dict[str, Any]]]:
    """What each takes by length and who: seconds and bytes of one text, up to the longest that there is memory for."""
    models = {"teacher": subject.teacher.model, "student": subject.student}
    for model in models.values():
        model.eval().to(subject.device)
    reads = {length: {who: reading(models[who], length, subject) for who in WHO} for length in lengths}
    prefill = in_turn(reads, 1, subject.device, "cost of reading", *TURNS)
    # Looked at before there are caches, which would leave less room.
    watched = prefill if subject.device.type == "cuda" else {}
    peak = {n: {who: peak_bytes(reads[n][who], subject.device) for who in WHO} for n in watched}
    steps: dict[int, dict[str, tuple[Step, int]]] = {}
    told = "cost of decoding"
    if subject.task.causal:

        def both(length: int) -> dict[str, tuple[Step, int]]:
            return {who: STEP_OF[who](models[who], 1, length - 1) for who in WHO}

        steps = while_there_is_room(list(prefill), both, told)
    taken = {length: {who: step for who, (step, _) in by.items()} for length, by in steps.items()}
    decode = in_turn(taken, DECODED, subject.device, told, *TURNS) if taken else {}
    # What is told is told of the same lengths; of reading alone, where nothing can be decoded.
    done = list(decode or prefill)
    return {
        "prefill": medians({length: prefill[length] for length in done}),
        "decode": medians(decode),
        "kept_bytes": {length: {who: steps[length][who][1] for who in WHO} for length in decode},
        "peak_bytes": {length: peak[length] for length in done if peak},
    }


def reading(model: Any, length: int, subject: Subject) -> Step:
    """A text of random tokens, read whole."""
    ids = tokens(model, 1, length)
    return lambda: model(input_ids=ids, **subject.task.arguments)


def medians(seconds: dict[int, dict[str, list[float]]]) -> dict[int, dict[str, float]]:
    return {length: {who: statistics.median(by[who]) for who in WHO} for length, by in seconds.items()}


def peak_bytes(work: Step, device: torch.device) -> int:
    """Of a GPU, beyond what it holds before."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def flops_per_token(student: Any) -> int:
    """Of one token on its way forwards: 2 for each weight that it is multiplied with, the output head among them; of
    the weights that student and teacher share, which here are never packed."""
    model, looked_up = student.lm, embeddings(student.lm)
    multiplied = [each for name, each in model.named_parameters() if each.dim() >= 2 and ".mixer." not in name]
    weights = sum(each.numel() for each in multiplied if each not in looked_up)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight in looked_up
    return 2 * (weights + (head.weight.numel() if tied else 0))


def training(path: str) -> dict[str, Any] | None:
    """What the teacher itself took, where its directory says so: tokens and seconds of all its training, and in
    "beyond" the model that it began with, where nobody knows what that took."""
    try:
        found = json.loads((Path(path) / TRAINING).read_text(encoding="utf-8"))
        return {**found, "tokens": int(found["tokens"]), "seconds": float(found["seconds"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
