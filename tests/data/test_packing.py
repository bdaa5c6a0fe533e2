"""Texts → blocks of tokens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerFast

from distill.config import Domain
from distill.data import packing
from distill.data.packing import pack
from distill.data.sources import load
from distill.errors import UserError

from .conftest import byte_level, counting, write

#: Packs a file where tokenising is an error.
SCRIPT = """
import sys
from transformers import PreTrainedTokenizerFast
from distill.config import Domain
from distill.data import packing
from distill.data.sources import load

packing._blocks = None
tokenizer = PreTrainedTokenizerFast.from_pretrained(sys.argv[1])
print(packing.pack(load(Domain(sys.argv[2]), False).train, tokenizer, 8, "x")[:]["input_ids"].tolist())
"""


def ids(blocks) -> list[int]:
    return torch.cat([row["input_ids"] for row in blocks]).tolist()


def expected(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    encode = tokenizer.backend_tokenizer.encode
    return [i for text in texts for i in [*encode(text, add_special_tokens=False).ids, tokenizer.eos_token_id]]


@pytest.mark.parametrize("streaming", [False, True])
def test_documents_are_joined_by_the_end_token_and_cut_into_contiguous_blocks(tokenizer, streaming: bool):
    texts = [counting(0, 10), "", counting(10, 25), "short"]
    rows = Dataset.from_dict({"text": texts})
    blocks = pack(rows.to_iterable_dataset() if streaming else rows, tokenizer, 8, "x")
    whole = expected([text for text in texts if text], tokenizer)
    assert isinstance(blocks, IterableDataset) == streaming
    assert ids(blocks) == whole[: len(whole) // 8 * 8] and len(whole) % 8
    first = next(iter(blocks))
    assert list(first) == ["input_ids"] and first["input_ids"].shape == (8,)
    assert first["input_ids"].dtype == torch.int64


def test_each_batch_of_documents_loses_at_most_its_last_block(tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "BATCH", 3)
    texts = [counting(i, i + 4) for i in range(7)]
    batches = [expected(texts[i : i + 3], tokenizer) for i in (0, 3, 6)]
    wanted = [i for batch in batches for i in batch[: len(batch) // 8 * 8]]
    assert ids(pack(Dataset.from_dict({"text": texts}), tokenizer, 8, "x")) == wanted


@pytest.mark.parametrize("text", [counting(0, 300), "no-line-break " * 200])
def test_a_long_document_is_tokenised_in_pieces_and_loses_nothing(tokenizer, text: str, monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 100)
    monkeypatch.setattr(packing, "PIECES", 7)
    pieces = list(packing._pieces(text))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 100
    assert all(piece.endswith("\n") for piece in pieces) == ("\n" in text)
    assert tokenizer.decode(packing._joined([text], tokenizer)) == text + "<end>"


def test_a_document_longer_than_the_teachers_context_brings_no_warning(monkeypatch: pytest.MonkeyPatch):
    warned: list[str] = []
    monkeypatch.setattr("transformers.tokenization_utils_base.logger.warning", lambda text, *_: warned.append(text))
    # A tokenizer warns once: a new one has not done so.
    tokenizer = byte_level(counting(0, 200))
    pack(Dataset.from_dict({"text": [counting(0, 50)]}), tokenizer, 8, "x")
    assert not warned
    tokenizer(counting(0, 50))
    assert warned


def test_the_cache_is_keyed_by_text_tokenizer_and_context(tokenizer, tmp_path: Path):
    text = Domain(write(tmp_path / "a.txt", counting(0, 40)))
    other = Domain(write(tmp_path / "b.txt", counting(1, 41)))
    another = byte_level(counting(0, 200).upper())
    cases = [(text, tokenizer, 8), (other, tokenizer, 8), (text, another, 8), (text, tokenizer, 9)]
    made = {
        pack(load(domain, False).train, tokens, context, "x").cache_files[0]["filename"]
        for domain, tokens, context in cases * 2
    }
    assert len(made) == len(cases)


def test_what_earlier_calls_left_in_the_tokenizer_changes_neither_key_nor_blocks(tokenizer):
    rows, before = Dataset.from_dict({"text": [counting(0, 40)]}), packing.identity(tokenizer)
    whole = ids(pack(rows, tokenizer, 8, "x"))
    tokenizer(["a b"], truncation=True, max_length=2)
    assert packing.identity(tokenizer) == before
    assert ids(pack(rows, tokenizer, 8, "x")) == whole


def test_a_second_process_does_not_tokenise_again(tokenizer, tmp_path: Path, cache: Path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    text = write(tmp_path / "a.txt", counting(0, 40))
    blocks = pack(load(Domain(text), False).train, tokenizer, 8, "x")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "tokenizer"), text]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache)}
    second = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert second.stdout == f"{blocks[:]['input_ids'].tolist()}\n"


def test_too_little_text_names_domain_tokens_and_context(tokenizer):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    for texts in (rows, rows.to_iterable_dataset()):
        with pytest.raises(UserError, match=r"domain x has 4 tokens, too few for one block of data\.context=8"):
            pack(texts, tokenizer, 8, "x")


def test_a_tokenizer_without_end_of_text_is_named():
    with pytest.raises(UserError, match="no end-of-text token"):
        pack(Dataset.from_dict({"text": ["a"]}), byte_level("a", end=None), 8, "x")
