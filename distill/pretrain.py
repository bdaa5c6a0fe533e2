"""The story of `goal=teacher`: a softmax model trained from scratch or from another, ready to be a teacher."""

from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything

from .checks import check
from .config import Config
from .config import Teacher as Wanted
from .data import prepare, training_texts
from .errors import UserError
from .measure.perplexity import read_domains
from .rundir import RunDirectory
from .scratch import build_model, train_tokenizer
from .stages.fit import fit
from .stages.language import LanguageStage
from .task import TASKS
from .teacher import load_model, load_tokenizer
from .teacher_card import card


def train_teacher(config: Config) -> Path:
    """Runs a teacher recipe; returns the run directory with teacher/ in place.

    With teacher.path, its model and tokenizer are trained further, under a new head where the task wants another.
    """
    check(config)
    check_start(config.teacher)
    wanted, run, task = config.teacher, RunDirectory(config), TASKS[config.task]
    seed_everything(config.seed, verbose=False)
    with run.timed("data"):
        if wanted.path is None:
            tokenizer: Any = train_tokenizer(training_texts(config.data, task), wanted.vocabulary or 0, task)
            tokenizer.model_max_length = config.data.context
        else:
            tokenizer = load_tokenizer(wanted, task)
        corpus = prepare(config.data, tokenizer, config.seed, task)
    labels = named(corpus.classes)
    if wanted.path is None:
        model = build_model(wanted, tokenizer, config.data.context, task, labels)
    else:
        new_head = {"ignore_mismatched_sizes": True, **labels}
        model, _, _ = load_model(wanted, config.data.context, task, torch.float32, **new_head)
    run.create()

    stage = LanguageStage(model, config.stages.pretrain, task)
    tokens = fit(stage, "pretrain", config.stages.pretrain, corpus, config, run)

    # Measured in the precision that is saved.
    model.to(torch.bfloat16).float()
    readings = read_domains(model, corpus, config, run)
    model.cpu().to(torch.bfloat16).save_pretrained(run.teacher)
    tokenizer.save_pretrained(run.teacher)
    (run.teacher / "README.md").write_text(card(model, readings, tokens, corpus, config, run), encoding="utf-8")
    print(f"teacher: {run.teacher}")
    return run.path


def check_start(wanted: Wanted) -> None:
    """UserError where there is neither a model to go on from nor what one is to be made of."""
    if wanted.path is None and (wanted.vocabulary is None or wanted.architecture is None):
        raise UserError("goal=teacher needs teacher.vocabulary and teacher.architecture, or teacher.path to go on from")
    if wanted.path is not None and (wanted.vocabulary is not None or wanted.architecture is not None):
        raise UserError(
            "teacher.path has a tokenizer and an architecture: leave out teacher.vocabulary and architecture"
        )


def named(classes: list[str] | None) -> dict[str, Any]:
    """What a configuration says of the labels of a classifier."""
    if classes is None:
        return {}
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
