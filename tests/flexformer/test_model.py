"""The student as a model: its logits against the formula, and what it refuses."""

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from distill.flexformer.cache import CACHE
from distill.flexformer.mixer import Mixer
from distill.flexformer.model import FlexformerForCausalLM, own_scaling

from . import reference
from .tiny import KERNELS, KINDS, padding, student, tokens

#: By the class of the map, for whoever finds a mixer in a model.
CLOSED = {type(student(name).mixers[0 if name != "half exact" else 1].map): kernel for name, kernel in KERNELS.items()}


def explicit(module, query, key, value, attention_mask, **kwargs):
    """transformers' interface again, answered by loops over the closed form, with each teacher's own scaling."""
    scaling = query.shape[-1] ** -0.5 / (module.layer_idx + 1 if isinstance(module, GPT2Attention) else 1)
    given = query, key, value, attention_mask
    if not hasattr(module, "mixer"):
        return reference.softmax(*given, scaling=scaling).transpose(1, 2), None
    out, trusted = reference.attention(module.mixer, CLOSED[type(module.mixer.map)], *given, scaling=scaling)
    assert trusted.all()
    return out.transpose(1, 2), None


AttentionInterface.register("explicit", explicit)
AttentionMaskInterface.register("explicit", lambda *args, attention_mask=None, **kwargs: attention_mask)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> FlexformerForCausalLM:
    return student(request.param)


def mixer_of(model: FlexformerForCausalLM) -> Mixer:
    return next(iter(model.mixers.values()))


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
    """But for the keys and values of exact layers."""
    mixer, exact = mixer_of(model), len(model.config.exact_layers)
    heads = mixer.shape.kv_heads
    sums, window = heads * (mixer.map.feature_dim * 5 + mixer.groups) * 8, mixer.width * (heads * 2 * 4 * 8 + 1)
    for length in (1, 2, 100):
        cache = model(tokens(2, length)).past_key_values
        # In every row of two: sums and maxima, the window and which of it is padding, and the number of tokens.
        assert cache.state_bytes == (2 - exact) * 2 * (sums + window + 8)
        assert cache.nbytes == cache.state_bytes + exact * 2 * length * heads * 2 * 4 * 8


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_:FutureWarning")
def test_training_keeps_no_cache_and_checkpoints_gradients(model: FlexformerForCausalLM):
    ids = tokens(2, 9)

    def gradients():
        model.zero_grad()
        out = model(ids, labels=ids)
        assert out.past_key_values is None
        out.loss.backward()
        return [p.grad for p in (*mixer_of(model).parameters(), model.get_input_embeddings().weight)]

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
        model.generate(tokens(1, 3), max_new_tokens=2, **{CACHE: DynamicCache()})


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized"])
def test_refuses_cache_implementation(model: FlexformerForCausalLM, kind: str):
    with pytest.raises(ValueError, match=f"cache_implementation={kind}"):
        model.generate(tokens(1, 3), cache_implementation=kind, max_new_tokens=2)


def test_refuses_a_full_mask(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match="2-D padding mask"):
        model(tokens(1, 3), torch.zeros(1, 1, 3, 3, dtype=torch.float64))


def test_refuses_a_mask_of_other_texts(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match=r"a padding mask of \(2, 2\) is none of 2 texts of 3 tokens"):
        model(tokens(2, 3), torch.tensor([[0, 1], [1, 1]]))


def test_refuses_assisted_decoding(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match="assisted"):
        model.generate(tokens(1, 3), assistant_model=model, max_new_tokens=2)
    with pytest.raises(ValueError, match="assisted"):
        model.generate(tokens(1, 6), prompt_lookup_num_tokens=2, max_new_tokens=2)


def test_configuration_round_trip(model: FlexformerForCausalLM):
    again = type(model.config).from_dict(model.config.to_dict())
    for name in ("base", "mixer", "layers", "exact_layers"):
        assert getattr(again, name) == getattr(model.config, name)
    assert again.vocab_size == 50 and again.num_hidden_layers == 2 and again.hidden_size == 16
    assert (again.num_attention_heads, again.head_dim) == (4, 4)
    assert again.num_key_value_heads == again.layers[0]["kv_heads"]
    assert again.pad_token_id == 0 and not again.tie_word_embeddings
    assert type(again.base_config()) is type(model.lm.config)


def test_embeddings_are_the_teachers(model: FlexformerForCausalLM):
    assert model.get_input_embeddings() is model.lm.get_input_embeddings()
    assert model.get_output_embeddings() is model.lm.get_output_embeddings()


def test_refuses_packed_texts(model: FlexformerForCausalLM):
    """Their positions begin anew within a row; those of padding may be anything."""
    ids, positions = tokens(2, 6), torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]])
    with pytest.raises(ValueError, match=r"position_ids: these rows hold several texts.*a row of its own"):
        model(ids, position_ids=positions)
    with pytest.raises(ValueError, match="cu_seq_lens_q: these rows hold several texts"):
        model(ids, cu_seq_lens_q=torch.tensor([0, 3, 6]))
    for packed in ([0, 0, 1, 2, 3, 4], [0] * 6):
        with pytest.raises(ValueError, match="position_ids: these rows hold several texts"):
            model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5], packed]))
    # Padding between two texts hides neither from the other.
    apart = torch.tensor([[1] * 6, [1, 1, 1, 0, 1, 1]])
    with pytest.raises(ValueError, match="position_ids: these rows hold several texts"):
        model(ids, apart, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 1, 0, 1]]))
    model(ids, padding_of(3), position_ids=positions)
    model(ids[:, :1], position_ids=positions[:, :1])
    # Onto a state, the mask is of everything so far.
    cache = model(ids, padding_of(3), use_cache=True).past_key_values
    whole = torch.cat([padding_of(3), torch.ones(2, 2, dtype=torch.long)], 1)
    with pytest.raises(ValueError, match="several texts"):
        model(ids[:, :2], whole, position_ids=torch.tensor([[6, 7], [5, 4]]), past_key_values=cache)


def padding_of(missing: int) -> torch.Tensor:
    """Six tokens; the second row misses some on the left."""
    return torch.tensor([[1] * 6, [0] * missing + [1] * (6 - missing)])


def test_refuses_what_another_model_says(model: FlexformerForCausalLM):
    with pytest.raises(ValueError, match="encoder_hidden_states: a flexformer attends to its own tokens alone"):
        model(tokens(1, 3), encoder_hidden_states=torch.zeros(1, 2, 16))


def test_a_state_that_does_not_arrive_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Where a family's layers keep what they are given from their attention, every token would be read as the first."""
    made = student("llama")
    layer = made.lm.model.layers[1].self_attn
    forward = layer.forward

    def keeps(*args, flexformer_cache=None, **kwargs):
        return forward(*args, **kwargs | {CACHE: None})

    monkeypatch.setattr(layer, "forward", keeps)
    with pytest.raises(ValueError, match="does not hand llama's attention its state"):
        made(tokens(1, 3), use_cache=True)
    with pytest.raises(ValueError, match="use_cache=False"):
        made.generate(tokens(1, 3), max_new_tokens=2)
    assert getattr(made(tokens(1, 3)), CACHE) is None
    made(tokens(1, 3), use_cache=False)


def test_a_state_arrives_with_the_keys(monkeypatch: pytest.MonkeyPatch):
    """Where a release of transformers keeps an argument that it does not know from a family's layers."""
    made, ids = student("llama"), tokens(1, 3)
    expected = made.generate(ids, max_new_tokens=9, do_sample=False)
    for layer in made.lm.model.layers:
        forward = layer.self_attn.forward

        def keeps(*args, flexformer_cache=None, forward=forward, **kwargs):
            return forward(*args, **kwargs)

        monkeypatch.setattr(layer.self_attn, "forward", keeps)
    assert torch.equal(made.generate(ids, max_new_tokens=9, do_sample=False), expected)


def test_a_scaling_that_is_not_told_is_the_modules_own():
    """What GPT-2's attention hands on in newer releases."""
    for options in ({}, {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}):
        attention = GPT2Attention(GPT2Config(n_embd=16, n_head=4, **options), layer_idx=2)
        assert own_scaling(attention, 4) == pytest.approx(attention.scaling)
    assert own_scaling(torch.nn.Identity(), 16) == 0.25
