"""What can be refused before anything slow begins or anything is written."""

import re
from typing import Any

from . import config
from .allocation import check_split
from .errors import UserError
from .flexformer.options import check_options
from .mixer import matches_maps, swapped_options
from .ranges import check_ranges
from .report.sections import check as check_sections
from .stages.fit import STRATEGIES
from .stages.logits import TRAIN
from .task import TASKS

#: Keys that choose by name, and the names there are.
CHOICES = {
    "task": tuple(TASKS),
    "teacher.dtype": ("float32", "bfloat16"),
    "student.dtype": ("float32", "bfloat16"),
    "matmul_precision": ("highest", "high", "medium"),
    "stages.attention.loss": ("kl", "output", "both"),
    "stages.logits.train": tuple(TRAIN),
    "trainer.strategy": tuple(STRATEGIES),
}


def check(wanted: config.Config) -> None:
    """UserError for an unknown choice, a number out of range, a mixer key or a report section."""
    for key, known in CHOICES.items():
        if (value := look_up(wanted, key)) not in known:
            raise UserError(f"{key}={value} is unknown; known: {', '.join(known)}")
    check_ranges(wanted)
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", wanted.student.shard_size):
        raise UserError(f"student.shard_size={wanted.student.shard_size} must be a size, as 5GB or 500MB")
    check_cache(wanted)
    check_pairs(wanted)
    if wanted.teacher.quantization is not None and (wanted.goal == "teacher" or wanted.measure.teacher_tuned):
        raise UserError("teacher.quantization: such weights cannot be trained; leave it out, or measure.teacher_tuned")
    if wanted.goal != "teacher" and (wanted.teacher.architecture or wanted.teacher.vocabulary) is not None:
        raise UserError("teacher.architecture, teacher.vocabulary: such a teacher has yet to be trained, goal=teacher")
    check_devices(wanted)
    try:
        check_options(swapped_options(wanted.mixer), TASKS[wanted.task].causal)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_split(wanted.mixer)
    matches_maps(wanted.mixer)
    for key in ("length", "horizon"):
        if (tokens := wanted.mixer.get(key)) is not None and tokens < wanted.data.context:
            raise UserError(f"mixer.{key}={tokens} is shorter than data.context={wanted.data.context}; leave it out")
    if wanted.goal == "student":
        check_window(wanted.mixer, wanted.data.context)
    check_sections(wanted.report.sections)


def check_cache(wanted: config.Config) -> None:
    """UserError where the likeliest predictions of a teacher cannot stand for all of them."""
    logits, causal = wanted.stages.logits, TASKS[wanted.task].causal
    if logits.cache in ("", "True", "False"):
        raise UserError(f"stages.logits.cache={logits.cache} is no folder; name one, or leave it out")
    if logits.cache is not None and not causal:
        raise UserError(f"stages.logits.cache={logits.cache} is for task=causal_lm, whose targets stay; leave it out")
    if logits.cache is not None and logits.temperature != 1:
        raise UserError(
            f"stages.logits.temperature={logits.temperature}: what is cached is at temperature 1; set it to 1, or "
            "leave out stages.logits.cache"
        )


def check_devices(wanted: config.Config) -> None:
    """UserError for what several devices cannot share out."""
    devices, nodes = wanted.trainer["devices"], wanted.trainer["num_nodes"]
    if devices * nodes == 1:
        return
    asked = f"trainer.devices={devices}" + (f" trainer.num_nodes={nodes}" if nodes > 1 else "")
    if wanted.goal == "evaluate":
        raise UserError(f"{asked}: goal=evaluate trains nothing to share out; leave it out")
    if wanted.compile and wanted.trainer["strategy"] == "fsdp":
        raise UserError("compile=true: trainer.strategy=fsdp takes models apart; leave one of the two out")
    if TASKS[wanted.task].paired:
        raise UserError(f"{asked}: a text's partner is sought in its batch, which would be in parts; leave it out")
    for key in (f"stages.{name}.batch_size" for name in trained(wanted)):
        if (size := look_up(wanted, key)) % (devices * nodes):
            raise UserError(f"{key}={size} cannot be dealt out evenly to {asked}; give a multiple of {devices * nodes}")


def trained(wanted: config.Config) -> list[str]:
    """The stages whose batches are read: others than themselves are trained as two of them are."""
    stages = wanted.stages
    if wanted.goal == "teacher":
        return ["pretrain"]
    read = {
        "attention": stages.attention.max_steps or wanted.mixer.get("split") == "measured",
        "logits": stages.logits.max_steps or wanted.measure.teacher_tuned,
        "finetune": stages.finetune.max_steps,
    }
    return [name for name, is_read in read.items() if is_read]


def check_pairs(wanted: config.Config) -> None:
    """UserError for what says nothing where texts are embedded: a choice among one, and a temperature."""
    if not TASKS[wanted.task].paired:
        return
    stages = [name for name in ("pretrain", "finetune") if look_up(wanted, f"stages.{name}.max_steps")]
    for key in ("measure.batch_size", *(f"stages.{name}.batch_size" for name in stages)):
        if (size := look_up(wanted, key)) < 2:
            raise UserError(f"{key}={size}: a text's partner is sought among those of a batch; give at least 2")
    if (temperature := wanted.stages.logits.temperature) != 1:
        raise UserError(f"stages.logits.temperature={temperature}: embeddings are matched as they are; leave it out")


def check_window(mixer: dict[str, Any], context: int) -> None:
    """UserError where exact softmax reaches over a whole block, and nothing is left for the linear part to learn."""
    window = mixer.get("window") or 0
    if window >= context and mixer.get("map") != "zero":
        raise UserError(
            f"mixer.window={window} reaches over all of data.context={context}, which leaves the linear part nothing "
            "to learn; lower mixer.window or raise data.context"
        )


def look_up(wanted: config.Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = wanted
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value
