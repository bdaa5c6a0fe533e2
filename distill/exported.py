"""What an exported student says of itself, for those who go on from it: its mixer, its teacher and its text."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from .errors import UserError, reason

if TYPE_CHECKING:
    import torch

    from .flexformer.model import FlexformerForCausalLM


def provenance(path: str, called: str = "student.path=") -> dict[str, Any]:
    """provenance.json beside the weights; UserError where `path` is no exported student."""
    folder, named = Path(path).expanduser(), f"{called}{path}"
    if not folder.is_dir():
        raise UserError(f"{named}: no such directory")
    try:
        content = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        assert isinstance(content["mixer"], dict) and isinstance(content["data"]["domains"], dict)
    except FileNotFoundError as error:
        raise UserError(f"{named} has no provenance.json: give the student/ that a run exported") from error
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise UserError(f"{named}/provenance.json is damaged or of an older version") from error
    found: dict[str, Any] = content
    return found


#: What the weights of a student that is run can be held in.
DTYPES = ("float32", "bfloat16", "float16", "float64")


def load_decoder(path: Path, dtype: str = "float32", device: "torch.device | str" = "cpu") -> "FlexformerForCausalLM":
    """A student that writes text, as it was exported; UserError where it is none or cannot be loaded."""
    # Late: torch and transformers take seconds, and a mistyped path needs neither.
    import torch
    from safetensors import SafetensorError

    from .flexformer.model import FlexformerForCausalLM

    if (task := provenance(str(path), "")["task"]) != "causal_lm":
        raise UserError(f"{path} is a student for {task}, which writes no text: load it with transformers")
    try:
        found = FlexformerForCausalLM.from_pretrained(path.expanduser(), dtype=getattr(torch, dtype)).eval()
        placed: FlexformerForCausalLM = found.to(torch.device(device))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be loaded: {reason(error)}") from error
    return placed


def inherit(composed: DictConfig, overrides: Collection[str]) -> None:
    """With student.path, the student's own mixer in place of the configured one; with goal=evaluate also its task, its
    teacher and its text, but where `overrides`, what was typed, say otherwise. UserError where a mixer was typed."""
    path, kernels = composed.student.path, composed.student.kernels
    if path is None:
        return
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if said("mixer", typed):
        raise UserError(f"student.path={path} has a mixer of its own; leave mixer=… out")
    if kernels is not None:
        raise UserError(f"student.path={path} has kernels of its own; leave student.kernels={kernels} out")
    source = provenance(path)
    OmegaConf.set_struct(composed, False)
    # Not merged: a key of the mixer that was composed would stay.
    composed.mixer = source["mixer"]
    if not said("student.dtype", typed):
        # Students of before have no other.
        composed.student.dtype = source.get("student", {}).get("dtype", "float32")
    elif composed.goal == "evaluate":
        raise UserError(f"student.path={path} is measured as it is; leave student.dtype={composed.student.dtype} out")
    for key, value in as_made(source).items() if composed.goal == "evaluate" else ():
        if not said(key, typed) and not (key == "data.domains" and said("data.path", typed)):
            OmegaConf.update(composed, key, value, merge=False)


def said(key: str, typed: Collection[str]) -> bool:
    """Whether a key, what it is part of, or a part of it was typed."""
    return any(each == key or key.startswith(f"{each}.") or each.startswith(f"{key}.") for each in typed)


def as_made(source: dict[str, Any]) -> dict[str, Any]:
    """What has to be as it was for a student's numbers to be those of its own report, by key."""
    teacher, data = source["teacher"], source["data"]
    return {
        "recipe": f"{source['recipe']}-evaluated",
        "task": source["task"],
        "teacher.path": teacher["name"],
        "teacher.dtype": teacher["weights_dtype"],
        "teacher.quantization": teacher["quantization"],
        "data.path": None,
        "data.domains": data["domains"],
        "data.context": data["context"],
    }
