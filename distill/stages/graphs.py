"""Steps of training as one CUDA graph: to launch their kernels one by one can take longer than they do."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import masking_utils

from .. import ranks
from ..errors import reason
from ..flexformer.attempt import taken, tell
from .built import built

#: Steps alike that are taken kernel by kernel before: what is built or chosen at its first use must be there.
BEFORE = 2
#: Inputs that leave shapes as they are: where there is padding or a target, or none, decides over others.
FIXED = {"input_ids", "queries", "log_likeliest", "likeliest"}
#: What a run tells of its steps.
WHAT, GRAPH, ONE_BY_ONE = "steps", "a CUDA graph", "one kernel after the other"

Inputs = dict[str, Tensor]
Gradients = list[Tensor | None]


class Loss(NamedTuple):
    """What a step minimises, and the parts of it that are logged, from which nothing goes back."""

    total: Tensor
    parts: dict[str, Tensor]


#: From inputs to a loss.
Compute = Callable[[Inputs], Loss]


class Steps:
    """Computes losses; where `graphs` are wanted, those of whole texts of one length, after the first, as a CUDA graph.

    accumulates: whether gradients of several steps are added up. What has no graph is computed as ever, and where one
    cannot be made a warning says why, and there is none from then on.
    """

    def __init__(self, compute: Compute, parameters: Callable[[], Iterable[Tensor]]):
        self.compute, self.parameters = compute, parameters
        self.graphs = self.accumulates = False
        self.graph: Graph | None = None
        self.alike, self.shapes = 0, shapes_of({})
        self.begun = self.refused = False

    def __call__(self, inputs: Inputs) -> Loss:
        whole = inputs.keys() <= FIXED
        # Before there is a graph, too: what is compiled then is what it will be made of.
        with one_text_a_row() if whole else nullcontext():
            if not self.graphs:
                return self.compute(inputs)
            if not self.begun:
                self.build(inputs)
            loss = self.as_graph(inputs) if whole and not self.refused else None
            tell(WHAT, ONE_BY_ONE if loss is None else GRAPH)
            return self.compute(inputs) if loss is None else loss

    def build(self, inputs: Inputs) -> None:
        """All kernels of such a step at once. What goes wrong does so in the step itself, which says it."""
        self.begun = True
        before = {what: list(ways) for what, ways in taken.items()}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        try:
            # What is computed from nothing may be no number, and leaves chance as it was.
            with built() as failed, torch.random.fork_rng(devices), torch.autograd.set_detect_anomaly(False):
                differentiated(self.compute, inputs, self.trained())
            if not failed:
                return
        except Exception:
            # Not kept, since all that was computed would be with it.
            if ranks.size() > 1:
                # This device would be a step behind the others.
                raise
        taken.clear()
        taken.update(before)

    def trained(self) -> list[Tensor]:
        return [each for each in self.parameters() if each.requires_grad]

    def as_graph(self, inputs: Inputs) -> Loss | None:
        """None where there is no graph of such inputs: not yet, or not at all."""
        shapes = shapes_of(inputs)
        self.alike = self.alike + 1 if shapes == self.shapes else 1
        self.shapes = shapes
        if self.graph is None and self.alike > BEFORE:
            try:
                self.graph = self.captured(inputs)
            except Exception as problem:
                self.refused = True
                told = f"steps are taken {ONE_BY_ONE}, since they make no CUDA graph: {reason(cause(problem))}"
                warnings.warn(told, stacklevel=3)
        return self.graph(inputs) if self.graph is not None and shapes == shapes_of(self.graph.inputs) else None

    def captured(self, inputs: Inputs) -> "Graph":
        parameters = self.trained()
        if not self.accumulates:
            # Those of the last step, beside which there would be no room for others.
            for each in parameters:
                each.grad = None
        with waiting_refused():
            differentiated(self.compute, inputs, parameters)
        # What is left of earlier steps would have gradients go where these steps were launched.
        gc.collect()
        return Graph(self.compute, inputs, parameters, self.accumulates)

    def end(self) -> None:
        """Frees what a graph holds, all that a step needs of memory."""
        self.graphs, self.graph = False, None


def cause(problem: Exception) -> Exception:
    """What went wrong while a graph was made, which then ends with an error of its own."""
    return problem.__context__ if isinstance(problem.__context__, Exception) else problem


class Graph:
    """The losses of inputs like these, and their gradients for `parameters`, computed at once and by one launch.

    The values of inputs and parameters are read anew each time; all else that is not launched is as it was when this
    was made. The gradients of a loss can be had once, and until the next loss is computed. They share the memory that
    the next are written to, unless there are several to add up.
    """

    def __init__(self, compute: Compute, inputs: Inputs, parameters: list[Tensor], accumulates: bool):
        self.inputs = {name: each.clone() for name, each in inputs.items()}
        self.accumulates, self.turn = accumulates, 0
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        try:
            # What other threads do meanwhile, such as those that load data, is none of its business.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.loss, gradients = differentiated(compute, self.inputs, parameters)
        finally:
            # Of a graph that failed PyTorch does not leave the stream.
            torch.cuda.set_stream(stream)
        # Those that the loss does not depend on have none, and not one of noughts: an optimiser would shrink them.
        reached = [(one, its) for one, its in zip(parameters, gradients, strict=True) if its is not None]
        self.parameters, self.gradients = [one for one, _ in reached], [its for _, its in reached]

    def __call__(self, inputs: Inputs) -> Loss:
        torch._foreach_copy_(list(self.inputs.values()), [inputs[name] for name in self.inputs])
        self.graph.replay()
        self.turn += 1
        total = Returned.apply(self.loss.total, partial(self.times, self.turn), *self.parameters)
        return self.loss._replace(total=total)

    def times(self, turn: int, factor: Tensor) -> list[Tensor]:
        """The gradients of a multiple of the loss of this turn."""
        if turn != self.turn:
            raise RuntimeError("the gradients of this loss are gone: they were taken, or another was computed since")
        self.turn += 1
        found = self.gradients
        if self.accumulates:
            found = list(torch._foreach_mul(found, factor))
        else:
            torch._foreach_mul_(found, factor)
        return [each.detach() for each in found]


class Returned(torch.autograd.Function):
    """A loss that was computed with its gradients, as one that goes back to parameters: `times` a factor."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, times: Callable[[Tensor], list[Tensor]], *parameters: Tensor) -> Tensor:
        ctx.times = times
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, *ctx.times(gradient)


def differentiated(compute: Compute, inputs: Inputs, parameters: list[Tensor]) -> tuple[Loss, Gradients]:
    """A loss and its gradients, None for what it does not depend on; no two of them in the same memory."""
    # Casts that are remembered from before would never be made of the weights that come.
    torch.clear_autocast_cache()
    loss = compute(inputs)
    # Lightning goes back outside of autocast, too.
    with torch.autocast(loss.total.device.type, enabled=False):
        found = torch.autograd.grad(loss.total, parameters, allow_unused=True)
    torch.clear_autocast_cache()
    return loss._replace(total=loss.total.detach()), alone(found)


def alone(gradients: Iterable[Tensor | None]) -> Gradients:
    """Cloned where a gradient is another's, too, or a number stands for several."""
    seen: set[int] = set()
    found: Gradients = []
    for each in gradients:
        if each is not None and (each.data_ptr() in seen or (each.numel() > 1 and 0 in each.stride())):
            each = each.clone(memory_format=torch.contiguous_format)
        if each is not None:
            seen.add(each.data_ptr())
        found.append(each)
    return found


@contextmanager
def waiting_refused() -> Iterator[None]:
    """Inside, what waits for the GPU is an error: in a graph that is made it would be one that PyTorch does not get
    over."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            # That not all of it may be found.
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Inside, transformers takes every row for one text: it would look at positions for several to a row, which waits
    for the GPU, and while a graph is made, or compiled, it would write masks that hide what is hidden anyway, and slow
    attention."""
    whole = patch.object(masking_utils, "find_packed_sequence_indices", none_packed, create=True)
    with whole, patch.object(masking_utils, "is_tracing", untraced, create=True):
        yield


# The same each time, or what was compiled with them would be compiled anew.
def none_packed(positions: Tensor) -> None:
    return None


def untraced(tensor: Tensor | None = None) -> bool:
    return False


def shapes_of(inputs: Inputs) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (each.shape, each.dtype) for name, each in inputs.items()}
