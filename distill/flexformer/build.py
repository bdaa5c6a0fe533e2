"""From options to a mixer."""

from collections.abc import Mapping
from typing import Any

from .feature_map import HeadShape
from .mixer import Mixer
from .options import PROJECTIONS, check_options
from .token_mixer import TokenMixer


def build_mixer(shape: HeadShape, options: Mapping[str, Any], causal: bool) -> TokenMixer:
    """The mixer of one layer; ValueError for options that do not fit, see `options.check_options`."""
    if options.get("map") not in PROJECTIONS:
        return Mixer(shape, options, causal)
    build, arguments = check_options(options, causal)
    return build(shape, **arguments)
