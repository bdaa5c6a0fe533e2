"""A step is a function of tensors: of its token and its state, and of nothing else."""

import pytest
import torch

from distill.export.step import Step, start

from .tiny import KINDS, student, tokens


@pytest.fixture(scope="module", params=KINDS)
def step(request: pytest.FixtureRequest) -> Step:
    return Step(student(request.param, seed=2, exact=[]))


@torch.no_grad()
def read(step: Step, ids: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    said = []
    for token in ids.split(1, 1):
        logits, state = step(token, state)
        said.append(logits)
    return torch.stack(said, 1), state


def test_it_says_what_the_student_says_of_the_whole_text(step: Step):
    ids = tokens(2, 12)
    said, _ = read(step, ids, start(step.student, 2))
    with torch.no_grad():
        expected = step.student(ids, use_cache=False).logits
    torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-9)


def test_a_state_keeps_its_shape_and_is_not_written_to(step: Step):
    before = start(step.student, 2)
    kept = {name: part.clone() for name, part in before.items()}
    _, after = read(step, tokens(2, 3), before)
    assert list(after) == list(before)
    for name, part in before.items():
        assert part.numel() and (after[name].shape, after[name].dtype) == (part.shape, part.dtype)
        assert torch.equal(part, kept[name])


def test_a_row_that_begins_anew_says_what_it_says_alone(step: Step):
    _, state = read(step, tokens(2, 7), start(step.student, 2))
    fresh = start(step.student, 1)
    again = {name: torch.cat([part[:1], fresh[name]]) for name, part in state.items()}
    ids = tokens(2, 5, seed=1)
    together, _ = read(step, ids, again)
    alone, _ = read(step, ids[1:], fresh)
    torch.testing.assert_close(together[1:], alone, rtol=1e-9, atol=1e-9)
