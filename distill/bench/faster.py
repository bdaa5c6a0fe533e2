"""How a step is made faster without being another: compiled, and on a GPU captured as one graph."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..measure.steps import Step


def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, or a model, as the compiler fuses it, in one graph and for its own shapes alone."""
    # Every step is a shape of its own, and all are the same lines of a file.
    torch._dynamo.config.recompile_limit = 256  # type: ignore[attr-defined]
    made: Callable[..., Any] = torch.compile(step, fullgraph=True, dynamic=False)
    return made


@dataclass(frozen=True)
class Captured:
    """A step as one CUDA graph, replayed: no time goes into launching its kernels one by one.

    step: held, since the graph keeps none of the tensors that it reads. out: what a replay leaves its results in.
    """

    graph: torch.cuda.CUDAGraph
    step: Step
    out: Any

    def __call__(self) -> Any:
        self.graph.replay()
        return self.out


def captured(step: Step) -> Step:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return Captured(graph, step, out)
