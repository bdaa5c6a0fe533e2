"""Steps of training as one CUDA graph: to launch their kernels one by one can take longer than they do."""

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import masking_utils

from ..flexformer.attempt import tell

#: Steps alike that are taken kernel by kernel before: what is built or chosen at its first use must be there.
BEFORE = 3
#: Inputs that leave shapes as they are: where there is padding or a target, or none, decides over others.
FIXED = {"input_ids", "queries", "log_likeliest", "likeliest"}
#: What a run tells of its steps.
WHAT, GRAPH, ONE_BY_ONE = "steps", "a CUDA graph", "one kernel after the other"

Inputs = dict[str, Tensor]


class Loss(NamedTuple):
    """What a step minimises, and the parts of it that are logged, from which nothing goes back."""

    total: Tensor
    parts: dict[str, Tensor]


#: From inputs to a loss, by launching alone: nothing waits for the GPU.
Compute = Callable[[Inputs], Loss]


class Steps:
    """Computes losses; where `graphs` are wanted, those of whole texts of one length, after the first, as a CUDA graph.

    accumulates: whether gradients of several steps are added up. What has no graph is computed as ever, and where one
    cannot be made a warning says why.
    """

    def __init__(self, compute: Compute, parameters: Callable[[], Iterable[Tensor]]):
        self.compute, self.parameters = compute, parameters
        self.graphs = self.accumulates = False
        self.graph: Graph | None = None
        self.alike, self.shapes = 0, shapes_of({})

    def __call__(self, inputs: Inputs) -> Loss:
        with one_text_a_row():
            return self.taken(inputs)

    def taken(self, inputs: Inputs) -> Loss:
        if not self.graphs or not inputs.keys() <= FIXED:
            return self.compute(inputs)
        shapes = shapes_of(inputs)
        self.alike = self.alike + 1 if shapes == self.shapes else 1
        self.shapes = shapes
        if self.graph is None and self.alike > BEFORE:
            self.graph = self.captured(inputs)
        graph = self.graph if self.graph is not None and shapes == shapes_of(self.graph.inputs) else None
        tell(WHAT, ONE_BY_ONE if graph is None else GRAPH)
        return self.compute(inputs) if graph is None else graph(inputs)

    def captured(self, inputs: Inputs) -> "Graph | None":
        try:
            return Graph(self.compute, inputs, list(self.parameters()), self.accumulates)
        except Exception as problem:
            self.graphs = False
            warnings.warn(f"steps are taken {ONE_BY_ONE}, since they make no CUDA graph here: {problem}", stacklevel=2)
            return None

    def end(self) -> None:
        """Frees what a graph holds, all that a step needs of memory."""
        self.graphs, self.graph = False, None


class Graph:
    """The losses of inputs like these, and their gradients for `parameters`, computed at once and by one launch.

    The values of inputs and parameters are read anew each time; all else that is not launched is as it was when this
    was made. A loss goes back once, until the next is computed. Its gradients share the memory that the next are
    written to, unless there are several to add up.
    """

    def __init__(self, compute: Compute, inputs: Inputs, parameters: list[Tensor], accumulates: bool):
        self.inputs = {name: each.clone() for name, each in inputs.items()}
        self.parameters = [each for each in parameters if each.requires_grad]
        self.accumulates, self.computed = accumulates, 0
        self.graph = torch.cuda.CUDAGraph()
        # What is left of earlier steps would have gradients go where these steps were launched.
        gc.collect()
        # Casts that are remembered from before would never be made of the weights that come.
        torch.clear_autocast_cache()
        stream = torch.cuda.current_stream()
        try:
            # What other threads do meanwhile, such as those that load data, is none of its business.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                loss = compute(self.inputs)
                self.gradients = torch.autograd.grad(loss.total, self.parameters, allow_unused=True)
        finally:
            torch.clear_autocast_cache()
            # Of a graph that failed PyTorch does not leave the stream.
            torch.cuda.set_stream(stream)
        self.loss = loss._replace(total=loss.total.detach())

    def __call__(self, inputs: Inputs) -> Loss:
        torch._foreach_copy_(list(self.inputs.values()), [inputs[name] for name in self.inputs])
        return Loss(Replayed.apply(self, *self.parameters), self.loss.parts)

    def times(self, factor: Tensor) -> list[Tensor | None]:
        """The gradients of the loss that was computed last, of a multiple of it."""
        found = [each for each in self.gradients if each is not None]
        if self.accumulates:
            found = list(torch._foreach_mul(found, factor))
        else:
            torch._foreach_mul_(found, factor)
        left = iter(found)
        return [None if each is None else next(left).detach() for each in self.gradients]


class Replayed(torch.autograd.Function):
    """A graph's loss, as one that goes back to its parameters."""

    @staticmethod
    def forward(ctx: Any, graph: Graph, *parameters: Tensor) -> Tensor:
        graph.graph.replay()
        graph.computed += 1
        ctx.graph, ctx.computed = graph, graph.computed
        return graph.loss.total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        if ctx.computed != ctx.graph.computed:
            raise RuntimeError("the gradients of this loss are gone: it went back before, or another was computed")
        ctx.graph.computed += 1
        return None, *ctx.graph.times(gradient)


@contextmanager
def one_text_a_row() -> Iterator[None]:
    """Inside, transformers takes every row for one text: it would look at positions for several to a row, which waits
    for the GPU, and while a graph is made it would write masks that hide what is hidden anyway, and slow attention."""
    alone = patch.object(masking_utils, "find_packed_sequence_indices", lambda positions: None)
    with alone, patch.object(masking_utils, "is_tracing", lambda tensor=None: False):
        yield


def shapes_of(inputs: Inputs) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (each.shape, each.dtype) for name, each in inputs.items()}
