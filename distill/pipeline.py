"""The whole story on one screen: from a configuration to a distilled student and a report."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from lightning import seed_everything

from . import ranks
from .allocation import allocate
from .checkpoint import export
from .checks import check
from .config import Config, Pretrain, on_one_device
from .data import Corpus, digests, prepare
from .errors import UserError
from .flexformer.model import Flexformer
from .kernels import save_kernels
from .logged import log_report
from .measure.fidelity import measure_fidelity
from .measure.headline import Readings, measure_headline
from .measure.origin import write_origin
from .measure.parts import read_parts
from .measure.perplexity import Reading, read_domains
from .measure.sections import measure_sections
from .measure.spectra import frequencies
from .measure.subject import Subject
from .mixer import matches_maps
from .names import MIXTURE
from .placement import place_kernels
from .pretrain import train_teacher
from .remembered import Remembered
from .report import render
from .rundir import RunDirectory
from .stages.attention import AttentionStage
from .stages.fit import device_of, device_to_train_on, fit
from .stages.language import LanguageStage
from .stages.logits import LogitsStage
from .student import start_student
from .summary import summary
from .task import TASKS, Task
from .teacher import Teacher, load_teacher
from .weights import round_weights


def distil(config: Config) -> Path:
    """Runs a recipe; returns the run directory with student/ and report/ in place."""
    check(config)
    device = device_to_train_on(config)
    run = RunDirectory(config)
    if run.finished:
        return run.already()
    seed_everything(config.seed, verbose=False)
    task = TASKS[config.task]
    teacher = load_teacher(config.teacher, config.data.context, task)
    with run.timed("data"), ranks.in_turn():
        corpus = prepare(config.data, teacher.tokenizer, config.seed, task, teacher.classes)
    student = start_student(teacher, config)
    run.create()
    run.begin_with(lambda: digests(corpus))
    write_origin(config, run, device)
    tokens: dict[str, int] = {}
    if not config.student.path and not config.student.kernels:
        if student.mixers and config.mixer.get("split") == "measured":
            tokens["allocation"] = allocate(teacher, student, corpus, config, run)
        if config.stages.attention.place and any(mixer.centroids for mixer in student.mixers.values()):
            with run.timed("attention"):
                place_kernels(teacher, student.mixers, corpus, config.seed, device)
    readings: Readings = {}

    drawn = frequencies(student.mixers)
    readings["teacher"] = read_domains(teacher.model, corpus, config, run)
    readings["swapped"] = read_domains(student, corpus, config, run)
    tokens["attention"] = match_maps(teacher, student, corpus, config, run)
    if tokens["attention"]:
        readings["stage1"] = read_domains(student, corpus, config, run)
    if student.mixers and matches_maps(config.mixer):
        with run.timed("measure"):
            measure_fidelity(teacher, student.mixers, corpus, config.measure, run, device, drawn)
    student, tokens["logits"] = match_logits(teacher, student, corpus, config, run)
    if config.stages.finetune.max_steps:
        readings["matched"] = read_domains(student, corpus, config, run)
        tokens["finetune"] = finetune(student, task, corpus, config, run)
    round_weights(student, config.student.dtype)
    readings["student"] = read_domains(student, corpus, config, run, teacher)
    readings |= read_parts(student, corpus, config, run)
    if config.measure.teacher_tuned:
        readings["teacher_tuned"] = tune_teacher(teacher, corpus, config, run)
    if not ranks.part():
        return run.path
    config = on_one_device(config)

    measure_headline(teacher, student, readings, tokens, corpus, config, run)
    if not run.student.exists():
        export(student, teacher, corpus, config, run)
    measure_sections(Subject(teacher, student, corpus, config, run, device))
    render(run.path, config.report.sections)
    log_report(run)
    run.progress.drop()
    print(summary(run, run.student))
    return run.path


def evaluate(config: Config) -> Path:
    """Measures the student at student.path as it is; returns the run directory with report/ in place."""
    if config.student.path is None:
        raise UserError("goal=evaluate needs student.path: give the student/ that a run exported")
    check(config)
    device, exported = device_of(config), Path(config.student.path).expanduser()
    run = RunDirectory(config)
    if run.finished:
        return run.already()
    teacher = load_teacher(config.teacher, config.data.context, TASKS[config.task])
    with run.timed("data"):
        corpus = prepare(config.data, teacher.tokenizer, config.seed, teacher.task, teacher.classes)
    student = start_student(teacher, config)
    run.create()
    run.begin_with(lambda: digests(corpus))
    write_origin(config, run, device)

    readings = {"teacher": read_domains(teacher.model, corpus, config, run)}
    if student.mixers and matches_maps(config.mixer):
        with run.timed("measure"):
            measure_fidelity(teacher, student.mixers, corpus, config.measure, run, device, {})
    readings["student"] = read_domains(student, corpus, config, run, teacher)
    readings |= read_parts(student, corpus, config, run)
    measure_headline(teacher, student, readings, {}, corpus, config, run)
    shutil.copy(exported / "provenance.json", run.folder("measurements"))
    measure_sections(Subject(teacher, student, corpus, config, run, device))
    render(run.path, config.report.sections)
    log_report(run)
    run.progress.drop()
    print(summary(run, exported))
    return run.path


def match_maps(teacher: Teacher, student: Flexformer, corpus: Corpus, config: Config, run: RunDirectory) -> int:
    """Stage 1, for mixers that it is good for; leaves the mixers in kernels/ and returns the tokens seen."""
    tokens = 0
    learns = any(True for mixer in student.mixers.values() for _ in mixer.parameters())
    if config.stages.attention.max_steps and matches_maps(config.mixer) and learns:
        stage = AttentionStage(teacher, student.mixers, config.stages.attention)
        tokens = fit(stage, "attention", config.stages.attention, corpus, config, run)
    save_kernels(student, run.folder("kernels") / f"{MIXTURE}.safetensors")
    return tokens


def match_logits(
    teacher: Teacher, student: Flexformer, corpus: Corpus, config: Config, run: RunDirectory
) -> tuple[Flexformer, int]:
    """Stage 2; returns the student and the tokens seen. One whose layers are all exact has nothing left to learn."""
    if not config.stages.logits.max_steps or not student.mixers:
        return student, 0
    wanted, remembered = config.stages.logits, None
    if wanted.cache is not None:
        how = f"{config.trainer['precision']} {config.matmul_precision}"
        remembered = Remembered(teacher, Path(wanted.cache), wanted.top_k, how)
    stage = LogitsStage(teacher, student, wanted, remembered)
    tokens = fit(stage, "logits", wanted, corpus, config, run)
    return stage.finished(), tokens


def finetune(student: Flexformer, task: Task, corpus: Corpus, config: Config, run: RunDirectory) -> int:
    """The student on the text's own targets; returns the tokens seen."""
    wanted = config.stages.finetune
    return fit(LanguageStage(student, wanted, task), "finetune", wanted, corpus, config, run)


def tune_teacher(teacher: Teacher, corpus: Corpus, config: Config, run: RunDirectory) -> dict[str, Reading]:
    """The control: the teacher itself, trained for as many steps as stage 2 and fine-tuning have."""
    logits = config.stages.logits
    wanted = Pretrain(**{field.name: getattr(logits, field.name) for field in fields(Pretrain)})
    wanted.max_steps += config.stages.finetune.max_steps
    tuned = copy.deepcopy(teacher.model).float()
    fit(LanguageStage(tuned, wanted, teacher.task), "teacher_tuned", wanted, corpus, config, run)
    return read_domains(tuned, corpus, config, run, teacher)


#: What a run can be for, by the name used in `goal`.
PIPELINES: dict[str, Callable[[Config], Path]] = {"student": distil, "teacher": train_teacher, "evaluate": evaluate}
