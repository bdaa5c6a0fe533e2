"""Low precision goes in and comes out; in between it is float32."""

import pytest
import torch

from .examples import SHAPE, Case, draw
from .test_gradients import derivatives

#: Largest error relative to the largest output. Signed denominators cancel, so their rows may lose some digits more.
BOUND = {torch.float32: 2e-5, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_close_to_float64(case: Case, dtype: torch.dtype):
    mixer, inputs = case.mixer(seed=13), draw(13, 70, dtype=dtype)
    exact, _ = mixer(*(x.double() for x in inputs[:3]), 0.5, inputs.padding)
    out, state = mixer.float()(*inputs[:3], 0.5, inputs.padding)
    assert out.dtype == dtype and out.isfinite().all()
    assert state.sums.dtype == state.maximum.dtype == torch.float32
    # A signed row whose denominator nearly vanishes is left to the float64 tests.
    rows = torch.ones(exact.shape[:-1], dtype=torch.bool) if mixer.comparable else exact.abs().amax(-1) < 3.0
    assert rows.float().mean() > 0.7
    error = (out.double() - exact).abs()[rows].max() / exact[rows].abs().max().clamp(min=1e-6)
    assert error < BOUND[dtype] * (1 if mixer.comparable else 10)


def test_autocast_changes_nothing(case: Case):
    mixer, inputs = case.mixer(seed=14).float(), draw(14, 9, dtype=torch.float32)
    plain, _ = mixer(*inputs[:3], 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = mixer(*inputs[:3], 0.5)
    assert torch.equal(plain, cast)


@pytest.mark.parametrize("size", [1e-4, 10.0])
def test_extreme_inputs_stay_finite(case: Case, size: float):
    """Neither tiny nor huge queries and keys overflow or divide by zero, forwards or backwards."""
    mixer, inputs = case.mixer(seed=15).float(), draw(15, 40, dtype=torch.float32)
    q, k, v = ((x * scale).requires_grad_() for x, scale in zip(inputs[:3], (size, size, 1.0), strict=True))
    out, _ = mixer(q, k, v, SHAPE.head_dim**-0.5)
    gradients = derivatives(out.sum(), (q, k, v, *mixer.parameters()))
    assert out.isfinite().all() and all(each.isfinite().all() for each in gradients)
    if mixer.comparable:
        assert out.abs().max() <= v.abs().max() * (1 + 1e-5)


def test_half_precision_parameters(case: Case):
    """A student loaded in bfloat16 has its mixers in bfloat16, too."""
    mixer, inputs = case.mixer(seed=16).bfloat16(), draw(16, 9, dtype=torch.bfloat16)
    out, state = mixer(*inputs[:3], 0.5, inputs.padding)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()
    assert state.sums.dtype == torch.float32
