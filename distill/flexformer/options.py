"""What a mixer may be told, and a line for every mistake."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .constant import Constant, Zero
from .cosformer import Cosformer
from .decay import DECAYS, GROUPED
from .elu import Elu
from .exponential import Exponential
from .favor import Favor
from .feature_map import FeatureMap
from .fourier import nonstationary, stationary
from .hedgehog import Hedgehog
from .identity import Identity
from .key_weight import DEGREES
from .linformer import Linformer
from .normaliser import NORMALISERS
from .rfa import Rfa
from .spectral import Spectral
from .t2r import T2r
from .token_mixer import TokenMixer

#: Every feature map by the name that configurations use. A new map is one new file and one line here.
MAPS: dict[str, Callable[..., FeatureMap]] = {
    "stationary": stationary,
    "nonstationary": nonstationary,
    "exponential": Exponential,
    "spectral": Spectral,
    "favor": Favor,
    "rfa": Rfa,
    "hedgehog": Hedgehog,
    "t2r": T2r,
    "elu": Elu,
    "cosformer": Cosformer,
    "identity": Identity,
    "constant": Constant,
    "zero": Zero,
}

#: Mixers that project along the sequence instead, by the same names. They see both directions, and take the arguments
#: of their own alone.
PROJECTIONS: dict[str, Callable[..., TokenMixer]] = {"linformer": Linformer}

#: The keys that every mixer of a feature map has beside its map's own arguments, and the type of each.
EVERY: dict[str, type] = {
    "key_weight": str,
    "decay": str,
    "decay_groups": int,
    "normaliser": str,
    "window": int,
    "frozen": bool,
}

#: Those of them that choose by name, and the names there are.
CHOICES: dict[str, Collection[str]] = {"key_weight": DEGREES, "decay": DECAYS, "normaliser": NORMALISERS}

#: The only values that an encoder's mixer can have of what runs in one direction.
DIRECTIONLESS = {"decay": "none", "window": 0}


def check_options(options: Mapping[str, Any], causal: bool = True) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The constructor and its arguments, of {"map": a name in MAPS, …EVERY, …the map's own arguments} or of
    {"map": a name in PROJECTIONS, …its own arguments}.

    ValueError names what is unknown, missing, of the wrong type or not to be had in the direction of the attention.
    """
    name = options.get("map")
    known: dict[str, Callable[..., Any]] = {**MAPS, **PROJECTIONS}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"mixer.map={name} is unknown; known: {', '.join(known)}")
    own = {key: each.annotation for key, each in inspect.signature(known[name]).parameters.items() if key != "shape"}
    kinds = EVERY | own if name in MAPS else own
    for key in sorted(options.keys() - kinds.keys() - {"map"}):
        raise ValueError(f"mixer.{key} is unknown to mixer={name}; it takes {', '.join(sorted(kinds))}")
    for key in sorted(kinds.keys() - options.keys()):
        raise ValueError(f"mixer.{key} is missing")
    for key, kind in kinds.items():
        if type(options[key]) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(f"mixer.{key}={options[key]} is of the wrong type: give {kind.__name__}")
    if name in MAPS:
        check_parts(options)
    check_direction(options, causal)
    return known[name], {key: options[key] for key in own}


def check_parts(options: Mapping[str, Any]) -> None:
    """ValueError for a part that there is none of, and for groups of what has none."""
    for key, known in CHOICES.items():
        if options[key] not in known:
            raise ValueError(f"mixer.{key}={options[key]} is unknown; known: {', '.join(known)}")
    groups = options["decay_groups"]
    if groups < 1 or (groups > 1 and options["decay"] not in GROUPED):
        raise ValueError(f"mixer.decay_groups={groups}: give 1, or more with mixer.decay={' or '.join(GROUPED)}")
    if options["decay"] == "delta" and options["key_weight"] != "none":
        raise ValueError(
            f"mixer.key_weight={options['key_weight']}: with mixer.decay=delta a key writes a share of its own place, "
            "and has no other weight; use mixer.key_weight=none"
        )
    if options["window"] < 0:
        raise ValueError(f"mixer.window={options['window']} must be 0 or more tokens")


def check_direction(options: Mapping[str, Any], causal: bool) -> None:
    """ValueError for a mixer that looks ahead in a causal model, and for one that looks back alone in an encoder."""
    if causal and options["map"] in PROJECTIONS:
        raise ValueError(
            f"mixer={options['map']}: projecting along the sequence mixes later tokens into earlier ones; "
            "it is for encoders, with task=masked_lm"
        )
    for key, only in () if causal else DIRECTIONLESS.items():
        if options.get(key, only) != only:
            raise ValueError(f"mixer.{key}={options[key]}: an encoder sees both directions; use mixer.{key}={only}")
