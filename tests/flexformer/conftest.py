"""Every test that takes `case` runs for every mixer of the example table."""

import pytest
import torch
from hypothesis import settings

from .examples import CASES, Case

settings.register_profile("flexformer", deadline=None, derandomize=True, database=None, max_examples=10)
settings.load_profile("flexformer")
# Tensors are tiny: threads would only fight with the other test workers.
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
