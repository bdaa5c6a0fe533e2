"""What all stages share: named losses, and a learning rate that warms up and then falls to nought."""

from typing import Any

from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Stage(LightningModule):
    """A stage's `training_step` leaves the parts of its loss in `losses`: they are logged, and name where a NaN is."""

    losses: dict[str, Tensor]


def embeddings(model: nn.Module) -> set[Tensor]:
    """Weights of which each token moves a row: they have a learning rate of their own."""
    return {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}


def warmup_linear(optimizer: Optimizer, max_steps: int, warmup: float) -> dict[str, Any]:
    """Linear warm-up, then a straight line to 0, as Lightning's optimiser dictionary.

    warmup: the share of `max_steps` that the rise takes.
    """
    rise = max(1, round(warmup * max_steps))

    def factor(step: int) -> float:
        return (step + 1) / rise if step < rise else max(0.0, (max_steps - step) / max(1, max_steps - rise))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
