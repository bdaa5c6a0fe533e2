"""What all stages share: named losses, and a learning rate that warms up and then falls to nought."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import ranks
from ..errors import UserError
from .graphs import FIXED, Inputs, Loss, Steps


class Stage(LightningModule):
    """A stage's `training_step` leaves the parts of its loss in `losses`: they are logged, and name where a NaN is.

    On several devices all draw the same from the same batch, and each computes a loss for its rows: the mean of these
    losses, and of their gradients, is that of one device.
    """

    losses: dict[str, Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.steps = Steps(self.compute, self.parameters)

    def training_step(self, batch: Inputs, index: int) -> Tensor:
        loss, self.losses = self.steps(self.inputs(batch))
        return loss

    def inputs(self, batch: Inputs) -> Inputs:
        """What a step is computed from: this device's rows of a batch, and what the processor adds to them."""
        return rows(batch, ranks.rank(), ranks.size())

    @abstractmethod
    def compute(self, inputs: Inputs) -> Loss:
        """What a step minimises, by launching alone where it is to be a CUDA graph."""

    def models(self) -> list[nn.Module]:
        """Those that a step runs whole, which the compiler can fuse."""
        return []

    def running(self) -> list[nn.Module]:
        """Those of which a step runs anything."""
        return self.models()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            # Here, since it needs a stage's own definition of what is a layer.
            from .sharded import deal_out

            deal_out(self, self.device_mesh["data_parallel"])

    def on_fit_end(self) -> None:
        keep(self)


def rows(batch: Inputs, rank: int, size: int) -> Inputs:
    """The share of one of `size` devices; padding stays as wide as all need it."""
    return {name: each.chunk(size)[rank] for name, each in batch.items()}


def of_all(mean: Tensor, inputs: Inputs, counted: Callable[[], Tensor]) -> Tensor:
    """A mean over what this device has, weighted as one over what all have; of whole texts all have as much."""
    return mean if inputs.keys() <= FIXED else ranks.weighted(mean, counted)


def embeddings(model: nn.Module) -> set[Tensor]:
    """Weights of which each token moves a row: they have a learning rate of their own."""
    return {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}


def recompute(model: nn.Module) -> None:
    """Layers keep only what went into them, and are computed again on the way back: less memory, one more pass.

    transformers' own switch asks for a model in training mode, whose dropout a student does without. `keep` undoes it.
    UserError where the model has no such layers.
    """
    layers = list(layers_of(model))
    if not layers:
        raise UserError("gradient_checkpointing=true: this model's layers cannot be computed again; set it to false")
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def keep(model: nn.Module) -> None:
    """Undoes `recompute`: the layer's own forward is what its class says."""
    for layer in layers_of(model):
        vars(layer).pop("forward", None)


def launches_alike(model: nn.Module) -> bool:
    """Whether every step is the same launches: no layer is computed again, with the same chance, or left out by it."""
    skips = any(getattr(module, "layerdrop", 0) and module.training for module in model.modules())
    return not skips and not any("forward" in vars(layer) for layer in layers_of(model))


def layers_of(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


def warmup_linear(optimizer: Optimizer, max_steps: int, warmup: float) -> dict[str, Any]:
    """Linear warm-up, then a straight line to 0, as Lightning's optimiser dictionary.

    warmup: the share of `max_steps` that the rise takes.
    """
    rise = max(1, round(warmup * max_steps))

    def factor(step: int) -> float:
        return (step + 1) / rise if step < rise else max(0.0, (max_steps - step) / max(1, max_steps - rise))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
