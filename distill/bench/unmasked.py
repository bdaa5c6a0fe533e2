"""SDPA as a benchmark's teacher needs it: without a mask.

All rows are full, and the one query of a step sees all that is kept. Transformers leaves the mask out then, but not
while a step is compiled or captured, when it cannot look into it; and FlashAttention takes no mask, and cuDNN's
attention twice its time with one.
"""

from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: The name that a model is loaded with.
UNMASKED = "distill_unmasked"


def no_mask(*args: Any, **kwargs: Any) -> None:
    """No mask, whatever would be hidden: of several queries SDPA then hides from each what comes after it."""


AttentionInterface.register(UNMASKED, ALL_ATTENTION_FUNCTIONS["sdpa"])
AttentionMaskInterface.register(UNMASKED, no_mask)
