"""Which models can be swapped, and where their attention is, seen by running one token."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .capture import Heads, capture
from .errors import UserError
from .flexformer.exact import is_causal
from .task import Task, other_task

#: Arguments of an attention that is not plain softmax: what they stand for, and what to do about it.
UNSUPPORTED = {
    "softcap": ("soft-capped logits", "choose another teacher"),
    "s_aux": ("attention sinks", "choose another teacher"),
    "sliding_window": (
        "sliding windows",
        "where data.context is no longer than they are, take them out of its config.json (sliding_window, layer_types)",
    ),
}
#: The argument by which a student's memory reaches its attention.
MEMORY = "flexformer_cache"


def attention_layers(name: str, model: PreTrainedModel, task: Task) -> list[dict[str, Any]]:
    """Where attention happens and in which shape: no family needs code of its own.

    UserError for a model whose attention cannot be swapped.
    """
    key, model_type = f"teacher.path={name}", model.config.model_type
    captured, failure = probe(model, task)
    if not captured:
        raise UserError(no_interface(key, model_type)) from failure
    check_arguments(key, model_type, captured, task)
    if failure is not None:
        raise UserError(f"{key}: {model_type} cannot read a token: {str(failure).splitlines()[0]}") from failure
    check_direction(key, model_type, [heads.module for heads in captured], task)
    check_places(key, model, captured)
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


@torch.no_grad()
def probe(model: PreTrainedModel, task: Task) -> tuple[list[Heads], Exception | None]:
    """What goes into every attention layer for one token, and what came of it where that is an error.

    A family of its own ways may do anything with an attention that it does not know.
    """
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    memory = {MEMORY: object()} if task.causal else {}
    with capture() as captured:
        try:
            model.base_model(input_ids=token, **task.arguments, **memory)
        except Exception as error:
            return captured, error
    return captured, None


def no_interface(key: str, model_type: str) -> str:
    return (
        f"{key}: {model_type} does not use transformers' attention interface, so its attention cannot be swapped; "
        "choose a teacher that does (GPT-2, Llama, Qwen, Mistral, GPT-NeoX, OPT, BERT and most others)"
    )


def check_arguments(key: str, model_type: str, captured: list[Heads], task: Task) -> None:
    """UserError where attention is no plain softmax, or where a student's memory would not reach it."""
    for argument, (meaning, cure) in UNSUPPORTED.items():
        if any(argument in heads.given for heads in captured):
            raise UserError(f"{key}: {model_type} has {meaning}, which linear attention cannot stand for; {cure}")
    if task.causal and not all(MEMORY in heads.given for heads in captured):
        raise UserError(
            f"{key}: {model_type} does not hand arguments on to its attention, so that a student could not generate; "
            "choose another teacher"
        )


def check_places(key: str, model: PreTrainedModel, captured: list[Heads]) -> None:
    """UserError unless every layer has one softmax attention of its own."""
    # Encoders have no cache, and some of them no index of their layers.
    found = [getattr(heads.module, "layer_idx", place) for place, heads in enumerate(captured)]
    if len({heads.module for heads in captured}) < len(captured):
        raise UserError(f"{key}: the layers of {model.config.model_type} share one attention module")
    if found != list(range(model.config.num_hidden_layers)):
        raise UserError(f"{key}: only some layers of {model.config.model_type} are softmax attention")


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
