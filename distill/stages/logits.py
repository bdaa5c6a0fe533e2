"""Stage 2: the whole student on the teacher's logits."""

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import config
from ..divergence import top_k_kl
from ..errors import UserError
from ..flexformer.model import Flexformer
from ..remembered import Remembered
from ..teacher import Teacher
from .graphs import Inputs, Loss
from .stage import Stage, embeddings, of_all, recompute, warmup_linear


class LogitsStage(Stage):
    """Minimises the task's gap to the teacher's predictions, plus an optional loss on the text itself.

    remembered: the likeliest of these predictions, which then stand for all; the teacher runs only for what they lack.
    """

    def __init__(
        self, teacher: Teacher, student: Flexformer, wanted: config.Logits, remembered: Remembered | None = None
    ):
        super().__init__()
        self.teacher, self.wanted, self.remembered = teacher, wanted, remembered
        # Without dropout: the teacher's logits are exact targets, and what it adds to them would only be noise.
        self.student = TRAIN[wanted.train](student, wanted).eval()
        if wanted.gradient_checkpointing:
            recompute(self.student)

    def inputs(self, batch: Inputs) -> Inputs:
        mine = super().inputs(batch)
        if self.remembered is None:
            return mine
        log_likeliest, likeliest = self.remembered(mine)
        return mine | {"log_likeliest": log_likeliest, "likeliest": likeliest}

    def compute(self, inputs: Inputs) -> Loss:
        task = self.teacher.task
        found = task.predict(self.student, inputs)
        loss = of_all(
            self.gap(found, inputs), inputs, lambda: task.matched(inputs, torch.ones_like(inputs["input_ids"]))[0]
        )
        if self.wanted.cross_entropy:
            text = of_all(task.loss(found, inputs), inputs, lambda: task.counted(found, inputs))
            loss = loss + self.wanted.cross_entropy * text
        return Loss(loss, {"logits": loss.detach()})

    def models(self) -> list[nn.Module]:
        # A teacher whose predictions are remembered hardly runs.
        return [self.student, *([self.teacher.model] if self.remembered is None else [])]

    def running(self) -> list[nn.Module]:
        return [self.student, self.teacher.model]

    def gap(self, found: Tensor, inputs: Inputs) -> Tensor:
        task = self.teacher.task
        if self.remembered is None:
            return task.gap(self.teacher.predict(inputs), found, inputs, self.wanted.temperature)
        return top_k_kl(*task.matched(inputs, inputs["log_likeliest"], inputs["likeliest"], found))

    def configure_optimizers(self) -> Any:
        wanted = self.wanted
        trainable = [(name, each) for name, each in self.student.named_parameters() if each.requires_grad]
        tokens = embeddings(self.student)
        mixers = [each for name, each in trainable if ".mixer." in name]
        rest = [each for name, each in trainable if ".mixer." not in name and each not in tokens]
        groups = [
            {"params": mixers, "lr": wanted.mixer_learning_rate, "weight_decay": 0.0},
            {"params": rest, "lr": wanted.learning_rate, "weight_decay": wanted.weight_decay},
            {
                "params": [each for _, each in trainable if each in tokens],
                "lr": wanted.embedding_learning_rate,
                "weight_decay": wanted.weight_decay,
            },
        ]
        # Gradients of a few thousand tokens are noisy, and stages are short: a shorter memory of their size.
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.95))
        return warmup_linear(optimizer, wanted.max_steps, wanted.warmup)

    def on_fit_start(self) -> None:
        # Out of the way, where it may not be needed.
        self.teacher.to(self.device if self.remembered is None else torch.device("cpu"))

    def finished(self) -> Flexformer:
        """The trained student, adapters merged into its weights."""
        trained: Any = self.student
        return cast(Flexformer, trained.merge_and_unload() if self.wanted.train == "lora" else trained)


def train_all(student: Flexformer, wanted: config.Logits) -> nn.Module:
    return student.requires_grad_(True)


def train_mixers(student: Flexformer, wanted: config.Logits) -> nn.Module:
    student.requires_grad_(False)
    for mixer in student.mixers.values():
        mixer.requires_grad_(True)
    if not any(each.requires_grad for each in student.parameters()):
        raise UserError("stages.logits.train=mixers: this mixer has nothing to train; choose all or lora")
    return student


def train_lora(student: Flexformer, wanted: config.Logits) -> nn.Module:
    """Adapters on every linear layer, and the mixers whole."""
    # Imported late: it takes a second or two, and few runs need it.
    from peft import LoraConfig, get_peft_model

    options = LoraConfig(r=wanted.lora.rank, lora_alpha=wanted.lora.alpha, target_modules="all-linear")
    with warnings.catch_warnings():
        # peft corrects the one (GPT-2's layers are stored transposed) and asks transformers for the other.
        for harmless in ("fan_in_fan_out is set to", ".*is_gradient_checkpointing"):
            warnings.filterwarnings("ignore", harmless)
        adapted = get_peft_model(student, options)
    for mixer in student.mixers.values():
        mixer.requires_grad_(True)
    return cast(nn.Module, adapted)


#: What stage 2 may change, by the name used in stages.logits.train.
TRAIN: dict[str, Callable[[Flexformer, config.Logits], nn.Module]] = {
    "all": train_all,
    "lora": train_lora,
    "mixers": train_mixers,
}
