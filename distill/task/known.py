"""The tasks there are."""

from collections.abc import Callable

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from ..flexformer.encoder import FlexformerForEmbedding, FlexformerForMaskedLM, FlexformerForSequenceClassification
from ..flexformer.model import FlexformerForCausalLM
from .batches import as_they_are, masked, padded, paired
from .embedding import Embedding, partners
from .task import Task, class_of_text, masked_tokens, next_tokens

#: Every task by the name used in `task`.
TASKS: dict[str, Task] = {
    "causal_lm": Task(
        kind="decoder",
        auto=AutoModelForCausalLM,
        student=FlexformerForCausalLM,
        families=MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        causal=True,
        predicted="next token",
        collate=as_they_are,
        targets=next_tokens,
        arguments={"use_cache": False},
    ),
    "masked_lm": Task(
        kind="encoder",
        auto=AutoModelForMaskedLM,
        student=FlexformerForMaskedLM,
        families=MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        causal=False,
        predicted="masked token",
        collate=masked,
        targets=masked_tokens,
        special_tokens={"pad_token": "[PAD]", "mask_token": "[MASK]"},
    ),
    "sequence_classification": Task(
        kind="encoder",
        auto=AutoModelForSequenceClassification,
        student=FlexformerForSequenceClassification,
        families=MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        causal=False,
        predicted="label",
        collate=padded,
        targets=class_of_text,
        special_tokens={"pad_token": "[PAD]"},
        labelled=True,
    ),
    "embedding": Embedding(
        kind="encoder",
        auto=AutoModel,
        student=FlexformerForEmbedding,
        families=MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        causal=False,
        predicted="partner",
        collate=paired,
        targets=partners,
        special_tokens={"pad_token": "[PAD]"},
        paired=True,
        spared="pooler",
    ),
}
#: What models do where nothing else is said.
DECODER = TASKS["causal_lm"]


def other_task(task: Task, fits: Callable[[Task], bool]) -> tuple[str, Task] | None:
    """The name and the task, other than `task`, that fits; None where none does."""
    return next(((name, each) for name, each in TASKS.items() if each is not task and fits(each)), None)
