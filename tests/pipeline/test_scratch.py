"""A family's own keys make a teacher, and what is almost one of them is told."""

import pytest
from transformers import CONFIG_MAPPING

from distill.errors import UserError
from distill.scratch import check_architecture


@pytest.mark.parametrize("family", ["gpt2", "llama", "deepseek_v3", "gemma3_text", "bert"])
def test_what_a_family_writes_can_be_given_back(family: str):
    check_architecture(CONFIG_MAPPING[family]().to_dict())
    with pytest.raises(UserError, match=r"vocab_sise is unknown to .*; did you mean vocab_size"):
        check_architecture({"model_type": family, "vocab_sise": 8})
