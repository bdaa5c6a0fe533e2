"""The student: the teacher's architecture and weights, with mixers in the place of softmax."""

import copy
from typing import Any

from .errors import UserError
from .flexformer.configuration import FlexformerConfig
from .flexformer.model import Flexformer
from .mixer import exact_layers, swapped_options
from .teacher import Teacher


def build_student(teacher: Teacher, mixer: dict[str, Any]) -> Flexformer:
    """A student that equals the teacher in all but its attention; its mixers are as drawn.

    Works on copies: an architecture built from the teacher's own configuration object would switch the teacher's
    attention as well.
    """
    base = teacher.model.config.to_dict()
    base["dtype"] = "float32"
    base.pop("quantization_config", None)
    options, kept = swapped_options(mixer), exact_layers(mixer, len(teacher.layers))
    try:
        config = FlexformerConfig(base, options, copy.deepcopy(teacher.layers), kept, teacher.task.causal)
        student = teacher.task.student(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    missing, unexpected = student.lm.load_state_dict(teacher.weights(), strict=False)
    strangers = [name for name in missing if ".mixer." not in name] + list(unexpected)
    if strangers:
        raise UserError(f"teacher.path={teacher.name}: the student has no place for {strangers[0]}")
    if teacher.model.can_generate():
        student.generation_config = copy.deepcopy(teacher.model.generation_config)
    return student.float()
