"""The files by which sentence-transformers knows how a model embeds a text: read from a teacher, left beside a student.

The library itself is not needed.
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..errors import UserError, reason
from ..flexformer.pooling import POOLINGS

#: What a model does that no such file speaks of.
PLAIN = {"mode": "mean", "normalize": True}
#: Of the modules that a text goes through, those that are known here.
KNOWN = ("Transformer", "Pooling", "Normalize")
#: Where older releases say how, one key for each way.
OLDER = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def read(path: str | None) -> dict[str, Any]:
    """{"mode": a key of POOLINGS, "normalize": bool} of a directory or hub name; PLAIN where nothing is said of it.

    UserError for another way of pooling, and for modules beside these.
    """
    if path is None:
        return dict(PLAIN)
    if (modules := _json(path, "modules.json")) is None:
        told = "its embeddings are taken to be the mean over tokens, normalised"
        print(f"teacher.path={path} has no modules.json: {told}", file=sys.stderr)
        return dict(PLAIN)
    kinds = {str(module["type"]).rpartition(".")[2]: module["path"] for module in modules}
    if strange := [kind for kind in kinds if kind not in KNOWN]:
        raise UserError(f"teacher.path={path} embeds through {strange[0]}, which a student would lack; choose another")
    said = _json(path, f"{kinds.get('Pooling', '1_Pooling')}/config.json") or {}
    older = [OLDER.get(key, key) for key, value in said.items() if key.startswith("pooling_mode_") and value]
    modes = said.get("pooling_mode") or older or [PLAIN["mode"]]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UserError(
            f"teacher.path={path} pools by {' and '.join(modes)}, known are {', '.join(POOLINGS)}; choose another"
        )
    return {"mode": modes[0], "normalize": "Normalize" in kinds}


def save(folder: Path, config: Any, context: int) -> None:
    """Writes modules.json and what it names; context: tokens of a text at most."""
    wanted = config.sentence_pooling
    steps = ["Transformer", "Pooling"] + (["Normalize"] if wanted["normalize"] else [])
    places = {kind: f"{number}_{kind}" if number else "" for number, kind in enumerate(steps)}
    modules = [
        {"idx": number, "name": str(number), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, place) in enumerate(places.items())
    ]
    ways = {key: mode == wanted["mode"] for key, mode in OLDER.items()}
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": context, "do_lower_case": False})
    _write(folder / places["Pooling"] / "config.json", {"word_embedding_dimension": config.hidden_size, **ways})
    for kind in steps[2:]:
        (folder / places[kind]).mkdir()


def _json(path: str, name: str) -> Any:
    """The file of a directory or hub name; None where there is none. UserError where that cannot be found out."""
    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"teacher.path={path}: {reason(error)}; give a local directory of all its files") from error
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _write(file: Path, content: Any) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
