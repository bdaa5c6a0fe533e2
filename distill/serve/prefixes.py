"""The states of texts read before: a prompt that begins like one of them is read from there on.

A softmax server keeps keys and values of every token for this; a state is a few megabytes, whatever the length.
"""

import hashlib
import json
from array import array
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..flexformer.cache import FlexformerCache
from ..flexformer.model import FlexformerForCausalLM
from ..states import restored, tensors
from ..whole import whole


class Prefixes:
    """States by the tokens that led to them; of those not used for longest, as many are dropped as `room` bytes ask."""

    def __init__(self, room: int):
        self.room, self.held = room, 0
        self.states: OrderedDict[bytes, FlexformerCache] = OrderedDict()

    def keep(self, tokens: list[int], state: FlexformerCache) -> None:
        key = written(tokens)
        self.drop(key)
        if cost(key, state) <= self.room:
            self.states[key] = state
            self.held += cost(key, state)
        while self.held > self.room:
            self.drop(next(iter(self.states)))

    def drop(self, key: bytes) -> None:
        if state := self.states.pop(key, None):
            self.held -= cost(key, state)

    def longest(self, tokens: list[int]) -> tuple[int, FlexformerCache | None]:
        """How many of the tokens some state has read, and that state; the last is never among them, for what comes
        after it is asked."""
        key = written(tokens)
        for length in sorted({len(each) for each in self.states if len(each) < len(key)}, reverse=True):
            if state := self.states.get(key[:length]):
                self.states.move_to_end(key[:length])
                return length // WIDTH, state
        return 0, None

    def save(self, path: Path, student: str) -> None:
        """All of them, the last used last; under another name first, so that a file that exists is whole."""
        found: dict[str, Tensor] = {}
        for index, (key, state) in enumerate(self.states.items()):
            found |= {f"{index}.{name}": part.cpu() for name, part in tensors(state).items()}
            found[f"{index}.tokens"] = torch.tensor(array(CODE, key).tolist(), dtype=torch.long)
        with whole(path) as unfinished:
            save_file(found, unfinished, {"student": student, "states": json.dumps(len(self.states))})

    def load(self, path: Path, student: str, model: FlexformerForCausalLM) -> int:
        """How many there were; UserError where the file is of another student or cannot be read."""
        try:
            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                if told.get("student") != student:
                    raise UserError(f"{path} holds states of another student; name another file, or remove it")
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            for index in range(json.loads(told["states"])):
                mine = f"{index}."
                parts = {name.removeprefix(mine): part for name, part in found.items() if name.startswith(mine)}
                tokens = parts.pop("tokens").tolist()
                self.keep(tokens, restored(parts, model.new_cache(), len(tokens), model.device))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} cannot be read as states: {str(error).splitlines()[0]}; remove it") from error
        return len(self.states)


#: Tokens as bytes, which are hashed and compared faster than tuples of numbers.
CODE = "I"
WIDTH = array(CODE).itemsize


def written(tokens: list[int]) -> bytes:
    return array(CODE, tokens).tobytes()


def cost(key: bytes, state: FlexformerCache) -> int:
    return len(key) + state.nbytes


def fingerprint(checkpoint: Path) -> str:
    """Which student this is, by its weights and configuration."""
    found = hashlib.sha256()
    for file in sorted([checkpoint / "config.json", *checkpoint.glob("*.safetensors")]):
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()
