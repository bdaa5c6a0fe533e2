"""What is measured of every head, against loops over the two maps."""

import pytest
import torch
from torch import Tensor

from distill.capture import Heads
from distill.flexformer.mixer import Mixer
from distill.maploss import log_teacher
from distill.measure.fidelity import CLIP, head_fidelity, look

from .test_maploss import BATCH, LENGTH, NORM, PADDING, POSITIVE, SHAPE, SIGNED, alone, heads, mixer, student_scores

EACH = [(b, i) for b in range(BATCH) for i in range(LENGTH)]


def by_head(value) -> Tensor:
    """Mean over batch and queries of value(b, h, i), where it is not None."""
    found = []
    for h in range(SHAPE.heads):
        rows = [each for b, i in EACH if (each := value(b, h, i)) is not None]
        found.append(torch.stack(rows).mean())
    return torch.stack(found).float()


def maps(made: Mixer, given: Heads) -> tuple[Tensor, Tensor]:
    """P and S, (B, H, N, N)."""
    return log_teacher(given).double().exp().flatten(1, 2), student_scores(made, given)


def entropy(p: Tensor) -> Tensor:
    return -sum(each * each.log() for each in p if each > 0)


@torch.no_grad()
@pytest.mark.parametrize("options", [*POSITIVE.values(), SIGNED], ids=[*POSITIVE, "signed"])
def test_every_quantity(options: dict):
    made, given = mixer(options), heads()
    found, (p, s), width = head_fidelity(made, given), maps(made, given), made.width
    a = s / s.sum(-1, keepdim=True)
    if not made.comparable:
        clipped = (s.clamp(min=0) / 1 + CLIP).tril()
        a = clipped / clipped.sum(-1, keepdim=True)
    row = [slice(0, i + 1) for i in range(LENGTH)]
    expected = {
        "kl": lambda b, h, i: (p[b, h, i] * (p[b, h, i] / a[b, h, i]).log())[row[i]].sum(),
        "entropy_teacher": lambda b, h, i: entropy(p[b, h, i, row[i]]),
        "entropy_student": lambda b, h, i: entropy(a[b, h, i, row[i]]),
        "negative_share": lambda b, h, i: -s[b, h, i].clamp(max=0).sum() / s[b, h, i].abs().sum(),
    }
    if width:
        beyond = [slice(0, max(0, i - width + 1)) for i in range(LENGTH)]
        expected["far_teacher"] = lambda b, h, i: p[b, h, i, beyond[i]].sum() if i >= width else None
        expected["far_student"] = lambda b, h, i: a[b, h, i, beyond[i]].sum() if i >= width else None
        gate = made.window.gate(given.query.double() * given.scaling**0.5)
        expected["gate"] = lambda b, h, i: gate[b, h, i]
    else:
        assert all(getattr(found, name).isnan().all() for name in ("far_teacher", "far_student", "gate"))
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), by_head(value), rtol=1e-3, atol=1e-5, msg=name)
    cancelled = (s.sum(-1).abs() / s.abs().sum(-1)).amin((0, 2)).float()
    torch.testing.assert_close(found.smallest_denominator, cancelled, rtol=1e-3, atol=1e-5)


def test_a_mixer_without_a_sum_has_no_map():
    found = head_fidelity(mixer(NORM), heads())
    assert found.output_error.isfinite().all() and found.entropy_teacher.isfinite().all()
    assert all(each.isnan().all() for each in found[3:]) and found.kl.isnan().all()


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [POSITIVE["products"], POSITIVE["hybrid"], SIGNED, NORM], ids=["positive", "hybrid", "signed", "norm"]
)
def test_padding_counts_for_nothing(options: dict):
    """A head is as faithful as on the texts without their padding: means over their tokens, and the least of them."""
    made, whole = mixer(options), heads()._replace(padding=PADDING)
    found, texts = head_fidelity(made, whole), alone(whole)
    each = [head_fidelity(made, text) for text in texts]
    lengths = torch.tensor([text.key.shape[2] for text in texts])[:, None]
    for name in ("kl", "entropy_teacher", "entropy_student", "negative_share"):
        values = torch.stack([getattr(one, name) for one in each])
        torch.testing.assert_close(
            getattr(found, name), (values * lengths).sum(0) / lengths.sum(), equal_nan=True, rtol=1e-4, atol=1e-6
        )
    if made.width:
        gates = torch.stack([one.gate for one in each])
        torch.testing.assert_close(found.gate, (gates * lengths).sum(0) / lengths.sum(), rtol=1e-4, atol=1e-6)
        far = (lengths - made.width).clamp(min=0)
        for name in ("far_teacher", "far_student"):
            values = torch.stack([getattr(one, name) for one in each]).nan_to_num()
            torch.testing.assert_close(getattr(found, name), (values * far).sum(0) / far.sum(), rtol=1e-4, atol=1e-6)
    least = torch.stack([one.smallest_denominator for one in each]).amin(0)
    torch.testing.assert_close(found.smallest_denominator, least, equal_nan=True)


def test_maps_to_look_at_are_without_padding():
    """Of a first text that is shorter than what is shown."""
    made, whole = mixer(POSITIVE["products"]), heads()._replace(padding=PADDING.flip(0))
    shown = look(made, whole, 1, LENGTH)
    assert shown["teacher"].shape == shown["student"].shape == (LENGTH - 3, LENGTH - 3)
    assert all(torch.allclose(each.sum(-1), torch.ones(())) for each in shown.values())
