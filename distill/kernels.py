"""Fitted mixers as a file, kernels/NAME.safetensors: what stage 1 leaves behind, and what a run can start from."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import UserError
from .flexformer.model import Flexformer
from .mixer import told
from .names import MIXTURE
from .whole import whole

#: The entry of the file's header that says what the weights are of.
ABOUT = "flexformer"


def save_kernels(student: Flexformer, file: Path) -> None:
    """The mixers of a student by the index of their layer, and in the header what they are."""
    with whole(file) as unfinished:
        save_file(weights(student), unfinished, metadata={ABOUT: json.dumps(about(student))})


def load_kernels(student: Flexformer, path: str) -> None:
    """Gives the student's mixers the weights of a file, or of kernels/mixture.safetensors of a run.

    Layers get as many features as they have there. UserError where there is no such file, it is damaged, or it holds
    mixers of another kind or of other layers.
    """
    file = Path(path).expanduser()
    file = file / "kernels" / f"{MIXTURE}.safetensors" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"student.kernels={path}: there is no {file}")
    try:
        with safe_open(file, "pt") as opened:
            theirs = json.loads((opened.metadata() or {}).get(ABOUT, "null"))
        found = load_file(file)
    except SafetensorError as error:
        raise UserError(f"student.kernels={path}: {file} is damaged or cut off: {error}") from error
    if theirs is None:
        raise UserError(f"student.kernels={path} does not say of which mixer it is: give what a run left in kernels/")
    if theirs["mixer"] != student.config.mixer:
        raise UserError(
            f"student.kernels={path} holds mixers of another kind, {told(theirs['mixer'])}; here it is "
            f"{told(student.config.mixer)}: choose the one that they were fitted with"
        )
    if list(theirs["features"]) != [str(layer) for layer in student.swapped]:
        raise UserError(
            f"student.kernels={path} is of layers {', '.join(theirs['features'])}; set mixer.exact_layers so"
        )
    for layer, features in theirs["features"].items():
        if features is not None:
            student.config.layers[int(layer)]["features"] = features
    student.build_mixers()
    try:
        mixers(student).load_state_dict(found)
    except RuntimeError as error:
        raise UserError(f"student.kernels={path} was fitted to a teacher with other heads than this one") from error


def mixers(student: Flexformer) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict({str(layer): mixer for layer, mixer in student.mixers.items()})


def weights(student: Flexformer) -> dict[str, Tensor]:
    return {name: each.detach().cpu().clone() for name, each in mixers(student).state_dict().items()}


def about(student: Flexformer) -> dict[str, Any]:
    """mixer: its options. features: by layer, where a layer has a number of its own, else null."""
    return {
        "mixer": student.config.mixer,
        "features": {str(layer): entry.get("features") for layer, entry in student.swapped.items()},
    }
