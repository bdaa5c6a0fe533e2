"""Which token comes next, against the formulas written out."""

import pytest
import torch

from distill.serve.choice import Choice, Wanted

LOGITS = torch.tensor([1.0, 3.0, 2.5, -1.0])


def test_the_likeliest():
    choice = Choice(Wanted(1))
    assert [choice(LOGITS) for _ in range(3)] == [1, 1, 1]


def test_next_to_no_temperature_takes_the_likeliest():
    assert Choice(Wanted(1, temperature=1e-40))(LOGITS) == 1


def test_what_was_said_becomes_less_likely():
    """3.0 − 0.4 − 0.2 n against 2.5 − (0.4 + 0.2 n if said)."""
    choice = Choice(Wanted(1, frequency_penalty=0.2, presence_penalty=0.4))
    assert [choice(LOGITS) for _ in range(5)] == [1, 2, 1, 1, 1]
    assert choice.corrected(LOGITS).tolist() == pytest.approx([1.0, 3.0 - 0.4 - 0.8, 2.5 - 0.4 - 0.2, -1.0])


def test_a_bias_is_added():
    assert Choice(Wanted(1, logit_bias={3: 5.0}))(LOGITS) == 3
    assert Choice(Wanted(1, logit_bias={1: -100.0}))(LOGITS) == 2


def drawn(times: int = 4000, **wanted: float) -> torch.Tensor:
    choice = Choice(Wanted(1, seed=0, **wanted))  # type: ignore[arg-type]
    return torch.bincount(torch.tensor([choice(LOGITS) for _ in range(times)]), minlength=4) / times


def test_draws_follow_the_temperature():
    assert drawn(temperature=2.0) == pytest.approx((LOGITS / 2).softmax(-1), abs=0.03)


def test_draws_keep_to_the_nucleus_and_to_the_first_k():
    assert drawn(temperature=1.0, top_k=2) == pytest.approx(
        torch.cat([torch.zeros(1), LOGITS[1:3].softmax(-1), torch.zeros(1)]), abs=0.03
    )
    assert drawn(100, temperature=1.0, top_p=0.3)[1] == 1


def test_a_seed_repeats_and_none_does_not():
    def said(seed: int | None) -> list[int]:
        choice = Choice(Wanted(1, temperature=1.0, seed=seed))
        return [choice(LOGITS) for _ in range(40)]

    assert said(1) == said(1) != said(2) and said(None) != said(None)
