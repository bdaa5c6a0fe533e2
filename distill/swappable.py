"""Which models can be swapped, and where their attention is, seen by running one token."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .capture import capture
from .errors import UserError
from .flexformer.exact import is_causal
from .task import Task, other_task


def attention_layers(name: str, model: PreTrainedModel, task: Task) -> list[dict[str, Any]]:
    """Where attention happens and in which shape, seen by running one token: no family needs code of its own."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    with capture() as captured, torch.no_grad():
        model.base_model(input_ids=token, **task.arguments)
    if not captured:
        raise UserError(
            f"teacher.path={name}: {model.config.model_type} does not use transformers' attention interface, "
            "so its attention cannot be swapped"
        )
    check_direction(f"teacher.path={name}", model.config.model_type, [heads.module for heads in captured], task)
    # Encoders have no cache, and some of them no index of their layers.
    found = [getattr(heads.module, "layer_idx", place) for place, heads in enumerate(captured)]
    shared = len({heads.module for heads in captured}) < len(captured)
    if shared:
        raise UserError(f"teacher.path={name}: the layers of {model.config.model_type} share one attention module")
    if found != list(range(model.config.num_hidden_layers)):
        raise UserError(f"teacher.path={name}: only some layers of {model.config.model_type} are softmax attention")
    names = {module: path for path, module in model.named_modules()}
    return [
        {
            "module": names[heads.module],
            "heads": heads.query.shape[1],
            "kv_heads": heads.key.shape[1],
            "head_dim": heads.query.shape[-1],
        }
        for heads in captured
    ]


def check_family(key: str, model_type: str, task: Task) -> None:
    """UserError for a model type that is made for another task."""
    if model_type not in task.families and (fitting := other_task(task, lambda each: model_type in each.families)):
        refuse(key, model_type, *fitting)


def check_direction(key: str, model_type: str, attentions: Iterable[nn.Module], task: Task) -> None:
    """UserError where attention does not look the way that the task is about."""
    seen = {is_causal(attention) for attention in attentions}
    if (not task.causal) in seen and (fitting := other_task(task, lambda each: each.causal is not task.causal)):
        refuse(key, model_type, *fitting)


def refuse(key: str, model_type: str, name: str, fitting: Task) -> None:
    article = "an" if fitting.kind[0] in "aeiou" else "a"
    raise UserError(f"{key}: {model_type} is {article} {fitting.kind}; set task={name}")
