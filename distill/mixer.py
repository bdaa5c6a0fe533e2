"""What the configuration says of a mixer, for those who build it and those who tell of it."""

from functools import cache
from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf

from .errors import UserError
from .folders import folder

#: What is said in a mixer's place in the configuration and is none of its own options.
BESIDE = ("exact_layers", "rates", "split", "match_maps")


def swapped_options(mixer: dict[str, Any]) -> dict[str, Any]:
    """What the mixers themselves are told, and not what pipeline and stages are."""
    return {key: value for key, value in mixer.items() if key not in BESIDE}


def matches_maps(mixer: dict[str, Any]) -> bool:
    """Whether stage 1 is good for it; UserError for what is neither true nor false."""
    wanted = mixer.get("match_maps", True)
    if not isinstance(wanted, bool):
        raise UserError(f"mixer.match_maps={wanted}: give true or false")
    return wanted


def exact_layers(mixer: dict[str, Any], count: int) -> list[int]:
    """Indices of the layers that stay softmax, of `count`; UserError where there is no such layer."""
    wanted = mixer.get("exact_layers", [])
    if wanted == "all":
        return list(range(count))
    if not isinstance(wanted, list) or any(type(each) is not int or not 0 <= each < count for each in wanted):
        raise UserError(f"mixer.exact_layers={wanted}: give a list of layers, which are 0 to {count - 1}, or all")
    return sorted(set(wanted))


def told(mixer: dict[str, Any]) -> str:
    """What it has, and not what it lacks, in words: "exponential, key_weight quadratic, window 64, features 128"."""
    left_out = plain() | {"map": mixer.get("map")}
    has = (
        f"{key} {value}"
        for key, value in mixer.items()
        if key not in ("rates", "match_maps") and value != left_out.get(key)
    )
    return ", ".join([mixer.get("map", ""), *has])


def bare(name: str, **parts: Any) -> dict[str, Any]:
    """The options of a mixer of the map `name`, one that takes none of its own, with these parts and no others."""
    return swapped_options(plain()) | {"map": name} | parts


def named_options(name: str, context: int) -> dict[str, Any]:
    """The options of conf/mixer/NAME.yaml, for texts of `context` tokens; UserError where there is none."""
    known = sorted(file.stem for file in (folder("conf") / "mixer").glob("*.yaml"))
    if name not in known:
        raise UserError(f"mixer={name} is unknown; known: {', '.join(known)}")
    with hydra.initialize_config_dir(str(folder("conf")), version_base="1.3"):
        composed = hydra.compose(f"mixer/{name}", [f"+data.context={context}"])
    found: Any = OmegaConf.to_container(composed, resolve=True)
    return swapped_options(found["mixer"])


@cache
def plain() -> dict[str, Any]:
    """The options that every mixer has, where it has none of the parts that they are for."""
    options: dict[str, Any] = yaml.safe_load((folder("conf") / "mixer" / "parts" / "default.yaml").read_text("utf-8"))
    return options
