"""A compiled decoding step: one graph without breaks, and the same one for every token."""

from collections.abc import Iterator

import pytest
import torch

from .test_generation import SEEDS
from .tiny import GPT2, KINDS, student, tokens


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_step_is_compiled_once_and_says_the_same(kind: str):
    """A layer that is kept exact has keys whose number grows, and is compiled once more for any number of them."""
    model = student(kind, seed=SEEDS[kind])
    # Whole graphs are captured as for any other backend, and run as they are: no compiler is needed.
    step = torch.compile(model.forward, fullgraph=True, dynamic=True, backend="eager")
    prompt = tokens(2, 5)
    expected, found = (model(prompt, use_cache=True) for _ in range(2))
    graphs = set()
    for _ in range(120 if KINDS[kind].config is GPT2 else 200):
        token = expected.logits[:, -1:].argmax(-1)
        expected = model(token, past_key_values=expected.past_key_values, use_cache=True)
        found = step(token, past_key_values=found.past_key_values, use_cache=True)
        assert torch.allclose(found.logits, expected.logits, atol=1e-10)
        graphs.add(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == ({1, 2} if KINDS[kind].exact else {1})
