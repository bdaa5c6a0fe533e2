"""Features go to the layers whose attention depends on the query."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from distill import allocation
from distill.allocation import allocate, probes, shares, undecided
from distill.errors import UserError
from distill.flexformer.decay import LearnedDecay
from distill.maploss import log_student, log_teacher, map_kl
from distill.pipeline import distil
from distill.report import render
from distill.stages.attention import AttentionStage
from distill.student import build_student

from . import tiny
from .conftest import Compose
from .test_stages import Run
from .test_teacher import ids

CORPUS = tiny.corpus(8)
FOURIER = ["mixer=stationary-delta", "mixer.features=56", "stages.allocation.max_steps=40"]


@given(
    weights=st.lists(st.floats(0.001, 10), min_size=1, max_size=9),
    mean=st.integers(1, 20),
    grain=st.sampled_from([1, 16, 27]),
)
def test_shares_add_up_and_follow_the_weights(weights: list[float], mean: int, grain: int):
    total = mean * grain * len(weights)
    found = shares(weights, total, grain)
    assert sum(found) == total and all(each >= grain and each % grain == 0 for each in found)
    for one, other in zip(*(sorted(zip(weights, found, strict=True))[i:] for i in (0, 1)), strict=False):
        assert one[1] <= other[1] + (one[0] == other[0]) * grain


def test_shares_are_in_proportion():
    assert shares([1.0, 2.0, 5.0], 128, 16) == [16, 32, 80]
    assert shares([1.0, 1e-9], 100, 16) == [80, 16]


@pytest.fixture
def blind(small: Compose, teachers: dict[str, Path], tmp_path: Path):
    """A run whose first layer cannot see its queries: its attention is the same whatever they are."""

    def make(*overrides: str) -> Run:
        made = Run(small(*FOURIER, *overrides), teachers["gpt2"])
        attention = made.teacher.model.transformer.h[0].attn.c_attn
        with torch.no_grad():
            attention.weight[:, :16] = 0
            attention.bias[:16] = 0
        made.student = build_student(made.teacher, made.config.mixer)
        return made

    return make


@pytest.mark.parametrize("window", [0, 8])
def test_a_layer_that_ignores_its_queries_gets_the_least(blind, window: int):
    made = blind(f"mixer.window={window}")
    tokens = allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    assert tokens == 40 * 2 * tiny.CONTEXT
    assert [mixer.feature_dim for mixer in made.student.mixers.values()] == [16, 96]
    assert [layer["features"] for layer in made.student.config.layers] == [16, 96]
    written = json.loads((made.directory.path / "measurements" / "allocation.json").read_text())
    assert written["features"] == {"0": 16, "1": 96} and written["kl"]["0"] < 0.1 * written["kl"]["1"]


def test_what_is_undecided_is_the_kl_of_the_probes(blind, monkeypatch: pytest.MonkeyPatch):
    """On whole maps of a batch that is always the same. Where a run goes on nothing has moved the teacher yet."""
    made = blind("stages.attention.queries=null")
    found = probes(made.student)
    stage = AttentionStage(made.teacher, found, made.config.stages.attention)
    corpus = tiny.corpus(2)
    moved: list[torch.device] = []
    monkeypatch.setattr(made.teacher, "to", moved.append)
    left = undecided(stage, corpus, 0, torch.device("cpu"))
    assert moved == [torch.device("cpu")]
    heads = made.teacher.heads({"input_ids": torch.stack(list(corpus.train["random"]["input_ids"]))})
    for layer, mixer in found.items():
        expected = map_kl(log_teacher(heads[layer]), log_student(mixer, heads[layer])).mean()
        assert left[layer] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("window", [0, 8])
def test_what_is_beside_the_query_is_the_window_and_a_decay(blind, window: int):
    for probe in probes(blind(f"mixer.window={window}").student).values():
        assert probe.width == window and probe.feature_dim == 1 and isinstance(probe.decay, LearnedDecay)


def test_whatever_stage_1_compares_it_is_maps_that_tell(small: Compose, tmp_path: Path, blind):
    """The share of a layer does not depend on stages.attention.loss."""
    written = []
    for loss in ("kl", "output"):
        made = blind(f"stages.attention.loss={loss}", f"run_dir={tmp_path / loss}")
        allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
        written.append(json.loads((tmp_path / loss / "measurements" / "allocation.json").read_text()))
    assert written[0] == written[1]


def test_layers_kept_exact_get_none_and_give_none(blind):
    made = blind("mixer.exact_layers=[1]")
    allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    assert [mixer.feature_dim for mixer in made.student.mixers.values()] == [48]
    assert "features" not in made.student.config.layers[1]


def test_atoms_stay_whole(blind):
    made = blind("mixer=nonstationary", "mixer.features=108", "mixer.split=measured")
    allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    assert [mixer.feature_dim for mixer in made.student.mixers.values()] == [27, 189]


def test_a_whole_run_and_its_student(small: Compose):
    run = distil(small(*FOURIER, "stages.attention.max_steps=3"))
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    layers: list[dict[str, Any]] = json.loads((run / "student" / "config.json").read_text())["layers"]
    assert sum(layer["features"] for layer in layers) == 112 and headline["feature_dim"] == 56
    # Nothing is matched to maps, although the recipe would have had steps for it.
    assert headline["tokens"]["allocation"] == 40 * 2 * tiny.CONTEXT and headline["tokens"]["attention"] == 0
    stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"allocation", "logits"}
    told = json.loads((run / "report" / "report.json").read_text())
    assert told["headline"]["tokens"]["allocation"] and "skipped" in told["fidelity"]
    page = (run / "report" / "report.md").read_text()
    assert "Left without the query" in page and "features shared out" in page
    (run / "measurements" / "allocation.json").unlink()
    render(run, ["headline"])
    assert "No features by layer: measurements/allocation.json is missing" in (run / "report" / "report.md").read_text()
    again = AutoModelForCausalLM.from_pretrained(run / "student", trust_remote_code=True)
    dims = [mixer.feature_dim for mixer in again.mixers.values()]
    assert dims == [layer["features"] for layer in layers]
    assert again(input_ids=ids()).logits.isfinite().all()


def test_shares_are_by_the_square_of_the_kl(blind, monkeypatch: pytest.MonkeyPatch):
    made = blind("stages.allocation.max_steps=1")
    monkeypatch.setattr(allocation, "undecided", lambda *given: {0: 0.3, 1: 0.5})
    allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    assert [mixer.feature_dim for mixer in made.student.mixers.values()] == shares([0.09, 0.25], 112, 16) == [32, 80]
    assert shares([0.3, 0.5], 112, 16) == [48, 64]


def test_maps_are_matched_where_that_is_asked_for(small: Compose):
    run = distil(small(*FOURIER, "mixer.match_maps=true", "stages.attention.max_steps=3"))
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    assert headline["tokens"]["attention"] == 3 * 2 * tiny.CONTEXT and headline["stage1_ppl"]


def test_a_key_weight_needs_no_features(blind):
    """Queries that are all the same make attention a key weight: once it is fitted, nothing is left."""
    made = blind("stages.allocation.max_steps=150")
    attention = made.teacher.model.transformer.h[0].attn.c_attn
    with torch.no_grad():
        attention.bias[:16] = torch.linspace(-2, 2, 16)
    stage = AttentionStage(made.teacher, probes(made.student), made.config.stages.attention)
    before = undecided(stage, CORPUS, 1, torch.device("cpu"))
    allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    after = json.loads((made.directory.path / "measurements" / "allocation.json").read_text())["kl"]
    assert after["0"] < 0.1 * before[0] and after["0"] < 0.05 < after["1"]


def test_the_draw_does_not_depend_on_what_was_fitted(blind, tmp_path: Path):
    drawn = []
    for steps in (1, 3):
        made = blind(f"stages.allocation.max_steps={steps}", f"run_dir={tmp_path / str(steps)}")
        allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
        drawn.append(made.student.mixers[0].map.frequency)
    assert torch.equal(drawn[0], drawn[1])


def test_few_features_are_dealt_out_in_small_parts(blind):
    made = blind("mixer.features=8")
    allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    assert [mixer.feature_dim for mixer in made.student.mixers.values()] == [8, 8]


def test_groups_of_a_decay_stay_equal(blind):
    made = blind("mixer=exponential-decay", "mixer.features=42", "mixer.decay_groups=3", "mixer.split=measured")
    allocate(made.teacher, made.student, CORPUS, made.config, made.directory)
    assert [mixer.feature_dim for mixer in made.student.mixers.values()] == [15, 60]


def test_where_every_layer_is_exact_there_is_nothing_to_share_out(small: Compose):
    run = distil(small(*FOURIER, "mixer.exact_layers=all"))
    assert "allocation" not in json.loads((run / "measurements" / "headline.json").read_text())["tokens"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["mixer.match_maps=no"], ["mixer.match_maps=no", "true or false"]),
        (["task=masked_lm", "mixer=linformer", "+mixer.split=measured"], ["mixer.split=measured", "mixer.split=even"]),
        (["mixer.split=fair"], ["mixer.split=fair", "even, measured"]),
        (["mixer=elu", "mixer.split=measured"], ["mixer.split=measured", "no features", "mixer.split=even"]),
    ],
)
def test_a_split_that_cannot_be_is_refused(small: Compose, overrides: list[str], named: list[str]):
    with pytest.raises(UserError) as raised:
        distil(small(*overrides))
    assert all(each in str(raised.value) for each in named)
