"""What a run may be told, typed. The values stand in `conf/` and `recipes/`; this file says which there are.

A DictConfig stops here: `read` turns what Hydra composed into these dataclasses, and the rest of the program sees
nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import UserError


@dataclass
class Teacher:
    """path: a directory or a hub name. architecture, vocabulary: what `goal=teacher` builds and trains instead.

    quantization: how its weights are held in fewer bits, as transformers' quantization_config.
    """

    path: str | None
    dtype: str
    architecture: dict[str, Any] | None
    vocabulary: int | None
    quantization: dict[str, Any] | None = None


@dataclass
class Student:
    """path: an exported student to go on from, with its mixer. kernels: fitted mixers to start from, a file or a run
    that has them. dtype: of the weights as they are handed on, and measured. shard_size: of a file of them, as "5GB".
    """

    path: str | None
    kernels: str | None
    dtype: str
    shard_size: str


@dataclass
class Domain:
    """One kind of text. path: `python` (the embedded corpus), a local file or folder, or a hub data set.

    name: the hub configuration, or the part of the embedded corpus. validation: a split or a local file; null holds
    out a part of the training text. weight: its share of the training blocks, relative to others'; 0: only measured.
    label: where task=sequence_classification finds what a text is to be called; pair: … the text that it is read with;
    of task=embedding the one that a text belongs with.
    order: … of plain text instead, pairs of passages, in their order or swapped. messages: the column of conversations.
    """

    path: str
    name: str | None = None
    split: str = "train"
    validation: str | None = None
    column: str = "text"
    pair: str | None = None
    label: str = "label"
    order: bool = False
    messages: str | None = None
    weight: float = 1.0


@dataclass
class Data:
    """path, name: shorthand for a single domain, replacing `domains`. context: tokens in a block."""

    path: str | None
    name: str | None
    validation: str | None
    domains: dict[str, Domain]
    context: int
    validation_blocks: int
    streaming: bool
    workers: int


@dataclass
class Pretrain:
    """Training on the text itself, of a teacher or of a matched student: cross-entropy of what the task predicts.

    All as in stage 2, without mixers.
    """

    max_steps: int
    batch_size: int
    learning_rate: float
    embedding_learning_rate: float
    warmup: float
    weight_decay: float
    gradient_checkpointing: bool


@dataclass
class Allocation:
    """Where mixer.split=measured: how attention without a query is fitted, to see what it cannot do."""

    max_steps: int
    learning_rate: float


@dataclass
class Attention:
    """Stage 1. loss: kl | output | both. negative: μ, the price of negative weights in signed maps.

    place: start the maps that can from centroids of the teacher's keys instead of at random.
    queries: how many of a block's queries, drawn anew each step, have their KL taken; null for all.
    """

    max_steps: int
    batch_size: int
    place: bool
    learning_rate: float
    warmup: float
    loss: str
    queries: int | None
    negative: float


@dataclass
class Lora:
    rank: int
    alpha: int


@dataclass
class Logits:
    """Stage 2. train: all | lora | mixers. cross_entropy: weight of the text's own loss beside the teacher's KL.

    learning_rate is that of all weights but the mixers' and the embeddings', which have one each; an output head that
    is tied to the embeddings goes with them. gradient_checkpointing: layers are computed again on the way back.
    cache: a folder that keeps the `top_k` likeliest of the teacher's predictions, for later runs to read.
    """

    max_steps: int
    batch_size: int
    learning_rate: float
    mixer_learning_rate: float
    embedding_learning_rate: float
    warmup: float
    weight_decay: float
    gradient_checkpointing: bool
    temperature: float
    cross_entropy: float
    cache: str | None
    top_k: int
    train: str
    lora: Lora


@dataclass
class Stages:
    pretrain: Pretrain
    allocation: Allocation
    attention: Attention
    logits: Logits
    finetune: Pretrain


@dataclass
class Contribution:
    """blocks: how many of each domain are read."""

    blocks: int


@dataclass
class Transfer:
    """max_steps: of stage 1, for every kernel that is fitted. seeds: how often all of them are. blocks: on how many of
    each domain perplexity is read."""

    max_steps: int
    seeds: int
    blocks: int


@dataclass
class Length:
    """times: up to how many times the context texts are read at. blocks: of text per domain. sequences: for each
    distance of a recall. prompts: per domain, from which both go on for new_tokens."""

    times: int
    blocks: int
    sequences: int
    prompts: int
    new_tokens: int


@dataclass
class Cost:
    """longest: the tokens up to which time and memory are measured."""

    longest: int


@dataclass
class Measure:
    """batch_size of evaluations; fidelity_blocks per domain; map_tokens: side of the attention maps kept to look at.

    teacher_tuned: run the control, the teacher trained on the tokens of stage 2. transfer, contribution, length, cost:
    what these sections of the report take.
    """

    batch_size: int
    fidelity_blocks: int
    map_tokens: int
    teacher_tuned: bool
    transfer: Transfer
    contribution: Contribution
    length: Length
    cost: Cost


@dataclass
class Report:
    sections: list[str]


@dataclass
class Config:
    """One run. goal: `student` distils, `teacher` trains a teacher, `evaluate` measures a student that there is.

    task: what the model is for, see `task.TASKS`.

    trainer, logger: Hydra nodes with a _target_.
    """

    recipe: str
    goal: str
    task: str
    seed: int
    run_dir: str
    resume: bool
    matmul_precision: str
    cuda_graphs: bool
    compile: bool
    checkpoint_minutes: float
    teacher: Teacher
    student: Student
    data: Data
    mixer: dict[str, Any]
    stages: Stages
    measure: Measure
    report: Report
    trainer: dict[str, Any]
    logger: dict[str, Any] | None


def read(composed: DictConfig) -> Config:
    """The composed configuration as a `Config`; UserError names the key that does not fit."""
    try:
        return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), composed)))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the configuration"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error


def on_one_device(config: Config) -> Config:
    """What is left of a run once several have trained."""
    return replace(config, trainer=config.trainer | {"devices": 1, "num_nodes": 1, "strategy": "auto"})


def flat(content: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
