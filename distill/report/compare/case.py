"""What a row is about, as one line of text: "exponential F=128 decay=learned frozen | pocket | code"."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

#: The mixer of a student whose layers all keep their softmax: what no other can be expected to beat.
CEILING = "exact"
#: Names of mixers that leave out what the others are for. One that does no better than these has learned nothing.
CONTROLS = frozenset({"constant", "zero", "uniform", "window", "window-only", "key-weight", "key-weight-only"})
#: Words after the name that make a control of any mixer: draws kept as they were, or one part of a hybrid alone.
CONTROL_WORDS = ("frozen", "only=")
#: Words that tell of another budget, as an ablation of it has.
BUDGETS = frozenset(f"{stage}.max_steps" for stage in ("allocation", "attention", "logits"))
#: Options that have words of their own, or whose value F tells.
WORDED = frozenset({"map", "features", "window", "decay", "frozen", "exact_layers"})


class Case(NamedTuple):
    """mixer: its name and what it deviates in, see `mixer_words`."""

    mixer: str
    teacher: str
    domain: str

    def __str__(self) -> str:
        return " | ".join(map(_part, self))


def parse(text: str) -> Case:
    """ValueError: it does not have three parts."""
    mixer, teacher, domain = text.split(" | ", 2)
    return Case(mixer, teacher, domain)


def mixer_words(
    name: str, options: dict[str, Any], feature_dim: int | None, typed: dict[str, Any] | None = None
) -> str:
    """`name F=n [window=w] [decay=form] [frozen] [exact_layers=[i,…]] [key=value …]`.

    name: what a configuration calls the mixer. feature_dim: None where no layer is swapped. typed: what else was said
    than its file in conf/mixer/ says.
    """
    exact = options.get("exact_layers") or []
    if feature_dim is None or exact == "all":
        return CEILING
    window, decay, frozen = (options.get(key) for key in ("window", "decay", "frozen"))
    decays = decay not in (None, "none")
    name = _told_once(name, options.get("map"), {"frozen": frozen, "window": window, "decay": decays, decay: decays})
    words = [
        re.sub(r"\s+", "-", name),
        f"F={feature_dim}",
        f"window={window}" if window else "",
        f"decay={decay}" if decays else "",
        "frozen" if frozen else "",
        f"exact_layers=[{','.join(map(str, exact))}]" if exact else "",
        *(f"{key}={value}" for key, value in sorted((typed or {}).items()) if key not in WORDED),
    ]
    return " ".join(filter(None, words))


def _told_once(name: str, map_name: str | None, words: dict[Any, Any]) -> str:
    """Without endings, as in "stationary-delta-window" or "exponential-512", that the words to come will say again."""
    stem, _, ending = name.rpartition("-")
    size = ending.isdigit() and stem == map_name
    return _told_once(stem, map_name, words) if stem and (size or words.get(ending)) else name


def teacher_name(path: str) -> str:
    """The last part of the path; of a teacher that a run of ours has trained, the name of the run."""
    name = Path(path)
    return name.parent.name if name.name == "teacher" and name.parent.name else name.name


def feature_dim(mixer: str) -> str:
    """The F in the words of a mixer, "" where it has none."""
    found = re.search(r" F=(\d+)", mixer)
    return found[1] if found else ""


def family(mixer: str) -> str:
    """The words of a mixer without its F: those that share them are one mixer in several sizes."""
    return re.sub(r" F=\d+", "", mixer, count=1)


def nearest(typed: str, known: Collection[str]) -> str:
    """What may have been meant, as a hint at the end of a refusal."""
    if not known:
        return "there is none"
    # Names begin alike and differ in their words: by the beginning first, then by likeness.
    found = sorted(each for each in known if each.lower().startswith(typed.lower()))[:3]
    found = found or get_close_matches(typed, known, n=3, cutoff=0.5)
    return f"did you mean {', '.join(map(repr, found))}?" if found else f"there is {sorted(known)[0]!r}, for one"


def has_own_budget(mixer: str) -> bool:
    """Whether its words tell that it was trained for another number of steps than the others."""
    return any(word.partition("=")[0] in BUDGETS for word in mixer.split(" "))


def is_ceiling(mixer: str) -> bool:
    return mixer == CEILING


def is_control(mixer: str) -> bool:
    name, *words = mixer.split(" ")
    return name in CONTROLS or any(word.startswith(CONTROL_WORDS) for word in words)


def _part(text: str) -> str:
    """On one line, and without the separator."""
    return re.sub(r"\s*\|\s*", "|", " ".join(text.split()))
