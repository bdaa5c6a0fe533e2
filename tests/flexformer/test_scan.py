"""Sums of parts, one after another, against float64: more parts than are loaded at once, and one without keys."""

import pytest
import torch
from torch import Tensor

from distill.flexformer.linear_function import scan
from distill.flexformer.linear_rows import NO_KEYS
from flexformer.interpreted import DEVICE, close

PLACES, F, V = 3, 5, 3
NUMBERS = F * V + F
SETTINGS = {"F": F, "V": V}


def drawn(parts: int) -> tuple[Tensor, Tensor]:
    """Sums of parts and the largest weights in them, one of which has no keys."""
    torch.manual_seed(parts)
    sums, peaks = torch.randn(PLACES, parts, NUMBERS), 5 * torch.randn(PLACES, parts)
    peaks[1, parts // 2] = NO_KEYS.value
    sums[1, parts // 2] = 0.0
    return sums.to(DEVICE), peaks.to(DEVICE)


def by_feature(sums: Tensor) -> Tensor:
    """Of rows of sums, of values first and then of features alone: (·, F, V + 1), as a memory has them."""
    values, ones = sums.split([F * V, F], -1)
    return torch.cat([values.unflatten(-1, (F, V)), ones[..., None]], -1)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("parts", [1, 4, 16, 37])
def test_of_all_parts_before_each(parts: int, goes_on: bool):
    sums, peaks = drawn(parts)
    before, before_top = torch.randn_like(sums[:, 0]), torch.randn(PLACES, 1, device=DEVICE)
    after, last = torch.empty(PLACES, F, V + 1, device=DEVICE), torch.empty(PLACES, 1, device=DEVICE)
    tops = torch.empty(PLACES, parts + 1, device=DEVICE)
    remembered = by_feature(before).contiguous() if goes_on else after
    found, started = torch.empty_like(sums), (remembered, before_top if goes_on else last)
    scan(sums, found, tops, SETTINGS, goes_on, peaks, *started, after, last)
    state, top = before.double(), before_top.double()
    if not goes_on:
        state, top = torch.zeros_like(state), torch.full_like(top, NO_KEYS.value)
    for part in range(parts):
        close(found[:, part], state, 1e-6)
        torch.testing.assert_close(tops[:, part], top[:, 0].float())
        higher = torch.maximum(top, peaks[:, part, None])
        state = state * (top - higher).exp() + sums[:, part] * (peaks[:, part, None] - higher).exp()
        top = higher
    close(after, by_feature(state), 1e-6)
    torch.testing.assert_close(last, top.float())
    torch.testing.assert_close(tops[:, parts], last[:, 0])


@pytest.mark.parametrize("parts", [1, 4, 16, 37])
def test_of_all_parts_after_each(parts: int):
    sums, peaks = drawn(parts)
    first = torch.full((PLACES, 1), NO_KEYS.value, device=DEVICE)
    tops = torch.cat([first, peaks], 1).cummax(1).values
    found = torch.empty_like(sums)
    scan(sums, found, tops, SETTINGS, False)
    state = torch.zeros_like(sums[:, 0]).double()
    for part in reversed(range(parts)):
        close(found[:, part], state, 1e-6)
        # Their own are at the level before them already.
        lower, top = tops[:, part, None].double(), tops[:, part + 1, None].double()
        state = state * (lower - top).exp() + sums[:, part]


@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_infinite_stays_where_it_is(reverse: bool):
    """A part that overflows makes none wrong that is asked before it."""
    sums, peaks = drawn(8)
    sums[:, 5] = torch.inf
    tops = torch.empty(PLACES, 9, device=DEVICE)
    others = torch.empty(PLACES, F, V + 1, device=DEVICE), torch.empty(PLACES, 1, device=DEVICE)
    if reverse:
        tops = torch.cat([peaks[:, :1], peaks], 1).cummax(1).values
    found = torch.empty_like(sums)
    scan(sums, found, tops, SETTINGS, False, *([] if reverse else [peaks, *others, *others]))
    untouched = found[:, 5:] if reverse else found[:, :6]
    assert untouched.isfinite().all() and not found.isfinite().all()
