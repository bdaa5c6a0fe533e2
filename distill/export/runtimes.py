"""Who runs a step: how each writes it into a folder, and how it is run from there."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """write: a step, with a token of the shape that it will have, into a file. load: that file, to be run.

    needs: what it takes to write it. packages: what pip installs to run it. usage: Python that goes on with a prompt.
    """

    file: str
    needs: tuple[str, ...]
    write: Callable[[Step, Tensor, Path], None]
    load: Callable[[Path], Program]
    packages: str
    usage: str


def write_torch(step: Step, token: Tensor, path: Path) -> None:
    torch.export.save(torch.export.export(step, (token, step.start)), path)


def load_torch(path: Path) -> Program:
    program: Program = torch.export.load(path).module()
    return program


def write_onnx(step: Step, token: Tensor, path: Path) -> None:
    program = torch.export.export(step, (token, step.start))
    # The exporter tells of packages that it does without, and makes calls that are deprecated.
    with quiet("torch.onnx"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.onnx.export(
            program,
            input_names=["token", *step.start],
            output_names=["logits", *(f"next.{name}" for name in step.start)],
            dynamo=True,
            verbose=False,
        )
    made.save(path)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without what a logger says below an error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_onnx(path: Path) -> Program:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def program(token: Tensor, state: State) -> tuple[Tensor, State]:
        given = {name: part.numpy() for name, part in {"token": token, **state}.items()}
        logits, *parts = map(torch.from_numpy, session.run(None, given))
        return logits, dict(zip(state, parts, strict=True))

    return program


# Of another release a program may not be readable.
TORCH_PACKAGES = f"torch=={torch.__version__.partition('+')[0]} safetensors tokenizers"
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

ONNX_PACKAGES = "onnxruntime numpy safetensors tokenizers"
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
    "torch": Runtime("step.pt2", (), write_torch, load_torch, TORCH_PACKAGES, TORCH_USAGE),
    "onnx": Runtime(
        "step.onnx", ("onnx", "onnxscript", "onnxruntime"), write_onnx, load_onnx, ONNX_PACKAGES, ONNX_USAGE
    ),
}
