"""A text in pieces, each going on from the memory of those before, is the whole text; and a memory does not grow."""

import pytest
import torch

from distill.flexformer.mixer import Memory

from .examples import SHAPE, Case, Inputs, draw
from .paths import PATHS, SCALING, TIGHT, trusted_rows


def part(inputs: Inputs, piece: slice) -> Inputs:
    return Inputs(*(x[:, :, piece] for x in inputs[:4]), inputs.padding[:, piece])


def assert_same_memory(found: Memory, expected: Memory) -> None:
    torch.testing.assert_close(found.sums, expected.sums, **TIGHT)
    torch.testing.assert_close(found.maximum, expected.maximum, **TIGHT)
    for name in ("seen", "keys", "values", "present"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


# Without extra weights, which would have to know what left the window.
@pytest.mark.parametrize("path", [PATHS["chunked"], PATHS["recurrent"]], ids=["chunked", "recurrent"])
def test_going_on_from_a_memory(case: Case, path):
    """Split anywhere, even inside the padding: two parts equal the whole, in output, memory and gradients."""
    mixer, inputs = case.mixer(seed=7), draw(7, 9)
    q, k, v, _, padding = inputs
    inputs = inputs._replace(extra=inputs.extra * 0)
    trusted = trusted_rows(mixer, inputs)
    leaves = [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), *mixer.parameters()]
    whole, end = mixer(q, k, v, SCALING, padding)
    expected = torch.autograd.grad((whole * trusted).square().sum(), leaves, materialize_grads=True)
    for split in range(1, 9):
        pieces, memory = [], None
        for piece in (slice(0, split), slice(split, 9)):
            out, memory = mixer(*(x[:, :, piece] for x in (q, k, v)), SCALING, padding[:, piece], memory, path(mixer))
            pieces.append(out)
        out = torch.cat(pieces, 2)
        torch.testing.assert_close(out * trusted, whole * trusted, **TIGHT)
        assert_same_memory(memory, end)
    gradients = torch.autograd.grad((out * trusted).square().sum(), leaves, materialize_grads=True)
    for found, right in zip(gradients, expected, strict=True):
        size = right.abs().max().clamp(min=1.0)
        torch.testing.assert_close(found / size, right / size, **TIGHT)


def test_in_pieces(case: Case):
    """As decoding does: a prompt, several tokens onto its memory, then single ones; by the ways that are chosen."""
    mixer, inputs = case.mixer(seed=8), draw(8, 12)
    whole, end = mixer(*inputs[:3], SCALING, inputs.padding)
    trusted = trusted_rows(mixer, inputs._replace(extra=inputs.extra * 0))
    memory, outputs = None, []
    for piece in (slice(0, 3), slice(3, 7), *(slice(i, i + 1) for i in range(7, 12))):
        q, k, v, _, padding = part(inputs, piece)
        out, memory = mixer(q, k, v, SCALING, padding, memory)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs, 2) * trusted, whole * trusted, **TIGHT)
    assert_same_memory(memory, end)


def test_a_window_is_kept_as_it_came(case: Case):
    """Its last keys and values, whatever the scaling; and which of them are no padding."""
    mixer, inputs, width = case.mixer(), draw(3, 10), case.options["window"]
    q, k, v, _, padding = inputs
    _, memory = mixer(q, k, v, 0.3, padding)
    last = slice(10 - width, None)
    assert torch.equal(memory.keys, k[:, :, last]) and torch.equal(memory.values, v[:, :, last])
    assert torch.equal(memory.present, padding[:, last].bool())
    assert memory.seen.tolist() == padding.sum(1).tolist()


def test_memory_does_not_grow(case: Case):
    """Nor does it hold on to the storage of something larger."""
    mixer = case.mixer()
    sizes = set()
    for length in (1, 300):
        memory = mixer(*draw(0, length)[:3], SCALING)[1]
        assert memory.sums.shape == (2, SHAPE.kv_heads, mixer.map.feature_dim, SHAPE.head_dim + 1)
        assert memory.maximum.shape == (2, SHAPE.kv_heads, case.options["decay_groups"])
        assert memory.keys.shape == memory.values.shape == (2, SHAPE.kv_heads, case.options["window"], SHAPE.head_dim)
        assert all(each.untyped_storage().nbytes() == each.nbytes for each in memory)
        sizes.add(sum(each.nbytes for each in memory))
    assert len(sizes) == 1
