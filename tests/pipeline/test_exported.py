"""What a run leaves is a thing to use: kernels to start from, a student to go on from, and one to be measured."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from distill.config import Config, read
from distill.errors import UserError
from distill.evaluate import arguments
from distill.exported import inherit
from distill.flexformer.model import Flexformer
from distill.kernels import load_kernels, save_kernels
from distill.pipeline import distil, evaluate
from distill.report.compare import compare
from distill.student import build_student, start_student

from . import tiny
from .conftest import Compose, compose
from .test_teacher import load

pytestmark = pytest.mark.xdist_group("exported")


@pytest.fixture(scope="module")
def made(teachers: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose layers have unlike numbers of features."""
    from .conftest import SMALL

    given = [f"teacher.path={teachers['gpt2']}", f"data.path={text}", "mixer.split=measured", "mixer.features=32"]
    return distil(compose("recipe=pocket", *SMALL, *given, f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}"))


def headline(run: Path) -> dict[str, Any]:
    return json.loads((run / "measurements" / "headline.json").read_text())


def weights(student: Flexformer) -> dict[str, torch.Tensor]:
    return {f"{layer}.{name}": each for layer, mixer in student.mixers.items() for name, each in named(mixer)}


def named(mixer: nn.Module) -> Any:
    return mixer.state_dict().items()


def inherited(config: Config, *typed: str, **student: Any) -> Config:
    """What `inherit` makes of a configuration in which this was typed."""
    composed = OmegaConf.create(asdict(config))
    composed.student.update(student)
    inherit(composed, typed)
    return read(composed)


def test_a_run_starts_from_the_kernels_of_another(made: Path, small: Compose):
    config = small(f"student.kernels={made}", "mixer.split=measured", "mixer.features=32")
    student = start_student(load(Path(str(config.teacher.path))), config)
    kernels = load_file(made / "kernels" / "mixture.safetensors")
    assert weights(student).keys() == kernels.keys()
    assert all(torch.equal(each, kernels[name]) for name, each in weights(student).items())
    features = [mixer.feature_dim for mixer in student.mixers.values()]
    assert sum(features) == 64 and json.loads((made / "measurements/allocation.json").read_text())["features"] == {
        str(layer): count for layer, count in enumerate(features)
    }


def test_with_kernels_nothing_is_placed_or_shared_out(made: Path, small: Compose):
    """What is swapped in is what stage 1 left."""
    kernels = made / "kernels" / "mixture.safetensors"
    again = distil(
        small(
            f"student.kernels={kernels}",
            "mixer.split=measured",
            "mixer.features=32",
            "stages.attention.max_steps=0",
            "stages.logits.max_steps=0",
        )
    )
    assert headline(again)["swapped_ppl"] == headline(made)["stage1_ppl"] == headline(again)["student_ppl"]
    assert "allocation" not in headline(again)["tokens"]


def test_kernels_are_written_and_read(teachers: dict[str, Path], tmp_path: Path):
    teacher = load(teachers["llama"])
    student, other = (build_student(teacher, tiny.MIXER | {"exact_layers": [0]}) for _ in range(2))
    with torch.no_grad():
        for parameter in student.mixers[1].parameters():
            parameter.add_(torch.randn_like(parameter))
    save_kernels(student, tmp_path / "one.safetensors")
    load_kernels(other, str(tmp_path / "one.safetensors"))
    assert all(torch.equal(weights(other)[name], each) for name, each in weights(student).items())


@pytest.mark.parametrize(
    ("mixer", "teacher", "says"),
    [
        ({"map": "elu"}, "gpt2", r"another kind, exponential.*features 4.*; here it is elu: choose"),
        ({"exact_layers": [0]}, "gpt2", r"is of layers 0, 1; set mixer.exact_layers so"),
        ({}, "llama", r"fitted to a teacher with other heads"),
    ],
)
def test_kernels_that_do_not_fit(
    mixer: dict[str, Any], teacher: str, says: str, teachers: dict[str, Path], tmp_path: Path
):
    save_kernels(build_student(load(teachers["gpt2"]), tiny.MIXER), tmp_path / "one.safetensors")
    wanted = (tiny.PLAIN if "map" in mixer else tiny.MIXER) | mixer
    with pytest.raises(UserError, match=rf"^student\.kernels=.*one\.safetensors .*{says}"):
        load_kernels(build_student(load(teachers[teacher]), wanted), str(tmp_path / "one.safetensors"))


def test_files_that_are_no_kernels(teachers: dict[str, Path], tmp_path: Path):
    student = build_student(load(teachers["gpt2"]), tiny.MIXER)
    save_file({"a": torch.ones(1)}, tmp_path / "plain.safetensors")
    save_kernels(student, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-20])
    for name, says in (
        ("none.safetensors", "there is no"),
        (".", "there is no .*kernels/mixture.safetensors"),
        ("plain.safetensors", "does not say of which mixer"),
        ("cut.safetensors", "damaged or cut off"),
    ):
        with pytest.raises(UserError, match=rf"^student\.kernels=.*{says}"):
            load_kernels(student, str(tmp_path / name))


def test_a_student_stays_as_precise_as_it_is(made: Path, small: Compose, tmp_path: Path):
    shutil.copytree(made / "student", tmp_path / "half")
    source = json.loads((made / "student/provenance.json").read_text())
    source["student"]["dtype"] = "bfloat16"
    (tmp_path / "half/provenance.json").write_text(json.dumps(source))
    path = str(tmp_path / "half")
    assert inherited(small(), path=path).student.dtype == "bfloat16"
    assert inherited(small(), "student.dtype=float32", path=path).student.dtype == "float32"
    assert inherited(small("goal=evaluate"), path=path).student.dtype == "bfloat16"
    with pytest.raises(UserError, match=r"is measured as it is; leave student\.dtype=float32 out"):
        inherited(small("goal=evaluate"), "student.dtype=float32", path=path)
    # One from before there was a choice.
    del source["student"]["dtype"]
    (tmp_path / "half/provenance.json").write_text(json.dumps(source))
    assert inherited(small(), path=path).student.dtype == "float32"


def test_a_run_goes_on_from_a_student(made: Path, small: Compose, tmp_path: Path):
    wanted = inherited(small("stages.attention.max_steps=0"), path=str(made / "student"))
    assert wanted.mixer["split"] == "measured" and wanted.mixer["features"] == 32
    again = distil(wanted)
    assert headline(again)["swapped_ppl"] == headline(made)["student_ppl"]
    assert "allocation" not in headline(again)["tokens"] and headline(again)["tokens"]["logits"]
    source = json.loads((again / "student/provenance.json").read_text())
    assert source["student"].items() >= {"path": str(made / "student"), "kernels": None}.items()


def test_a_student_of_another_teacher(made: Path, small: Compose, teachers: dict[str, Path]):
    config = small(f"teacher.path={teachers['llama']}")
    config.student.path = str(made / "student")
    with pytest.raises(UserError, match=r"^student\.path=.* is of another teacher than teacher\.path=.*llama"):
        start_student(load(teachers["llama"]), config)


def test_students_that_cannot_be_loaded(made: Path, small: Compose, tmp_path: Path):
    (tmp_path / "torn").mkdir()
    for file in (made / "student").iterdir():
        if file.is_file():
            (tmp_path / "torn" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"1234567890")
    config = small()
    config.student.path = str(tmp_path / "torn")
    with pytest.raises(UserError, match=r"^student\.path=.*torn cannot be loaded: "):
        start_student(load(Path(str(config.teacher.path))), config)


def test_a_mixer_beside_a_student_is_refused(made: Path, small: Compose, tmp_path: Path):
    path = str(made / "student")
    for typed in ("mixer=hedgehog", "mixer.window=8"):
        with pytest.raises(UserError, match=r"has a mixer of its own; leave mixer=… out"):
            inherited(small(), typed, path=path)
    with pytest.raises(UserError, match=r"has kernels of its own; leave student\.kernels=x out"):
        inherited(small(), path=path, kernels="x")
    with pytest.raises(UserError, match=r"no such directory"):
        inherited(small(), path=str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"has no provenance\.json: give the student/"):
        inherited(small(), path=str(made))
    (tmp_path / "provenance.json").write_text('{"mixer": 3}')
    with pytest.raises(UserError, match=r"is damaged or of an older version"):
        inherited(small(), path=str(tmp_path))


def test_a_student_is_measured_as_its_run_did(made: Path, small: Compose, tmp_path: Path):
    """On the text, the context and against the teacher that it was made with."""
    wanted = inherited(
        compose("goal=evaluate", *[f"data.validation_blocks={6}"], f"run_dir={tmp_path / 'seen'}"),
        "goal=evaluate",
        path=str(made / "student"),
    )
    assert wanted.data.context == tiny.CONTEXT and wanted.recipe == "pocket-evaluated"
    seen = evaluate(wanted)
    there = headline(made)
    for name in ("teacher_ppl", "student_ppl", "ratio", "kl", "agreement", "state_bytes", "parameters", "feature_dim"):
        assert headline(seen)[name] == pytest.approx(there[name], rel=1e-6), name
    report = json.loads((seen / "report/report.json").read_text())
    assert report["provenance"]["mixer"] == report["headline"]["mixer"] == wanted.mixer
    assert report["headline"]["swapped_ppl"] == {"prose": None} and not (seen / "student").exists()
    assert "Swapped in" not in [column for column in (seen / "report/report.md").read_text().split(" | ")]
    with pytest.raises(UserError, match="only measures a student; compare the run that made it"):
        compare([seen], tmp_path / "table", None, [], [], [], [])


def test_what_is_typed_counts(made: Path, teachers: dict[str, Path]):
    typed = ["goal=evaluate", "data.path=other.txt", "data.context=16", "teacher.path=other", "recipe=books"]
    wanted = inherited(compose("goal=evaluate", *typed[1:4]), *typed, path=str(made / "student"))
    assert (wanted.data.path, wanted.data.context, wanted.teacher.path) == ("other.txt", 16, "other")
    assert wanted.recipe == "pocket" and wanted.task == "causal_lm"


def test_evaluating_nothing(small: Compose):
    with pytest.raises(UserError, match=r"^goal=evaluate needs student\.path"):
        evaluate(small("goal=evaluate"))


def test_the_door_for_evaluating(made: Path, tmp_path: Path):
    assert arguments(["a b", "data.context=3"]) == ["goal=evaluate", "student.path='a b'", "data.context=3"]
    assert arguments([]) is None and arguments(["data.path=x"]) is None and arguments(["--help"]) is None
    command = [sys.executable, "-m", "distill.evaluate", str(made / "student"), f"run_dir={tmp_path / 'seen'}"]
    typed = ["data.validation_blocks=6", "trainer.accelerator=cpu", "report=brief"]
    ran = subprocess.run([*command, *typed], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert f"student  {made / 'student'}" in ran.stdout and "swapped" not in ran.stdout
    assert headline(tmp_path / "seen")["ratio"] == pytest.approx(headline(made)["ratio"], rel=1e-6)
    told = json.loads((tmp_path / "seen/measurements/run.json").read_text())["command"]
    assert told.startswith("python -m distill goal=evaluate student.path=")
    usage = subprocess.run([sys.executable, "-m", "distill.evaluate"], capture_output=True, text=True, timeout=300)
    assert usage.returncode == 2 and "CHECKPOINT" in usage.stdout
