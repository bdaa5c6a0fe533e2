"""Several devices train the student that one would, and leave what one would; here they are two processes."""

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.types import RunMode
from lightning.pytorch.accelerators import CUDAAccelerator
from safetensors.torch import load_file

from distill import ranks, several
from distill.__main__ import main
from distill.checks import check
from distill.config import Config
from distill.device import slow_in_bfloat16
from distill.errors import UserError
from distill.launch import launch, launched
from distill.pipeline import distil
from distill.stages.attention import AttentionStage
from distill.stages.callbacks import NumberGuard
from distill.stages.fit import device_of, device_to_train_on
from distill.stages.language import LanguageStage
from distill.stages.logits import LogitsStage
from distill.student import build_student
from distill.task import NO_TARGET

from . import tiny
from .conftest import SMALL, compose
from .test_teacher import load
from .together import together

#: The tests below read one run.
pytestmark = pytest.mark.xdist_group("devices")

#: Of stage 1, which is left before.
STEPS = 20
WANTED = [
    *SMALL,
    f"stages.attention.max_steps={STEPS}",
    "stages.attention.queries=5",
    "report.sections=[headline]",
    "mixer.split=measured",
    # Some processors would round products to bfloat16.
    "matmul_precision=highest",
]
#: Its loss asks the other device how large outputs are: on GPUs in the middle of a graph.
SIGNED = ["mixer=stationary-signed", "mixer.features=12"]
CURE = "begin again with a lower learning rate, in another directory (last good checkpoint: none was written yet)"
Words = Callable[..., list[str]]


@pytest.fixture(scope="module")
def words(teachers: dict[str, Path], text: Path) -> Words:
    """What is typed for a run in a directory."""
    paths = [f"teacher.path={teachers['gpt2']}", f"data.path={text}"]
    return lambda path, *more: ["recipe=pocket", *WANTED, *paths, f"run_dir={path}", *more]


@pytest.fixture(scope="module")
def alone(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distil(compose(*words(tmp_path_factory.mktemp("alone") / "run")))


def typed(*arguments: str) -> None:
    sys.argv = ["distill", *arguments]
    main()


def lines(path: Path) -> list[dict[str, Any]]:
    """Those that are whole by now."""
    log = path / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]] if log.exists() else []


def same(path: Path, other: Path) -> None:
    """But for rounding, which differs where sums are taken in two parts."""
    for file in ("student/model.safetensors", "kernels/mixture.safetensors"):
        found, expected = load_file(path / file), load_file(other / file)
        assert found.keys() == expected.keys()
        for name, each in expected.items():
            torch.testing.assert_close(found[name], each, rtol=1e-5, atol=1e-5 * each.abs().max().item(), msg=name)
    logged = [
        (line["stage"], line["step"], line["tokens"], pytest.approx(line["loss"], rel=1e-5)) for line in lines(other)
    ]
    assert [(line["stage"], line["step"], line["tokens"], line["loss"]) for line in lines(path)] == logged
    apart, expected = (json.loads((each / "measurements/allocation.json").read_text()) for each in (path, other))
    assert apart["kl"] == pytest.approx(expected["kl"], rel=1e-5) and apart["features"] == expected["features"]
    assert {each.name for each in path.iterdir()} == {each.name for each in other.iterdir()}
    assert {each.name for each in (path / "measurements").iterdir()} == {
        each.name for each in (other / "measurements").iterdir()
    }


def test_a_run_that_is_asked_to_end_goes_on_and_ends_as_that_of_one_device(words: Words, alone: Path, tmp_path: Path):
    """The first attempt starts its processes itself, the second is started as by torchrun."""
    path = tmp_path / "it's a run"
    command = words(path, "resume=true")
    command[-2] = f"run_dir='{tmp_path}/it\\'s a run'"
    begun = subprocess.Popen(
        [sys.executable, "-m", "distill", *command, "trainer.devices=2"], stderr=subprocess.PIPE, text=True
    )
    while not any(line["stage"] == "attention" for line in lines(path)):
        assert begun.poll() is None, begun.communicate()
        time.sleep(0.01)
    begun.terminate()
    _, said = begun.communicate()
    assert begun.returncode == 143 and "Traceback" not in said
    told = [line.rpartition("distill: ")[2] for line in said.splitlines() if "distill: " in line]
    step = lines(path)[-1]["step"]
    cure = f"{shlex.quote(command[-2])} resume=true goes on with it"
    assert told == [f"stage attention ended after step {step}, as SIGTERM asked; {cure}"]
    assert step < STEPS and (path / "checkpoints" / f"attention-step={step}.ckpt").exists()

    done = together(typed, tmp_path, (*command, "trainer.devices=2"))
    assert [code for code, _, _ in done] == [0, 0], done
    same(path, alone)
    for file in (path / "checkpoints").glob("*.ckpt"):
        kept = torch.load(file, weights_only=False)["state_dict"]
        assert kept and not any(name.startswith("teacher") for name in kept)


def test_dealt_out_weights_come_to_the_same_student(words: Words, alone: Path, tmp_path: Path):
    """Over processors, which FSDP takes too; the teacher is dealt out beside it."""
    command = words(tmp_path / "run", "trainer.strategy=fsdp", "stages.logits.gradient_checkpointing=true")
    done = together(typed, tmp_path, tuple(command))
    assert [code for code, _, _ in done] == [0, 0], done
    same(tmp_path / "run", alone)


def test_processes_that_were_told_different_things_end_before_anything_is_written(words: Words, tmp_path: Path):
    *command, place = (each for each in words(tmp_path / "run") if not each.startswith("resume"))
    assert place.startswith("run_dir=")
    done = together(typed, tmp_path, (*command, place), tuple(command))
    assert [code for code, _, _ in done] == [2, 2]
    said = f"{place} in process 0, None in process 1: give all processes of a run the same command"
    assert "".join(err for _, _, err in done) == f"distill: {said}\n"
    assert not (tmp_path / "run").exists()


def turns(folder: Path) -> list[str]:
    """What this process finds in its turn."""
    ranks.join()
    with ranks.in_turn():
        time.sleep(0.0 if ranks.rank() else 0.3)
        found = [each.name for each in folder.glob("0")]
        (folder / str(ranks.rank())).touch()
    return found


def test_the_first_process_reads_before_the_others(tmp_path: Path):
    done = together(turns, tmp_path, (tmp_path,))
    assert [found for _, found, _ in done] == [[], ["0"]]


def test_a_sweep_is_not_launched_as_several_processes(tmp_path: Path):
    done = together(typed, tmp_path, ("-m", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"))
    assert [code for code, _, _ in done] == [2, 2] and not (tmp_path / "sweep").exists()
    said = "distill: -m: a sweep launches the processes of its runs itself; leave the launcher out\n"
    assert "".join(err for _, _, err in done) == said


def met_again(there: int) -> tuple[str, list[int]]:
    """As where there are GPUs, but that these are not."""
    begin, asked = ranks.dist.init_process_group, list[str]()

    def beside(backend: str, **given: Any) -> None:
        asked.append(backend)
        begin("gloo", **given)

    ranks.join()
    ranks.dist.init_process_group = beside
    torch.cuda.device_count = lambda: there
    torch.cuda.set_device = lambda number: asked.append(str(number))
    try:
        ranks.reach_gpus(2)
    except UserError as error:
        return str(error), []
    return " ".join(asked), ranks.gathered(ranks.rank())


def test_processes_meet_again_where_there_are_gpus(tmp_path: Path):
    done = together(met_again, tmp_path, (2,))
    assert [found for _, found, _ in done] == [(f"{rank} cpu:gloo,cuda:nccl", [0, 1]) for rank in range(2)]
    done = together(met_again, tmp_path, (1,))
    said = "trainer.devices=2: there are GPUs for 1; give fewer, or trainer.accelerator=cpu"
    assert [found for _, found, _ in done] == [(said, [])] * 2


def test_a_processor_is_trained_on_beside_a_gpu(monkeypatch: pytest.MonkeyPatch):
    """Without a warning, which would be an error here."""
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    assert device_of(compose("recipe=pocket", "trainer.accelerator=cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "capability", "told"),
    [("bf16-mixed", "AVX2", True), ("bf16-true", "NO AVX", True), ("bf16-mixed", "AVX512", False), (32, "AVX2", False)],
)
def test_what_takes_many_times_as_long_is_told(
    precision: str | int,
    capability: str,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    given = ["recipe=pocket", "trainer.accelerator=cpu", f"trainer.precision={precision}"]
    assert device_to_train_on(compose(*given)) == torch.device("cpu")
    said = f"trainer.precision={precision}: this processor multiplies bfloat16 many times as slowly as float32"
    assert capsys.readouterr().err == (f"{said}; trainer.precision=32-true is faster\n" if told else "")
    assert not slow_in_bfloat16(torch.device("cuda"))


def test_srun_starts_processes_and_a_script_of_several_tasks_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not launched()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert launched()
    with pytest.raises(SystemExit) as left:
        typed("recipe=pocket")
    said = capsys.readouterr().err
    assert left.value.code == 2 and said.startswith("distill: srun: ") and said.count("\n") == 1
    assert "--ntasks-per-node=4" in said


def test_the_stages_that_read_batches_are_those_that_are_dealt_out():
    def refused(*changed: str) -> str:
        with pytest.raises(UserError) as told:
            check(compose("teacher.path=x", "data.path=x", "trainer.devices=2", *changed))
        return str(told.value).split(" ")[0]

    odd = ["stages.attention.batch_size=3", "stages.logits.batch_size=5", "stages.attention.max_steps=0"]
    assert refused(*odd, "mixer=exponential-window") == "stages.attention.batch_size=3"
    assert refused(*odd, "mixer=exponential") == "stages.logits.batch_size=5"
    unread = ["mixer=exponential", "stages.logits.max_steps=0"]
    assert refused(*odd, *unread, "measure.teacher_tuned=true") == "stages.logits.batch_size=5"
    check(compose("teacher.path=x", "data.path=x", "trainer.devices=2", *odd, *unread))


def stages(path: str, config: Config) -> Iterator[Any]:
    """Each of a tiny teacher, the last without dropout, which is drawn for a device's own rows."""
    teacher = load(path)
    torch.manual_seed(0)
    student = build_student(teacher, config.mixer)
    yield AttentionStage(teacher, student.mixers, config.stages.attention)
    yield LogitsStage(teacher, student, config.stages.logits)
    yield LanguageStage(teacher.model, config.stages.pretrain).eval()


def losses(path: str, configs: list[Config]) -> tuple[list[float], list[str]]:
    """Of padded texts, of which some tokens are targets; and why a run with a bad loss in one process ends."""
    if ranks.launched():
        ranks.join()
    draw = torch.Generator().manual_seed(0)
    ids, long = torch.randint(tiny.VOCABULARY, (4, 24), generator=draw), torch.tensor([24, 9, 5, 3])[:, None]
    real = (torch.arange(24) < long).long()
    labels = torch.where((real == 1) & (torch.rand(4, 24, generator=draw) < 0.4), ids, NO_TARGET)
    labels[2:] = NO_TARGET
    batch = {"input_ids": ids, "attention_mask": real, "labels": labels}
    found = []
    for config in configs:
        for stage in stages(path, config):
            torch.manual_seed(1)
            loss = stage.training_step(batch, 0)
            weights = [each for each in stage.parameters() if each.requires_grad]
            slopes = torch.autograd.grad(loss, weights, allow_unused=True)
            size = torch.stack([ranks.average(each).square().sum() for each in slopes if each is not None]).sum()
            found += [ranks.average(loss).item(), size.item()]
    if ranks.size() == 1:
        return found, []
    stage.losses = {"next token": torch.tensor(float("nan") if ranks.rank() else 1.0)}
    guard = NumberGuard("pretrain", Path("nowhere"))
    weights[0].grad = torch.zeros_like(weights[0])
    trainer: Any = SimpleNamespace(precision_plugin=None, global_step=3)
    guard.on_train_batch_start(trainer, stage, batch, 0)
    guard.on_before_backward(trainer, stage, stage.losses["next token"])
    with pytest.raises(UserError) as stopped:
        guard.on_before_optimizer_step(trainer, stage, None)
    return found, [str(stopped.value)]


def test_losses_of_texts_that_are_padded_are_those_of_all(teachers: dict[str, Path], tmp_path: Path):
    """One device has most tokens, and all targets; as many as there are is what the means are over."""
    both = ["recipe=pocket", *SMALL, "stages.attention.queries=9", "stages.attention.loss=both"]
    configs = [
        compose(*both, "stages.logits.cross_entropy=0.5"),
        compose(*(each for each in both if not each.startswith("mixer")), *SIGNED),
    ]
    expected, _ = losses(str(teachers["gpt2"]), configs)
    done = together(losses, tmp_path, (str(teachers["gpt2"]), configs))
    for code, found, said in done:
        assert code == 0, said
        assert found[0] == pytest.approx(expected, rel=2e-5)
        assert found[1] == [f"stage pretrain, step 4: the loss of next token is not a number; {CURE}"]


def spoiled(arguments: list[str], stage: type[Any], what: str, by: tuple[int, ...]) -> str:
    """Why a run ends of which the third loss, or its gradient, is not a number in some processes."""
    ranks.join()
    config, compute, computed = ranks.together(compose(*arguments)), stage.compute, []

    def spoil(self: Any, inputs: Any) -> Any:
        found = compute(self, inputs)
        if len(computed) < 3:
            computed.append(torch.is_grad_enabled())
        if len(computed) < 3 or ranks.rank() not in by:
            return found
        if what == "loss":
            return found._replace(
                total=found.total * torch.nan, parts={k: v * torch.nan for k, v in found.parts.items()}
            )
        total = found.total * 1
        total.register_hook(lambda gradient: gradient * torch.nan)
        return found._replace(total=total)

    stage.compute = spoil
    with pytest.raises(UserError) as stopped:
        distil(config)
    return str(stopped.value).split(";")[0]


@pytest.mark.parametrize(
    ("strategy", "stage", "what", "by", "where"),
    [
        ("ddp", LogitsStage, "loss", (1,), "loss of logits"),
        ("fsdp", AttentionStage, "loss", (1,), "loss of layer 0"),
        ("fsdp", LogitsStage, "loss", (0, 1), "loss of logits"),
        ("fsdp", LogitsStage, "gradient", (1,), "gradient of student.lm.transformer.wte.weight"),
    ],
)
def test_a_number_that_is_none_is_told_of_by_all(
    strategy: str, stage: Any, what: str, by: Any, where: str, words: Words, tmp_path: Path
):
    arguments = words(
        tmp_path / "run", f"trainer.strategy={strategy}", "mixer.split=even", "stages.attention.max_steps=3"
    )
    done = together(spoiled, tmp_path, (arguments, stage, what, by))
    name = "attention" if stage is AttentionStage else "logits"
    said = [f"stage {name}, step 3: the {where} is not a number"] * 2
    assert [code for code, _, _ in done] == [0, 0] and [found for _, found, _ in done] == said, done


def test_what_has_no_gradient_is_left_as_it_is(words: Words, teachers: dict[str, Path], tmp_path: Path):
    """Attention that ignores its queries, of a model that makes them by weights of their own."""
    arguments = words("-", f"teacher.path={teachers['llama']}", "mixer.split=even", "mixer=uniform")
    arguments = [each for each in arguments if not each.startswith(("run_dir", "mixer.features", "mixer=exp"))]
    distil(compose(*arguments, f"run_dir={tmp_path / 'one'}"))
    done = together(typed, tmp_path, (*arguments, f"run_dir={tmp_path / 'two'}"))
    assert [code for code, _, _ in done] == [0, 0] and not any("broadcast" in said for _, _, said in done), done
    one, two = (load_file(tmp_path / name / "student/model.safetensors") for name in ("one", "two"))
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, rtol=1e-5, atol=1e-5 * each.abs().max().item(), msg=name)


@pytest.mark.parametrize(("mode", "code", "ends"), [
    (RunMode.RUN, 1, True), (RunMode.MULTIRUN, 1, False), (RunMode.MULTIRUN, 137, False), (RunMode.MULTIRUN, 143, True),
])  # fmt: skip
def test_a_job_of_several_devices_that_fails_ends_no_others(
    mode: RunMode, code: int, ends: bool, monkeypatch: pytest.MonkeyPatch
):
    hydra = SimpleNamespace(mode=mode, overrides=SimpleNamespace(task=[], hydra=[]))
    monkeypatch.setattr(several, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr(several, "flags", lambda given: [])
    monkeypatch.setattr(several, "of_a_run", lambda given: [])
    monkeypatch.setattr(several, "of_a_sweep", lambda: False)
    monkeypatch.setattr(several, "launch", lambda *given: code)
    with pytest.raises(SystemExit) if ends else nullcontext():
        several.launch_all("somewhere", 2)


def test_a_process_that_fails_ends_the_others(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    started = time.monotonic()
    wait = "import os, sys, time, signal; first = os.environ['RANK'] == '0'; time.sleep(60) if first else None; "
    assert launch(2, ["-c", wait + "sys.exit(7)"]) == 7
    assert launch(2, ["-c", wait + "os.kill(os.getpid(), signal.SIGKILL)"]) == 128 + signal.SIGKILL
    assert capfd.readouterr().err == "distill: SIGKILL has ended one of 2 processes\n"
    # One that does not end, though it was asked to as the other was, is not waited for without end.
    monkeypatch.setattr("distill.launch.GRACE", 1)
    deaf = "if first: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)\n"
    asks = "import os, sys, time, signal; first = os.environ['RANK'] == '0'\n" + deaf
    assert launch(2, ["-c", asks + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"]) == 128 + signal.SIGTERM
    # Whatever they make of it.
    cross = "import signal, sys; signal.signal(signal.SIGTERM, lambda *given: sys.exit(1))\n"
    assert (
        launch(2, ["-c", cross + asks.partition(deaf)[0] + "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"])
        == 143
    )
    assert launch(2, ["-c", "pass"]) == 0 and time.monotonic() - started < 10


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="wants two GPUs")
@pytest.mark.parametrize(("strategy", "mixer"), [("ddp", []), ("fsdp", []), ("ddp", SIGNED)])
def test_two_gpus(strategy: str, mixer: list[str], words: Words, tmp_path: Path):
    """On what they are for; the student is that of one, but for how GPUs add up, and what Adam makes of that."""
    own = ("trainer.accel", "mixer") if mixer else ("trainer.accel",)
    on_gpu = ["trainer.accelerator=gpu", "stages.logits.max_steps=6", *mixer]
    said = {}
    for devices, graphs in ((1, "false"), (2, "true")):
        more = [*on_gpu, f"cuda_graphs={graphs}", f"trainer.devices={devices}", f"trainer.strategy={strategy}"]
        command = [each for each in words(tmp_path / str(devices), *more) if each in more or not each.startswith(own)]
        run = subprocess.run([sys.executable, "-m", "distill", *command], check=True, capture_output=True, text=True)
        said[devices] = run.stdout
    assert ("a CUDA graph" in said[2]) is (strategy == "ddp")
    one, two = (load_file(tmp_path / str(devices) / "student/model.safetensors") for devices in said)
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, rtol=1e-2, atol=1e-2 * each.abs().max().item(), msg=name)
