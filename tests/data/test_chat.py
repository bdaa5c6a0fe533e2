"""Conversations: which tokens are the assistant's, what is left of long ones, and how they come to lie side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from distill.config import Domain
from distill.data import chat, prepare
from distill.errors import UserError
from distill.task import NO_TARGET, TASKS

from .conftest import byte_level, counting, data

PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<end>{% endfor %}"
)
# As of models that think: what was thought before is not told again.
FORGETFUL = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('=')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "line 1"},
    {"role": "assistant", "content": "the=text"},
    {"role": "user", "content": "line 2"},
    {"role": "assistant", "content": "of=line"},
]


def speaker(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(counting(0, 200))
    tokenizer.chat_template = template
    return tokenizer


def said(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]] = TALK) -> list[str]:
    """The stretches that are learned, as text."""
    ids, mine = chat.conversation(messages, tokenizer)
    found, before = [], False
    for token, own in zip(ids, mine, strict=True):
        if own and not before:
            found.append([])
        if own:
            found[-1].append(token)
        before = own
    return [tokenizer.decode(each) for each in found]


def test_answers_are_learned_with_what_ends_them():
    assert said(speaker(PLAIN)) == ["the=text<end>", "of=line<end>"]


def test_a_token_across_the_border_is_the_answers():
    """Where a prompt ends with a space, which the tokenizer puts before the first word of the answer."""
    template = PLAIN.replace("<{{ m.role }}>", "{{ m.role }}: ").replace("<assistant>", "assistant: ")
    assert [each.strip() for each in said(speaker(template))] == ["the=text<end>", "of=line<end>"]


def test_a_template_may_say_itself_what_is_generated():
    assert said(speaker(MARKED)) == ["the=text", "of=line"]


def test_what_is_learned_is_as_the_template_writes_it():
    assert said(speaker(FORGETFUL)) == ["text<end>", "of=line<end>"]


def test_what_a_template_puts_around_an_answer_is_not_learned():
    """As a place for thoughts before the last one, and a line break after what ends each."""
    thinking = PLAIN.replace(
        "{{ m.content }}<end>",
        "{% if loop.last %}(thoughts){% endif %}{{ m.content }}<end>\\n",
    )
    assert said(speaker(thinking)) == ["the=text<end>", "of=line<end>"]


@pytest.mark.parametrize("content", ["the text", "<user>", "be short", "x"])
def test_an_answer_that_looks_like_what_surrounds_it_is_found(content: str):
    talk = [*TALK[:2], {"role": "assistant", "content": content}]
    assert said(speaker(PLAIN), talk) == [f"{content}<end>"]


def test_an_assistant_that_says_nothing():
    talk = [TALK[1], {"role": "assistant", "content": ""}, TALK[3], TALK[4]]
    assert said(speaker(PLAIN), talk) == ["of=line<end>"]


def test_an_answer_to_nothing_is_not_learned():
    assert said(speaker(PLAIN), TALK[2:4]) == []


def saved(path: Path, talks: list[Any]) -> str:
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks))
    return str(path)


def talks(count: int) -> list[Any]:
    """Of lengths of their own; one message has a key that the others lack."""
    odd = [[{"role": "user", "content": "line", "name": "x"}, {"role": "assistant", "content": "text"}]]
    return odd + [
        [{"role": "user", "content": f"line {i}"}, {"role": "assistant", "content": "the text " * (1 + i % 3)}]
        for i in range(1, count)
    ]


def test_batches_of_conversations(tmp_path: Path):
    """Labels are the answers' tokens, padding is hidden, and nothing is cut that fits."""
    tokenizer = speaker(PLAIN)
    domain = Domain(saved(tmp_path / "talks.jsonl", talks(40)), messages="messages")
    corpus = prepare(data({"talks": domain}, context=64), tokenizer, 0)
    (batch,) = corpus.batches(1, 12, seed=0)
    ids, mask, labels = batch["input_ids"], batch["attention_mask"] != 0, batch["labels"]
    assert ids.shape == mask.shape == labels.shape and not mask.all() and mask.any(0).all()
    learned = labels != NO_TARGET
    assert torch.equal(labels[learned], ids[learned]) and not (learned & ~mask).any()
    for row, own in zip(ids, learned, strict=True):
        assert tokenizer.decode(row[own]).rstrip().startswith("the text") or tokenizer.decode(row[own]) == "text<end>"


def test_a_key_that_a_message_lacks_is_not_there(tmp_path: Path):
    """Though a table gives every message the keys of all."""
    tokenizer = speaker(PLAIN.replace("{{ m.content }}", "{% if m.name is defined %}of {% endif %}{{ m.content }}"))
    rows = chat.load(Domain(saved(tmp_path / "talks.jsonl", talks(3)), messages="messages")).train
    told = [tokenizer.decode(row) for row in chat.encode(rows, tokenizer, 64, "x")["input_ids"][:]]
    assert sorted("of " in text for text in told) == [False, False, True]


def test_long_conversations_are_cut_and_those_without_an_answer_left_out(tmp_path: Path, capsys):
    tokenizer = speaker(PLAIN)
    long = [{"role": "user", "content": "line " * 50}, {"role": "assistant", "content": "text"}]
    rows = chat.load(Domain(saved(tmp_path / "talks.jsonl", [long, *talks(5)]), messages="messages")).train
    assert len(chat.encode(rows, tokenizer, 64, "x")) == 5
    assert "x: 1 of 6 conversations have no answer in 64 tokens" in capsys.readouterr().err
    assert max(len(row) for row in chat.encode(rows, tokenizer, 20, "x")["input_ids"]) <= 20
    with pytest.raises(UserError, match=r"^domain x: no conversation has an answer within data\.context=4: raise it"):
        chat.encode(rows, tokenizer, 4, "x")


@pytest.mark.parametrize(
    "row", ["said", ["said"], [{"from": "human", "value": "line"}]], ids=["text", "texts", "other keys"]
)
def test_rows_that_are_no_conversations_are_refused(row: Any, tmp_path: Path):
    with pytest.raises(UserError, match=r"talks\.jsonl: column messages holds no conversations, \[\{role: …"):
        chat.load(Domain(saved(tmp_path / "talks.jsonl", [row]), messages="messages"))


def test_what_the_template_refuses_is_told(tmp_path: Path):
    """As Gemma's does with what a system says."""
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
    )
    rows = chat.load(Domain(saved(tmp_path / "talks.jsonl", [TALK]), messages="messages")).train
    message = (
        r"^domain x: the teacher's chat template refuses a conversation of system, user, assistant, .*not supported"
    )
    with pytest.raises(UserError, match=message):
        chat.encode(rows, speaker(strict), 64, "x")


def test_a_tokenizer_without_a_template_is_refused(tmp_path: Path):
    rows = chat.load(Domain(saved(tmp_path / "talks.jsonl", talks(3)), messages="messages")).train
    with pytest.raises(UserError, match=r"^teacher\.path: the tokenizer has no chat template"):
        chat.encode(rows, speaker(None), 64, "x")


def test_another_template_is_another_text(tmp_path: Path):
    """Nothing old comes from the cache."""
    rows = chat.load(Domain(saved(tmp_path / "talks.jsonl", talks(3)), messages="messages")).train
    one, other = (chat.encode(rows, speaker(template), 64, "x")["labels"][:] for template in (PLAIN, MARKED))
    assert [row.tolist() for row in one] != [row.tolist() for row in other]


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({}, "masked_lm", r"^data\.domains\.talks\.messages: conversations are for task=causal_lm"),
        ({"more": Domain("python", "prose")}, "causal_lm", r"conversations and plain texts do not mix"),
        ({"more": Domain("x.txt", order=True)}, "causal_lm", r"^data\.domains\.more\.order is for task=sequence_cl"),
        ({"more": Domain("x.txt", pair="b")}, "causal_lm", r"^data\.domains\.more\.pair is for task=sequence_cl"),
        ({"streaming": True}, "causal_lm", r"^data\.streaming=true: rows of a table are read whole"),
    ],
)
def test_what_conversations_are_not_for(changes: dict[str, Any], task: str, message: str, tmp_path: Path):
    domains = {"talks": Domain(saved(tmp_path / "talks.jsonl", talks(3)), messages="messages")}
    more = {name: each for name, each in changes.items() if isinstance(each, Domain)}
    rest = {name: each for name, each in changes.items() if name not in more}
    with pytest.raises(UserError, match=message):
        prepare(data(domains | more, **rest), speaker(PLAIN), 0, TASKS[task])
