"""Each stage on a tiny teacher: it learns, and changes nothing but what it may."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything

from distill.config import Config
from distill.errors import UserError
from distill.flexformer.model import FlexformerForCausalLM
from distill.maploss import log_student, log_teacher, map_kl
from distill.rundir import RunDirectory
from distill.stages.attention import AttentionStage
from distill.stages.fit import fit
from distill.stages.language import LanguageStage
from distill.stages.logits import LogitsStage
from distill.stages.stage import warmup_linear
from distill.student import build_student
from distill.teacher import Teacher

from . import tiny
from .conftest import MIXERS, Compose, compose, sized
from .test_teacher import ids, load

BLOCKS = 2


class Run:
    """A teacher, a student of it, and the run directory that stages write to."""

    def __init__(self, config: Config, path: Path | str):
        seed_everything(0, verbose=False)
        self.config, self.teacher = config, load(path)
        self.student = build_student(self.teacher, config.mixer)
        self.directory = RunDirectory(config)
        self.directory.create()
        self.before = {name: each.clone() for name, each in self.student.state_dict().items()}

    def fit(self, stage: Any, name: str) -> int:
        return fit(stage, name, stage.wanted, tiny.corpus(BLOCKS), self.config, self.directory)

    def attention(self) -> AttentionStage:
        return AttentionStage(self.teacher, self.student.mixers, self.config.stages.attention)

    def logits(self) -> LogitsStage:
        return LogitsStage(self.teacher, self.student, self.config.stages.logits)

    def changed(self, student: FlexformerForCausalLM) -> set[str]:
        after = student.state_dict()
        assert after.keys() == self.before.keys()
        return {name for name, each in after.items() if not torch.equal(each, self.before[name])}

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.directory.metrics.read_text().splitlines()]

    def checkpoint(self, name: str) -> dict[str, Any]:
        return torch.load(self.directory.checkpoints / name, weights_only=False)


@pytest.fixture
def run(small: Compose, teachers: dict[str, Path]):
    return lambda *overrides, family="gpt2": Run(small(*overrides), teachers[family])


#: Long enough to learn, at a rate that shows it.
FAST = ["stages.attention.max_steps=20", "stages.attention.learning_rate=3e-2"]


def of_mixers(names) -> set[str]:
    return {name for name in names if ".mixer." in name}


def untouched(teacher: Teacher, before: str) -> bool:
    return teacher.weights_hash() == before and all(each.grad is None for each in teacher.model.parameters())


#: What has nothing to learn, not even with a key weight; or, the window alone, nothing in stage 1.
UNLEARNED = ("softmax", "zero", "window-only")
#: Every option, given a key weight where its weights sum to one: even favor and elu learn something then.
LEARNING = [name for name in MIXERS if name not in UNLEARNED]


@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "gpt2") for name in LEARNING), *((name, "llama") for name in ("spectral", "exponential-window", "gla"))],
)
def test_stage_1_lowers_its_loss_in_every_layer(run, name: str, family: str):
    options = compose(f"mixer={name}").mixer
    averages = options["normaliser"] == "sum" and options["decay"] != "delta"
    weight = ["mixer.key_weight=quadratic"] if averages else []
    made = run(*sized(name), *weight, "mixer.redraw_every=0" if "favor" in name else "seed=0", *FAST, family=family)
    made.fit(made.attention(), "attention")
    first, *_, last = (line["layers"] for line in made.metrics())
    assert len(first) == 2 and all(after < 0.95 * before for before, after in zip(first, last, strict=True))


def test_layers_that_stay_exact_take_no_part_in_stage_1(run):
    """Each mixer is fitted to its own layer, wherever that is in the list."""
    made = run(*sized("exponential"), "mixer.exact_layers=[0]")
    stage, heads = made.attention(), made.teacher.heads({"input_ids": ids()})
    loss = stage.training_step({"input_ids": ids()}, 0)
    assert list(stage.losses) == ["layer 1"] and stage.layers == [1]
    torch.testing.assert_close(loss, stage.layer_loss(made.student.mixers[1], heads[1], None))
    made.fit(stage, "attention")
    assert made.changed(made.student) == {name for name in of_mixers(made.before) if ".1." in name} != set()


@pytest.mark.parametrize("loss", ["kl", "output", "both"])
def test_stage_1_trains_the_mixers_alone(run, loss: str):
    made = run(f"stages.attention.loss={loss}")
    teacher = made.teacher.weights_hash()
    stage = made.attention()
    made.fit(stage, "attention")
    assert made.changed(made.student) == of_mixers(made.before)
    assert untouched(made.teacher, teacher)
    mixers = torch.nn.ModuleList(made.student.mixers.values()).state_dict()
    assert set(stage.state_dict()) == {f"mixers.{name}" for name in mixers}
    assert made.checkpoint("attention-step=3.ckpt")["state_dict"].keys() == stage.state_dict().keys()


def test_losses_of_stage_1_add_up(run):
    """`both` is the sum of the two others, and the loss that is followed the sum over layers."""
    made, found = run(), {}
    for loss in ("kl", "output", "both"):
        made.config.stages.attention.loss = loss
        stage = made.attention()
        total = stage.training_step({"input_ids": ids()}, 0)
        found[loss] = torch.stack(list(stage.losses.values()))
        torch.testing.assert_close(total.detach(), found[loss].sum())
    torch.testing.assert_close(found["kl"] + found["output"], found["both"])


def test_negative_weights_have_their_price(run):
    made, found = run(*sized("stationary-signed"), "mixer.frequency_scale=1.0"), []
    for price in (0.0, 1.0, 2.0):
        made.config.stages.attention.negative = price
        found.append(made.attention().training_step({"input_ids": ids()}, 0).item())
    assert found[1] > found[0] and found[2] - found[1] == pytest.approx(found[1] - found[0], rel=1e-4)


def test_stage_1_compares_as_many_queries_as_asked_for(run):
    made = run("stages.attention.queries=5")
    stage = made.attention()
    drawn = [stage.draw_queries(19) for _ in range(200)]
    assert all(len(set(each.tolist())) == 5 for each in drawn)
    seen = torch.cat(drawn).bincount(minlength=19)
    assert len(seen) == 19 and seen.min() > 20
    assert stage.draw_queries(5) is None
    made.config.stages.attention.queries = None
    assert stage.draw_queries(19) is None


def test_the_loss_of_stage_1_is_that_of_the_queries_drawn(run):
    made, rows = run(), torch.tensor([3, 8, 11])
    stage = made.attention()
    for mixer, heads in zip(made.student.mixers.values(), made.teacher.heads({"input_ids": ids()}), strict=True):
        maps = log_teacher(heads), log_student(mixer, heads)
        expected = map_kl(*(each[..., rows, :] for each in maps)).mean()
        torch.testing.assert_close(stage.layer_loss(mixer, heads, rows), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_stage_2_trains_all(run, family: str):
    """Whatever was frozen before."""
    made = run(family=family)
    made.student.requires_grad_(False)
    teacher, stage = made.teacher.weights_hash(), made.logits()
    made.fit(stage, "logits")
    assert made.changed(stage.finished()) == made.before.keys()
    assert untouched(made.teacher, teacher)
    assert set(stage.state_dict()) == {f"student.{name}" for name in made.before}
    assert made.checkpoint("logits-step=3.ckpt")["state_dict"].keys() == stage.state_dict().keys()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_stage_2_trains_mixers_alone(run, family: str):
    made = run("stages.logits.train=mixers", family=family)
    stage = made.logits()
    made.fit(stage, "logits")
    assert made.changed(stage.finished()) == of_mixers(made.before)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_stage_2_trains_adapters_and_mixers(run, family: str):
    """Merged, the adapters change every linear layer, and no embedding, bias, norm or output layer."""
    made = run("stages.logits.train=lora", "stages.logits.learning_rate=1e-2", family=family)
    teacher, stage = made.teacher.weights_hash(), made.logits()
    made.fit(stage, "logits")
    assert made.checkpoint("logits-step=3.ckpt")["state_dict"].keys() == stage.state_dict().keys()
    with torch.no_grad():
        adapted = stage.student.eval()(input_ids=ids()).logits
        merged = stage.finished().eval()
        torch.testing.assert_close(merged(ids()).logits, adapted, rtol=0, atol=2e-4)
    linear = {
        name
        for name in made.before
        if name.endswith("weight") and not any(part in name for part in ("norm", "ln_", "wte", "wpe", "embed", "head"))
    }
    assert made.changed(merged) == linear | of_mixers(made.before)
    assert isinstance(merged, FlexformerForCausalLM) and untouched(made.teacher, teacher)


@pytest.mark.parametrize("train", ["all", "lora", "mixers"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_computed_again_give_the_same_gradients_for_less_memory(teachers, family: str, train: str):
    """GPT-2 has dropout, which stays off."""
    batch, found, held = {"input_ids": ids()}, {}, {}
    for again in ("true", "false"):
        config = compose(
            "mixer=exponential", f"stages.logits.train={train}", f"stages.logits.gradient_checkpointing={again}"
        )
        seed_everything(0, verbose=False)
        teacher = load(teachers[family])
        stage = LogitsStage(teacher, build_student(teacher, config.mixer), config.stages.logits)
        loss, held[again] = saved(stage, batch)
        loss.backward()
        found[again] = {name: each.grad for name, each in stage.named_parameters() if each.grad is not None}
    torch.testing.assert_close(found["true"], found["false"], rtol=1e-4, atol=1e-6)
    assert held["true"] < 0.6 * held["false"]


def saved(stage: LogitsStage, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    """The loss, and the bytes that are kept for its gradient beside the weights."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = stage.training_step(batch, 0)
    weights = {each.untyped_storage().data_ptr() for each in stage.parameters()}
    return loss, sum(size for at, size in sizes.items() if at not in weights)


@pytest.mark.parametrize("stage", ["logits", "pretrain"])
def test_computing_layers_again_ends_with_the_stage(run, stage: str):
    made = run(f"stages.{stage}.gradient_checkpointing=true", family="gpt2")
    if stage == "logits":
        fitted: Any = made.logits()
        layers = made.student.lm.transformer.h
    else:
        model = tiny.model(tiny.CONFIGS["gpt2"])
        fitted, layers = LanguageStage(model, made.config.stages.pretrain), model.transformer.h
    assert all("forward" in vars(layer) for layer in layers)
    made.fit(fitted, stage)
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_model_without_such_layers_is_refused(run):
    made = run("stages.logits.gradient_checkpointing=true")
    made.student.lm.transformer.h = torch.nn.ModuleList()
    with pytest.raises(UserError, match=r"^gradient_checkpointing=true: [^\n]*set it to false$"):
        LogitsStage(made.teacher, made.student, made.config.stages.logits)


@pytest.mark.parametrize("train", ["all", "lora", "mixers"])
def test_stage_2_lowers_its_loss(run, train: str):
    overrides = f"stages.logits.train={train}", "stages.logits.max_steps=20", "stages.logits.learning_rate=3e-3"
    # A family without dropout: the loss of a fixed batch moves by what is learned alone.
    made = run(*overrides, family="llama")
    made.fit(made.logits(), "logits")
    losses = [line["loss"] for line in made.metrics()]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_mixers_and_embeddings_have_learning_rates_of_their_own(run, family: str):
    """And mixers no decay. GPT-2's output is tied to its embeddings, the other's is not."""
    rates = [f"stages.logits.{part}learning_rate={rate}" for part, rate in RATES.items()]
    made = run(*rates, "stages.logits.weight_decay=0.3", "stages.logits.warmup=0.0", family=family)
    stage = made.logits()
    groups = stage.configure_optimizers()["optimizer"].param_groups
    of = {id(each): group for group in groups for each in group["params"]}
    for name, parameter in stage.student.named_parameters():
        embedded = any(each in name for each in ("wte", "wpe", "embed_tokens"))
        part = "mixer_" if ".mixer." in name else "embedding_" if embedded else ""
        assert group_of(part) == (of[id(parameter)]["lr"], of[id(parameter)]["weight_decay"])


#: By part, as the keys begin.
RATES = {"mixer_": 3e-3, "": 3e-4, "embedding_": 3e-5}


def group_of(part: str) -> tuple[float, float]:
    """Its learning rate and weight decay."""
    return RATES[part], 0.0 if part == "mixer_" else 0.3


def test_the_next_token_loss_is_added(run):
    made, found = run(), []
    made.student.eval()
    for weight in (0.0, 0.5):
        made.config.stages.logits.cross_entropy = weight
        found.append(made.logits().training_step({"input_ids": ids()}, 0).item())
    chances = made.student(ids()).logits.log_softmax(-1)
    right = [-chances[b, i, ids()[b, i + 1]] for b in range(2) for i in range(18)]
    assert found[1] - found[0] == pytest.approx(0.5 * torch.stack(right).mean().item(), rel=1e-4)


def test_a_language_model_learns_and_decays_matrices_alone(run):
    made = run("stages.pretrain.max_steps=20", "stages.pretrain.weight_decay=0.3")
    model = tiny.model(tiny.CONFIGS["llama"])
    stage = LanguageStage(model, made.config.stages.pretrain)
    for group in stage.configure_optimizers()["optimizer"].param_groups:
        assert {each.dim() >= 2 for each in group["params"]} == {group["weight_decay"] == 0.3}
    tokens = made.fit(stage, "pretrain")
    losses = [line["loss"] for line in made.metrics()]
    assert losses[-1] < 0.9 * losses[0] and tokens == 20 * BLOCKS * tiny.CONTEXT
    assert all(each.requires_grad for each in model.parameters())


def rates(steps: int, warmup: float) -> list[float]:
    """The learning rate of every step, as a share of the highest."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = warmup_linear(optimizer, steps, warmup)["lr_scheduler"]
    assert schedule["interval"] == "step"
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    return found


def test_the_learning_rate_rises_and_falls():
    found = rates(100, 0.1)
    assert found[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(found) == 1.0
    assert found[10:] == pytest.approx([1 - i / 90 for i in range(90)])
    assert found[55] == pytest.approx(0.5) and 0 < found[-1] < 0.02


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.02), (3, 0.0), (4, 1.0)])
def test_every_step_of_a_short_run_learns(steps: int, warmup: float):
    assert all(0 < rate <= 1 for rate in rates(steps, warmup))


def test_metrics_hold_the_learning_rate_of_their_step(run):
    made, used = run("stages.attention.max_steps=5", "stages.attention.warmup=0.4"), []
    stage = made.attention()
    stage.on_before_optimizer_step = lambda optimizer: used.append(optimizer.param_groups[0]["lr"])
    made.fit(stage, "attention")
    assert [line["lr"] for line in made.metrics()] == pytest.approx(used)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accumulation_leaves_the_number_of_optimiser_steps(run, accumulate: int):
    made, used = run(f"trainer.accumulate_grad_batches={accumulate}"), []
    stage = made.attention()
    stage.on_before_optimizer_step = lambda optimizer: used.append(optimizer.param_groups[0]["lr"])
    tokens = made.fit(stage, "attention")
    assert len(used) == made.checkpoint("attention-step=3.ckpt")["global_step"] == 3
    assert tokens == made.metrics()[-1]["tokens"] == 3 * accumulate * BLOCKS * tiny.CONTEXT


def test_losses_are_logged_as_often_as_asked_for_and_at_the_end(run):
    made = run("trainer.log_every_n_steps=3", "stages.attention.max_steps=5")
    made.fit(made.attention(), "attention")
    lines = made.metrics()
    assert [line["step"] for line in lines] == [1, 3, 5]
    assert [line["tokens"] for line in lines] == [step * BLOCKS * tiny.CONTEXT for step in (1, 3, 5)]
