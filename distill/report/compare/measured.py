"""What one finished run says about its mixer, domain by domain."""

import shlex
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError
from ..run import ArtefactError, Run
from .case import Case, mixer_words, teacher_name

#: One metric after another, by its name; None: it was measured and is not a number, or has no meaning here.
Values = dict[str, float | None]
#: Settings of how something is computed, which do not change what.
AS_GOOD = ("data.workers", "stages.pretrain.gradient_checkpointing", "stages.logits.gradient_checkpointing")
#: What a stage 1 like any other does, by key of stages.attention.
STAGE_1 = {"place": True, "loss": "kl"}


@dataclass
class Measured:
    """settings: the configuration's values by dotted key, as far as runs that differ in them are not the same case."""

    path: Path
    seed: int
    settings: dict[str, Any]
    values: dict[Case, Values]
    command: str | None
    hardware: str | None
    commit: str | None


def measured(path: Path, tell: Collection[str] = ()) -> Measured:
    """tell: keys beside those of the mixer whose value, where the command gives one, is part of the case.

    UserError: `path` is no run, or one that did not finish.
    """
    run = Run(path)
    if run.setting("goal") == "evaluate":
        raise UserError(f"{path} only measures a student; compare the run that made it")
    try:
        headline = run.json("measurements/headline.json")
        origin = _optional(run, "measurements/run.json")
        provenance = _optional(run, "student/provenance.json")
        seed, teacher = run.setting("seed"), run.setting("teacher.path")
        if not isinstance(seed, int) or not teacher:
            raise ArtefactError("config.yaml names no seed or no teacher.path")
        if "feature_dim" not in headline:
            raise ArtefactError("measurements/headline.json has no 'feature_dim'")
        options = run.setting("mixer") or headline["mixer"]
        name = str(origin.get("mixer") or options["map"])
        command = origin.get("command")
        words = mixer_words(name, options, headline["feature_dim"], _typed(command, tell) | _ablated(run))
        fidelity = _optional(run, "measurements/fidelity.json")
        values = _values(words, teacher_name(str(teacher)), headline, fidelity, options.get("exact_layers"))
    except ArtefactError as error:
        raise UserError(f"{path}: {error}; leave this run out, or distil it again") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: its measurements are not as a run writes them ({error!r}); distil again") from error
    commit = origin.get("commit") or provenance.get("git_commit")
    return Measured(path, seed, _settings(run, provenance, headline), values, command, origin.get("hardware"), commit)


def given(command: str | None) -> dict[str, str]:
    """Keys and values of a command line: {"mixer": "elu", "mixer.window": "8"} of "… mixer=elu mixer.window=8"."""
    words = (word.lstrip("+").partition("=") for word in shlex.split(command or ""))
    return {key: value for key, equals, value in words if equals}


def _typed(command: str | None, tell: Collection[str]) -> dict[str, str]:
    """What it says of the mixer's options, and of the keys `tell`: {"window": "8"}, {"logits.train": "mixers"}."""
    # These are in the name as it is.
    wanted = set(tell) - {f"stages.attention.{key}" for key in STAGE_1}
    found = {key: value for key, value in given(command).items() if key.startswith("mixer.") or key in wanted}
    return {key.removeprefix("mixer.").removeprefix("stages."): value for key, value in found.items()}


def _ablated(run: Run) -> dict[str, Any]:
    """What stage 1 does otherwise than by default."""
    found = {key: run.setting(f"stages.attention.{key}") for key in STAGE_1}
    return {key: str(value).lower() for key, value in found.items() if value not in (None, STAGE_1[key])}


def _values(
    mixer: str, teacher: str, headline: dict[str, Any], fidelity: dict[str, Any], exact: Any
) -> dict[Case, Values]:
    found: dict[Case, Values] = {}
    fixed = {key: headline.get(key) for key in ("context", "cache_bytes_per_token", "student_cache_bytes_per_token")}
    fixed |= {f"{stage}_tokens": tokens for stage, tokens in headline["tokens"].items()}
    for domain, perplexity in headline["teacher_ppl"].items():
        heads = (fidelity.get("domains") or {}).get(domain) or {}

        values = {
            "ratio": headline["ratio"].get(domain),
            "stage1_ratio": _over((headline.get("stage1_ppl") or {}).get(domain), perplexity),
            "map_kl": _mean(heads.get("kl"), exact) if fidelity.get("comparable") else None,
            "output_error": _mean(heads.get("output_error"), exact),
            "agreement": headline["agreement"].get(domain),
            "state_bytes": headline["state_bytes"],
        }
        if tuned := headline.get("teacher_tuned_ppl"):
            values["teacher_tuned_ratio"] = _over(tuned.get(domain), perplexity)
        # Older runs were not held against their teacher.
        values |= {name: kl.get(domain) for name in ("kl", "teacher_tuned_kl") if (kl := headline.get(name))}
        found[Case(mixer, teacher, domain)] = values | fixed
        found[Case(mixer, teacher, domain)] |= _scores((headline.get("scores") or {}).get(domain, {}))
        for part, perplexities in (headline.get("parts") or {}).items():
            case = Case(f"{mixer} only={part}", teacher, domain)
            found[case] = {"ratio": _over(perplexities.get(domain), perplexity)} | fixed
    return found


def _scores(found: dict[str, dict[str, Any]]) -> Values:
    """The student's, its teacher's and the one over the other; those of the controls where they are known."""
    told: Values = {}
    for name, each in found.items():
        told |= {name: each["student"], f"teacher_{name}": each["teacher"], f"{name}_recovery": each["recovery"]}
        told |= {f"{who}_{name}": each[who] for who in ("teacher_tuned", "constant") if who in each}
    return told


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _mean(layers: list[list[float | None]] | None, exact: Any) -> float | None:
    """Over swapped layers and heads; None where a head has no value, so that one that diverged is not passed over."""
    kept = exact if isinstance(exact, list) else []
    values = [value for i, layer in enumerate(layers or []) if i not in kept for value in layer]
    if not values or None in values:
        return None
    return float(np.mean(np.array(values, dtype=float)))


def _settings(run: Run, provenance: dict[str, Any], headline: dict[str, Any]) -> dict[str, Any]:
    keys = ("task", "data", "mixer", "stages", "matmul_precision", "teacher.dtype", "trainer.precision")
    chosen = {key: run.setting(key) for key in (*keys, "trainer.accumulate_grad_batches")}
    cached = (chosen.get("stages") or {}).get("logits", {}).get("cache")
    apart = {"stages.logits.cache"} if cached else {"stages.logits.cache", "stages.logits.top_k"}
    flat = dict(_leaves(chosen)) | {"texts a partner is sought among": str(headline.get("partners"))}
    flat |= {"the teacher's weights": (provenance.get("teacher") or {}).get("weights_sha256")}
    return {key: value for key, value in flat.items() if key not in AS_GOOD and key not in apart}


def _leaves(node: Any, key: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of nested dictionaries; of a path only its last part, which is the same on any machine."""
    if isinstance(node, dict):
        return [leaf for name, child in node.items() for leaf in _leaves(child, f"{key}.{name}" if key else str(name))]
    return [(key, Path(node).name if isinstance(node, str) else node)]


def _optional(run: Run, name: str) -> dict[str, Any]:
    """A JSON object, empty where there is none."""
    return run.json(name) if (run.path / name).exists() else {}
