"""The story of `goal=teacher`: a tokenizer and a softmax model trained from scratch, ready to be a teacher."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from tokenizers import ByteLevelBPETokenizer
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedTokenizerFast

from .checks import check
from .config import Config
from .config import Teacher as Wanted
from .data import Corpus, prepare, training_texts
from .errors import UserError
from .measure.perplexity import Reading, read_domains
from .rundir import RunDirectory
from .stages.fit import device_of, fit
from .stages.language import LanguageStage
from .swappable import check_direction, check_family
from .task import TASKS, Task
from .teacher import check_context

END_OF_TEXT = "<|endoftext|>"


def train_teacher(config: Config) -> Path:
    """Runs a teacher recipe; returns the run directory with teacher/ in place."""
    check(config)
    if config.teacher.vocabulary is None or config.teacher.architecture is None:
        raise UserError("goal=teacher needs teacher.vocabulary and teacher.architecture")
    run, task = RunDirectory(config), TASKS[config.task]
    seed_everything(config.seed, verbose=False)
    with run.timed("data"):
        tokenizer = train_tokenizer(training_texts(config.data), config.teacher.vocabulary, task.special_tokens)
        corpus = prepare(config.data, tokenizer, config.seed, task.collate(tokenizer))
    model = build_model(config.teacher, tokenizer, config.data.context, task)
    run.create()

    stage = LanguageStage(model, config.stages.pretrain, task)
    tokens = fit(stage, "pretrain", config.stages.pretrain, corpus, config, run)

    # Measured in the precision that is saved.
    model.to(torch.bfloat16).float()
    readings = read_domains(model, corpus, config, run)
    save(model, tokenizer, readings, tokens, corpus, config, run)
    print(f"teacher: {run.teacher}")
    return run.path


def train_tokenizer(texts: Iterable[str], vocabulary: int, special: dict[str, str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (GPT-2's kind) of `vocabulary` entries; entry 0 ends a text, `special` follows."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=[END_OF_TEXT, *special.values()])
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **end, **special)


def build_model(wanted: Wanted, tokenizer: PreTrainedTokenizerFast, context: int, task: Task) -> Any:
    """The untrained model of teacher.architecture; UserError where transformers refuses it."""
    architecture = dict(wanted.architecture or {})
    model_type, end = architecture.pop("model_type", None), tokenizer.eos_token_id
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"teacher.architecture.model_type={model_type} is unknown to transformers; try llama or bert")
    check_family("teacher.architecture", model_type, task)
    tokens = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
    try:
        model_config = AutoConfig.for_model(
            model_type,
            **{"vocab_size": len(tokenizer), **tokens, **architecture},
        )
        check_context(model_config, context)
        model = task.auto.from_config(model_config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"teacher.architecture: {str(error).splitlines()[0]}") from error
    attentions = [module for module in model.modules() if hasattr(module, "is_causal")]
    check_direction("teacher.architecture", model_type, attentions, task)
    return model


def save(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    readings: dict[str, Reading],
    tokens: int,
    corpus: Corpus,
    config: Config,
    run: RunDirectory,
) -> None:
    """teacher/: configuration, bfloat16 weights, tokenizer and a model card with training and perplexities."""
    model.cpu().to(torch.bfloat16).save_pretrained(run.teacher)
    tokenizer.model_max_length = config.data.context
    tokenizer.save_pretrained(run.teacher)
    (run.teacher / "README.md").write_text(card(model, readings, tokens, corpus, config, run), encoding="utf-8")


CARD = """# {name}

A softmax {kind} to distil from, trained from scratch by `python -m distill recipe={recipe}`.

- Architecture: {model_type}, {parameters:.2f} M parameters, bfloat16. {architecture}
- Tokenizer: byte-level BPE, {vocabulary} entries, trained on the same text.
- Text: {text}
- Training: {steps} steps of {batch} blocks of {context} tokens ({tokens:.1f} M tokens), AdamW, learning rate {lr:g},
  {warmup:.0%} warm-up, then straight down to 0, weight decay {decay:g}, seed {seed}, {seconds:.0f} s on {device}.

| held-out text | {predicted}s | perplexity at context {context} |
|---|---|---|
{rows}

Perplexity is exp of the mean cross-entropy of the {predicted}s. It is of this model's own vocabulary
and cannot be compared with that of another tokenizer.
"""


def card(
    model: Any, readings: dict[str, Reading], tokens: int, corpus: Corpus, config: Config, run: RunDirectory
) -> str:
    wanted, device = config.stages.pretrain, device_of(config)
    rows = [f"| {name} | {reading.tokens} | {reading.perplexity:.2f} |" for name, reading in readings.items()]
    return CARD.format(
        name=config.recipe,
        kind=TASKS[config.task].kind,
        predicted=TASKS[config.task].predicted,
        recipe=config.recipe,
        model_type=model.config.model_type,
        parameters=model.num_parameters() / 1e6,
        architecture=json.dumps(config.teacher.architecture),
        vocabulary=model.config.vocab_size,
        text="; ".join(f"{name} (`{domain.path}`)" for name, domain in corpus.domains.items()),
        steps=wanted.max_steps,
        batch=wanted.batch_size,
        context=config.data.context,
        tokens=tokens / 1e6,
        lr=wanted.learning_rate,
        warmup=wanted.warmup,
        decay=wanted.weight_decay,
        seed=config.seed,
        seconds=run.seconds["pretrain"],
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU",
        rows="\n".join(rows),
    )
