"""The loss of stage 2 by its kernel, run by Triton's interpreter where there is no GPU, against float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from flexformer.interpreted import DEVICE, close
from torch import Tensor

from distill import divergence, logit_kernel
from distill.divergence import WHAT, has_kernel, logit_kl
from distill.flexformer import attempt
from distill.flexformer.attempt import KERNELS, PYTORCH
from distill.logit_kernel import row_kls, scale


def drawn(rows: int, width: int, dtype: torch.dtype, size: float = 3.0) -> list[Tensor]:
    torch.manual_seed(rows + width)
    return [(size * torch.randn(rows, width, device=DEVICE)).to(dtype) for _ in range(2)]


def expected(teacher: Tensor, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """In float64: KL of each row, and T (s − p) over their number."""
    log_p, log_s = ((each.double() / temperature).log_softmax(-1) for each in (teacher, student))
    return (log_p.exp() * (log_p - log_s)).sum(-1), temperature * (log_s.exp() - log_p.exp()) / len(student)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.5])
@pytest.mark.parametrize(
    ("rows", "width", "dtype"),
    [(3, 70, torch.float32), (1, 1, torch.float32), (2, 64, torch.bfloat16), (5, 65, torch.float16)],
)
def test_against_float64(rows: int, width: int, dtype: torch.dtype, temperature: float, monkeypatch: Any):
    # Several blocks, whose last is not whole.
    monkeypatch.setattr(logit_kernel, "AT_ONCE", 16)
    teacher, student = drawn(rows, width, dtype)
    held = torch.float32 if dtype == torch.float16 else dtype
    # Rows lie apart, each as far as it will.
    teacher, student = F.pad(teacher, (0, 3))[:, :width], F.pad(student, (0, 1))[:, :width]
    gradient = torch.full((rows, width + 5), torch.nan, dtype=held, device=DEVICE)[:, :width]
    kls, by_student = expected(teacher, student, temperature)
    found = row_kls(teacher, student, gradient, temperature)
    close(found, kls, 1e-5, "KL", 1e-3)
    close(gradient, by_student, 4e-3 if dtype == torch.bfloat16 else 1e-5, "gradient", 1e-3)
    assert torch.equal(row_kls(teacher, student, None, temperature), found)


@pytest.mark.parametrize("temperature", [1.5, 2.0, 3.0, 4.0, 5.0])
def test_fewer_tokens_than_are_had_at_once(temperature: float):
    """On a GPU alone, which multiplies and subtracts in one, there was something left of tokens that there are not.

    `compile_kernels` looks for that where there is none.
    """
    teacher, student = drawn(3, 40, torch.float32)
    gradient = torch.empty_like(student)
    kls, by_student = expected(teacher, student, temperature)
    close(row_kls(teacher, student, gradient, temperature), kls, 1e-5, "KL", 1e-3)
    close(gradient, by_student, 1e-5, "gradient", 1e-3)


@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_logits_that_hardly_differ_and_extreme_ones(size: float):
    teacher, student = drawn(4, 50, torch.float32, size)
    gradient = torch.empty_like(student)
    kls, by_student = expected(teacher, student, 1.0)
    # float32's own, of logarithms of 1/50.
    close(row_kls(teacher, student, gradient, 1.0), kls, 1e-5, "KL", 0.1)
    close(gradient, by_student, 1e-5, "gradient", 1e-2)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("spoiled", [0, 1])
@pytest.mark.parametrize("tokens", [slice(7, 8), slice(None)])
def test_what_is_no_number_stays_none(spoiled: int, tokens: slice):
    """A run ends where its loss is none."""
    given = drawn(3, 40, torch.float32)
    given[spoiled][1, tokens] = torch.nan
    gradient = torch.empty_like(given[1])
    found = row_kls(*given, gradient, 2.0)
    assert found.isnan().tolist() == [False, True, False]
    assert gradient.isfinite().all(-1).tolist() == [True, False, True]


@pytest.mark.parametrize("least", [-2e9, -1e20, -1e30])
def test_masks_of_any_size(least: float):
    """In both, beside which nothing is left of what they are taken from."""
    teacher, student = drawn(3, 40, torch.float32)
    teacher[:, ::3] = student[:, ::3] = least
    gradient = torch.empty_like(student)
    kls, by_student = expected(teacher, student, 2.0)
    close(row_kls(teacher, student, gradient, 2.0), kls, 1e-5, "KL", 1e-3)
    close(gradient, by_student, 1e-5, "gradient", 1e-3)


def test_rows_that_lie_across():
    teacher, student = drawn(6, 40, torch.float32)
    expected = row_kls(teacher, student, None, 1.0)
    for pair in ((across(teacher), student), (teacher, across(student))):
        assert torch.equal(row_kls(*pair, None, 1.0), expected)


def across(rows: Tensor) -> Tensor:
    return rows.T.contiguous().T


@pytest.mark.parametrize("kls", [row_kls, divergence.kls_in_parts])
@pytest.mark.parametrize("both", [True, False])
def test_a_token_of_no_chance(both: bool, kls: divergence.Kls):
    """−∞ in both costs nothing; in the student alone as much as can be told from more."""
    teacher, student = drawn(3, 40, torch.float32)
    without = kls(teacher[:, 1:].contiguous(), student[:, 1:].contiguous(), None, 1.0)
    student[:, 0] = -torch.inf
    teacher[:, 0] = -torch.inf if both else teacher[:, 0]
    gradient = torch.empty_like(student)
    found = kls(teacher, student, gradient, 1.0)
    if both:
        close(found, without, 1e-5, "KL", 1e-3)
    assert found.isfinite().all() and (both or found.min() > 1e26)
    # Of all others, this one has none to lose.
    assert gradient.isfinite().all() and (gradient[:, 0] == 0).all() == both


@pytest.mark.parametrize("both", [False, True])
def test_a_token_that_there_must_not_be(both: bool):
    """Whose logit is the least of float32, as models write it."""
    teacher, student = drawn(4, 50, torch.float32)
    for each in (teacher, student) if both else (student,):
        each[:, 7] = torch.finfo(torch.float32).min
    gradient = torch.empty_like(student)
    kls, by_student = expected(teacher, student, 1.0)
    found = row_kls(teacher, student, gradient, 1.0)
    # Of a token that the student alone has not the loss is as large as can be.
    assert found.isfinite().all() if both else (found > 1e20).all()
    if both:
        close(found, kls, 1e-5, "KL")
    close(gradient, by_student, 1e-5, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.3, -2.0])
def test_a_gradient_is_scaled(factor: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """What lies beside it is not."""
    monkeypatch.setattr(logit_kernel, "SCALED", 64)
    room = torch.randn(200, device=DEVICE).to(dtype)
    before, x = room.clone(), room[:150].view(10, 15)
    assert scale(x, torch.tensor(factor, device=DEVICE)) is x
    torch.testing.assert_close(room[:150].float(), (before[:150].float() * factor).to(dtype).float(), rtol=0, atol=0)
    assert torch.equal(room[150:], before[150:])


def test_a_factor_that_is_no_number_is_told():
    assert scale(torch.ones(3, device=DEVICE), torch.tensor(torch.nan, device=DEVICE)).isnan().all()


def logits(rows: int = 2, width: int = 5, **changed: Any) -> Any:
    like = {"is_cuda": True, "device": "cuda", "dtype": torch.bfloat16, "shape": (rows, width)}
    return SimpleNamespace(**like | changed, numel=lambda: rows * width)


def test_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    """Elsewhere PyTorch tells what it does not like of shapes."""
    assert has_kernel(logits(), logits()) and has_kernel(logits(dtype=torch.float32), logits())
    wide = logits(dtype=torch.float64)
    for pair in ((wide, logits()), (logits(), wide), (logits(3), logits(2)), (logits(2, 6), logits()), 2 * [logits(0)]):
        assert not has_kernel(*pair)
    assert not has_kernel(logits(device="cpu"), logits())
    assert not has_kernel(*2 * [logits(is_cuda=False, device="cpu")])
    monkeypatch.setattr(attempt, "_given_up", {WHAT})
    assert not has_kernel(logits(), logits())


@pytest.mark.parametrize("forwards", [True, False])
def test_a_run_takes_it_and_tells(forwards: bool, monkeypatch: pytest.MonkeyPatch):
    """Where there is one; and what it cannot do, PyTorch does after a word, from then on."""
    monkeypatch.setattr(divergence, "has_kernel", lambda *rows: attempt.possible(WHAT))
    monkeypatch.setattr(attempt, "taken", {})
    monkeypatch.setattr(attempt, "_given_up", set())
    teacher, student = (each.unflatten(0, (2, 3)) for each in drawn(6, 40, torch.float32))
    # As a head may leave them.
    teacher = teacher.mT.contiguous().mT

    def losses() -> list[Tensor]:
        asked = student.clone().requires_grad_()
        loss = logit_kl(teacher, asked, 2.0)
        return [loss.detach(), *torch.autograd.grad(3 * loss, asked)]

    asked: list[Tensor] = []
    monkeypatch.setattr(logit_kernel, "scale", lambda x, factor: asked.append(factor) or scale(x, factor))
    found = losses()
    assert [each.item() for each in asked] == [3]
    monkeypatch.setattr(logit_kernel, "row_kls" if forwards else "scale", refused)
    with pytest.warns(UserWarning, match="^the loss of logits goes through PyTorch, .*: no compiler$"):
        torch.testing.assert_close(found, losses(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found, losses(), rtol=1e-4, atol=1e-7)
    assert attempt.taken == {WHAT: [KERNELS, PYTORCH]}


def refused(*given: Any) -> None:
    raise RuntimeError("no compiler")
