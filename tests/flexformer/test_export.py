"""An exported student runs from its folder alone, and beside another one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill.flexformer.configuration import FlexformerConfig
from distill.flexformer.model import FlexformerForCausalLM

from .tiny import student, tokens

#: Different architecture, map and precision, and how exact each has to be.
EXPORTED = {"llama": (torch.float64, 1e-12), "gpt2": (torch.float32, 1e-6)}


def export(home: Path, ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Saves every student below `home`; returns what each says before it leaves."""
    said = []
    for seed, (family, (dtype, _)) in enumerate(EXPORTED.items()):
        model = student(family, seed=seed).to(dtype)
        model.save_pretrained(home / family)
        with torch.no_grad():
            greedy = model.generate(ids, max_new_tokens=12, do_sample=False)
            said.append({"logits": model(ids).logits, "greedy": greedy})
    return said


def serve(home: Path) -> dict[str, list[dict[str, torch.Tensor]]]:
    """What they say in a process that knows only their folders."""
    script = Path(__file__).with_name("serve_without_distill.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "HF_"))}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    folders = [str(home / family) for family in EXPORTED]
    command = [sys.executable, str(script), "prompts.pt", "answers.pt", *folders]
    subprocess.run(command, cwd=home, env=environment, check=True)
    return torch.load(home / "answers.pt")


def test_exported_students_answer_as_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each as it is loaded, and all again once another one is there."""
    # `register_for_auto_class` marks the class: monkeypatch unmarks it for the other tests.
    for marked, auto in ((FlexformerConfig, "AutoConfig"), (FlexformerForCausalLM, "AutoModelForCausalLM")):
        monkeypatch.setattr(marked, "_auto_class", None)
        marked.register_for_auto_class(auto)
    ids = tokens(2, 8)
    torch.save(ids, tmp_path / "prompts.pt")
    originals = export(tmp_path, ids)
    answers = serve(tmp_path)
    for company in ("alone", "together"):
        for found, expected, (dtype, tolerance) in zip(answers[company], originals, EXPORTED.values(), strict=True):
            assert found["logits"].dtype == dtype
            torch.testing.assert_close(found["logits"], expected["logits"], rtol=tolerance, atol=tolerance)
            assert torch.equal(found["greedy"], expected["greedy"])
