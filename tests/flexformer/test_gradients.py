"""Gradients are the derivatives, reach every parameter, and stop at padding."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

from .examples import SHAPE, Case, draw


def test_gradcheck(case: Case):
    shape = HeadShape(heads=2, kv_heads=1, head_dim=4)
    mixer, inputs = case.mixer(seed=9, shape=shape), draw(9, 6, shape=shape)
    names, parameters = zip(*mixer.named_parameters(), strict=True) if list(mixer.parameters()) else ((), ())

    def output(query, key, value, *parameters):
        arguments = (query, key, value, 0.5, inputs.padding)
        return functional_call(mixer, dict(zip(names, parameters, strict=True)), arguments)[0]

    leaves = [x.detach().clone().requires_grad_() for x in (*inputs[:3], *parameters)]
    assert torch.autograd.gradcheck(output, leaves, fast_mode=True)


@pytest.mark.parametrize("start", ["as drawn", "random"])
def test_every_parameter_learns(case: Case, start: str):
    """Element by element: from the first step on, nothing sits where its gradient vanishes."""
    torch.manual_seed(0)
    mixer = case.mixer() if start == "random" else Mixer(SHAPE, case.options).double()
    # Large enough to wake every relu.
    q, k, v = (3 * x for x in draw(0, 40)[:3])
    names, parameters = zip(("value", v.requires_grad_()), *mixer.named_parameters(), strict=True)
    out, _ = mixer(q, k, v, 0.5)
    found = dict(zip(names, derivatives(out.square().sum(), parameters), strict=True))
    learning = {name for name, each in found.items() if (each != 0).all()}
    if case.options["map"] == "zero":
        # But for the norm's gain, there is nothing that parameters could act on.
        assert learning <= {"value", "normaliser.gain"}
    else:
        assert learning == set(names)


def derivatives(out: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """0 where `out` does not depend on a leaf at all."""
    return torch.autograd.grad(out, leaves, materialize_grads=True)


def test_padding_has_no_influence(case: Case):
    """Not even from far away, and not on gradients."""
    mixer, inputs = case.mixer(seed=10), draw(10, 13)
    out, _ = mixer(*inputs[:3], 0.5, inputs.padding)
    hidden = (inputs.padding == 0)[:, None, :, None]
    q, k, v = (x.masked_fill(hidden, 100.0).requires_grad_() for x in inputs[:3])
    changed, _ = mixer(q, k, v, 0.5, inputs.padding)
    real = ~hidden.expand_as(out)
    assert torch.equal(changed[real], out[real])
    gradients = derivatives((changed * real).square().sum(), (q, k, v, *mixer.parameters()))
    assert all(each.isfinite().all() for each in gradients)
    assert not any(each.masked_select(hidden).any() for each in gradients[:3])


def test_padding_is_as_if_it_were_not_there(case: Case):
    mixer, inputs = case.mixer(seed=11), draw(11, 13)
    padded, _ = mixer(*inputs[:3], 0.5, inputs.padding)
    for row in range(2):
        real = inputs.padding[row].bool()
        alone, _ = mixer(*(x[row : row + 1, :, real] for x in inputs[:3]), 0.5)
        torch.testing.assert_close(padded[row : row + 1, :, real], alone, rtol=1e-9, atol=1e-9)


def test_rows_without_keys(case: Case):
    """A fully padded sequence gives 0, and no gradient."""
    mixer, inputs = case.mixer(seed=12), draw(12, 5)
    inputs.padding[0] = 0
    leaves = [x.requires_grad_() for x in inputs[:3]]
    out, _ = mixer(*leaves, 0.5, inputs.padding)
    assert not out[0].any() and (out[1].any() or case.options["map"] == "zero")
    gradients = derivatives(out.square().sum(), (*leaves, *mixer.parameters()))
    assert not any(each[0].any() for each in gradients[:3])
    assert all(each.isfinite().all() for each in gradients)
