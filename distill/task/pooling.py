"""The files by which sentence-transformers knows how a model embeds a text: read from a teacher, left beside a student.

The library itself is not needed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..errors import UserError, reason
from ..flexformer.pooling import POOLINGS

#: What a model does that no such file speaks of.
PLAIN = {"mode": "mean", "normalize": True}
#: Of the modules that a text goes through, those that are known here.
KNOWN = ("Transformer", "Pooling", "Normalize")
#: Where older releases say how, one key for each way.
OLDER = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
#: What else is said of using a model, such as the prompts that begin a question.
USE = "config_sentence_transformers.json"


def read(path: str) -> dict[str, Any]:
    """{"mode": a key of POOLINGS, "normalize": bool} of a directory or hub name; PLAIN where nothing is said of it.

    UserError for another way of pooling, for modules beside these, and for files that cannot be had or read.
    """
    modules = _json(path, "modules.json")
    if modules is None:
        told = "its embeddings are taken to be the mean over tokens, normalised"
        print(f"teacher.path={path} has no modules.json: {told}", file=sys.stderr)
        return dict(PLAIN)
    try:
        kinds = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
        if strange := [kind for kind in kinds if kind not in KNOWN]:
            raise UserError(
                f"teacher.path={path} embeds through {strange[0]}, which a student would lack; choose another"
            )
        modes = _modes(_json(path, f"{kinds['Pooling']}/config.json") or {})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"teacher.path={path}: modules.json is not as sentence-transformers writes it") from error
    if len(modes) != 1 or modes[0] not in POOLINGS:
        pools = " and ".join(map(str, modes)) or "what its files do not say"
        raise UserError(f"teacher.path={path} pools by {pools}, known are {', '.join(POOLINGS)}; choose another")
    return {"mode": modes[0], "normalize": "Normalize" in kinds}


def _modes(said: dict[str, Any]) -> list[Any]:
    """The ways of pooling, in the words of newer releases or of older ones."""
    older = [OLDER.get(key, key) for key, value in said.items() if key.startswith("pooling_mode_") and value]
    modes = said.get("pooling_mode") or older
    return [modes] if isinstance(modes, str) else list(modes)


def use(path: str) -> dict[str, Any] | None:
    """What else sentence-transformers is told of the model, to be handed on as it is."""
    return _json(path, USE)


def save(folder: Path, wanted: dict[str, Any], said: dict[str, Any] | None, width: int, context: int) -> None:
    """Writes modules.json and what it names. wanted, said: as `read` and `use` found them; context: tokens at most."""
    steps = ["Transformer", "Pooling"] + (["Normalize"] if wanted["normalize"] else [])
    places = {kind: f"{number}_{kind}" if number else "" for number, kind in enumerate(steps)}
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, place) in enumerate(places.items())
    ]
    ways = {key: mode == wanted["mode"] for key, mode in OLDER.items()}
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": context, "do_lower_case": False})
    _write(folder / places["Pooling"] / "config.json", {"word_embedding_dimension": width, **ways})
    for kind in steps[2:]:
        (folder / places[kind]).mkdir()
    if said is not None:
        _write(folder / USE, said)


def _json(path: str, name: str) -> Any:
    """The file of a directory or hub name; None where there is none. UserError where that cannot be found out."""
    try:
        file = _file(path, name)
        return None if file is None else json.loads(file.read_text(encoding="utf-8"))
    except LocalEntryNotFoundError as error:
        told = f"whether it has a {name} cannot be looked up ({reason(error)}); give a local directory of all its files"
        raise UserError(f"teacher.path={path}: {told}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"teacher.path={path}: {name} cannot be read: {reason(error)}") from error


def _file(path: str, name: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.exists() else None
    cached = try_to_load_from_cache(path, name)
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:
        # The hub has said before that there is none.
        return None
    try:
        return Path(hf_hub_download(path, name))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
