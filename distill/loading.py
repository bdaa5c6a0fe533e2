"""Models and tokenizers from a directory or the hub, with what can be wrong with them in a line."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.quantizers.auto import AutoQuantizationConfig

from . import config
from .capture import CAPTURE
from .errors import UserError, reason
from .places import check_teacher, directory
from .swappable import check_family, no_interface
from .task import Task

#: The teacher that the package carries.
POCKET = Path(__file__).parent / "pocket"
#: What transformers calls the last layer of a classifier; and the library that would pack it with all others.
HEADS, BITS = ("classifier", "score"), "bitsandbytes"


def load_model(
    wanted: config.Teacher, context: int, task: Task, dtype: torch.dtype, **options: Any
) -> tuple[Any, dict[str, Any], torch.dtype]:
    """The model at teacher.path, what transformers tells of loading it, and the dtype of its weights on disk."""
    path = location(wanted)
    model_config = _from_hub(AutoConfig, path)
    check_context(model_config, context)
    if model_config.is_encoder_decoder:
        raise UserError(
            f"teacher.path={wanted.path}: encoder-decoder models cannot be swapped, only decoders and encoders"
        )
    check_family(f"teacher.path={wanted.path}", model_config.model_type, task)
    if getattr(model_config, "quantization_config", None) is not None:
        raise UserError(
            f"teacher.path={wanted.path} holds quantised weights, from which no student can start; give the original, "
            "and teacher.quantization for a teacher that takes less memory"
        )
    try:
        loaded = _from_hub(
            task.auto, path, dtype=dtype, attn_implementation=CAPTURE, output_loading_info=True, **options
        )
    except ImportError as error:
        raise UserError(f"teacher.quantization: {reason(error)}; install it, or leave this out") from error
    except UserError as error:
        if getattr(error.__cause__, "args", None) != (CAPTURE,):
            if "quantization_config" in options:
                raise UserError(f"{error}; teacher.quantization may not fit, leave it out") from error
            raise
        # This family looks its attention up in a list of its own.
        raise UserError(no_interface(f"teacher.path={wanted.path}: {model_config.model_type}")) from error
    model, told = loaded
    for name in told["missing_keys"]:
        if task.spares(name):
            # Not used, and so not left to chance.
            model.get_parameter(name).data.zero_()
    task.complete(model, path)
    return model, told, model_config.dtype or torch.float32


def quantized(wanted: config.Teacher, task: Task) -> dict[str, Any]:
    """teacher.quantization as transformers takes it; UserError where it is none of its own.

    A classifier's head, too small for the kernels of some, keeps its bits where nothing else is said.
    """
    if wanted.quantization is None:
        return {}
    heads = {"llm_int8_skip_modules": list(HEADS)} if task.labelled and BITS in wanted.quantization.values() else {}
    try:
        return {"quantization_config": AutoQuantizationConfig.from_dict(heads | dict(wanted.quantization))}
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"teacher.quantization: {reason(error)}") from error


def location(wanted: config.Teacher) -> str:
    """A directory, or a hub name."""
    path = str(POCKET) if wanted.path == "pocket" else str(wanted.path)
    return directory(path) or path


def load_tokenizer(wanted: config.Teacher) -> PreTrainedTokenizerBase:
    """The teacher's; UserError where it has none."""
    tokenizer = _from_hub(AutoTokenizer, location(wanted))
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        # transformers makes an empty one where the files are missing.
        raise UserError(
            f"teacher.path={wanted.path} has no tokenizer: add its tokenizer.json and tokenizer_config.json"
        )
    return tokenizer


def check_whole(key: str, model: Any, told: dict[str, Any], task: Task) -> None:
    """UserError for a model that lacks weights, which would be left to chance, or is no classifier of one label."""
    if missing := sorted(name for name in told["missing_keys"] if not task.spares(name)):
        raise UserError(
            f"{key} has no {missing[0]}: it was not trained for this task; choose another teacher, or train it on "
            "your data first, goal=teacher"
        )
    labels, kind = model.config.id2label, model.config.problem_type
    if task.labelled and (len(labels) < 2 or kind not in (None, "single_label_classification")):
        raise UserError(f"{key} is no classifier into one of several labels ({kind or 'regression'}); choose another")


def check_body(key: str, model: Any, told: dict[str, Any]) -> None:
    """UserError where anything but the head, and what it pools, would be left to chance."""
    unlike = [each[0] if isinstance(each, tuple | list) else each for each in told["mismatched_keys"]]
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = [name for name in (*told["missing_keys"], *unlike) if name.startswith(prefix)]
    if lost := sorted(name for name in lost if "pooler" not in name.split(".")):
        raise UserError(f"{key} has no {lost[0]} of the shape that its config.json says; choose another checkpoint")


def check_tokens(key: str, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """UserError where a token is missing that the task needs."""
    for name in task.special_tokens:
        if getattr(tokenizer, name) is None:
            raise UserError(f"{key}: its tokenizer has no {name}, which an {task.kind} needs; set it")


def check_context(model_config: Any, context: int) -> None:
    """UserError if blocks would be longer than what the teacher was trained to read."""
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise UserError(
            f"data.context={context} is longer than the teacher's {positions} positions; lower data.context"
        )


def _from_hub(auto: Any, path: str, **kwargs: Any) -> Any:
    """auto.from_pretrained with its many errors as one line."""
    local = Path(path).is_dir()
    check_teacher(path)
    verbosity = transformers.logging.get_verbosity()
    try:
        # What is missing is told in a line, by who asked.
        transformers.logging.set_verbosity_error()
        return auto.from_pretrained(path, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        cure = "" if local else "; give a local directory if the hub cannot be reached"
        raise UserError(f"teacher.path={path} cannot be loaded: {reason(error)}{cure}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
