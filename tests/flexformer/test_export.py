"""An exported student runs from its folder alone, and beside another one."""

from pathlib import Path

import pytest
import torch

from distill.companions import name_companions
from distill.flexformer.configuration import FlexformerConfig
from distill.flexformer.model import FlexformerForCausalLM

from .environments import ENVIRONMENTS, answered
from .tiny import student, tokens

#: Different architecture, map and precision, and how exact each has to be.
EXPORTED = {"llama": (torch.float64, 1e-12), "gpt2": (torch.float32, 1e-6)}


def export(home: Path, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Saves every student below `home`; returns what each says before it leaves."""
    said = []
    for seed, (family, (dtype, _)) in enumerate(EXPORTED.items()):
        model = student(family, seed=seed).to(dtype)
        model.save_pretrained(home / family)
        name_companions(home / family)
        with torch.no_grad():
            greedy = model.generate(ids, max_new_tokens=12, do_sample=False)
            said.append({"logits": model(ids).logits, "greedy": greedy})
    return said


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_exported_students_answer_as_the_originals(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each as it is loaded, and all again once another one is there."""
    # `register_for_auto_class` marks the class: monkeypatch unmarks it for the other tests.
    for marked, auto in ((FlexformerConfig, "AutoConfig"), (FlexformerForCausalLM, "AutoModelForCausalLM")):
        monkeypatch.setattr(marked, "_auto_class", None)
        marked.register_for_auto_class(auto)
    ids = tokens(2, 8)
    originals = export(tmp_path, ids)
    path, release = ENVIRONMENTS[name](tmp_path)
    answers = answered(path, ids, [tmp_path / family for family in EXPORTED])
    assert answers["transformers"] == release and answers["distill"] == (name == "beside distill")
    for company in ("alone", "together"):
        for found, expected, (dtype, tolerance) in zip(answers[company], originals, EXPORTED.values(), strict=True):
            assert found["logits"].dtype == dtype
            torch.testing.assert_close(found["logits"], expected["logits"], rtol=tolerance, atol=tolerance)
            assert torch.equal(found["greedy"], expected["greedy"])
