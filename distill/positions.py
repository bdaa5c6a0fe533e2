"""How long a text a model can be given."""

from typing import Any

from torch import nn


def within_positions(model: Any, wanted: int) -> int:
    """`wanted` tokens, or as many as there are positions where these are learned; others go on as far as one likes."""
    known: int | None = getattr(model.config, "max_position_embeddings", None)
    return min(wanted, known) if known and learned_positions(model) else wanted


def learned_positions(model: Any) -> bool:
    """Whether it looks up anything but its tokens."""
    return any(isinstance(each, nn.Embedding) and each is not model.get_input_embeddings() for each in model.modules())
