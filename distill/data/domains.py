"""A configuration's domains → their blocks: what is trained on, and what is held out."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from ..config import Data, Domain
from ..errors import UserError
from ..names import MIXTURE
from ..task import DECODER, Task, padded
from . import chat, labelled, pairs
from .cached import cached
from .mixture import Blocks, Corpus
from .packing import pack
from .sources import Splits, is_local, load

#: Of the training blocks, the share that is held out where a domain has no validation text.
HELD_OUT = 0.05
#: The tasks that keys of a domain are for.
FOR = {"pair": "sequence_classification or embedding", "order": "sequence_classification"}


class Packed(NamedTuple):
    """train: None of a domain that is only measured. held_out: all of what `validation` is a part of."""

    train: Blocks | None
    validation: Dataset
    held_out: Dataset


@cached()
def prepare(
    config: Data,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    task: Task = DECODER,
    classes: list[str] | None = None,
) -> Corpus:
    """Loads, tokenises and packs every domain; a second run with the same text and tokenizer reads it from disk.

    Of a task with labels a row is a text, of one with pairs two of them, and of conversations one of these, none of
    them packed. classes: what the model calls the labels, None for one that is yet to be made, which calls them as the
    rows do.

    A domain of weight 0 is only measured. Where another has no validation text, the last 5 % of its packed blocks (at
    least one) are held out, or, of a stream, the first `validation_blocks`. At most `validation_blocks` are kept,
    evenly spread over the text; of a stream the first ones. UserError names the key or file that does not fit.
    """
    domains = _checked(config, task)
    texts = {name: _texts(domain, config, task) for name, domain in domains.items()}
    encode: Callable[..., Any] = pack
    collate = task.collate(tokenizer)
    positive = 1
    if task.labelled:
        classes, numbers, positive = labelled.labels(texts.values(), classes)
        encode = partial(labelled.encode, numbers=numbers)
    elif task.paired:
        encode = pairs.encode
    elif _are_chats(domains):
        encode, collate = chat.encode, padded(tokenizer)
    runs_on = encode is pack
    encode = partial(encode, tokenizer=tokenizer, context=config.context)
    packed = {name: _dealt(name, domain, config, texts[name], encode) for name, domain in domains.items()}
    total = sum(domain.weight for domain in domains.values())
    return Corpus(
        domains=domains,
        train={name: blocks.train for name, blocks in packed.items() if blocks.train is not None},
        validation={name: blocks.validation for name, blocks in packed.items()},
        running={name: blocks.held_out for name, blocks in packed.items()} if runs_on else {},
        weights={name: domain.weight / total for name, domain in domains.items() if domain.weight},
        seed=seed,
        workers=config.workers,
        collate=collate,
        classes=classes,
        positive=positive,
        even=task.paired,
    )


def training_texts(config: Data, task: Task = DECODER) -> Iterator[str]:
    """Every document that `prepare` would train on, domain by domain: what a tokenizer is made from."""
    domains = _checked(config, task)
    if _are_chats(domains):
        raise UserError("data: a tokenizer is not made from conversations; give teacher.path, or plain text")
    for domain in domains.values():
        if domain.weight:
            train = _texts(domain, config, task).train
            yield from (row[name] for row in train for name in ("text", "pair") if name in row)


def _texts(domain: Domain, config: Data, task: Task) -> Splits:
    if task.labelled:
        return labelled.load(domain)
    if task.paired:
        return pairs.load(domain)
    return chat.load(domain) if domain.messages else load(domain, config.streaming)


def _are_chats(domains: dict[str, Domain]) -> bool:
    return any(domain.messages for domain in domains.values())


def _checked(config: Data, task: Task) -> dict[str, Domain]:
    if config.context < 2:
        raise UserError(f"data.context={config.context} leaves no token to predict: give at least 2")
    if config.validation_blocks < 1:
        raise UserError(f"data.validation_blocks={config.validation_blocks} measures nothing: give at least 1")
    domains = config.domains if config.path is None else _single(config.path, config)
    if not domains:
        raise UserError("data has no domain: give data.path, or an entry in data.domains")
    for name, domain in domains.items():
        if domain.weight < 0:
            raise UserError(f"data.domains.{name}.weight={domain.weight}: give a positive weight, or 0 to measure only")
        if name == MIXTURE and len(domains) > 1:
            raise UserError(f"data.domains.{name}: what all domains together are called; give it another name")
        for key, fits in (("pair", task.scored), ("order", task.labelled)):
            if getattr(domain, key) and not fits:
                raise UserError(f"data.domains.{name}.{key} is for task={FOR[key]}; leave it out")
    if chats := [name for name, domain in domains.items() if domain.messages]:
        if not task.causal:
            raise UserError(f"data.domains.{chats[0]}.messages: conversations are for task=causal_lm; leave it out")
        if len(chats) < len(domains):
            raise UserError("data.domains: conversations and plain texts do not mix; give messages to all or to none")
    if config.streaming and (task.scored or chats):
        raise UserError("data.streaming=true: rows of a table are read whole; set it to false")
    if not any(domain.weight for domain in domains.values()):
        raise UserError("data.domains: every weight is 0, so that there is no text to train on; give one a weight")
    return domains


def _single(path: str, config: Data) -> dict[str, Domain]:
    """`data.path` as a domain, named after the part of the embedded corpus, the file without extensions, or the hub."""
    local = Path(path).expanduser().resolve().name.split(".")[0]
    name = config.name or path if path == "python" else local if is_local(path) else path.split("/")[-1]
    return {name: Domain(path, name=config.name, validation=config.validation)}


def _dealt(name: str, domain: Domain, config: Data, texts: Splits, encode: Callable[..., Any]) -> Packed:
    """What a domain trains on and what it is measured on; encode: texts and what to call them → blocks of tokens."""
    wanted = config.validation_blocks
    if not domain.weight:
        # Never trained on, so that all of it can be held out.
        held_out = texts.train if texts.validation is None else texts.validation
        return _measured(None, encode(held_out, domain=name), wanted)
    train = encode(texts.train, domain=name)
    if texts.validation is not None:
        return _measured(train, encode(texts.validation, domain=f"{name} (validation)"), wanted)
    if isinstance(train, IterableDataset):
        return _measured(_some(train.skip(wanted), name, config), train, wanted)
    kept = len(train) - max(1, int(HELD_OUT * len(train)))
    rest = _some(train.select(range(kept)), name, config)
    return _measured(rest, train.select(range(kept, len(train))), wanted)


def _measured(train: Blocks | None, held_out: Blocks, wanted: int) -> Packed:
    validation = _spread(held_out, wanted)
    return Packed(train, validation, validation if isinstance(held_out, IterableDataset) else held_out)


def _spread(blocks: Blocks, wanted: int) -> Dataset:
    """At most `wanted` blocks, evenly spread over the text; of a stream, whose length is unknown, the first ones."""
    if isinstance(blocks, IterableDataset):
        return Dataset.from_list(list(blocks.with_format(None).take(wanted))).with_format("torch")
    kept = min(wanted, len(blocks))
    return blocks.select([i * len(blocks) // kept for i in range(kept)])


def _some(train: Blocks, name: str, config: Data) -> Blocks:
    """What is left to train on once blocks are held out."""
    if next(iter(train), None) is None:
        raise UserError(
            f"domain {name} has no block of data.context={config.context} left to train on once some are held out "
            "for validation: give more text, a smaller context, or data.validation"
        )
    return train
