"""The student as a model: its logits against the formula, and what it refuses."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from distill.flexformer.model import FlexformerForCausalLM

from . import kernels, reference
from .tiny import TEACHERS, padding, student, tokens


def explicit(module, query, key, value, attention_mask, **kwargs):
    """transformers' interface again, answered by loops over the closed form, with each teacher's own scaling."""
    gpt2 = isinstance(module, GPT2Attention)
    scaling = query.shape[-1] ** -0.5 / (module.layer_idx + 1 if gpt2 else 1)
    kernel = kernels.nonstationary_product if gpt2 else kernels.spectral
    out, trusted = reference.attention(module.mixer, kernel, query, key, value, attention_mask, scaling=scaling)
    assert trusted.all()
    return out.transpose(1, 2), None


AttentionInterface.register("explicit", explicit)
AttentionMaskInterface.register("explicit", lambda *args, attention_mask=None, **kwargs: attention_mask)


@pytest.fixture(scope="module", params=TEACHERS)
def model(request: pytest.FixtureRequest) -> FlexformerForCausalLM:
    return student(request.param)


@torch.no_grad()
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_logits_are_the_formula(model: FlexformerForCausalLM, side: str):
    inputs = {"input_ids": tokens(3, 7), "attention_mask": padding(side, 3, 7)}
    found = model(**inputs).logits
    model.lm.set_attn_implementation("explicit")
    expected = model(**inputs, use_cache=False).logits
    model.lm.set_attn_implementation("flexformer")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_pieces_equal_the_whole(model: FlexformerForCausalLM):
    """Several tokens onto a state that is not empty, left padding included."""
    ids, mask = tokens(3, 12), padding("left", 3, 12)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    whole = model(ids, mask, position_ids=positions).logits
    cache, logits = None, []
    for start, end in ((0, 4), (4, 9), (9, 10), (10, 12)):
        out = model(ids[:, start:end], mask[:, :end], positions[:, start:end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
        assert cache.get_seq_length() == end
    torch.testing.assert_close(torch.cat(logits, 1), whole, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_cache_does_not_grow(model: FlexformerForCausalLM):
    sizes = {model(tokens(2, length)).past_key_values.nbytes for length in (1, 2, 100)}
    mixer = model.mixers[0].map
    expected = 2 * 2 * mixer.shape.kv_heads * (mixer.feature_dim * (4 + 1) + 1) * 8
    assert sizes == {expected}


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
def test_training_keeps_no_cache_and_checkpoints_gradients(model: FlexformerForCausalLM):
    ids = tokens(2, 9)

    def gradients():
        model.zero_grad()
        out = model(ids, labels=ids)
        assert out.past_key_values is None
        out.loss.backward()
        return [p.grad for p in model.mixers[0].parameters()]

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable()
    again = gradients()
    model.gradient_checkpointing_disable()
    model.eval()
    assert all(g.any() for g in plain)
    torch.testing.assert_close(again, plain, rtol=1e-10, atol=1e-12)


def test_bfloat16_model_runs():
    """As it is loaded for serving: from_pretrained(dtype=torch.bfloat16)."""
    half = student("llama").bfloat16()
    out = half(tokens(2, 9))
    assert out.logits.dtype == torch.bfloat16 and out.logits.isfinite().all()
    assert half.generate(tokens(2, 9), max_new_tokens=3, do_sample=False).shape == (2, 12)


def test_refuses_another_cache(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match="DynamicCache"):
        model(tokens(1, 3), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="DynamicCache"):
        model.generate(tokens(1, 3), past_key_values=DynamicCache(), max_new_tokens=2)


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized"])
def test_refuses_cache_implementation(model: FlexformerForCausalLM, kind: str):
    with pytest.raises(ValueError, match=f"cache_implementation={kind}"):
        model.generate(tokens(1, 3), cache_implementation=kind, max_new_tokens=2)


def test_refuses_a_full_mask(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match="2-D padding mask"):
        model(tokens(1, 3), torch.zeros(1, 1, 3, 3, dtype=torch.float64))


def test_refuses_assisted_decoding(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match="assisted"):
        model.generate(tokens(1, 3), assistant_model=model, max_new_tokens=2)
    with pytest.raises(ValueError, match="assisted"):
        model.generate(tokens(1, 6), prompt_lookup_num_tokens=2, max_new_tokens=2)


def test_configuration_round_trip(model: FlexformerForCausalLM):
    again = type(model.config).from_dict(model.config.to_dict())
    assert (again.base, again.mixer, again.layers) == (model.config.base, model.config.mixer, model.config.layers)
    assert again.vocab_size == 50 and again.num_hidden_layers == 2 and again.hidden_size == 16
    assert again.pad_token_id == 0 and not again.tie_word_embeddings
    assert type(again.base_config()) is type(model.lm.config)


def test_embeddings_are_the_teachers(model: FlexformerForCausalLM):
    assert model.get_input_embeddings() is model.lm.get_input_embeddings()
    assert model.get_output_embeddings() is model.lm.get_output_embeddings()
