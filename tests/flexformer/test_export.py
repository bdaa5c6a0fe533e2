"""An exported student runs from its folder alone, and beside another one."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.companions import name_companions
from distill.flexformer.configuration import FlexformerConfig
from distill.flexformer.model import FlexformerForCausalLM

from .environments import ENVIRONMENTS, python
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


def serve(home: Path, path: list[Path] | None) -> dict[str, Any]:
    """What they say in a process that knows only their folders, and has the packages of `path`."""
    script = Path(__file__).with_name("answer.py")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "HF_"))}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"}
    folders = [str(home / family) for family in EXPORTED]
    command = [*python(path), str(script), "prompts.pt", "answers.pt", *folders]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return torch.load(home / "answers.pt")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_exported_students_answer_as_the_originals(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each as it is loaded, and all again once another one is there."""
    # `register_for_auto_class` marks the class: monkeypatch unmarks it for the other tests.
    for marked, auto in ((FlexformerConfig, "AutoConfig"), (FlexformerForCausalLM, "AutoModelForCausalLM")):
        monkeypatch.setattr(marked, "_auto_class", None)
        marked.register_for_auto_class(auto)
    ids = tokens(2, 8)
    torch.save(ids, tmp_path / "prompts.pt")
    originals = export(tmp_path, ids)
    path, release = ENVIRONMENTS[name](tmp_path)
    answers = serve(tmp_path, path)
    assert answers["transformers"] == release and answers["distill"] == (name == "beside distill")
    for company in ("alone", "together"):
        for found, expected, (dtype, tolerance) in zip(answers[company], originals, EXPORTED.values(), strict=True):
            assert found["logits"].dtype == dtype
            torch.testing.assert_close(found["logits"], expected["logits"], rtol=tolerance, atol=tolerance)
            assert torch.equal(found["greedy"], expected["greedy"])
