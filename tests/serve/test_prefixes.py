"""States kept by what they have read, in bounded room, on disk and back."""

from pathlib import Path

import pytest
import torch
from flexformer.tiny import KINDS, student, tokens

from distill.errors import UserError
from distill.flexformer.cache import FlexformerCache
from distill.flexformer.model import FlexformerForCausalLM
from distill.serve.prefixes import Prefixes, cost, fingerprint, written
from distill.states import joined, rows, tensors

PURE = [name for name, kind in KINDS.items() if not kind.exact]


@pytest.fixture(scope="module", params=PURE)
def model(request: pytest.FixtureRequest) -> FlexformerForCausalLM:
    return student(request.param)


def state(model: FlexformerForCausalLM, ids: list[int]) -> FlexformerCache:
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=True).past_key_values  # type: ignore[return-value]


def test_the_longest_that_leaves_a_token_to_read(model: FlexformerForCausalLM):
    kept, ids = Prefixes(2**20), tokens(1, 6)[0].tolist()
    for length in (2, 4, 6):
        kept.keep(ids[:length], state(model, ids[:length]))
    assert kept.longest(ids)[0] == 4 and kept.longest([*ids, 1])[0] == 6
    assert kept.longest([*ids[:3], 0, 0])[0] == 2 and kept.longest([0, 0])[0] == 0
    assert kept.longest(ids)[1].get_seq_length() == 4


def test_what_was_not_used_for_longest_goes_first(model: FlexformerForCausalLM):
    one = state(model, [1, 2])
    kept = Prefixes(3 * cost(written([1, 2]), one))
    for first in (1, 2, 3):
        kept.keep([first, 9], one)
    kept.longest([1, 9, 9])
    kept.keep([4, 9], one)
    assert [kept.longest([first, 9, 9])[0] for first in (1, 2, 3, 4)] == [2, 0, 2, 2]
    kept.keep([1, 9], one)
    assert kept.held == 3 * cost(written([1, 2]), one) == kept.room


def test_none_is_kept_that_has_no_room(model: FlexformerForCausalLM):
    kept = Prefixes(10)
    kept.keep([1, 2], state(model, [1, 2]))
    assert kept.held == 0 and kept.longest([1, 2, 3])[0] == 0


@torch.no_grad()
def test_rows_part_and_join(model: FlexformerForCausalLM):
    """Two texts of different length, joined, swapped, and gone on with."""
    one, two = tokens(1, 7)[0].tolist(), tokens(1, 3, seed=1)[0].tolist()
    both = rows(joined([state(model, one), state(model, two)]), [1, 0])
    assert both.get_seq_length() == 7
    at = torch.tensor([[3], [7]])
    new = model(torch.tensor([[5], [6]]), position_ids=at, past_key_values=both, use_cache=True).logits[:, -1]
    for ids, last in (([*two, 5], new[0]), ([*one, 6], new[1])):
        assert torch.allclose(model(torch.tensor([ids]), use_cache=False).logits[0, -1], last, atol=1e-12)


def test_saved_and_restored(model: FlexformerForCausalLM, tmp_path: Path):
    kept, file = Prefixes(2**20), tmp_path / "states.safetensors"
    texts = [tokens(1, length, seed=length)[0].tolist() for length in (3, 8)]
    for ids in texts:
        kept.keep(ids, state(model, ids))
    kept.save(file, "me")
    again = Prefixes(2**20)
    assert again.load(file, "me", model) == 2 and again.held == kept.held
    for ids in texts:
        read, found = again.longest([*ids, 1])
        assert read == len(ids) == found.get_seq_length()
        for name, part in tensors(state(model, ids)).items():
            assert torch.equal(tensors(found)[name], part)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_of_another_student_or_in_pieces_is_refused(tmp_path: Path):
    model, file = student("llama"), tmp_path / "states.safetensors"
    kept = Prefixes(2**20)
    kept.keep([1, 2], state(model, [1, 2]))
    kept.save(file, "another")
    with pytest.raises(UserError, match="holds states of another student"):
        Prefixes(2**20).load(file, "me", model)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as states"):
        Prefixes(2**20).load(file, "another", model)


def test_a_fingerprint_is_of_weights_and_configuration(tmp_path: Path):
    for name, content in (("config.json", "{}"), ("model.safetensors", "w")):
        (tmp_path / name).write_text(content)
    first = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("more")
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_text("v")
    assert fingerprint(tmp_path) != first
