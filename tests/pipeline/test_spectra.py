"""What learning did to the frequencies, by hand and in a run."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.measure.spectra import directions, frequencies, spectra
from distill.pipeline import distil
from distill.student import build_student

from . import tiny
from .conftest import Compose
from .test_teacher import load


def test_lengths_turns_and_directions():
    before = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [4.0, 0.0]]])
    after = torch.tensor([[[2.0, 0.0], [2.0, 2.0]], [[0.0, 3.0], [4.0, 0.0]]])
    (found,) = (spectra({3: {"frequency": before}}, {3: {"frequency": after}}) or {})["3"].values()
    assert found["norm_before"][1] == pytest.approx(2.5) and found["norm_after"][1] == pytest.approx(2.914, abs=1e-3)
    # Sorted they are 0, 1/√2, 1, 1.
    assert found["cosine"][1] == pytest.approx((math.sqrt(0.5) + 1) / 2) and found["cosine"][0] == pytest.approx(
        0.2121, abs=1e-3
    )
    # One head points two ways, the other one.
    assert found["directions_before"] == pytest.approx(1.5)
    assert directions(torch.eye(5)[None]) == pytest.approx(5) and directions(torch.ones(1, 7, 3)) == pytest.approx(1)


def test_there_are_none_where_nothing_is_learned_along_rows(teachers: dict[str, Path]):
    for mixer in (tiny.PLAIN | {"map": "elu"}, tiny.MIXER | {"exact_layers": [0, 1]}):
        assert frequencies(build_student(load(teachers["gpt2"]), mixer).mixers) == {}
    assert spectra({}, {}) is None
    student = build_student(load(teachers["llama"]), tiny.MIXER | {"exact_layers": [0]})
    found = frequencies(student.mixers)
    assert {layer: {name: tuple(each.shape) for name, each in rows.items()} for layer, rows in found.items()} == {
        1: {"query_frequency": (4, 4, 8), "key_frequency": (2, 4, 8)}
    }
    with torch.no_grad():
        student.mixers[1].map.key_frequency.zero_()
    assert found[1]["key_frequency"].abs().sum() > 0


def test_a_run_tells_of_stage_1(small: Compose):
    """From what was drawn and placed to what stage 1 left; nothing moves in a stage of no steps."""
    run = distil(small("stages.logits.max_steps=0", "stages.attention.max_steps=4"))
    found = json.loads((run / "measurements/fidelity.json").read_text())["spectra"]
    kernels = load_file(run / "kernels" / "mixture.safetensors")
    norms = kernels["0.map.key_frequency"].norm(dim=-1).double().flatten()
    assert found["0"]["key_frequency"]["norm_after"][1] == pytest.approx(norms.quantile(0.5).item())
    assert found["0"]["key_frequency"]["cosine"][1] < 0.9999
    again = distil(small("stages.logits.max_steps=0", "stages.attention.max_steps=0", f"run_dir={run}-still"))
    still = json.loads((again / "measurements/fidelity.json").read_text())["spectra"]["0"]["key_frequency"]
    assert still["norm_before"] == still["norm_after"] and min(still["cosine"]) > 0.99999
    assert still["norm_before"] == pytest.approx(found["0"]["key_frequency"]["norm_before"])
