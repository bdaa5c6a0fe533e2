"""The story of `goal=teacher`: a softmax model trained from scratch or from another, ready to be a teacher."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything

from . import ranks
from .checks import check
from .config import Config, Teacher, on_one_device
from .data import digests, prepare, training_texts
from .errors import UserError
from .loading import check_body, check_tokens, load_model, load_tokenizer, location
from .measure.cost import TRAINING, training
from .measure.origin import hardware
from .measure.perplexity import read_domains
from .rundir import RunDirectory
from .scratch import build_model, check_architecture, train_tokenizer
from .stages.fit import device_to_train_on, fit
from .stages.language import LanguageStage
from .swappable import attention_layers
from .task import TASKS
from .teacher_card import card, lines
from .whole import whole


def train_teacher(config: Config) -> Path:
    """Runs a teacher recipe; returns the run directory with teacher/ in place.

    With teacher.path, its model and tokenizer are trained further, under a new head where the task wants another.
    """
    check(config)
    check_start(config)
    device = device_to_train_on(config)
    wanted, run, task = config.teacher, RunDirectory(config), TASKS[config.task]
    if run.finished:
        return run.already()
    seed_everything(config.seed, verbose=False)
    with run.timed("data"), ranks.in_turn():
        if wanted.path is None:
            tokenizer: Any = train_tokenizer(training_texts(config.data, task), wanted.vocabulary or 0, task)
            tokenizer.model_max_length = config.data.context
        else:
            tokenizer = load_tokenizer(wanted)
            check_tokens(f"teacher.path={wanted.path}", tokenizer, task)
        corpus = prepare(config.data, tokenizer, config.seed, task)
    labels = named(corpus.classes)
    if wanted.path is None:
        model = build_model(wanted, tokenizer, config.data.context, task, labels)
    else:
        new_head = {"ignore_mismatched_sizes": True, **labels}
        model, told, _ = load_model(wanted, config.data.context, task, torch.float32, **new_head)
        check_body(f"teacher.path={wanted.path}", model, told)
        attention_layers(wanted.path, model, task, config.data.context)
    run.create()
    run.begin_with(lambda: digests(corpus))

    stage = LanguageStage(model, config.stages.pretrain, task)
    tokens = fit(stage, "pretrain", config.stages.pretrain, corpus, config, run)
    computed_on = hardware(device)
    if not ranks.part():
        return run.path
    config = on_one_device(config)

    # Measured in the precision that is saved.
    model.to(torch.bfloat16).float()
    readings = read_domains(model, corpus, config, run)
    took = {"tokens": tokens, "seconds": run.seconds["pretrain"], "hardware": computed_on}
    if wanted.path is not None:
        took = in_all(took, wanted)
    with whole(run.teacher) as folder:
        model.cpu().to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        task.save_beside(model, folder, config.data.context)
        (folder / TRAINING).write_text(json.dumps(took, indent=1), encoding="utf-8")
        (folder / "README.md").write_text(card(model, readings, tokens, corpus, config, run), encoding="utf-8")
    print("\n".join([*lines(readings, corpus, task), f"teacher: {run.teacher}"]))
    run.progress.drop()
    return run.path


def in_all(took: dict[str, Any], wanted: Teacher) -> dict[str, Any]:
    """With what the model took that it began with; "beyond" names that where nobody knows."""
    before = training(location(wanted))
    if before is None:
        return took | {"beyond": wanted.path}
    return before | {key: took[key] + before[key] for key in ("tokens", "seconds")} | {"hardware": took["hardware"]}


def check_start(config: Config) -> None:
    """UserError where there is neither a model to go on from nor what one is to be made of, and for no steps."""
    wanted = config.teacher
    if not config.stages.pretrain.max_steps:
        raise UserError("stages.pretrain.max_steps=0 trains no teacher; give it some steps")
    if wanted.path is None and (wanted.vocabulary is None or wanted.architecture is None):
        raise UserError("goal=teacher needs teacher.vocabulary and teacher.architecture, or teacher.path to go on from")
    if wanted.path is not None and (wanted.vocabulary is not None or wanted.architecture is not None):
        raise UserError(
            f"teacher.path={wanted.path} has a tokenizer and an architecture: set teacher.path=null to begin anew, "
            "or teacher.vocabulary=null and teacher.architecture=null to go on from it"
        )
    if wanted.architecture is not None:
        check_architecture(wanted.architecture)


def named(classes: list[str] | None) -> dict[str, Any]:
    """What a configuration says of the labels of a classifier."""
    if classes is None:
        return {}
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    return names | {"problem_type": "single_label_classification"}
