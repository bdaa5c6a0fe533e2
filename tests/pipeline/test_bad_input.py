"""A mistake is worth one line that names the key and the cure, exit code 2, and leaves nothing behind."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.__main__ import main
from distill.checks import check
from distill.errors import UserError
from distill.rundir import RunDirectory

from . import tiny
from .conftest import SMALL, compose
from .families import REFUSED_DECODERS, configuration
from .test_recipes import RECIPES

#: What the command line says → what the answer must name, in this order. {texts} and {teacher} are paths.
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "recipe": (["recipe=nope"], ["recipe=nope", "unknown", "gpt2-small", "pocket"]),
    "mixer": (["mixer=nope"], ["mixer=nope", "unknown", "favor", "spectral"]),
    "data group": (["data=nope"], ["data=nope", "unknown", "python", "text"]),
    "misspelt key": (["stages.attention.max_step=3"], ["stages.attention.max_step", "stages.attention.max_steps"]),
    "misspelt group": (["techer.path=x"], ["techer.path", "teacher.path"]),
    "unknown key": (["xyzzy=1"], ["xyzzy", "--help"]),
    "misspelt key of a group": (["stages.logits={{lr: 3}}"], ["unknown key stages.logits.lr;"]),
    "key of an architecture": (
        ["recipe=pocket-teacher", "teacher.architecture={{vocab_size: 9}}"],
        ["teacher.architecture.vocab_size is new here; write +teacher.architecture.vocab_size"],
    ),
    "misspelt key of an architecture": (
        ["recipe=pocket-teacher", "teacher.path=null", "+teacher.architecture.hidden_sise=64"],
        ["teacher.architecture.hidden_sise is unknown to llama; did you mean hidden_size?"],
    ),
    "student of an architecture": (
        ["teacher.architecture={{model_type: llama}}"],
        ["teacher.architecture", "goal=teacher"],
    ),
    "student of a vocabulary": (["teacher.vocabulary=300"], ["teacher.vocabulary", "goal=teacher"]),
    "added key": (["+stages.logits.colour=red"], ["stages.logits.colour"]),
    "number": (["data.context=many"], ["data.context", "many", "(?i)int"]),
    "real number": (["stages.logits.learning_rate=fast"], ["stages.logits.learning_rate", "fast", "(?i)float"]),
    "switch": (["measure.teacher_tuned=maybe"], ["measure.teacher_tuned", "maybe", "(?i)bool"]),
    "list": (["report.sections=headline"], ["report.sections"]),
    "no teacher": (["teacher.path=null"], ["teacher.path", "give"]),
    "teacher that is not there": (["teacher.path=/no/such/teacher"], ["teacher.path=/no/such/teacher", "give"]),
    "teacher on the hub": (["teacher.path=someone/model"], ["teacher.path=someone/model", "local directory"]),
    "teacher that is a text": (["teacher.path={texts}"], ["teacher.path"]),
    "type of a mixer's value": (["mixer.features=many"], ["mixer.features=many", "int"]),
    "batch of nothing": (["stages.logits.batch_size=0"], ["stages.logits.batch_size=0", "at least 1"]),
    "steps below nought": (["stages.attention.max_steps=-1"], ["stages.attention.max_steps=-1", "at least 0"]),
    "no allocation": (
        ["stages.allocation.max_steps=0"],
        ["max_steps=0", "at least 1; mixer.split=even"],
    ),
    "no queries": (["stages.attention.queries=0"], ["stages.attention.queries=0", "at least 1"]),
    "temperature": (["stages.logits.temperature=0"], ["stages.logits.temperature=0", "above 0"]),
    "checkpoints all the time": (["checkpoint_minutes=0"], ["checkpoint_minutes=0", "above 0"]),
    "linformer shorter than a text": (
        ["task=masked_lm", "mixer=linformer", "mixer.length=8"],
        ["mixer.length=8", "data.context"],
    ),
    "devices": (["trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
    "nodes": (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "torchrun or srun"]),
    "compiled on a processor": (["compile=true"], ["compile=true", "cpu", "leave it out"]),
    "compiled teacher on a processor": (
        ["goal=teacher", "compile=true", "stages.pretrain.max_steps=2"],
        ["compile=true", "cpu", "leave it out"],
    ),
    "compiled in parts": (
        ["compile=true", "trainer.strategy=fsdp", "trainer.devices=2", "trainer.accelerator=cpu"],
        ["compile=true", "fsdp", "leave one"],
    ),
    "strategy": (["trainer.strategy=ddp_spawn"], ["trainer.strategy=ddp_spawn", "auto, ddp, fsdp"]),
    "trainer": (["trainer.precision=nope"], ["trainer", "nope"]),
    "precision": (["matmul_precision=low"], ["matmul_precision=low", "highest", "medium"]),
    "dtype": (["teacher.dtype=float8"], ["teacher.dtype=float8", "float32", "bfloat16"]),
    "window over everything": (
        ["mixer=exponential-window", "mixer.window=32"],
        ["mixer.window=32", "data.context=32", "lower mixer.window or raise data.context"],
    ),
    "context": (["data.context=65"], ["data.context=65", "64 positions", "lower"]),
    "short context": (["data.context=1"], ["data.context=1", "at least 2"]),
    "data that is not there": (["data.path=/no/such/text"], ["data.path=/no/such/text", "give"]),
    "relative data that is not there": (["data.path=text.txt"], ["data.path=text.txt", "give"]),
    "data on the hub": (["data.path=someone/texts"], ["data.path=someone/texts", "local file or folder"]),
    "no data": (["recipe=gpt2-small", "data.path=null"], ["data.path"]),
    "empty file": (["data.path={texts}/empty.txt"], ["empty.txt", "no text"]),
    "binary file": (["data.path={texts}/binary.txt"], ["binary.txt", "text"]),
    "too little text": (["data.path={texts}/short.txt"], ["short", "data.context=32", "more text"]),
    "validation": (["data.validation=/no/such/text"], ["data.validation=/no/such/text", "give"]),
    "context of nothing": (["data.context=0"], ["data.context=0", "at least 2"]),
    "seed": (["seed=-1"], ["seed=-1", "at least 0"]),
    "seed of more bits": (["seed=4294967296"], ["seed=4294967296", "from 0 to 4294967295"]),
    "learning rate": (["stages.logits.mixer_learning_rate=-1"], ["stages.logits.mixer_learning_rate=-1", "0 or more"]),
    "learning rate that is none": (
        ["stages.logits.learning_rate=nan"],
        ["stages.logits.learning_rate=nan", "0 or more"],
    ),
    "warm-up": (["stages.logits.warmup=7"], ["stages.logits.warmup=7", "from 0 to 1"]),
    "clipping": (["trainer.gradient_clip_val=-1"], ["trainer.gradient_clip_val=-1", "0 or more"]),
    "temperature that is none": (["stages.logits.temperature=nan"], ["stages.logits.temperature=nan", "above 0"]),
    "blocks": (["data.validation_blocks=0"], ["data.validation_blocks=0", "at least 1"]),
    "loss": (["stages.attention.loss=nope"], ["stages.attention.loss=nope", "kl", "output", "both"]),
    "train": (["stages.logits.train=nope"], ["stages.logits.train=nope", "all", "lora", "mixers"]),
    "train in a stage left out": (
        ["stages.logits.train=nope", "stages.logits.max_steps=0"],
        ["stages.logits.train=nope", "all"],
    ),
    "section": (["report.sections=[headline,nope]"], ["report.sections", "nope", "headline"]),
    "goal": (["goal=nope"], ["goal=nope", "student", "teacher"]),
    "features": (["mixer=spectral", "mixer.features=2"], ["mixer.features=2", "too small", "at least 3"]),
    "features of a map without": (
        ["mixer=elu", "mixer.features=64"],
        ["mixer.features", "no key of the mixer", "leave"],
    ),
    "option of another mixer": (
        ["mixer=exponential", "mixer.order=2"],
        ["mixer.order", "no key of the mixer", "leave"],
    ),
    "domain": (["data=text", "data.domains.code.path=x"], ["data.domains.code.path", "+data.domains.code.path"]),
    "domain called as all together": (
        ["data=text", "data.path=null", "+data.domains.mixture.path={texts}/short.txt", "+data.domains.b.path={texts}"],
        ["data.domains.mixture", "another name"],
    ),
    "recall of one text": (["measure.length.sequences=1"], ["measure.length.sequences=1", "at least 2"]),
    "cost of nothing": (["measure.cost.longest=8"], ["measure.cost.longest=8", "at least 64"]),
    "decay": (["mixer.decay=slow"], ["mixer.decay=slow", "learned, gated"]),
    "normaliser": (["mixer.normaliser=mean"], ["mixer.normaliser=mean", "sum, norm"]),
    "groups": (["mixer.decay=learned", "mixer.decay_groups=0"], ["mixer.decay_groups=0", "1, or more"]),
    "linformer in a decoder": (["mixer=linformer"], ["mixer=linformer", "later tokens", "masked_lm"]),
    "order": (["mixer=stationary", "mixer.order=0"], ["mixer.order=0", "1 or more"]),
    "features of a product": (["mixer=stationary", "mixer.features=20"], ["mixer.features=20", "at least 27"]),
    "key weight": (["mixer.key_weight=cubic"], ["mixer.key_weight=cubic", "linear"]),
    "map": (["mixer.map=softmax"], ["mixer.map=softmax", "spectral"]),
    "option of another map": (["+mixer.order=2"], ["mixer.order", "unknown", "features"]),
    "below a file": (["run_dir={texts}/short.txt/run"], ["run_dir=.*short.txt/run", "cannot be written"]),
    "a file": (["run_dir={texts}/short.txt"], ["run_dir=.*short.txt", "cannot be written"]),
    "no architecture": (["goal=teacher", "teacher.path=null"], ["teacher.vocabulary", "teacher.architecture"]),
    "architecture": (
        ["goal=teacher", "teacher.path=null", "teacher.vocabulary=280", "teacher.architecture={{model_type: nope}}"],
        ["teacher.architecture", "nope"],
    ),
    "context of an architecture": (
        [
            "goal=teacher",
            "teacher.path=null",
            "teacher.vocabulary=280",
            "teacher.architecture={{model_type: gpt2, n_positions: 16}}",
        ],
        ["data.context=32", "16 positions"],
    ),
}

Said = Callable[..., str]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("texts")
    (home / "empty.txt").write_text("")
    (home / "binary.txt").write_bytes(bytes(range(256)))
    (home / "short.txt").write_text("abc")
    return home


@pytest.fixture
def arguments(teachers: dict[str, Path], text: Path) -> list[str]:
    return [*SMALL, f"teacher.path={teachers['gpt2']}", f"data.path={text}", "run_dir=run"]


@pytest.fixture
def refusal(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Said:
    """Goes through the door in an empty folder and returns the one line that `distill` answers with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def say(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["distill", *arguments, *overrides])
        with pytest.raises(SystemExit) as left:
            main()
        said = capfd.readouterr().err.splitlines()
        assert left.value.code == 2
        assert [line for line in said if "Traceback" in line or "Error:" in line] == []
        assert [line.startswith("distill: ") for line in said].count(True) == 1 and said[-1].startswith("distill: ")
        return said[-1]

    return say


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_nothing_is_written(name: str, refusal: Said, texts: Path, tmp_path: Path):
    overrides, named = MISTAKES[name]
    before = sorted(texts.iterdir())
    said = refusal(*(override.format(texts=texts) if "{" in override else override for override in overrides))
    assert all(re.search(each if "*" in each or "(" in each else re.escape(each), said) for each in named), said
    # A list of all options, and no stack trace.
    assert len(said) < 600
    assert list(tmp_path.iterdir()) == [] and sorted(texts.iterdir()) == before


def test_numbers_out_of_range_are_refused_before_processes_are_started(refusal: Said, monkeypatch: pytest.MonkeyPatch):
    """Which would each take seconds to find out."""
    monkeypatch.setattr("distill.__main__.launch_all", lambda *given: pytest.fail("it has started them"))
    assert "seed=-1 must be" in refusal("trainer.devices=2", "seed=-1")


def test_a_directory_that_holds_a_run_is_left_as_it_is(refusal: Said, tmp_path: Path):
    (tmp_path / "run" / "student").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "student/config.json"):
        (tmp_path / "run" / name).write_text(f"precious {name}")
    said = refusal()
    assert "run_dir=run already holds a run" in said and "choose another" in said
    assert (tmp_path / "run" / "config.yaml").read_text() == "precious config.yaml"
    assert len(list((tmp_path / "run").rglob("*"))) == 4


def test_a_student_that_was_left_is_not_overwritten(refusal: Said, tmp_path: Path):
    """Whatever else is missing: weights are precious."""
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "model.safetensors").write_text("precious")
    assert "run_dir=run" in refusal()


def test_a_teacher_that_cannot_be_swapped(refusal: Said, tmp_path_factory: pytest.TempPathFactory, tokenizer):
    teacher = tiny.save(
        tmp_path_factory.mktemp("teacher"), configuration("mistral", REFUSED_DECODERS["mistral"][0]), tokenizer
    )
    assert "sliding window" in refusal(f"teacher.path={teacher}")


def test_a_window_alone_may_be_as_long_as_a_text():
    check(compose("mixer=window-only", "mixer.window=512", "data.context=512"))


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (
            ["trainer.devices=2", "trainer.num_nodes=2", "stages.attention.batch_size=6"],
            r"stages\.attention\.batch_size=6 .* trainer\.devices=2 trainer\.num_nodes=2; give a multiple of 4",
        ),
        (["trainer.devices=2", "goal=evaluate"], "trainer.devices=2: goal=evaluate trains nothing"),
        (["trainer.devices=2", "task=embedding", "mixer.features=64"], "trainer.devices=2: a text's partner"),
    ],
)
def test_what_several_devices_cannot_share_out(asked: list[str], named: str):
    with pytest.raises(UserError, match=named):
        check(compose(*asked))


def test_a_full_disk(refusal: Said, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RunDirectory, "metrics", Path("/dev/full"))
    assert "No space left on device" in refusal()


def typed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "distill", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_an_unknown_recipe_as_typed(tmp_path: Path):
    done = typed("recipe=nope", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    known = ", ".join(RECIPES)
    assert done.stderr == f"distill: recipe=nope is unknown; known: {known}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "cure"),
    [
        ("run_dir=a=b", """put its value in quotes of its own, "run_dir='a=b'\""""),
        ("pocket", "write key=value"),
    ],
)
def test_a_word_that_cannot_be_read_as_typed(word: str, cure: str, tmp_path: Path):
    done = typed(word, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"distill: {word} cannot be read; {cure}\n")


def test_a_missing_teacher_as_typed(tmp_path: Path, arguments: list[str]):
    # It is told before what takes seconds to be there, which here would not be.
    late = tmp_path / "torch.py"
    late.write_text("raise SystemError('too early')")
    done = typed(*arguments, "teacher.path=./nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "distill: teacher.path=./nowhere does not exist: give a directory or a hub name\n"
    assert list(tmp_path.iterdir()) == [late]


def test_a_failed_job_does_not_end_a_sweep(tmp_path: Path, arguments: list[str], teachers: dict[str, Path]):
    """Not even where all jobs are of one process."""
    kept = [each for each in arguments if not each.startswith(("teacher.path", "run_dir"))]
    kept += [f"teacher.path=./nowhere,{teachers['gpt2']}", f"hydra.sweep.dir={tmp_path}/all", "hydra/launcher=basic"]
    done = typed("-m", *kept, "stages.attention.max_steps=0", "stages.logits.max_steps=0", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    *_, first, last = [line for line in done.stderr.splitlines() if line.startswith("distill: ")]
    assert first.startswith("distill: teacher.path=./nowhere does not exist")
    assert last.startswith("distill: 1 of the sweep's 2 jobs are not finished: 0 failed: teacher.path=./nowhere does")
    assert (tmp_path / "all/1/student/config.json").exists() and not (tmp_path / "all/0/student").exists()


def test_jobs_of_processes_of_their_own_fail_one_by_one(tmp_path: Path):
    """As typed: each is the command of a run, and its log has what that says."""
    done = typed(
        "-m", "data.context=many,few", 'hydra.sweep.dir="it\'s all"', "hydra.launcher.at_a_time=2", cwd=tmp_path
    )
    assert done.returncode == 2
    said = "data.context: Value '{}' of type 'str' could not be converted to Integer"
    for number, word in enumerate(["many", "few"]):
        assert (tmp_path / f"it's all/{number}/log.txt").read_text() == f"distill: {said.format(word)}\n"
        assert f"job {number} failed: {said.format(word)}, after " in done.stdout
    assert done.stderr.startswith("distill: 2 of the sweep's 2 jobs are not finished: 0 failed: data.context: ")


#: What is typed of a sweep that cannot be one → what the answer names.
NO_SWEEP: dict[str, tuple[list[str], list[str]]] = {
    "run_dir": (["seed=0,1"], ["run_dir=run", "a directory of its own"]),
    "one directory": (["seed=0,1", "run_dir=null", "hydra.sweep.subdir=x"], ["hydra.sweep.subdir", "hydra:job.num"]),
    "nobody": (["seed=0", "run_dir=null", "hydra.launcher.at_a_time=0"], ["hydra.launcher.at_a_time=0", "at least 1"]),
    "interval": (["seed=interval(0,1)", "run_dir=null"], ["seed", "interval", "hydra/sweeper=random"]),
    "no draw": (["run_dir=null", "hydra/sweeper=random", "hydra.sweeper.n=0"], ["hydra.sweeper.n=0", "at least 1"]),
    "no number of draws": (
        ["run_dir=null", "hydra/sweeper=random", "hydra.sweeper.n=x"],
        ["hydra.sweeper.n=x", "whole"],
    ),
    "half a job": (["run_dir=null", "hydra.launcher.at_a_time=1.5"], ["hydra.launcher.at_a_time=1.5", "whole"]),
    "joblib": (["hydra/launcher=joblib"], ["hydra/launcher=joblib", "pip install 'distill[joblib]'"]),
    "slurm": (["hydra/launcher=submitit_slurm"], ["submitit_slurm", "pip install 'distill[slurm]'"]),
    "a key of some mixers": (
        ["run_dir=null", "mixer=hedgehog,retnet", "mixer.features=16"],
        ["mixer.features is no key of the mixer", "(job 1: mixer=retnet)"],
    ),
    "launcher": (["hydra/launcher=nope"], ["hydra/launcher=nope", "unknown", "basic, processes"]),
}


@pytest.mark.parametrize("name", NO_SWEEP)
def test_a_sweep_that_cannot_be_one_is_not_begun(name: str, refusal: Said, tmp_path: Path):
    given, named = NO_SWEEP[name]
    said = refusal("-m", *given, "hydra.sweep.dir=all")
    assert all(each in said for each in named), said
    assert not list(tmp_path.glob("all/*/*"))
