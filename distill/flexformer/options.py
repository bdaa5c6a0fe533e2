"""What a mixer may be told, and a line for every mistake."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .constant import Constant, Zero
from .cosformer import Cosformer
from .elu import Elu
from .exponential import Exponential
from .favor import Favor
from .feature_map import FeatureMap
from .fourier import nonstationary, stationary
from .hedgehog import Hedgehog
from .identity import Identity
from .rfa import Rfa
from .spectral import Spectral
from .t2r import T2r

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

#: The keys that every mixer has beside its map's own arguments, and the type of each.
EVERY: dict[str, type] = {
    "key_weight": str,
    "decay": str,
    "decay_groups": int,
    "normaliser": str,
    "window": int,
    "frozen": bool,
}


def check_options(options: Mapping[str, Any]) -> tuple[Callable[..., FeatureMap], dict[str, Any]]:
    """The map's constructor and its arguments, of {"map": a name in MAPS, …EVERY, …the map's own arguments}.

    ValueError names what is unknown, missing or of the wrong type.
    """
    name = options.get("map")
    if not isinstance(name, str) or name not in MAPS:
        raise ValueError(f"mixer.map={name} is unknown; known: {', '.join(MAPS)}")
    own = {key: each.annotation for key, each in inspect.signature(MAPS[name]).parameters.items() if key != "shape"}
    kinds = EVERY | own
    for key in sorted(options.keys() - kinds.keys() - {"map"}):
        raise ValueError(f"mixer.{key} is unknown to mixer={name}; it takes {', '.join(sorted(kinds))}")
    for key in sorted(kinds.keys() - options.keys()):
        raise ValueError(f"mixer.{key} is missing")
    for key, kind in kinds.items():
        if type(options[key]) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(f"mixer.{key}={options[key]} is of the wrong type: give {kind.__name__}")
    if options["window"] < 0:
        raise ValueError(f"mixer.window={options['window']} must be 0 or more tokens")
    return MAPS[name], {key: options[key] for key in own}
