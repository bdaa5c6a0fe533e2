"""Linear attention by kernels in what is compiled: one graph, the same numbers, forwards and backwards."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from distill.flexformer import attempt, linear, linear_operator
from distill.flexformer import mixer as mixer_module
from distill.flexformer.linear_layout import Sizes
from distill.flexformer.parameters import parameters
from distill.stages.fit import matmul_precision
from flexformer.interpreted import DEVICE, made, text
from flexformer.test_linear import CASES, OTHERS, SCALING

#: Interpreted, each takes its time.
ALL = CASES | OTHERS
SOME = list(ALL) if DEVICE == "cuda" else ["grouped queries", "hedgehog"]
PADDED = list(ALL) if DEVICE == "cuda" else ["window"]


@pytest.fixture(autouse=True)
def nothing_compiled() -> None:
    torch._dynamo.reset()


def taken(mixer: Any, given: list[Tensor], call: Any) -> tuple[Tensor, ...]:
    """Outputs, memory, and the gradients of everything that has some."""
    inputs = [each.detach().requires_grad_() for each in given]
    out, memory = call(*inputs, SCALING)
    assert not any(each.requires_grad for each in memory[:2])
    torch.manual_seed(1)
    learned = [*inputs, *(each for each in mixer.parameters() if each.requires_grad)]
    by = torch.autograd.grad(out, learned, torch.randn_like(out), allow_unused=True)
    return out, *memory, *(each for each in by if each is not None)


@pytest.mark.parametrize("name", SOME)
def test_it_is_the_same_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch):
    shape, options = ALL[name]
    mixer, given = made(shape, options), text(shape, 90, dtype=torch.bfloat16)
    expected = taken(mixer, given, lambda *of: linear.launched(mixer, *of, None, None))
    if DEVICE == "cpu":
        # Where they are interpreted they have to be asked for.
        monkeypatch.setattr(mixer_module, "has_kernels", lambda *of: True)
    # As for any other backend; no compiler is needed.
    found = taken(mixer, given, torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager"))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if DEVICE == "cpu" else 1e-2)


@pytest.mark.parametrize("name", PADDED)
def test_padding_and_memory_go_into_the_graph(name: str, monkeypatch: pytest.MonkeyPatch):
    shape, options = ALL[name]
    mixer, given = made(shape, options), text(shape, 90, dtype=torch.bfloat16)
    padding = torch.ones(2, 90, dtype=torch.long, device=DEVICE)
    padding[0, :40] = padding[1, 80:] = 0
    monkeypatch.setattr(mixer_module, "has_kernels", lambda *of: True)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False, backend="aot_eager")
    expected = taken(mixer, given, lambda *of: linear.launched(mixer, *of, padding, None))
    found = taken(mixer, given, lambda *of: compiled(*of, padding))
    first, rest = ([each[:, :, part] for each in given] for part in (slice(20), slice(20, None)))
    with torch.no_grad():
        _, memory = linear.launched(mixer, *first, SCALING, padding[:, :20], None)
        begun = (SCALING, padding[:, 20:], memory)
        out, after = linear.launched(mixer, *rest, *begun)
        again, after_again = compiled(*rest, *begun)
    for one, other in zip([*found, again, *after_again], [*expected, out, *after], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0 if DEVICE == "cpu" else 1e-2)


def test_kernels_that_fail_are_left_to_pytorch_next_time(monkeypatch: pytest.MonkeyPatch):
    def refused(*of: Any, launched: bool = True) -> Any:
        if launched:
            raise ValueError("no such GPU")
        return forwards(*of, launched=False)

    shape, options = CASES["plain"]
    mixer, given = made(shape, options), text(shape, 9, dtype=torch.bfloat16)
    forwards = linear_operator.forwards
    monkeypatch.setattr(attempt, "_given_up", set())
    monkeypatch.setattr(mixer_module, "has_kernels", lambda *of: attempt.possible(attempt.LINEAR))
    expected = mixer(*given, SCALING, path=mixer.ways.chunked)[0]
    monkeypatch.setattr(linear_operator, "forwards", refused)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    with pytest.raises(attempt.NoKernels, match="linear attention cannot be used here: no such GPU"):
        compiled(*given, SCALING)
    torch.testing.assert_close(compiled(*given, SCALING)[0], expected)


def test_one_graph_serves_many_lengths(monkeypatch: pytest.MonkeyPatch):
    shape, options = CASES["window"]
    mixer = made(shape, options)
    monkeypatch.setattr(mixer_module, "has_kernels", lambda *of: True)
    compiled = torch.compile(mixer, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (70, 130):
        given = text(shape, length, dtype=torch.bfloat16)
        expected = linear.launched(mixer, *given, SCALING, None, None)[0]
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = compiled(*given, SCALING)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if DEVICE == "cpu" else 1e-2)


def test_every_way_is_told(monkeypatch: pytest.MonkeyPatch):
    """Of mixers that have kernels, and of those that have none, by what the compiler has looked into."""
    monkeypatch.setattr(attempt, "taken", {})
    shape, options = CASES["plain"]
    mixer, given = made(shape, options), text(shape, 5, dtype=torch.bfloat16)
    for there in (True, False):
        monkeypatch.setattr(mixer_module, "has_kernels", lambda *of, there=there: there)
        torch._dynamo.reset()
        torch.compile(mixer, fullgraph=True, backend="aot_eager")(*given, SCALING)
    assert attempt.taken == {attempt.LINEAR: [attempt.KERNELS, attempt.PYTORCH]}


class There(NamedTuple):
    """Queries on a GPU, as far as they are looked at."""

    is_cuda: bool
    dtype: torch.dtype
    shape: torch.Size
    device: torch.device


@pytest.mark.parametrize("name", CASES)
def test_that_there_are_kernels_is_seen_in_one_graph(name: str, monkeypatch: pytest.MonkeyPatch):
    shape, options = ALL[name]
    mixer, (query, _, value) = made(shape, options), text(shape, 9, dtype=torch.bfloat16)
    monkeypatch.setattr(linear, "roomy", lambda device: True)

    def asked(query: Tensor, value: Tensor) -> Tensor:
        there: Any = There(True, query.dtype, query.shape, query.device)
        return query + int(linear.has_kernels(mixer, there, value))

    asking = torch.compile(asked, fullgraph=True, backend="eager")
    assert torch.equal(asking(query, value), query + 1)
    # Of float32, only where its products are of bfloat16.
    wide = query.float(), value.float()
    with matmul_precision("medium"):
        assert torch.equal(asking(*wide), wide[0] + 1)
    with matmul_precision("highest"):
        assert torch.equal(asking(*wide), wide[0])


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
