"""The student: the teacher's architecture and weights, with mixers in the place of softmax."""

import copy
from typing import Any

from .errors import UserError
from .flexformer.configuration import FlexformerConfig
from .flexformer.model import Flexformer
from .teacher import Teacher


def build_student(teacher: Teacher, mixer: dict[str, Any]) -> Flexformer:
    """A student that equals the teacher in all but its attention; its mixers are as drawn.

    Works on copies: an architecture built from the teacher's own configuration object would switch the teacher's
    attention as well.
    """
    base = teacher.model.config.to_dict()
    base["dtype"] = "float32"
    options, kept = swapped_options(mixer), exact_layers(mixer, len(teacher.layers))
    try:
        config = FlexformerConfig(base, options, copy.deepcopy(teacher.layers), kept, teacher.task.causal)
        student = teacher.task.student(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    missing, unexpected = student.lm.load_state_dict(teacher.model.state_dict(), strict=False)
    strangers = [name for name in missing if ".mixer." not in name] + list(unexpected)
    if strangers:
        raise UserError(f"teacher.path={teacher.name}: the student has no place for {strangers[0]}")
    if teacher.model.can_generate():
        student.generation_config = copy.deepcopy(teacher.model.generation_config)
    return student.float()


def swapped_options(mixer: dict[str, Any]) -> dict[str, Any]:
    """What the mixers themselves are told: neither which layers go without, nor how fast to learn."""
    return {key: value for key, value in mixer.items() if key not in ("exact_layers", "rates")}


def exact_layers(mixer: dict[str, Any], count: int) -> list[int]:
    """Indices of the layers that stay softmax, of `count`; UserError where there is no such layer."""
    wanted = mixer.get("exact_layers", [])
    if wanted == "all":
        return list(range(count))
    if not isinstance(wanted, list) or any(type(each) is not int or not 0 <= each < count for each in wanted):
        raise UserError(f"mixer.exact_layers={wanted}: give a list of layers, which are 0 to {count - 1}, or all")
    return sorted(set(wanted))
