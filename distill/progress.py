"""What is finished of a run, so that the same command with resume=true goes on from there.

All else that a run does follows from its configuration, from the weights that stages leave, and from what chance has
come to: it is done again, and comes to the same, bit for bit on a processor.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import ranks
from .whole import vouch, vouched, whole

#: What the names of weights begin with, and those of what chance has come to.
WEIGHT, CHANCE = "weight.", "chance."
#: The entry of a file's header that says what a run tells of the stage.
TOLD = "told"


class Progress:
    """FOLDER/STAGE.safetensors of every stage that is finished: weights, what chance came to, what the run tells of it.

    resumes: whether what an earlier run left there counts.
    """

    def __init__(self, folder: Path, resumes: bool):
        self.folder, self.resumes = folder, resumes

    def keep(self, name: str, stage: nn.Module, told: dict[str, Any]) -> None:
        if ranks.rank():
            return
        weights = {WEIGHT + key: each.detach().cpu().clone() for key, each in stage.state_dict().items()}
        self.folder.mkdir(exist_ok=True)
        with whole(self.file(name)) as file:
            save_file(weights | chance(), file, {TOLD: json.dumps(told)})
            vouch(self.file(name), file)

    def restore(self, name: str, stage: nn.Module) -> dict[str, Any] | None:
        """Gives the stage the weights that it was left with, and returns what was told; None where it is not finished,
        or what it left is damaged."""
        file = self.file(name)
        if not ranks.told(self.resumes and not ranks.rank() and file.is_file() and vouched(file)):
            # Then the stage is gone through again.
            return None
        with safe_open(file, "pt") as opened:
            header = opened.metadata()
        found = load_file(file)
        weights = {key.removeprefix(WEIGHT): each for key, each in found.items() if key.startswith(WEIGHT)}
        stage.load_state_dict(weights)
        take_chance(found)
        told: dict[str, Any] = json.loads(header[TOLD])
        return told

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def drop(self) -> None:
        """Of a run that is through nothing is left to do."""
        if not ranks.rank():
            shutil.rmtree(self.folder, ignore_errors=True)


def chance() -> dict[str, Tensor]:
    """Where the generators of torch, numpy and Python stand."""
    _, keys, place, has_gauss, gauss = numpy.random.get_state(legacy=True)
    version, state, rest = random.getstate()
    # Of the GPU in use alone: to ask another would take its memory.
    gpu = {f"{CHANCE}gpu": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {
        f"{CHANCE}torch": torch.get_rng_state(),
        **gpu,
        f"{CHANCE}numpy": numbers(*map(int, keys), place, has_gauss, gauss),
        f"{CHANCE}python": numbers(version, *state, torch.nan if rest is None else rest),
    }


def numbers(*values: Any) -> Tensor:
    """Whole ones of 32 bits, and others, as they are."""
    return torch.tensor(values, dtype=torch.float64)


def take_chance(found: dict[str, Tensor]) -> None:
    """Has all generators go on from there."""
    torch.set_rng_state(found[f"{CHANCE}torch"])
    if torch.cuda.is_available() and (gpu := found.get(f"{CHANCE}gpu")) is not None:
        torch.cuda.set_rng_state(gpu)
    *keys, place, has_gauss, gauss = found[f"{CHANCE}numpy"].tolist()
    numpy.random.set_state(("MT19937", numpy.array(keys, numpy.uint32), int(place), int(has_gauss), gauss))
    version, *state, rest = found[f"{CHANCE}python"].tolist()
    random.setstate((int(version), tuple(map(int, state)), None if rest != rest else rest))
