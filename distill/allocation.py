"""How many features each layer gets: more where the query decides more."""

from dataclasses import replace
from typing import Any

import torch
from lightning import seed_everything

from . import ranks
from .config import Config
from .data import Corpus
from .errors import UserError
from .flexformer.build import build_mixer
from .flexformer.feature_map import HeadShape
from .flexformer.model import Flexformer
from .flexformer.options import PROJECTIONS
from .mixer import bare
from .rundir import RunDirectory
from .stages.attention import AttentionStage
from .stages.fit import device_of, fit
from .teacher import Teacher

#: Ways to share the features out, by the name used in mixer.split.
SPLITS = ("even", "measured")
#: Batches that attention without a query is judged by.
JUDGED = 4
#: Features are dealt out by about so many at a time; each layer gets one such part at least.
GRAIN = 16


def check_split(mixer: dict[str, Any]) -> None:
    """UserError for an unknown way, and for features that cannot be shared out."""
    split = mixer.get("split", "even")
    if split not in SPLITS:
        raise UserError(f"mixer.split={split} is unknown; known: {', '.join(SPLITS)}")
    if split != "even" and ("features" not in mixer or mixer["map"] in PROJECTIONS):
        raise UserError(f"mixer.split={split}: this mixer has no features to share out; use mixer.split=even")


def allocate(teacher: Teacher, student: Flexformer, corpus: Corpus, config: Config, run: RunDirectory) -> int:
    """Draws the mixers anew with as many features as their layers need; returns the tokens that this took.

    A layer's share is in proportion to KL(P‖A)², its teacher's attention P against the best attention A that ignores
    the query: a key weight and a decay, beside the window where there is one. That much takes one feature; the rest is
    what queries decide, and what features are for. Students end nearer to their teachers with the square than with the
    KL itself. On the mean over layers they stay `mixer.features`.
    """
    how = config.stages.allocation
    wanted = replace(config.stages.attention, max_steps=how.max_steps, learning_rate=how.learning_rate, loss="kl")
    stage = AttentionStage(teacher, probes(student), wanted)
    tokens = fit(stage, "allocation", wanted, corpus, config, run)
    with run.timed("allocation"):
        left = undecided(stage, corpus, config.seed, device_of(config))
    each = config.mixer["features"]
    grain = grain_of(next(iter(student.mixers.values())), each)
    features = shares([kl**2 for kl in left.values()], each * len(left), grain)
    for layer, count in zip(left, features, strict=True):
        student.config.layers[layer]["features"] = count
    # Drawn anew as if nothing had been fitted in between.
    seed_everything(config.seed, verbose=False)
    student.build_mixers()
    run.write_measurement("allocation", {"kl": left, "features": dict(zip(left, features, strict=True))})
    return tokens


def grain_of(mixer: Any, features: int) -> int:
    """Whole atoms, as many as the groups of a decay need, and about GRAIN features."""
    unit = mixer.map.per_atom * mixer.groups
    return unit * max(1, min(GRAIN, features) // unit)


def probes(student: Flexformer) -> dict[int, Any]:
    """Attention that ignores the query, for every layer that is swapped."""
    decay, window = "learned" if student.config.causal else "none", student.config.mixer["window"]
    options = bare("constant", key_weight="quadratic", decay=decay, window=window)
    return {
        i: build_mixer(HeadShape(each["heads"], each["kv_heads"], each["head_dim"]), options, student.config.causal)
        for i, each in student.swapped.items()
    }


@torch.no_grad()
def undecided(stage: AttentionStage, corpus: Corpus, seed: int, device: torch.device) -> dict[int, float]:
    """KL in nats that the fitted probes leave, by layer, on training text."""
    stage.to(device)
    # Where the stage has just been trained, with weights that are not dealt out, it is there already.
    stage.teacher.to(device)
    left = torch.zeros(len(stage.layers))
    for batch in corpus.batches(JUDGED, stage.wanted.batch_size, seed + 1):
        stage.training_step({name: each.to(device) for name, each in batch.items()}, 0)
        left += torch.stack(list(stage.losses.values())).cpu() / JUDGED
    return dict(zip(stage.layers, ranks.average(left).tolist(), strict=True))


def shares(weights: list[float], total: int, grain: int) -> list[int]:
    """`total` dealt out in proportion to the weights, in parts of `grain`; everyone gets one part at least."""
    parts = [1] * len(weights)
    for _ in range(total // grain - len(weights)):
        neediest = max(range(len(weights)), key=lambda i: weights[i] / parts[i])
        parts[neediest] += 1
    return [grain * each for each in parts]
