"""Linear attention by kernels in what is compiled: one graph, the same numbers, forwards and backwards."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from distill.flexformer import linear, linear_operator
from distill.flexformer import mixer as mixer_module
from distill.flexformer.linear_layout import Sizes
from distill.flexformer.parameters import parameters
from flexformer.interpreted import DEVICE, made, text
from flexformer.test_linear import CASES, SCALING


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def taken(mixer: Any, given: list[Tensor], call: Any) -> tuple[Tensor, ...]:
    """Outputs, memory, and the gradients of everything that has some."""
    inputs = [each.detach().requires_grad_() for each in given]
    out, memory = call(*inputs, SCALING)
    torch.manual_seed(1)
    learned = [*inputs, *(each for each in mixer.parameters() if each.requires_grad)]
    by = torch.autograd.grad(out, learned, torch.randn_like(out), allow_unused=True)
    return out, *memory, *(each for each in by if each is not None)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_same_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES[name]
    mixer, given = made(shape, options), text(shape, 130, dtype=torch.bfloat16)
    expected = taken(mixer, given, lambda *of: linear.launched(mixer, *of, None, None))
    if DEVICE == "cpu":
        # Where they are interpreted they have to be asked for.
        monkeypatch.setattr(mixer_module, "has_kernels", lambda *of: True)
    # As for any other backend; no compiler is needed.
    found = taken(mixer, given, torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if DEVICE == "cpu" else 1e-2)


def test_one_graph_serves_many_lengths(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["window"]
    mixer = made(shape, options)
    monkeypatch.setattr(mixer_module, "has_kernels", lambda *of: True)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (130, 70, 200):
        given = text(shape, length, dtype=torch.bfloat16)
        expected = linear.launched(mixer, *given, SCALING, None, None)[0]
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = compiled(*given, SCALING)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if DEVICE == "cpu" else 1e-2)


class There(NamedTuple):
    """Queries on a GPU, as far as they are looked at."""

    is_cuda: bool
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device


@pytest.mark.parametrize("name", CASES)
def test_that_there_are_kernels_is_seen_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES[name]
    mixer, (query, _, value) = made(shape, options), text(shape, 9, dtype=torch.bfloat16)
    monkeypatch.setattr(linear, "roomy", lambda device: True)

    def asked(query: Tensor, value: Tensor) -> Tensor:
        there: Any = There(True, query.dtype, query.shape, query.device)
        return query + int(linear.has_kernels(mixer, there, value))

    found = torch.compile(asked, fullgraph=True, backend="eager")(query, value)
    assert torch.equal(found, query + 1)


@pytest.mark.skipif(DEVICE == "cpu", reason="kernels are chosen on a GPU")
def test_a_mixer_takes_them_when_it_is_compiled(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["window"]
    mixer, given = made(shape, options), text(shape, 130, dtype=torch.bfloat16)
    called, forwards = [], linear_operator.forwards
    monkeypatch.setattr(linear_operator, "forwards", lambda *of, **more: called.append(1) or forwards(*of, **more))
    expected = linear.launched(mixer, *given, SCALING, None, None)[0]
    found = torch.compile(mixer, fullgraph=True, dynamic=False)(*given, SCALING)[0]
    torch.testing.assert_close(found, expected)
    assert called


def test_the_operator_is_what_pytorch_expects():
    """Of its room, its gradients, and what it leaves as it was."""
    shape, options = CASES["window"]
    mixer, (query, key, value) = made(shape, options), text(shape, 70, dtype=torch.bfloat16)
    sizes = Sizes(mixer.width, len(mixer.key_weight.coefficients), mixer.map.epsilon, SCALING**0.5, False)
    inputs = [each.requires_grad_() for each in (query, key, value)]
    given = [each.detach().requires_grad_() for each in parameters(mixer)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(linear_operator.forwards_operator, (*inputs, given, None, [], *sizes), test_utils=checks)
