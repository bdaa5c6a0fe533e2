"""What a student cannot be given: what softmax over a row can be told, and a state that runs along it cannot."""

from typing import Any

import torch
from torch import Tensor

#: Arguments by which collators for packed training say where a row's texts begin.
PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


def check_inputs(attention_mask: Tensor | None, position_ids: Tensor | None, others: dict[str, Any]) -> None:
    """ValueError for packed texts, whose state would leak from one into the next, and for cross-attention."""
    packed = next((name for name in PACKED if others.get(name) is not None), None)
    if packed or restarts(attention_mask, position_ids):
        raise ValueError(
            f"{packed or 'position_ids'}: these rows hold several texts, which would leak into each other through the "
            "state; give each text a row of its own, with a padding mask"
        )
    if others.get("encoder_hidden_states") is not None:
        raise ValueError("encoder_hidden_states: a flexformer attends to its own tokens alone; leave them out")


def restarts(attention_mask: Tensor | None, position_ids: Tensor | None) -> bool:
    """Whether positions (B, N) of tokens that are not padding fail to grow along a row, since another text begins.

    attention_mask (B, T), T ≥ N: 0 at padding. Not looked at while compiling, which could not branch on it.
    """
    if position_ids is None or position_ids.dim() != 2 or position_ids.shape[1] < 2 or torch.compiler.is_compiling():
        return False
    places, real = position_ids, torch.ones_like(position_ids, dtype=torch.bool)
    if attention_mask is not None and attention_mask.dim() == 2:
        real = (attention_mask[:, -places.shape[1] :] != 0).expand_as(places)
        places = places.masked_fill(~real, -1)
    highest = places.cummax(1).values
    return bool(((places[:, 1:] <= highest[:, :-1]) & real[:, 1:]).any())
