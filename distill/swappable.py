"""Which models can be swapped, and where their attention is, seen by running one token."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .capture import Captured, capture
from .errors import UserError, reason
from .flexformer.exact import is_causal
from .task import Task, other_task

#: Arguments of an attention that is not plain softmax, and what they stand for.
UNSUPPORTED = {"softcap": "soft-capped logits", "s_aux": "attention sinks"}
#: The argument by which a student's memory reaches its attention.
MEMORY = "flexformer_cache"


def attention_layers(name: str, model: PreTrainedModel, task: Task, context: int | None) -> list[dict[str, Any]]:
    """Where attention happens and in which shape: no family needs code of its own.

    context: the tokens that the model will read at once at most; None: any number. UserError for a model whose
    attention cannot be swapped.
    """
    key = f"teacher.path={name}: {model.config.model_type}"
    captured, failure = probe(model, task)
    check_interface(key, model, captured, failure)
    check_arguments(key, captured, task)
    check_windows(key, captured, context)
    if failure is not None:
        raise UserError(f"{key} cannot read a token: {reason(failure)}") from failure
    check_direction(f"teacher.path={name}", model.config.model_type, [each.module for each in captured.heads], task)
    check_places(key, model, captured)
    names = {module: path for path, module in model.named_modules()}
    return [
        {
            "module": names[heads.module],
            "heads": heads.query.shape[1],
            "kv_heads": heads.key.shape[1],
            "head_dim": heads.query.shape[-1],
        }
        for heads in captured.heads
    ]


@torch.no_grad()
def probe(model: PreTrainedModel, task: Task) -> tuple[Captured, Exception | None]:
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


def no_interface(key: str) -> str:
    return (
        f"{key} does not use transformers' attention interface, so its attention cannot be swapped; "
        "choose a teacher that does (GPT-2, Llama, Qwen, Mistral, GPT-NeoX, OPT, BERT and most others)"
    )


def check_interface(key: str, model: Any, captured: Captured, failure: Exception | None) -> None:
    """UserError where nothing was captured: for want of the interface, or because something else failed before."""
    if captured.heads:
        return
    if failure is not None and model._supports_attention_backend:
        raise UserError(f"{key} cannot read a token: {reason(failure)}") from failure
    raise UserError(no_interface(key)) from failure


def check_arguments(key: str, captured: Captured, task: Task) -> None:
    """UserError where attention is no plain softmax, or where a student's memory would not reach it."""
    for argument, meaning in UNSUPPORTED.items():
        if any(argument in heads.given for heads in captured.heads):
            raise UserError(f"{key} has {meaning}, which linear attention cannot stand for; choose another teacher")
    if task.causal and not all(MEMORY in heads.given for heads in captured.heads):
        raise UserError(
            f"{key} does not hand arguments on to its attention, so that a student could not generate; "
            "choose another teacher"
        )


def check_windows(key: str, captured: Captured, context: int | None) -> None:
    """UserError where some layer sees fewer tokens than are read at once: a student's would see them all."""
    least = min(captured.windows, default=None)
    if least is not None and (context is None or context > least):
        raise UserError(
            f"{key} has sliding windows of {least} tokens, beyond which linear attention would see more than it does; "
            f"set data.context={least} or lower, past which the student is then untrained, or choose another teacher"
        )


def check_places(key: str, model: PreTrainedModel, captured: Captured) -> None:
    """UserError unless every layer has one softmax attention of its own."""
    modules = [heads.module for heads in captured.heads]
    if len(set(modules)) < len(modules):
        raise UserError(f"{key} runs one attention module more than once; choose another teacher")
    # Encoders have no cache, and some of them no index of their layers.
    found = [getattr(module, "layer_idx", place) for place, module in enumerate(modules)]
    if found != list(range(model.config.num_hidden_layers)):
        raise UserError(f"{key} has softmax attention in some of its layers only; choose another teacher")


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
