"""A step that is timed computes what a step of decoding computes."""

import gc
import weakref
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from flexformer.tiny import KINDS, LLAMA, student, tokens
from transformers import AutoModelForCausalLM, MistralConfig, masking_utils
from transformers.cache_utils import Cache

from distill.bench import serving
from distill.bench.faster import captured, compiled
from distill.bench.unmasked import UNMASKED
from distill.flexformer.cache import CACHE
from distill.measure import steps
from distill.measure.steps import FixedLayer, student_step, teacher_step


@pytest.fixture
def teacher() -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LLAMA).double().eval()


@torch.no_grad()
def test_a_cache_of_full_size_gives_what_one_that_grows_does(teacher):
    ids = tokens(2, 9)
    grown = teacher(input_ids=ids[:, :-1], use_cache=True)[CACHE]
    room = [torch.nn.functional.pad(part, (0, 0, 0, 1)) for each in grown.layers for part in (each.keys, each.values)]
    fixed = Cache(layers=[FixedLayer(*pair) for pair in zip(room[::2], room[1::2], strict=True)])
    places = torch.full((2, 1), 8)
    for _ in range(2):
        # The same step again and again: the last place is overwritten.
        out = teacher(input_ids=ids[:, -1:], position_ids=places, use_cache=True, **{CACHE: fixed})
        assert torch.allclose(out.logits[:, -1], teacher(input_ids=ids).logits[:, -1], atol=1e-12)
    assert fixed.get_seq_length() == 8


@torch.no_grad()
def test_a_sliding_window_keeps_what_it_sees_again():
    """As the teacher's own cache does, token after token; a step of the fixed one is that of the growing one."""
    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=50, sliding_window=5, max_position_embeddings=64,
    )  # fmt: skip
    sliding, ids = AutoModelForCausalLM.from_config(config).double().eval(), tokens(1, 12)
    grown = sliding(input_ids=ids[:, :-1], use_cache=True)[CACHE]
    layers = [steps.full(layer, 11) for layer in grown.layers]
    for layer, own in zip(layers, grown.layers, strict=True):
        assert layer.keys.shape[2] == own.keys.shape[2] + 1 == 5
        layer.keys[:, :, :-1], layer.values[:, :, :-1] = own.keys, own.values
    step = {"input_ids": ids[:, -1:], "position_ids": torch.full((1, 1), 11), "use_cache": True}
    found = sliding(**step, **{CACHE: Cache(layers=layers)}).logits
    torch.testing.assert_close(found, sliding(**step, **{CACHE: grown}).logits)


@torch.no_grad()
def test_a_teacher_keeps_every_token(teacher):
    # Two layers of two key-value heads of 4, keys and values in float64.
    assert [teacher_step(teacher, 3, length)[1] for length in (10, 20)] == [3 * 2 * 2 * 4 * 2 * 8 * n for n in (11, 21)]
    assert teacher_step(teacher, 3, 10)[0]().logits.shape == (3, 1, 50)


@torch.no_grad()
def test_no_mask_is_made_even_while_it_cannot_be_looked_into(teacher, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    unmasked = AutoModelForCausalLM.from_config(LLAMA, attn_implementation=UNMASKED).double().eval()
    text, attention, masks = tokens(2, 9), torch.nn.functional.scaled_dot_product_attention, []

    def recorded(*args: Any, attn_mask: Any = None, **kwargs: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    monkeypatch.setattr(masking_utils, "is_tracing", lambda *tensors: True)
    assert torch.allclose(unmasked(input_ids=text).logits, teacher(input_ids=text).logits, atol=1e-12)
    masks.clear()
    unmasked(input_ids=text)
    found = []
    for model in (unmasked, teacher):
        torch.manual_seed(1)
        found.append(teacher_step(model, 2, 6)[0]().logits[:, -1])
        assert model is teacher or (masks and set(masks) == {None})
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_step_is_compiled_whole_and_once(kind: str, teacher, monkeypatch: pytest.MonkeyPatch):
    # Graphs are captured as for any other backend, and run as they are.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = student(kind)
    for make, one in ((teacher_step, teacher), (student_step, model)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(0)
        step = make(one, 2, 6)[0]
        torch.manual_seed(0)
        fast = compiled(make(one, 2, 6)[0])
        for _ in range(3):
            assert torch.allclose(fast().logits, step().logits, atol=1e-10)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_a_captured_step_keeps_its_tensors(monkeypatch: pytest.MonkeyPatch):
    """A graph holds none of them: freed, their place in memory would be somebody else's at the next replay."""
    for name, stand_in in {
        "CUDAGraph": MagicMock,
        "Stream": MagicMock,
        "current_stream": MagicMock,
        "graph": lambda graph: nullcontext(),
        "stream": lambda stream: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def made() -> tuple[steps.Step, weakref.ref[torch.Tensor]]:
        ids = torch.ones(3)
        return captured(lambda: ids + 1), weakref.ref(ids)

    replay, ids = made()
    gc.collect()
    assert ids() is not None
    replay()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@torch.no_grad()
def test_a_replay_computes_what_the_step_does(teacher):
    for make, one in ((teacher_step, teacher.cuda()), (student_step, student("llama").cuda())):
        torch.manual_seed(0)
        step = make(one, 2, 6)[0]
        torch.manual_seed(0)
        replay = captured(make(one, 2, 6)[0])
        # Captured after three steps.
        expected = [step().logits for _ in range(5)]
        for logits in expected[3:]:
            assert torch.allclose(replay().logits, logits, atol=1e-9)


def test_both_sides_are_made_faster_alike(teacher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "TURNS", (2, 0))
    done: list[str] = []

    def way(name: str) -> serving.Faster:
        return lambda step: lambda: (done.append(name), step())[1]

    serving.time_decode({"teacher": teacher, "student": student("llama")}, [4], [1], [way("first"), way("second")])
    # Of every step that is taken, the way that was gone last is the outer one.
    assert done == ["second", "first"] * (len(done) // 2) and len(done) == 2 * 2 * (1 + 2 * serving.STEPS)


@torch.no_grad()
def test_many_lengths_can_be_compiled(teacher, monkeypatch: pytest.MonkeyPatch):
    """More than PyTorch compiles the same lines for unless it is told to."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    for length in range(2, 14):
        assert compiled(teacher_step(teacher, 1, length)[0])().logits.isfinite().all()
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_students_step_goes_on_in_place(kind: str, monkeypatch: pytest.MonkeyPatch):
    """Step after step, as the same tokens read one after another would."""
    monkeypatch.setattr(steps, "READ", 6)
    model = student(kind)
    step, kept = student_step(model, 2, 6)
    cache = model(input_ids=steps.tokens(model, 2, 6), use_cache=True).past_key_values
    again = steps.tokens(model, 2, 1)
    for _ in range(3):
        expected = model(input_ids=again, position_ids=torch.full((2, 1), 6), past_key_values=cache, use_cache=True)
        found = step()
        if not KINDS[kind].exact:
            assert torch.allclose(found.logits, expected.logits, atol=1e-10)
    lengths = [student_step(model, 2, length)[1] for length in (50, 100)]
    assert lengths[0] < lengths[1] if KINDS[kind].exact else {*lengths, kept} == {cache.nbytes}
