"""A whole run, from configuration to report, on a tiny teacher: what it leaves, and that its numbers are true."""

import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.config import Config
from distill.flexformer.model import FlexformerForCausalLM
from distill.measure import origin
from distill.measure.perplexity import read
from distill.pipeline import PIPELINES, distil
from distill.rundir import RunDirectory
from distill.summary import summary

from . import tiny
from .conftest import SMALL, Compose, compose
from .test_teacher import ids, load

#: The tests below read one run, so they belong into one process.
pytestmark = pytest.mark.xdist_group("run")

REPORT = {"version", "headline", "fidelity", "transfer", "contribution", "length", "cost", "provenance"}


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "held_out.txt"
    path.write_text(tiny.prose(1, 12))
    return path


@pytest.fixture(scope="module")
def arguments(teachers: dict[str, Path], text: Path, validation: Path) -> list[str]:
    """A run with everything in it; two batches to an evaluation, the last one smaller."""
    given = [f"teacher.path={teachers['gpt2']}", f"data.path={text}", f"data.validation={validation}"]
    return ["recipe=pocket", *SMALL, *given, "measure.batch_size=4", "measure.teacher_tuned=true", "seed=3"]


@pytest.fixture(scope="module")
def config(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Config:
    return compose(*arguments, f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}")


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return distil(config)


@pytest.fixture(scope="module")
def headline(run: Path) -> dict[str, Any]:
    return json.loads((run / "measurements" / "headline.json").read_text())


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The student as anyone else would load it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        # Not from the cache that other tests may have loaded a student from.
        patch.setattr(sys, "path", [each for each in sys.path if not Path(each, "transformers_modules").exists()])
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            patch.delitem(sys.modules, name)
        return AutoModelForCausalLM.from_pretrained(run / "student", trust_remote_code=True).eval()


def measured(run: Path, section: str) -> dict[str, Any]:
    return json.loads((run / "measurements" / f"{section}.json").read_text())


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoint(run: Path, name: str) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / name, weights_only=False)["state_dict"]


def held_out(validation: Path, teacher: Path) -> torch.Tensor:
    """The blocks of the validation text, as many as were asked for, evenly spread."""
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokens = [*tokenizer(validation.read_text())["input_ids"], tokenizer.eos_token_id]
    blocks = [tokens[i : i + tiny.CONTEXT] for i in range(0, len(tokens) - tiny.CONTEXT + 1, tiny.CONTEXT)]
    assert len(blocks) > 6
    return torch.tensor([blocks[i * len(blocks) // 6] for i in range(6)])


@torch.no_grad()
def chances(model: Any, blocks: torch.Tensor) -> torch.Tensor:
    """log p of every next token."""
    return torch.cat([model(block[None]).logits[:, :-1] for block in blocks]).double().log_softmax(-1)


def perplexity(model: Any, blocks: torch.Tensor) -> float:
    """Token after token."""
    log_p = chances(model, blocks)
    told = [log_p[b, i, blocks[b, i + 1]].item() for b in range(len(blocks)) for i in range(blocks.shape[1] - 1)]
    return math.exp(-sum(told) / len(told))


def kl(teacher: Any, student: Any, blocks: torch.Tensor) -> float:
    """From what the teacher predicts to what the student does, in nats per next token, in double precision."""
    log_p, log_s = chances(teacher, blocks), chances(student, blocks)
    return (log_p.exp() * (log_p - log_s)).sum(-1).mean().item()


def test_the_configuration_is_kept_and_complete(run: Path, config: Config):
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["seed"] == 3 and kept["run_dir"] == str(run) and kept["mixer"] == config.mixer
    assert kept["stages"]["attention"]["max_steps"] == 3 and kept["teacher"]["path"] == config.teacher.path


def test_every_step_is_logged(run: Path):
    lines = metrics(run)
    assert [(line["stage"], line["step"]) for line in lines] == [
        (stage, step) for stage in ("attention", "logits", "teacher_tuned") for step in (1, 2, 3)
    ]
    for line in lines:
        assert {"stage", "step", "tokens", "loss", "lr", "seconds"} <= line.keys()
        assert line["tokens"] == line["step"] * 2 * tiny.CONTEXT
        assert line["loss"] > 0 and line["seconds"] >= 0
    assert all(len(line["layers"]) == 2 for line in lines if line["stage"] == "attention")


def test_kernels_are_the_mixers_after_stage_1(run: Path):
    kernels = load_file(run / "kernels" / "mixture.safetensors")
    fitted = {name.removeprefix("mixers."): each for name, each in checkpoint(run, "attention-step=3.ckpt").items()}
    assert kernels.keys() == fitted.keys() and all(torch.equal(kernels[name], fitted[name]) for name in kernels)


def test_checkpoints_hold_no_teacher(run: Path, config: Config):
    assert {name.split(".")[0] for name in checkpoint(run, "attention-step=3.ckpt")} == {"mixers"}
    names = checkpoint(run, "logits-step=3.ckpt")
    assert all(name.startswith("student.lm.") for name in names)
    teacher = load(config.teacher.path).model.state_dict()
    assert len([name for name in names if ".mixer." not in name]) == len(teacher)


def test_the_student_gives_the_logits_of_the_run(run: Path, exported: Any):
    trained = FlexformerForCausalLM(exported.config).eval()
    trained.load_state_dict(
        {name.removeprefix("student."): each for name, each in checkpoint(run, "logits-step=3.ckpt").items()}
    )
    with torch.no_grad():
        torch.testing.assert_close(exported(ids()).logits, trained(ids()).logits, rtol=0, atol=1e-5)
    assert not isinstance(exported, FlexformerForCausalLM)


def test_the_student_comes_with_all_it_needs(run: Path, config: Config, exported: Any):
    folder = run / "student"
    assert not (run / "student.unfinished").exists()
    assert {"config.json", "model.safetensors", "model.py", "README.md", "provenance.json"} <= set(
        path.name for path in folder.iterdir()
    )
    # Every file is named by the first one, for releases that look no further.
    named = re.findall(r"^from \.(\w+) import", (folder / "model.py").read_text(), re.MULTILINE)
    assert {path.stem for path in folder.glob("*.py")} == {*named, "model"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
    told = json.loads((folder / "config.json").read_text())
    assert not {"_name_or_path"} & (told.keys() | told["base"].keys())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc def").input_ids == AutoTokenizer.from_pretrained(config.teacher.path)("abc def").input_ids
    generated = exported.generate(**tokenizer("abc", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert generated.shape[1] <= len(tokenizer("abc").input_ids) + 5


def test_provenance(run: Path, config: Config):
    source = json.loads((run / "student" / "provenance.json").read_text())
    teacher = load(config.teacher.path)
    assert source["teacher"]["weights_sha256"] == teacher.weights_hash()
    assert source["teacher"]["parameters"] == teacher.model.num_parameters()
    assert source["teacher"]["name"] == config.teacher.path and source["seed"] == 3
    assert source["mixer"] == config.mixer and source["versions"]["torch"] == torch.__version__
    assert source["data"]["context"] == tiny.CONTEXT and config.data.path in json.dumps(source["data"])


def test_the_model_card_says_what_was_measured(run: Path, config: Config, headline: dict[str, Any]):
    card = (run / "student" / "README.md").read_text()
    assert config.teacher.path in card and config.mixer["map"] in card and "trust_remote_code=True" in card
    assert f"{headline['ratio']['prose']:.3f}" in card


def test_the_headline_is_true(run: Path, config: Config, validation: Path, exported: Any, headline: dict[str, Any]):
    """Measured again: the teacher as it lies on disk, the student as exported, token after token."""
    blocks = held_out(validation, Path(config.teacher.path))
    teacher = AutoModelForCausalLM.from_pretrained(config.teacher.path).eval()
    of_teacher, of_student = perplexity(teacher, blocks), perplexity(exported, blocks)
    assert headline["teacher_ppl"]["prose"] == pytest.approx(of_teacher, rel=1e-4)
    assert headline["student_ppl"]["prose"] == pytest.approx(of_student, rel=1e-4)
    assert headline["ratio"]["prose"] == pytest.approx(of_student / of_teacher, rel=1e-4)
    same = (chances(teacher, blocks).argmax(-1) == chances(exported, blocks).argmax(-1)).double().mean()
    assert headline["agreement"]["prose"] == pytest.approx(same.item(), abs=2.5 / blocks.numel())
    assert headline["evaluation_tokens"]["prose"] == 6 * (tiny.CONTEXT - 1)


def test_the_error_of_the_ratio_is_that_of_paired_blocks(
    config: Config, validation: Path, exported: Any, headline: dict[str, Any]
):
    teacher = AutoModelForCausalLM.from_pretrained(config.teacher.path).eval()
    gaps = []
    for block in held_out(validation, Path(config.teacher.path)):
        gaps.append(math.log(perplexity(exported, block[None]) / perplexity(teacher, block[None])))
    mean = sum(gaps) / 6
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / 5 / 6)
    assert headline["ratio_error"]["prose"] == pytest.approx(error * math.exp(mean), rel=1e-3)


def test_swapped_and_stage_1_are_other_students(
    run: Path, config: Config, validation: Path, exported: Any, headline: dict[str, Any]
):
    """stage1_ppl is that of the teacher's weights with the mixers in kernels/."""
    student = FlexformerForCausalLM(exported.config).eval()
    student.lm.load_state_dict(load(config.teacher.path).model.state_dict(), strict=False)
    mixers = torch.nn.ModuleDict({str(layer): mixer for layer, mixer in student.mixers.items()})
    mixers.load_state_dict(load_file(run / "kernels" / "mixture.safetensors"))
    blocks = held_out(validation, Path(config.teacher.path))
    assert headline["stage1_ppl"]["prose"] == pytest.approx(perplexity(student, blocks), rel=1e-4)
    steps = ["teacher_ppl", "swapped_ppl", "stage1_ppl", "student_ppl", "teacher_tuned_ppl"]
    assert len({headline[step]["prose"] for step in steps}) == 5


def test_the_kl_of_the_headline_is_true(
    run: Path, config: Config, validation: Path, exported: Any, headline: dict[str, Any]
):
    """Measured again, of the student as exported and of the control as it was trained."""
    blocks = held_out(validation, Path(config.teacher.path))
    teacher, tuned = (AutoModelForCausalLM.from_pretrained(config.teacher.path).eval() for _ in range(2))
    weights = checkpoint(run, "teacher_tuned-step=3.ckpt")
    tuned.load_state_dict({name.removeprefix("model."): each for name, each in weights.items()})
    assert headline["kl"]["prose"] == pytest.approx(kl(teacher, exported, blocks), rel=1e-4)
    assert headline["teacher_tuned_kl"]["prose"] == pytest.approx(kl(teacher, tuned, blocks), rel=1e-3)
    assert headline["kl"]["prose"] != headline["teacher_tuned_kl"]["prose"]


def test_the_kl_is_the_teachers_to_itself_where_nothing_is_swapped(small: Compose):
    found = measured(distil(small("mixer=softmax")), "headline")
    assert found["kl"] == {"prose": 0} and found["ratio"] == {"prose": 1} and found["teacher_tuned_kl"] is None


@pytest.mark.parametrize("together", [7, 256])
def test_kl_is_that_of_every_block(
    config: Config, validation: Path, exported: Any, together: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("distill.task.task.TOGETHER", together)
    blocks = held_out(validation, Path(config.teacher.path))
    batches = [{"input_ids": each} for each in blocks.split(4)]
    teacher, device = load(config.teacher.path), torch.device("cpu")
    found = read(exported, batches, device, teacher=teacher)
    assert found.kl.tolist() == pytest.approx([kl(teacher.model, exported, block[None]) for block in blocks], rel=1e-4)
    assert read(teacher.model, batches, device, teacher=teacher).kl.tolist() == [0] * 6
    assert read(teacher.model, batches, device).divergence is None


def test_the_summary_shows_the_kl(headline: dict[str, Any], tmp_path: Path):
    """Under its name, as wide as the ratio may be; a student that diverged has a dash."""
    shown = SimpleNamespace(path=tmp_path, seconds={"logits": 1.0}, ways={})
    (tmp_path / "measurements").mkdir()
    for changes, ending in (
        ({}, f" {headline['kl']['prose']:.3f}"),
        ({"kl": {"prose": None}, "ratio_error": {"prose": None}}, " –"),
    ):
        (tmp_path / "measurements" / "headline.json").write_text(json.dumps(headline | changes))
        head, row = summary(shown, tmp_path / "student").splitlines()[:2]
        assert head.endswith(" KL") and row.endswith(ending) and len(head) == len(row)


def test_the_summary_tells_by_which_way_it_was(headline: dict[str, Any], tmp_path: Path):
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "headline.json").write_text(json.dumps(headline))
    ways = {"attention": {"maps": ["kernels"]}, "logits": {"linear attention": ["PyTorch", "kernels"]}}
    ways["transfer-prose-0"] = {"maps": ["kernels"]}
    for found, told in (
        (ways, ["attention: maps by kernels; logits: linear attention by PyTorch and kernels"]),
        ({}, []),
    ):
        shown = SimpleNamespace(path=tmp_path, seconds={"logits": 1.0}, ways=found)
        lines = summary(shown, tmp_path / "student").splitlines()
        assert lines[lines.index("") + 2 : -2] == told


def test_the_most_gpu_memory_of_a_stage_is_kept(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where a stage comes back, as measuring does; without a GPU there is none to tell of."""
    run = RunDirectory(replace(config, run_dir=str(tmp_path / "run")))
    with run.timed("attention"):
        pass
    assert run.peak_bytes == {}
    held = iter([5 * 2**30, 2 * 2**30, 3 * 2**30])
    begun: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: begun.append("anew"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(held))
    for stage in ("measure", "measure", "logits"):
        with run.timed(stage):
            pass
    assert run.peak_bytes == {"measure": 5 * 2**30, "logits": 3 * 2**30} and len(begun) == 3


def test_the_headline_counts(config: Config, exported: Any, headline: dict[str, Any]):
    assert headline["tokens"] == {"attention": 3 * 2 * tiny.CONTEXT, "logits": 3 * 2 * tiny.CONTEXT}
    assert {"data", "attention", "logits", "measure"} <= headline["seconds"].keys()
    mixers = sum(each.numel() for name, each in exported.named_parameters() if ".mixer." in name)
    whole = sum(each.numel() for each in exported.parameters())
    assert headline["parameters"] == {"teacher": whole - mixers, "student": whole, "mixers": mixers}
    with torch.no_grad():
        cache = exported(ids()[:1], use_cache=True).past_key_values
    memories = [layer.memory for layer in cache.memories]
    assert headline["state_bytes"] == sum(part.nbytes for memory in memories for part in memory)
    # Keys and values of two heads of eight numbers in two layers.
    assert headline["cache_bytes_per_token"] == 2 * 2 * 8 * 2 * 4


def test_a_run_says_what_made_it(run: Path, config: Config, headline: dict[str, Any]):
    """Through no door: no command, and the mixer by the name of its map."""
    told = measured(run, "run")
    assert told["command"] is None and told["mixer"] == config.mixer["map"]
    assert told["commit"] == json.loads((run / "student" / "provenance.json").read_text())["git_commit"]
    assert re.fullmatch(r"1 CPU core|([2-9]|\d\d+) CPU cores", told["hardware"])
    assert headline["feature_dim"] == 12


def test_the_feature_dimension_is_the_one_used_not_the_one_allowed(small: Compose):
    run = distil(small("mixer=spectral", "mixer.features=14"))
    assert measured(run, "headline")["feature_dim"] == 12


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ([], "python -m distill"),
        (["recipe=pocket", "seed=3", "run_dir=a b", "+run_dir=c"], "python -m distill recipe=pocket seed=3"),
        (["run_dir_2=x", "teacher.path=my model"], "python -m distill run_dir_2=x 'teacher.path=my model'"),
    ],
)
def test_a_command_can_be_typed_again(typed: list[str], told: str):
    assert origin.command(typed) == told


def test_a_mixer_goes_by_the_name_that_was_chosen(small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A file of the group `mixer` may be called otherwise than its map."""
    overrides = SimpleNamespace(task=["mixer=retnet", "run_dir=x"])
    door = SimpleNamespace(overrides=overrides, runtime=SimpleNamespace(choices={"mixer": "retnet"}))
    monkeypatch.setattr(origin, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: door))
    (tmp_path / "run").mkdir()
    config = small()
    origin.write_origin(config, RunDirectory(config), torch.device("cpu"))
    told = measured(tmp_path / "run", "run")
    assert (told["mixer"], told["command"]) == ("retnet", "python -m distill mixer=retnet")


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA H100 number {device.index}")
    assert origin.hardware(torch.device("cuda", 1)) == "one NVIDIA H100 number 1"
    monkeypatch.setattr(origin, "cpu_cores", lambda: 1)
    assert origin.hardware(torch.device("cpu")) == "1 CPU core"
    # As many as are used, and not as there are.
    monkeypatch.setattr(origin, "cpu_cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert origin.hardware(torch.device("cpu")) == "3 CPU cores"


def test_the_report(run: Path, headline: dict[str, Any]):
    told = json.loads((run / "report" / "report.json").read_text())
    assert told.keys() == REPORT
    for key in ("ratio", "kl", "teacher_tuned_kl"):
        assert told["headline"][key] == headline[key] is not None
    assert "domains" in told["fidelity"]
    assert told["provenance"]["seed"] == 3
    assert all(told[name].keys() == {"skipped"} for name in ("transfer", "contribution", "length", "cost"))
    assert {"report.html", "report.md", "figures"} <= {path.name for path in (run / "report").iterdir()}


def test_fidelity_is_that_of_every_head(run: Path):
    found = json.loads((run / "measurements" / "fidelity.json").read_text())
    assert found["comparable"] and found["tokens"] == 2 * tiny.CONTEXT
    for values in found["domains"]["prose"].values():
        assert len(values) == 2 and all(len(row) == 2 for row in values)
    maps = load_file(run / "measurements" / "fidelity_maps.safetensors")
    assert len(found["shown"]) == 3 and len(maps) == 2 * len({(s["layer"], s["head"]) for s in found["shown"]})
    for each in maps.values():
        assert each.shape == (8, 8)
        torch.testing.assert_close(each.sum(-1), torch.ones(8))


def test_the_same_seed_gives_the_same_run(run: Path, arguments: list[str], tmp_path: Path):
    again = distil(compose(*arguments, f"run_dir={tmp_path / 'again'}"))
    without_time = [[{**line, "seconds": 0} for line in metrics(each)] for each in (run, again)]
    assert without_time[0] == without_time[1]
    for name in ("kernels/mixture.safetensors", "student/model.safetensors"):
        first, second = load_file(run / name), load_file(again / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_another_seed_gives_another_run(run: Path, arguments: list[str], tmp_path: Path):
    other = distil(compose(*arguments, "seed=4", "measure.teacher_tuned=false", f"run_dir={tmp_path / 'other'}"))
    assert metrics(other)[0]["loss"] != metrics(run)[0]["loss"]
    found = measured(other, "headline")
    assert found["teacher_tuned_ppl"] is None and found["teacher_tuned_kl"] is None


def test_the_teacher_is_left_as_it_was(run: Path, config: Config):
    """Its folder, that is: the control trains a copy."""
    expected = load(config.teacher.path).weights_hash()
    assert json.loads((run / "student" / "provenance.json").read_text())["teacher"]["weights_sha256"] == expected
    assert sorted(path.name for path in Path(config.teacher.path).iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


@pytest.mark.parametrize("stage", ["attention", "logits"])
def test_a_stage_can_be_left_out(small: Compose, stage: str, capsys: pytest.CaptureFixture[str]):
    run = distil(small(f"stages.{stage}.max_steps=0"))
    ways = {
        "logits": "attention: the loss of attention maps by PyTorch",
        "attention": "logits: linear attention by PyTorch; logits: the loss of logits by PyTorch",
    }
    assert ways[stage] in capsys.readouterr().out.splitlines()
    assert stage not in {line["stage"] for line in metrics(run)}
    measured = json.loads((run / "measurements" / "headline.json").read_text())
    assert measured["tokens"][stage] == 0
    # What was not made has no perplexity, and a student that nothing was done to after stage 1 has that of stage 1.
    assert measured["stage1_ppl"] == {"attention": None, "logits": measured["student_ppl"]}[stage]
    assert (run / "student" / "model.safetensors").exists() and (run / "kernels" / "mixture.safetensors").exists()


@pytest.mark.parametrize("train", ["lora", "mixers"])
def test_adapters_leave_no_trace_in_the_student(small: Compose, train: str):
    run = distil(small(f"stages.logits.train={train}"))
    whole = distil(small(f"run_dir={run}-all"))
    names = [set(load_file(each / "student" / "model.safetensors")) for each in (run, whole)]
    assert names[0] == names[1]


def test_a_tiny_teacher_from_scratch_can_be_distilled(small: Compose, tmp_path: Path):
    shape = "{model_type: llama, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    training = ["goal=teacher", "teacher.path=null", f"teacher.architecture={shape}", "teacher.vocabulary=280"]
    config = small(*training, f"run_dir={tmp_path / 'made'}")
    made = PIPELINES[config.goal](config) / "teacher"
    assert "llama" in (made / "README.md").read_text()
    assert [line["stage"] for line in metrics(made.parent)] == ["pretrain"] * 3
    run = distil(small(f"teacher.path={made}"))
    assert (run / "student" / "model.safetensors").exists()


def test_through_the_door(arguments: list[str], run: Path, tmp_path: Path):
    """As a user types it: in a process of its own, and the same numbers as here."""
    command = [sys.executable, "-m", "distill", *arguments, f"run_dir={tmp_path / 'typed'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and [path.name for path in tmp_path.iterdir()] == ["typed"]
    assert {path.name for path in (tmp_path / "typed").iterdir()} == {path.name for path in run.iterdir()}
    for here, there in zip(metrics(run), metrics(tmp_path / "typed"), strict=True):
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-3)
    told = measured(tmp_path / "typed", "run")
    assert told["command"] == shlex.join(["python", "-m", "distill", *arguments]) and told["mixer"] == "exponential"
