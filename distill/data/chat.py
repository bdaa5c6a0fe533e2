"""Conversations: through the tokenizer's own template to tokens, of which those that the assistant says are learned."""

import re
import sys
from itertools import takewhile
from typing import Any

from datasets import Dataset, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..config import Domain
from ..errors import UserError, reason
from ..task import NO_TARGET
from . import tables
from .packing import identity
from .sources import Splits

#: Said instead, to see where an answer is: nothing that anyone says.
OTHERWISE = "\ue000\ue001"
#: Who says what is learned.
ASSISTANT = "assistant"
#: How a template marks what is the assistant's.
GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
#: Part of the cache's key: raise it when the same rows have to give other tokens.
VERSION = 1


def load(domain: Domain) -> Splits:
    """Rows with the column messages, [{"role", "content"}, …]; UserError as of `tables.load`, and for other rows."""
    splits = tables.load(domain, {"messages": "messages"})
    first = splits.train[0]["messages"]
    if not isinstance(first, list) or not all(isinstance(each, dict) and "role" in each for each in first):
        raise UserError(
            f"{domain.path}: column {domain.messages} holds no conversations, [{{role: …, content: …}}, …]; convert it"
        )
    return splits


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, context: int, domain: str) -> Dataset:
    """Column `messages` → `input_ids`, the first `context` tokens of the conversation as the template writes it, and
    `labels`, the same where the assistant says them, NO_TARGET elsewhere.

    Conversations in which nothing of this is left are left out. UserError where that is all of them, or where the
    tokenizer has no template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "teacher.path: the tokenizer has no chat template: choose a teacher that was trained on conversations, or "
            "put its chat_template.jinja beside the tokenizer"
        )
    if not tokenizer.is_fast:
        raise UserError("teacher.path: answers cannot be told apart by a slow tokenizer; add its tokenizer.json")
    how = [VERSION, identity(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map, context]
    given = {"tokenizer": tokenizer, "context": context, "domain": domain}
    features = {"input_ids": List(Value("int32")), "labels": List(Value("int64"))}
    encoded = tables.encoded(rows, _encoded, given, features, how, domain)
    if not len(encoded):
        raise UserError(
            f"domain {domain}: no conversation has an answer within data.context={context}: raise it, or give "
            "conversations in which an assistant answers"
        )
    if missing := len(rows) - len(encoded):
        print(f"{domain}: {missing} of {len(rows)} conversations have no answer in {context} tokens", file=sys.stderr)
    return encoded


def _encoded(
    batch: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase, context: int, domain: str
) -> dict[str, list[list[int]]]:
    found: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for row in batch["messages"]:
        messages = _without_none(row)
        try:
            ids, said = conversation(messages, tokenizer)
        except (TemplateError, TypeError, AttributeError, KeyError) as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise UserError(
                f"domain {domain}: the teacher's chat template refuses a conversation of {roles}: {reason(error)}; "
                "leave such rows out"
            ) from error
        ids, said = ids[:context], said[:context]
        if any(said):
            found["input_ids"].append(ids)
            found["labels"].append([token if mine else NO_TARGET for token, mine in zip(ids, said, strict=True)])
    return found


def _without_none(found: Any) -> Any:
    """Columns of a table hold every key that some row has."""
    if isinstance(found, dict):
        return {key: _without_none(value) for key, value in found.items() if value is not None}
    return [_without_none(each) for each in found] if isinstance(found, list) else found


def conversation(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The tokens of all messages, and which of them are the assistant's.

    Those that the template marks, where it does; else all that it says, and the token that ends it.
    """
    if GENERATION.search(tokenizer.get_chat_template()):
        told: Any = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        return list(told["input_ids"]), [bool(mine) for mine in told["assistant_masks"]]
    text = _written(messages, tokenizer)
    encoded: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, answers, ends = list(encoded["input_ids"]), _answers(messages, text, tokenizer), set(tokenizer.all_special_ids)
    # Of a token that reaches from the prompt into the answer, the answer's part is what has to be predicted.
    said = [any(begin < last and first < end for begin, end in answers) for first, last in encoded["offset_mapping"]]
    ended = [before and token in ends for before, token in zip([False, *said], ids, strict=False)]
    return ids, [one or other for one, other in zip(said, ended, strict=True)]


def _answers(messages: list[dict[str, Any]], text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, int]]:
    """Where each answer begins and ends in the text: what changes in it when the assistant says something else.

    So it is found wherever and in whatever form a template writes it.
    """
    found = []
    for place, message in enumerate(messages):
        if message.get("role") == ASSISTANT and place and message.get("content"):
            other = _written([*messages[:place], message | {"content": OTHERWISE}, *messages[place + 1 :]], tokenizer)
            begin = _alike(text, other)
            end = len(text) - _alike(text[begin:][::-1], other[begin:][::-1])
            found.append((begin, end))
    return found


def _alike(one: str, other: str) -> int:
    """How many characters both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _written(messages: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False))
