"""What a model is trained to do: a `task` says how it is read, held against its teacher and measured.

`batches` makes what it reads; `known` has all of them by name.
"""

from .batches import NO_TARGET, Batch, Collate, padded, tokens_of
from .known import DECODER, TASKS, other_task
from .task import Task

__all__ = ["DECODER", "NO_TARGET", "TASKS", "Batch", "Collate", "Task", "other_task", "padded", "tokens_of"]
