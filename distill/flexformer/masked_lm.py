"""The student of an encoder as transformers sees it."""

from typing import Any

from torch import Tensor
from transformers import AutoModelForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from .inputs import check_inputs
from .model import Flexformer


class FlexformerForMaskedLM(Flexformer):
    """A masked language model: every token sees all others, through one state for the whole text."""

    auto = AutoModelForMaskedLM

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> MaskedLMOutput:
        """As the base model's own."""
        check_inputs(attention_mask, kwargs.get("position_ids"), kwargs)
        return self.lm(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
