"""`python -m distill.export`: a folder that needs nothing but its runtime, or one line that says why not."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.export import agreement
from distill.export.__main__ import main
from distill.export.runtimes import RUNTIMES

#: Nothing of these may be needed where a program runs.
OURS = ("distill", "transformers")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_card_says_how_to_use_it(
    runtime: str, checkpoint: Path, student: Any, tokenizer: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "new" / "step"
    assert main([runtime, str(checkpoint), str(out), "--batch", "2"]) == 0
    assert capfd.readouterr().out == f"{out}\n"
    assert {path.name for path in out.iterdir()} == {
        *(RUNTIMES[runtime].file, "start.safetensors", "tokenizer.json", "README.md")
    }
    card = (out / "README.md").read_text()
    words = " ".join(card.split())
    assert "Of 64 tokens that the program wrote when it was made, 64 were" in words and "2 at a time" in words
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    told = f"{code[1]}\nimport sys\nprint([name for name in {OURS} if name in sys.modules])"
    alone = {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", told], cwd=out, env=os.environ | alone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ids = tokenizer("def read(self", return_tensors="pt").input_ids
    with torch.no_grad():
        written = student.generate(ids, max_new_tokens=39, do_sample=False, eos_token_id=None)[0]
    assert done.stdout == f"{tokenizer.decode(written)}\n[]\n"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    # Above it stands how far the loading has come.
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("distill: ")
    return said


def test_what_cannot_be_is_told(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    there, out = tmp_path / "there", str(tmp_path / "out")
    there.mkdir()
    assert "is there already; name another folder" in refused(capsys, "torch", str(checkpoint), str(there))
    assert "--batch has to be 1 at least" in refused(capsys, "torch", str(checkpoint), out, "--batch", "0")
    assert "none: no such directory" in refused(capsys, "torch", str(tmp_path / "none"), out)
    (tmp_path / "file").write_text("")
    below = str(tmp_path / "file" / "out")
    assert "cannot be written: " in refused(capsys, "torch", str(checkpoint), below)
    exact = tmp_path / "exact"
    shutil.copytree(checkpoint, exact)
    told = json.loads((exact / "config.json").read_text()) | {"exact_layers": [0, 3]}
    (exact / "config.json").write_text(json.dumps(told))
    assert "keeps layers 0, 3 exact, whose keys grow" in refused(capsys, "torch", str(exact), out)
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    told = json.loads((checkpoint / "provenance.json").read_text()) | {"task": "embedding"}
    (encoder / "provenance.json").write_text(json.dumps(told))
    assert "embedding, which writes no text" in refused(capsys, "torch", str(encoder), out)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert "onnxscript is not installed: pip install 'distill[onnx]'" in refused(capsys, "onnx", str(checkpoint), out)
    monkeypatch.undo()
    (exact / "config.json").write_text((checkpoint / "config.json").read_text())
    (exact / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused(capsys, "torch", str(exact), out)
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file", "exact", "encoder"}


def test_what_cannot_be_traced_and_who_stops_leave_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fails(step: Any, token: Any, path: Path) -> None:
        raise RuntimeError("no such operator\nand more")

    def stopped(step: Any, token: Any, path: Path) -> None:
        raise KeyboardInterrupt

    out = str(tmp_path / "step")
    monkeypatch.setitem(RUNTIMES, "torch", replace(RUNTIMES["torch"], write=fails))
    assert "cannot be written as step.pt2: no such operator" in refused(capsys, "torch", str(checkpoint), out)
    monkeypatch.setitem(RUNTIMES, "torch", replace(RUNTIMES["torch"], write=stopped))
    assert main(["torch", str(checkpoint), out]) == 130
    assert capsys.readouterr().err.endswith("distill: stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_says_something_else_is_not_handed_over(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(agreement, "MOST", 0.0)
    assert "step.unfinished is not fit to be used: " in refused(
        capsys, "torch", str(checkpoint), str(tmp_path / "step")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step.unfinished"]
