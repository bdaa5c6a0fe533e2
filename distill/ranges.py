"""Numbers that a run may be told. Read without torch, which takes seconds to be there; `checks` is all else."""

from dataclasses import asdict
from math import inf

from . import config
from .errors import UserError

#: Keys that count something, and their least value.
LEAST = {
    "seed": 0,
    **{f"stages.{stage}.max_steps": 0 for stage in ("pretrain", "attention", "logits", "finetune")},
    **{f"stages.{stage}.batch_size": 1 for stage in ("pretrain", "attention", "logits", "finetune")},
    "stages.allocation.max_steps": 1,
    "stages.attention.queries": 1,
    "stages.logits.lora.rank": 1,
    "stages.logits.top_k": 1,
    "measure.batch_size": 1,
    "measure.fidelity_blocks": 1,
    "measure.transfer.max_steps": 1,
    "measure.transfer.seeds": 1,
    "measure.transfer.blocks": 1,
    "measure.contribution.blocks": 1,
    "measure.cost.longest": 64,
    **{f"measure.length.{key}": 1 for key in ("times", "blocks", "prompts", "new_tokens")},
    "measure.length.sequences": 2,
    "measure.map_tokens": 1,
    # Of one token nothing is predicted.
    "data.context": 2,
    "data.validation_blocks": 1,
    "data.workers": 0,
    "trainer.log_every_n_steps": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
}
#: What does without such a number.
WITHOUT = {"stages.allocation.max_steps": "mixer.split=even does without the stage"}
#: What the names of other keys end with, and their largest value; the least is 0.
MOST = {
    **dict.fromkeys(("learning_rate", "weight_decay", "cross_entropy", "negative", "gradient_clip_val"), inf),
    "warmup": 1,
    # As numpy has it.
    "seed": 2**32 - 1,
}
#: Keys that have to be above 0.
ABOVE = ("stages.logits.temperature", "checkpoint_minutes")


def check_ranges(wanted: config.Config) -> None:
    """UserError for a number that is out of range."""
    values = dict(config.flat(asdict(wanted)))
    for key, least in LEAST.items():
        if (number := values[key]) is not None and (not isinstance(number, int) or number < least):
            cure = f"; {WITHOUT[key]}" if key in WITHOUT else ""
            raise UserError(f"{key}={number} must be a whole number of at least {least}{cure}")
    for key, value in values.items():
        most = next((most for name, most in MOST.items() if key.endswith(name)), None)
        if most is None or value is None:
            continue
        if not isinstance(value, int | float) or not 0 <= value <= most or value == inf:
            raise UserError(f"{key}={value} must be " + ("0 or more" if most == inf else f"from 0 to {most}"))
    for key in ABOVE:
        if not values[key] > 0:
            raise UserError(f"{key}={values[key]} must be above 0")
