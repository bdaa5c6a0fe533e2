"""Weights dealt out over devices: each keeps a part of every one, and has those of a layer while the layer runs.

That is FSDP, in the form that PyTorch calls fully_shard. A stage is trained as its twin, whose parts are dealt out and
whose teacher is, too, and then takes the twin's weights.
"""

import copy
from dataclasses import replace
from typing import TypeVar

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from .. import ranks
from .graphs import Steps
from .stage import Stage, layers_of

S = TypeVar("S", bound=Stage)


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for modules that deal themselves out, over all devices; a checkpoint is one whole file."""

    def __init__(self) -> None:
        super().__init__(ranks.size(), 1, save_distributed_checkpoint=False)


def twin(stage: S) -> S:
    """The same stage with weights of its own, to be dealt out once there are devices; the stage leaves these."""
    stage.cpu()
    made = copy.copy(stage)
    made._modules = {name: copy.deepcopy(part) for name, part in stage.named_children()}
    made.steps = Steps(made.compute, made.parameters)
    if (teacher := getattr(stage, "teacher", None)) is not None:
        teacher.to(torch.device("cpu"))
        made.teacher = replace(teacher, model=copy.deepcopy(teacher.model))
    return made


def deal_out(made: Stage, mesh: DeviceMesh) -> None:
    """A layer's weights are gathered when it runs, all others for the whole step; a teacher's others are not dealt out,
    since they belong to nothing that always runs whole."""
    teacher = getattr(made, "teacher", None)
    for model in [made, *([teacher.model] if teacher else [])]:
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh)
    fully_shard(made, mesh=mesh)
    register_fsdp_forward_method(made, "training_step")


@torch.no_grad()
def gather(made: Stage, stage: Stage) -> None:
    """Has the stage take its twin's weights, in every process."""
    for whole, part in zip(stage.state_dict().values(), made.state_dict().values(), strict=True):
        whole.copy_(part.full_tensor() if isinstance(part, DTensor) else part)
    stage.on_fit_end()
