"""How good a student is at each length: against the same numbers computed token by token."""

import math
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from distill.data import Corpus
from distill.measure import length, recall
from distill.measure.generation import go_on, measure_generation, nats, parted
from distill.measure.subject import NotMeasured, Subject
from distill.student import build_student
from distill.task import TASKS

from . import tiny
from .test_teacher import load

CPU = torch.device("cpu")
#: Two contexts of 16 in the 64 positions of the tiny teacher; 8 blocks in all.
CONTEXT, BLOCKS = 16, 8


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def subject(request: pytest.FixtureRequest, teachers: dict[str, Path]) -> Any:
    teacher = load(teachers[request.param])
    student = build_student(teacher, tiny.MIXER | {"window": 4}).eval()
    ids = torch.randint(tiny.VOCABULARY, (BLOCKS, CONTEXT), generator=torch.Generator().manual_seed(0))
    held_out = Dataset.from_dict({"input_ids": ids.tolist()}).with_format("torch")
    corpus = Corpus({}, {}, {"random": held_out}, {}, seed=0, workers=0, running={"random": held_out})
    wanted = SimpleNamespace(times=8, blocks=4, sequences=3, prompts=2, new_tokens=5)
    config: Any = SimpleNamespace(data=SimpleNamespace(context=CONTEXT), measure=SimpleNamespace(length=wanted), seed=0)
    run: Any = SimpleNamespace(timed=lambda name: SimpleNamespace(__enter__=None))
    return Subject(teacher, student, corpus, config, run, CPU)


def text(subject: Subject) -> torch.Tensor:
    return subject.corpus.running["random"]["input_ids"][:].flatten()


@torch.no_grad()
def log_p(model: Any, before: torch.Tensor, token: torch.Tensor) -> float:
    """Of one token after others, from nothing that was remembered."""
    logits = model(input_ids=before[None], use_cache=False).logits[0, -1]
    return logits.double().log_softmax(-1)[token].item()


def test_contexts_double_as_far_as_there_are_positions_and_text(subject: Subject):
    assert length.contexts_of(subject) == [16, 32, 64]
    few = replace(subject, corpus=replace(subject.corpus, running={"random": subject.corpus.running["random"].take(3)}))
    assert length.contexts_of(few) == [16, 32]
    once: Any = SimpleNamespace(
        data=SimpleNamespace(context=16), measure=SimpleNamespace(length=SimpleNamespace(times=1))
    )
    assert length.contexts_of(replace(subject, config=once)) == [16]


def test_perplexity_at_every_context_is_of_the_same_targets(subject: Subject):
    """Token by token: the first four blocks, of which the first token of each is no target at any context."""
    ppl, positions = length.read_lengths(subject, "random", [16, 32])
    tokens = torch.cat([text(subject)[:32], text(subject)[64:96]])
    for who, model in (("teacher", subject.teacher.model), ("student", subject.student)):
        for context in (16, 32):
            told = [
                -log_p(model, tokens[i - i % context : i], tokens[i])
                for i in range(len(tokens))
                if i % 16 and i % context
            ]
            assert ppl[context][who] == pytest.approx(math.exp(sum(told) / len(told)), rel=1e-4)
        assert positions["from"] == [1, 16]
        late = [-log_p(model, tokens[i - i % 32 : i], tokens[i]) for i in range(len(tokens)) if i % 32 >= 16]
        assert positions[who][1] == pytest.approx(sum(late) / len(late), rel=1e-4)


def test_the_error_is_that_of_the_gap_over_stretches(subject: Subject):
    ppl, _ = length.read_lengths(subject, "random", [16, 32])
    gaps = []
    for begin in (0, 64):
        row = text(subject)[begin : begin + 32]
        places = [i for i in range(32) if i % 16]
        told = [[-log_p(model, row[:i], row[i]) for i in places] for model in (subject.student, subject.teacher.model)]
        gaps.append(statistics.mean(told[0]) - statistics.mean(told[1]))
    assert ppl[32]["error"] == pytest.approx(statistics.stdev(gaps) / 2**0.5, rel=1e-3)


def test_buckets_double():
    assert length.buckets(16) == [1] and length.buckets(17) == [1, 16] and length.buckets(100) == [1, 16, 32, 64]
    nats = torch.arange(40.0).repeat(2, 1)
    assert length.by_position(nats, [1, 16, 32]) == [8.0, 23.5, 35.5]


def test_stretches_follow_one_another_in_the_text(subject: Subject):
    whole = text(subject)
    assert [each.tolist() for each in subject.corpus.stretches("random", 2, 2)] == [
        whole[:32].tolist(),
        whole[64:96].tolist(),
    ]
    assert len(list(subject.corpus.stretches("random", 3, 9))) == 2 and not list(
        subject.corpus.stretches("random", 9, 1)
    )


def test_what_is_to_be_copied_stood_so_many_tokens_before(subject: Subject):
    tokens, control, asked = recall.copies(subject, 16)
    assert tokens.shape == (3, 32) and asked.tolist() == list(range(17, 32))
    assert torch.equal(tokens[:, asked], tokens[:, asked - 16])
    assert torch.equal(control[:, 16:], tokens[:, 16:]) and torch.equal(control[[1, 2, 0], :16], tokens[:, :16])
    assert len(tokens[:, :16].unique()) > 30 and not torch.isin(tokens, torch.tensor([0])).any()


def test_a_passkey_stands_behind_its_mark_twice(subject: Subject):
    tokens, control, asked = recall.passkeys(subject, 20)
    assert tokens.shape == (3, 8 + 20 + 8) and asked.tolist() == [32, 33, 34, 35]
    assert torch.equal(tokens[:, :8], tokens[:, -8:]) and torch.equal(tokens[:, asked], tokens[:, asked - 28])
    assert torch.equal(control[:, 8:], tokens[:, 8:]) and torch.equal(control[[1, 2, 0], :8], tokens[:, :8])
    held_out = text(subject).unfold(0, 20, 1)
    assert all((held_out == row).all(1).any() for row in tokens[:, 8:-8])


def test_found_is_what_is_likeliest(subject: Subject):
    """By a model that says the token after next, and by one that is right for one of two rows."""
    tokens, control, asked = recall.copies(subject, 16)

    class Oracle(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            right = torch.equal(input_ids, tokens[:1]) or torch.equal(input_ids, tokens[1:2])
            following = input_ids.roll(-1, 1) if right else input_ids.roll(-2, 1)
            return SimpleNamespace(logits=torch.nn.functional.one_hot(following, tiny.VOCABULARY).float())

    shares, _ = recall.asked_for(Oracle(), tokens, asked, CPU)
    assert shares.tolist() == pytest.approx([1, 1, 0], abs=0.1)
    found = recall.measure_recall(subject, 64)
    assert found["copy"]["distance"] == [16, 32] and found["passkey"]["distance"] == [16, 32]
    for task, make in (("copy", recall.copies), ("passkey", recall.passkeys)):
        tokens, control, asked = make(subject, 32)
        for who, model in (("teacher", subject.teacher.model), ("student", subject.student)):
            told = [
                statistics.mean(log_p(model, row[:i], row[i]) - log_p(model, other[:i], row[i]) for i in asked)
                for row, other in zip(tokens, control, strict=True)
            ]
            assert found[task][who]["gain"][1] == pytest.approx(statistics.mean(told), rel=1e-3, abs=1e-6)
            error = statistics.stdev(told) / len(told) ** 0.5
            assert found[task][who]["error"][1] == pytest.approx(error, rel=1e-3, abs=1e-6)
            assert 0 <= found[task][who]["found"][1] <= 1


def test_going_on_is_what_reading_again_gives(subject: Subject):
    """Greedily, with a state or a cache, as from nothing remembered; and parting is where they first differ."""
    prompt = torch.stack([text(subject)[:8], text(subject)[20:28]])
    said = {}
    for who, model in (("teacher", subject.teacher.model), ("student", subject.student)):
        said[who] = go_on(model, prompt, 5, subject, False)
        for row, before in zip(said[who], prompt, strict=True):
            for token in row:
                with torch.no_grad():
                    assert model(input_ids=before[None], use_cache=False).logits[0, -1].argmax() == token
                before = torch.cat([before, token[None]])
    one, other = torch.tensor([[1, 2, 3], [1, 2, 3]]), torch.tensor([[1, 9, 3], [1, 2, 3]])
    assert parted(one, other).tolist() == [1, 3]


def test_samples_are_judged_by_the_teacher(subject: Subject):
    found = measure_generation(subject)["random"]
    blocks = torch.stack(list(subject.corpus.stretches("random", 1, 2)))
    told = [-log_p(subject.teacher.model, block[:i], block[i]) for block in blocks for i in range(8, 13)]
    assert found["nats"]["text"] == pytest.approx(sum(told) / len(told), rel=1e-4)
    sampled = go_on(subject.student, blocks[:, :8], 5, subject, True)
    assert torch.equal(sampled, go_on(subject.student, blocks[:, :8], 5, subject, True))
    told = [
        -log_p(subject.teacher.model, torch.cat([block[:8], row[:i]]), row[i])
        for block, row in zip(blocks, sampled, strict=True)
        for i in range(5)
    ]
    assert found["nats"]["student"] == pytest.approx(sum(told) / len(told), rel=1e-4)
    own = go_on(subject.teacher.model, blocks[:, :8], 5, subject, True)
    worse = nats(subject, blocks[:, :8], sampled) - nats(subject, blocks[:, :8], own)
    assert found["error"] == pytest.approx(worse.std().item() / 2**0.5, rel=1e-6)
    assert 0 <= found["until"] <= 5 and 0 <= found["identical"] <= 1 and (found["tokens"], found["prompts"]) == (5, 2)


def test_samples_are_drawn_from_the_whole_distribution(subject: Subject):
    """A coin with a known bias comes down as often as it should."""

    class Coin(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool, **cache: Any) -> Any:
            logits = torch.tensor([0.2, 0.8]).log().expand(*input_ids.shape, 2)
            return SimpleNamespace(logits=logits, **cache)

    said = go_on(Coin(), torch.zeros(400, 1, dtype=torch.long), 10, subject, True)
    assert said.double().mean().item() == pytest.approx(0.8, abs=0.02)


def test_what_has_no_length_says_so(subject: Subject):
    encoder = replace(subject, teacher=replace(subject.teacher, task=TASKS["masked_lm"]))
    with pytest.raises(NotMeasured, match="an encoder reads a text as a whole"):
        length.measure_length(encoder)
    with pytest.raises(NotMeasured, match="conversations have no running text"):
        length.measure_length(replace(subject, corpus=replace(subject.corpus, running={})))


def test_a_domain_shorter_than_its_share_still_has_passkeys(subject: Subject, tokenizer: PreTrainedTokenizerFast):
    """Rows take turns over the domains that have text enough."""
    two = {"random": subject.corpus.running["random"], "short": subject.corpus.running["random"].take(1)}
    both = replace(subject, corpus=replace(subject.corpus, running=two, validation=two))
    assert recall.text(both, 5, 30).shape == (5, 30)
