"""The students of encoders as transformers sees them."""

from typing import Any

from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .inputs import check_inputs
from .model import Flexformer
from .pooling import pooled


class FlexformerEncoder(Flexformer):
    """Every token sees all others, through one state for the whole text."""

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """As the base model's own."""
        check_inputs(attention_mask, kwargs.get("position_ids"), kwargs)
        return self.lm(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class FlexformerForMaskedLM(FlexformerEncoder):
    """A masked language model: logits (B, N, V)."""

    auto = AutoModelForMaskedLM


class FlexformerForSequenceClassification(FlexformerEncoder):
    """A classifier of texts, or of pairs of them: logits (B, classes)."""

    auto = AutoModelForSequenceClassification


class FlexformerForEmbedding(FlexformerEncoder):
    """Texts as vectors: `pooler_output` (B, D), pooled from `last_hidden_state` (B, N, D) as the teacher's are."""

    auto = AutoModel

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        out = super().forward(input_ids, attention_mask, **kwargs | {"return_dict": True})
        embedding = pooled(out.last_hidden_state, attention_mask, **self.lm.config.sentence_pooling)
        return BaseModelOutputWithPooling(
            last_hidden_state=out.last_hidden_state, pooler_output=embedding, hidden_states=out.hidden_states
        )
