"""Mixers that see both directions, against a double loop over queries and keys; and encoders made of them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from distill.flexformer.bidirectional import everywhere
from distill.flexformer.configuration import FlexformerConfig
from distill.flexformer.encoder import FlexformerForMaskedLM
from distill.flexformer.engine import parallel
from distill.flexformer.exact import exact_attention
from distill.flexformer.mixer import Mixer

from .examples import FOURIER, PLAIN, SHAPE

SCALING = 0.4
KINDS: dict[str, dict[str, Any]] = {
    "exponential": {"map": "exponential", "features": 5, "frequency_scale": 1.0, "key_weight": "quadratic"},
    "favor": {"map": "favor", "features": 6, "redraw_every": 0},
    "hedgehog": {"map": "hedgehog", "features": 8},
    "elu": {"map": "elu"},
    "products": FOURIER | {"map": "nonstationary", "features": 20, "positive": True, "order": 2},
    "signed": FOURIER | {"map": "stationary", "features": 9, "positive": False, "order": 1},
    "norm": {"map": "identity", "normaliser": "norm"},
    "uniform": {"map": "constant", "key_weight": "linear"},
}


@pytest.fixture(params=KINDS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    return make(request.param)


def make(kind: str, **changes: Any) -> Mixer:
    torch.manual_seed(1)
    made = Mixer(SHAPE, PLAIN | KINDS[kind] | changes, causal=False).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def draw(tokens: int = 7, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, heads, tokens, 4) for heads in (SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def padding(side: str, tokens: int = 7) -> Tensor | None:
    """Row b misses b tokens on its side."""
    if side == "none":
        return None
    present = torch.arange(tokens)[None] >= torch.arange(3)[:, None]
    return (present if side == "left" else present.flip(1)).long()


def by_loop(mixer: Mixer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Σ_j e^{w_j} κ(q_i, k_j) [v_j, 1] over the real tokens j of the text, then the normaliser."""
    position = torch.zeros(3, query.shape[2], dtype=torch.long)
    query, key = query * SCALING**0.5, key * SCALING**0.5
    phi, (psi, scale) = mixer.map.query_features(query, position), mixer.map.key_features(key, position)
    weight = mixer.key_weight(key) + (0 if scale is None else scale)
    rows = []
    for b in range(3):
        for h in range(SHAPE.heads):
            g = h // SHAPE.group
            for i in range(query.shape[2]):
                sums = query.new_zeros(5)
                for j in range(key.shape[2]):
                    if mask is None or mask[b, j]:
                        kernel = weight[b, g, j].exp() * (phi[b, h, i] @ psi[b, g, j])
                        sums = sums + kernel * torch.cat([value[b, g, j], torch.ones(1)])
                rows.append(sums)
    return mixer.normaliser(torch.stack(rows).view(3, SHAPE.heads, query.shape[2], 5))


def gradients(out: Tensor, mixer: Mixer, inputs: list[Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(out.square().sum(), [*mixer.parameters(), *inputs], retain_graph=True, allow_unused=True)
    )


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_it_is_the_formula(mixer: Mixer, side: str):
    """Values and gradients; the quadratic form, too."""
    inputs, mask = [x.requires_grad_() for x in draw()], padding(side)
    expected = by_loop(mixer, *inputs, mask)
    # What the normaliser makes of near-cancelling signed weights is not to be compared.
    tolerance = {"rtol": 1e-7, "atol": 1e-9}
    for path in (None, partial(parallel, causal=False), everywhere):
        found, _ = mixer(*inputs, SCALING, mask, path=path)
        torch.testing.assert_close(found, expected, **tolerance)
        for got, wanted in zip(gradients(found, mixer, inputs), gradients(expected, mixer, inputs), strict=True):
            torch.testing.assert_close(got, wanted, **tolerance)


def test_the_maps_that_losses_compare_are_what_it_does(mixer: Mixer):
    """log_weights and scores, times the values, are the outputs; every key is seen."""
    query, key, value = draw()
    if not mixer.averages:
        return
    out, _ = mixer(query, key, value, SCALING)
    scores = mixer.scores(query, key, SCALING)
    weights = scores / scores.sum(-1, keepdim=True)
    torch.testing.assert_close((weights @ value[:, :, None]).flatten(1, 2), out, rtol=1e-8, atol=1e-10)
    if mixer.comparable:
        logs = mixer.log_weights(query, key, SCALING)
        assert (logs > -torch.inf).all()
        torch.testing.assert_close(logs.exp(), weights, rtol=1e-8, atol=1e-12)
        some = torch.tensor([4, 1])
        torch.testing.assert_close(mixer.log_weights(query, key, SCALING, some), logs[..., some, :])


def test_weights_of_any_size(mixer: Mixer):
    """A key weight far beyond what exp can take moves nothing out of range."""
    made = make("exponential", key_weight="linear")
    with torch.no_grad():
        made.key_weight.coefficients[0].fill_(1e4)
    out, _ = made(*draw(), SCALING)
    assert out.isfinite().all()


def test_a_text_of_padding_alone_gives_nought():
    out, _ = make("exponential")(*draw(), SCALING, torch.zeros(3, 7))
    assert not out.any()


def test_time_and_state_do_not_grow_quadratically():
    """What is kept of a text is one state: (B, K, F, D + 1), at any length."""
    made = make("hedgehog")
    shapes = {made(*draw(length), SCALING)[1].sums.shape for length in (3, 100)}
    assert shapes == {(3, 2, 8, 5)}


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_exact_attention_sees_both_directions(side: str):
    (query, key, value), mask = draw(), padding(side)
    wide_key, wide_value = (x.repeat_interleave(2, 1) for x in (key, value))
    logits = query @ wide_key.mT * SCALING
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None] == 0, -torch.inf)
    found = exact_attention(query, key, value, SCALING, mask, causal=False)
    real = torch.ones(3, 7, dtype=torch.bool) if mask is None else mask.bool()
    expected = logits.softmax(-1) @ wide_value
    torch.testing.assert_close(found.transpose(1, 2)[real], expected.transpose(1, 2)[real], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("change", [{"decay": "fixed"}, {"decay": "learned", "decay_groups": 2}, {"window": 2}])
def test_what_runs_in_one_direction_is_refused(change: dict[str, Any]):
    key = next(iter(change))
    with pytest.raises(ValueError, match=rf"^mixer\.{key}={change[key]}: an encoder sees both directions; use mixer\."):
        make("hedgehog", **change)


def test_memory_is_refused():
    made = make("elu")
    with pytest.raises(ValueError, match="both directions"):
        made(*draw(), SCALING, None, made.no_memory(*draw()[1:]))


#: As small as a BERT gets, with weights large enough that attention is far from uniform.
BERT = BertConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.5,
)


def encoder(mixer: dict[str, Any], exact: list[int] | None = None) -> FlexformerForMaskedLM:
    layers = [
        {"module": f"bert.encoder.layer.{i}.attention.self", "heads": 4, "kv_heads": 4, "head_dim": 4} for i in range(2)
    ]
    torch.manual_seed(0)
    config = FlexformerConfig(BERT.to_dict(), mixer, layers, exact or [], causal=False)
    return FlexformerForMaskedLM(config).double().eval()


MIXERS = {
    "exponential": PLAIN | KINDS["exponential"],
    "linformer": {"map": "linformer", "features": 4, "length": 12},
}


@torch.no_grad()
@pytest.mark.parametrize("exact", [[], [0], [0, 1]], ids=str)
@pytest.mark.parametrize("name", MIXERS)
def test_an_encoder_sees_both_directions_and_no_padding(name: str, exact: list[int]):
    model = encoder(MIXERS[name], exact)
    ids = torch.randint(3, 50, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    before = model(ids, mask).logits
    ids[0, -1], ids[1, -1] = 1, 1
    after = model(ids, mask).logits
    assert (before[0, 0] - after[0, 0]).norm() > 1
    torch.testing.assert_close(after[1, :6], before[1, :6], rtol=0, atol=0)
    torch.testing.assert_close(model(ids[1:, :6]).logits[0], after[1, :6], rtol=1e-10, atol=1e-10)


def test_the_direction_is_saved(tmp_path):
    model = encoder(MIXERS["linformer"])
    model.save_pretrained(tmp_path)
    again = FlexformerForMaskedLM.from_pretrained(tmp_path).eval()
    assert not again.config.causal and FlexformerConfig().causal
    ids = torch.randint(3, 50, (2, 9))
    # Not to the bit: where the copies lie in memory decides how a product is summed up.
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-12, atol=1e-12)
