"""The loss of stage 2 against an explicit loop."""

import math

import pytest
import torch
from torch import Tensor

from distill import divergence
from distill.divergence import logit_kl


def draw(seed: int, batch: int = 2, length: int = 3, vocabulary: int = 5) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, length, vocabulary, generator=source, dtype=torch.float64)


def softmax(logits: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in logits]
    return [x / sum(powers) for x in powers]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_against_a_loop(temperature: float):
    teacher, student = draw(0), draw(1)
    rows = zip(teacher.flatten(0, 1).tolist(), student.flatten(0, 1).tolist(), strict=True)
    kls = []
    for of_teacher, of_student in rows:
        p, s = softmax(of_teacher, temperature), softmax(of_student, temperature)
        kls.append(sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, s, strict=True)))
    expected = temperature**2 * sum(kls) / len(kls)
    assert logit_kl(teacher, student, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient(temperature: float):
    """∂/∂student = T (softmax(student/T) − softmax(teacher/T)) / tokens."""
    teacher, student = draw(0), draw(1).requires_grad_()
    logit_kl(teacher, student, temperature).backward()
    gap = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, temperature * gap.detach() / 6)


@pytest.mark.parametrize("together", [1, 5, 10, 1000])
def test_however_many_are_held_against_each_other_at_a_time(together: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(divergence.AT_A_TIME, "cpu", together)
    teacher, student, other = draw(0), draw(1).mT.contiguous().mT.requires_grad_(), draw(1).requires_grad_()
    loss, expected = logit_kl(teacher, student, 2.0), 4 * divergence.divergence(teacher, other, 2.0).mean()
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(student.grad, other.grad)


def test_it_goes_back_once():
    student = draw(1).requires_grad_()
    loss = logit_kl(draw(0), student, 1.0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="is gone"):
        loss.backward()


def test_scaled_gradients_of_float16_are_not_lost():
    """As a scaler makes them: what a token adds to the mean over many is less than float16 tells from nothing."""
    teacher, student = (draw(seed, 8, 512, 40).half() for seed in (0, 1))
    student.requires_grad_()
    (65536 * logit_kl(teacher, student, 1.0)).backward()
    gap = 65536 * (student.detach().double().softmax(-1) - teacher.double().softmax(-1)) / (8 * 512)
    torch.testing.assert_close(student.grad.double(), gap, rtol=2e-3, atol=1e-6)


def test_equal_logits_cost_nothing():
    teacher = draw(0)
    assert logit_kl(teacher, teacher.clone(), 1.0).item() == 0
    assert logit_kl(teacher, teacher + 7.0, 2.0).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("repeats", [(3, 1, 1), (1, 4, 1)])
def test_neither_batch_nor_length_scales_it(repeats: tuple[int, int, int]):
    teacher, student = draw(0), draw(1)
    once, again = logit_kl(teacher, student, 1.0), logit_kl(teacher.repeat(repeats), student.repeat(repeats), 1.0)
    torch.testing.assert_close(once, again)


def test_extreme_logits_stay_finite():
    teacher, student = 1e4 * draw(0).float(), (1e4 * draw(1).float()).requires_grad_()
    loss = logit_kl(teacher, student, 1.0)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()


def test_half_precision_is_widened_before_anything_is_lost():
    teacher, student = draw(0).bfloat16(), draw(1).bfloat16().requires_grad_()
    for temperature in (1.0, 3.0):
        loss = logit_kl(teacher, student, temperature)
        wide = logit_kl(teacher.double(), student.double(), temperature)
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(wide.item(), rel=1e-5)
