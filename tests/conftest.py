"""No test reaches for the network, and Triton's kernels run where there is no GPU: set before anything reads it."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
# As the door has it, for whichever processes are the first to be forked.
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def matmul_precision() -> Iterator[None]:
    """What a test or a run in it sets is not left to the next."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
