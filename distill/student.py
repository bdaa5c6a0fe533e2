"""The student: the teacher's architecture and weights, with mixers in the place of softmax."""

import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .config import Config
from .errors import UserError
from .flexformer.configuration import FlexformerConfig
from .flexformer.model import Flexformer
from .kernels import load_kernels
from .mixer import exact_layers, swapped_options
from .teacher import Teacher


def start_student(teacher: Teacher, config: Config) -> Flexformer:
    """The student that a run begins with: an exported one, or the teacher with mixers, fitted ones or as drawn."""
    if config.student.path is not None:
        return load_student(config.student.path, teacher)
    student = build_student(teacher, config.mixer)
    if config.student.kernels is not None:
        load_kernels(student, config.student.kernels)
    return student


def load_student(path: str, teacher: Teacher) -> Flexformer:
    """An exported student, in float32; UserError where it cannot be read or is of a teacher of another shape."""
    try:
        student: Flexformer = teacher.task.student.from_pretrained(Path(path).expanduser())
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"student.path={path} cannot be loaded: {str(error).splitlines()[0]}") from error
    theirs = [{key: value for key, value in layer.items() if key != "features"} for layer in student.config.layers]
    sizes = (student.config.vocab_size, teacher.model.config.vocab_size)
    if theirs != teacher.layers or sizes[0] != sizes[1]:
        raise UserError(f"student.path={path} is of another teacher than teacher.path={teacher.name}: give its own")
    return student.float()


def build_student(teacher: Teacher, mixer: dict[str, Any]) -> Flexformer:
    """A student that equals the teacher in all but its attention; its mixers are as drawn.

    Works on copies: an architecture built from the teacher's own configuration object would switch the teacher's
    attention as well.
    """
    base = teacher.model.config.to_dict()
    base["dtype"] = "float32"
    base.pop("quantization_config", None)
    # Where the teacher lay on this machine is no part of the student.
    base.pop("_name_or_path", None)
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
