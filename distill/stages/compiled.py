"""Models as PyTorch's compiler fuses them, for as long as a stage trains them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch._dynamo.exc import TorchDynamoException

from ..errors import UserError, reason
from ..flexformer.attempt import tell

#: What a run tells of its models.
WHAT, COMPILER = "models", "the compiler"


@contextmanager
def compiled(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, to call one of `models` is to run what the compiler makes of it, which the first calls wait for.

    Texts of the same length have their own; once there are others, one for all lengths. UserError where it makes none.
    """
    models = list(models)
    for model in models:
        model.compile()
        tell(WHAT, COMPILER)
    try:
        yield
    except TorchDynamoException as problem:
        told = reason(getattr(problem, "inner_exception", problem))
        raise UserError(f"compile=true: the compiler fails here: {told}; leave it out") from problem
    finally:
        for model in models:
            # What `compile` leaves at a model, for which there is no way back.
            vars(model).pop("_compiled_call_impl")
