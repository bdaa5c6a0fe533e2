"""What `generate` writes from the state equals what recomputing everything would write."""

import pytest
import torch

from distill.flexformer.cache import CACHE, FlexformerCache
from distill.flexformer.model import FlexformerForCausalLM

from .tiny import KINDS, padding, student, tokens

GREEDY = {"do_sample": False}
#: Draws that write varied text: a model that repeats one token would hide a wrong state.
SEEDS = {"llama": 2, "gpt2": 3, "half exact": 2, "delta": 2, "retnet": 3}


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> FlexformerForCausalLM:
    return student(request.param, seed=SEEDS[request.param])


@torch.no_grad()
def test_greedy_is_full_recomputation(model: FlexformerForCausalLM):
    ids = tokens(4, 5)
    written = model.generate(ids, max_new_tokens=24, **GREEDY)
    for _ in range(24):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, ids)
    assert len(ids[:, 5:].unique()) > 5


def test_padded_batch_writes_what_each_row_alone_does(model: FlexformerForCausalLM):
    ids, mask = tokens(3, 6), padding("left", 3, 6)
    together = model.generate(ids * mask, attention_mask=mask, max_new_tokens=20, **GREEDY)
    for row in range(3):
        alone = model.generate(ids[row : row + 1, row:], max_new_tokens=20, **GREEDY)
        assert torch.equal(together[row, row:], alone[0])


SEARCHES = {
    "greedy": GREEDY,
    "beams": GREEDY | {"num_beams": 3},
    "beams, all returned": GREEDY | {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_the_cache_changes_nothing(model: FlexformerForCausalLM, search: dict):
    ids, mask = tokens(2, 6), padding("left", 2, 6)
    written = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        written.append(
            model.generate(ids * mask, attention_mask=mask, max_new_tokens=16, use_cache=use_cache, **search)
        )
    assert written[0].shape[1] == 22
    assert torch.equal(*written)


def test_going_on_from_a_returned_cache(model: FlexformerForCausalLM):
    """A second turn: what was written, more tokens from the user, and the state of the first."""
    first = model.generate(tokens(2, 5), max_new_tokens=6, return_dict_in_generate=True, **GREEDY)
    assert isinstance(first[CACHE], FlexformerCache)
    ids = torch.cat([first.sequences, tokens(2, 4, seed=1)], 1)
    on = model.generate(ids, max_new_tokens=10, **{CACHE: first[CACHE]}, **GREEDY)
    assert torch.equal(on, model.generate(ids, max_new_tokens=10, **GREEDY))


def test_a_cache_is_not_shared_between_calls(model: FlexformerForCausalLM):
    ids = tokens(1, 5)
    assert torch.equal(*(model.generate(ids, max_new_tokens=8, **GREEDY) for _ in range(2)))


@torch.no_grad()
def test_a_state_of_other_rows_is_refused(model: FlexformerForCausalLM):
    """As `num_return_sequences` asks for, which repeats tokens and not states."""
    state = model(tokens(1, 5), use_cache=True)[CACHE]
    # Keys of an exact layer come first, and are transformers'.
    told = "Expected size 1" if 0 in model.config.exact_layers else "a state of 1 texts cannot be gone on from with 3"
    with pytest.raises((ValueError, RuntimeError), match=told):
        model(tokens(3, 1), cache=state, use_cache=True)
