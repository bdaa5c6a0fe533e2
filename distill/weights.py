"""A student's weights on their way to disk: in how many bits, and in how many files."""

import json
from pathlib import Path

import torch
from torch import Tensor

from .config import Student
from .flexformer.model import Flexformer


@torch.no_grad()
def round_weights(student: Flexformer, dtype: str) -> None:
    """To what `dtype` can hold, so that what is measured is what is saved; they stay as wide as they were."""
    for each in student.state_dict().values():
        if each.is_floating_point():
            each.copy_(each.to(getattr(torch, dtype)))


def save_weights(student: Flexformer, folder: Path, wanted: Student) -> None:
    """The student, its weights as `student.dtype` and in files of at most `student.shard_size`.

    Not through student.to(dtype), which would round buffers that no file holds, such as rotary frequencies.
    """
    dtype = getattr(torch, wanted.dtype)
    # Weights that are shared stay so, and are saved once.
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    weights = {
        name: cast.setdefault((each.data_ptr(), each.shape), each.to(dtype) if each.is_floating_point() else each)
        for name, each in student.state_dict().items()
    }
    student.save_pretrained(folder, state_dict=weights, max_shard_size=wanted.shard_size)
    # Which says what the model is held in here.
    file = folder / "config.json"
    told = json.loads(file.read_text(encoding="utf-8")) | {"dtype": wanted.dtype}
    file.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def readable(folder: Path, like: str) -> None:
    """Lets everybody read all files who may read one of them; safetensors' are their owner's alone."""
    mode = (folder / like).stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)
