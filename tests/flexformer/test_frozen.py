"""Frozen frequencies: the control for learning them."""

import pytest
import torch

from distill.flexformer.mixer import Mixer

from .examples import CASES, SHAPE, Case, draw

#: With something to freeze.
FREEZABLE = [case for case in CASES if not case.options["frozen"] and case.mixer().map.frequencies]

freezable = pytest.mark.parametrize("case", FREEZABLE, ids=lambda case: case.name)


def pair(case: Case) -> tuple[Mixer, Mixer]:
    """The same draw, learning and frozen."""
    mixers = []
    for frozen in (False, True):
        torch.manual_seed(3)
        mixers.append(Mixer(SHAPE, case.options | {"frozen": frozen}).double())
    return mixers[0], mixers[1]


@freezable
def test_frozen_mixers_keep_the_keys_and_the_draw(case: Case):
    free, frozen = pair(case)
    ours, theirs = frozen.state_dict(), free.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    inputs = draw(0, 7)
    assert torch.equal(free(*inputs[:3], 0.5)[0], frozen(*inputs[:3], 0.5)[0])
    frozen.load_state_dict(case.mixer().state_dict())
    assert torch.equal(frozen(*inputs[:3], 0.5)[0], case.mixer()(*inputs[:3], 0.5)[0])


@freezable
def test_everything_else_learns(case: Case):
    free, frozen = pair(case)
    kept = {f"map.{name}" for name in frozen.map.frequencies}
    assert {name for name, _ in frozen.named_parameters()} == {name for name, _ in free.named_parameters()} - kept
    assert kept <= {name for name, _ in frozen.named_buffers()}
    # Stage 2 turns every parameter's gradient on: a buffer has none to turn on.
    frozen.requires_grad_(True)
    assert not any(each.requires_grad for name, each in frozen.state_dict(keep_vars=True).items() if name in kept)


@freezable
def test_frozen_frequencies_are_not_placed(case: Case):
    assert pair(case)[1].map.centroids == 0


@pytest.mark.parametrize("name", ["favor", "elu", "cosformer", "identity", "constant", "zero"])
def test_there_must_be_something_to_freeze(name: str):
    options = next(case.options for case in CASES if case.options["map"] == name)
    with pytest.raises(ValueError, match=f"mixer.frozen=true.*{name}"):
        Mixer(SHAPE, options | {"frozen": True})
