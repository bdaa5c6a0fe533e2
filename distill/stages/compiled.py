"""Models as PyTorch's compiler fuses them, for as long as a stage trains them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch._dynamo.exc import TorchDynamoException

from ..errors import UserError, reason
from ..flexformer.attempt import LINEAR, PYTORCH, NoKernels, taken, tell
from ..flexformer.mixer import Mixer

#: What a run tells of its models.
WHAT, COMPILER = "models", "the compiler"


@contextmanager
def refusing(key: str) -> Iterator[None]:
    """UserError, which names the key, where the compiler fails."""
    try:
        yield
    except (TorchDynamoException, NoKernels) as problem:
        told = reason(getattr(problem, "inner_exception", problem))
        raise UserError(f"{key}: the compiler fails here: {told}; leave it out") from problem


@contextmanager
def compiled(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, to call one of `models` is to run what the compiler makes of it, which the first calls wait for.

    The first length has its own; once there is another, one serves most. UserError where the compiler makes none.
    """
    models = list(models)
    for model in models:
        model.compile()
        tell(WHAT, COMPILER)
    try:
        with refusing("compile=true"):
            yield
        if LINEAR not in taken and any(isinstance(part, Mixer) for model in models for part in model.modules()):
            # Mixers told as they were compiled, for a stage before this one; those with kernels tell at every call.
            tell(LINEAR, PYTORCH)
    finally:
        for model in models:
            # What `compile` leaves at a model, for which there is no way back.
            vars(model).pop("_compiled_call_impl")
