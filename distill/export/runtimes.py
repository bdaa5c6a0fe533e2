"""Who runs a step: how each writes it into a folder, and how it is run from there."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .step import State, Step

#: (token, state) → (logits, state), as a runtime does it.
Program = Callable[[Tensor, State], tuple[Tensor, State]]


@dataclass(frozen=True)
class Runtime:
    """write: a step, with arguments of the shapes that it will have, into a file. load: that file, to be run.

    usage: Python that reads a prompt and goes on with it, for those who find the folder.
    """

    file: str
    needs: tuple[str, ...]
    write: Callable[[Step, Tensor, State, Path], None]
    load: Callable[[Path], Program]
    usage: str


def write_torch(step: Step, token: Tensor, state: State, path: Path) -> None:
    torch.export.save(torch.export.export(step, (token, state)), path)


def load_torch(path: Path) -> Program:
    program: Program = torch.export.load(path).module()
    return program


def write_onnx(step: Step, token: Tensor, state: State, path: Path) -> None:
    program = torch.export.export(step, (token, state))
    # The exporter tells of packages that it does without, and uses what Python will not have one day.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.onnx.export(
            program,
            input_names=["token", *state],
            output_names=["logits", *(f"next.{name}" for name in state)],
            dynamo=True,
            verbose=False,
        )
    made.save(path)


def load_onnx(path: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def program(token: Tensor, state: State) -> tuple[Tensor, State]:
        given = {name: part.numpy() for name, part in {"token": token, **state}.items()}
        logits, *parts = map(torch.from_numpy, session.run(None, given))
        return logits, dict(zip(state, parts, strict=True))

    return program


TORCH_USAGE = """import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

step = torch.export.load("step.pt2").module()
tokenizer, state = Tokenizer.from_file("tokenizer.json"), load_file("start.safetensors")

tokens = tokenizer.encode("def read(self").ids
for place in range(len(tokens) + 39):
    if place == len(tokens):
        tokens.append(int(logits[0].argmax()))
    logits, state = step(torch.full(({batch}, 1), tokens[place]), state)
print(tokenizer.decode(tokens))"""

ONNX_USAGE = """import numpy
import onnxruntime
from safetensors.numpy import load_file
from tokenizers import Tokenizer

step = onnxruntime.InferenceSession("step.onnx")
tokenizer, state = Tokenizer.from_file("tokenizer.json"), load_file("start.safetensors")
names = [output.name.removeprefix("next.") for output in step.get_outputs()]

tokens = tokenizer.encode("def read(self").ids
for place in range(len(tokens) + 39):
    if place == len(tokens):
        tokens.append(int(said["logits"][0].argmax()))
    token = numpy.full(({batch}, 1), tokens[place])
    said = dict(zip(names, step.run(None, {{"token": token, **state}})))
    state = {{name: said[name] for name in state}}
print(tokenizer.decode(tokens))"""

RUNTIMES = {
    "torch": Runtime("step.pt2", (), write_torch, load_torch, TORCH_USAGE),
    "onnx": Runtime("step.onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, load_onnx, ONNX_USAGE),
}
