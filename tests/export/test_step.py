"""A step is a function of tensors: of its token and its state, and of nothing else."""

import pytest
import torch
from flexformer.tiny import KINDS, student, tokens

from distill.export.step import Step


@pytest.fixture(scope="module", params=KINDS)
def step(request: pytest.FixtureRequest) -> Step:
    return Step(student(request.param, seed=2, exact=[]), 2)


@torch.no_grad()
def read(step: Step, ids: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    said = []
    for token in ids.split(1, 1):
        logits, state = step(token, state)
        said.append(logits)
    return torch.stack(said, 1), state


def test_it_says_what_the_student_says_of_the_whole_text(step: Step):
    ids = tokens(2, 12)
    said, _ = read(step, ids, step.start)
    with torch.no_grad():
        expected = step.student(ids, use_cache=False).logits
    torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)


def test_a_state_keeps_its_shape_and_is_not_written_to(step: Step):
    before = step.start
    kept = {name: part.clone() for name, part in before.items()}
    # Without no_grad, as a runtime may do.
    _, after = step(tokens(2, 1), before)
    assert list(after) == list(before)
    for name, part in before.items():
        assert part.numel() and (after[name].shape, after[name].dtype) == (part.shape, part.dtype)
        assert torch.equal(part, kept[name]) and not after[name].requires_grad


def test_a_row_that_begins_anew_says_what_it_says_alone(step: Step):
    _, state = read(step, tokens(2, 7), step.start)
    fresh = {name: part[:1] for name, part in step.start.items()}
    again = {name: torch.cat([part[:1], fresh[name]]) for name, part in state.items()}
    ids = tokens(2, 5, seed=1)
    together, _ = read(step, ids, again)
    alone, _ = read(Step(step.student, 1), ids[1:], fresh)
    torch.testing.assert_close(together[1:], alone, rtol=1e-9, atol=1e-9)
