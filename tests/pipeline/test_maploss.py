"""The losses of stage 1 against their definitions, as loops in float64: values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from distill import maploss
from distill.capture import Heads
from distill.flexformer.engine import Features
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer
from distill.maploss import layer_kl, log_student, log_teacher, map_kl, negative_share, output_error
from distill.mixer import swapped_options

from . import tiny

#: Two query heads per key-value head.
SHAPE = HeadShape(heads=4, kv_heads=2, head_dim=4)
BATCH, LENGTH, SCALING = 2, 7, 0.4
#: Of the tokens of two texts, those that are none.
PADDING = torch.ones(BATCH, LENGTH, dtype=torch.long)
PADDING[1, LENGTH - 3 :] = 0
PLAIN = swapped_options(tiny.PLAIN)
PRODUCTS = PLAIN | {"map": "nonstationary", "features": 18, "frequency_scale": 1.0, "positive": True, "order": 2}
POSITIVE = {
    "exponential": PLAIN | {"map": "exponential", "features": 6, "frequency_scale": 1.0, "key_weight": "quadratic"},
    "products": PRODUCTS | {"key_weight": "linear"},
}
POSITIVE["decaying"] = POSITIVE["exponential"] | {"decay": "gated", "decay_groups": 2}
POSITIVE["hybrid"] = POSITIVE["decaying"] | {"window": 3}
SIGNED = PRODUCTS | {"positive": False, "key_weight": "linear"}
NORM = PLAIN | {"map": "identity", "decay": "learned", "normaliser": "norm"}


def mixer(options: dict, seed: int = 0) -> Mixer:
    torch.manual_seed(seed)
    made = Mixer(SHAPE, options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.7)
    return made


def heads(seed: int = 1, size: float = 1.0) -> Heads:
    source = torch.Generator().manual_seed(seed)
    sizes = ((SHAPE.heads, size), (SHAPE.kv_heads, size), (SHAPE.kv_heads, 1.0))
    drawn = [scale * torch.randn(BATCH, count, LENGTH, SHAPE.head_dim, generator=source) for count, scale in sizes]
    return Heads(torch.nn.Identity(), *drawn, SCALING)


def teacher_weights(given: Heads, b: int, h: int, i: int) -> Tensor:
    """P_ij over j ≤ i."""
    g = h // SHAPE.group
    logits = [given.query[b, h, i].double() @ given.key[b, g, j].double() * SCALING for j in range(i + 1)]
    return torch.stack(logits).softmax(0)


def student_scores(made: Mixer, given: Heads) -> Tensor:
    """S (B, H, N, N), which the tests of mixers compare with the formula."""
    return made.scores(given.query.double(), given.key.double(), given.scaling).flatten(1, 2)


def student_output(made: Mixer, s: Tensor, values: Tensor, h: int) -> Tensor:
    if made.normaliser.averages:
        return s @ values / s.sum()
    y = s @ values
    return made.normaliser.gain[h] * y / (y.square().mean() + 1e-6).sqrt()


def loop_kl(given: Heads, made: Mixer, rows: range | list[int]) -> Tensor:
    total, scores = [], student_scores(made, given)
    for h in range(SHAPE.heads):
        terms = []
        for b in range(BATCH):
            for i in rows:
                p, s = teacher_weights(given, b, h, i), scores[b, h, i, : i + 1]
                a = s / s.sum()
                terms.append(sum(p[j] * (p[j].log() - a[j].log()) for j in range(i + 1)))
        total.append(torch.stack(terms).mean())
    return torch.stack(total)


def loop_output_error(given: Heads, made: Mixer) -> Tensor:
    result, scores = [], student_scores(made, given)
    for h in range(SHAPE.heads):
        wrong, size = 0.0, 0.0
        for b in range(BATCH):
            for i in range(LENGTH):
                p, s = teacher_weights(given, b, h, i), scores[b, h, i, : i + 1]
                values = given.value[b, h // SHAPE.group, : i + 1].double()
                wrong = wrong + (p @ values - student_output(made, s, values, h)).square().sum()
                size = size + (p @ values).square().sum()
        result.append(wrong / size)
    return torch.stack(result)


def loop_negative_share(given: Heads, made: Mixer) -> Tensor:
    result, scores = [], student_scores(made, given)
    for h in range(SHAPE.heads):
        rows = [scores[b, h, i, : i + 1] for b in range(BATCH) for i in range(LENGTH)]
        shares = [sum(max(-x, 0 * x) for x in row) / sum(abs(x) for x in row) for row in rows]
        result.append(torch.stack(shares).mean())
    return torch.stack(result)


def kl(given: Heads, made: Mixer, queries: Tensor | None = None) -> Tensor:
    return map_kl(log_teacher(given, queries), log_student(made, given, queries))


def assert_same(found: Tensor, expected: Tensor, made: Mixer) -> None:
    """Values per head, and gradients of a sum that weighs every head differently."""
    assert found.shape == (SHAPE.heads,)
    torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-6)
    weights = torch.arange(1.0, 1.0 + SHAPE.heads, dtype=torch.float64)
    parameters = list(made.parameters())
    ours = torch.autograd.grad((found.double() * weights).sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    for mine, right in zip(ours, theirs, strict=True):
        assert right.abs().max() > 1e-4
        torch.testing.assert_close(mine, right, rtol=1e-3, atol=1e-4 * right.abs().max().item())


@pytest.mark.parametrize("name", POSITIVE)
def test_map_kl(name: str):
    made, given = mixer(POSITIVE[name]), heads()
    assert_same(kl(given, made), loop_kl(given, made, range(LENGTH)), made)


@pytest.mark.parametrize("name", POSITIVE)
def test_map_kl_of_chosen_queries(name: str):
    made, given, rows = mixer(POSITIVE[name]), heads(), [5, 0, 2]
    expected = loop_kl(given, made, rows)
    assert_same(kl(given, made, torch.tensor(rows)), expected, made)


def in_blocks(monkeypatch: pytest.MonkeyPatch, on_cpu: int, queries: int) -> None:
    """As on a processor, so many queries to a block; or as on one that holds no more than so many."""
    monkeypatch.setattr(maploss, "CPU_BLOCK", on_cpu)
    monkeypatch.setattr(maploss, "TILE", queries * BATCH * SHAPE.heads * LENGTH)


BLOCKS = {"one": (64, LENGTH), "two": (4, LENGTH), "computed again": (64, 2), "each alone": (64, 0)}


#: An encoder's mixers have neither decay nor a window.
BOTH_WAYS = [(name, True) for name in POSITIVE] + [("exponential", False), ("products", False)]


@pytest.mark.parametrize("rows", [None, [0, 2, 5, 6]], ids=["all", "chosen"])
@pytest.mark.parametrize(("name", "causal"), BOTH_WAYS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_map_kl_in_blocks(blocks: str, name: str, rows: list[int] | None, causal: bool, monkeypatch):
    made, given = mixer(POSITIVE[name]), heads()._replace(causal=causal)
    made.causal = causal
    queries = None if rows is None else torch.tensor(rows)
    in_blocks(monkeypatch, *BLOCKS[blocks])
    for padding in (None, PADDING):
        text = given._replace(padding=padding)
        expected = map_kl(log_teacher(text, queries), log_student(made, text, queries), padding, queries)
        assert_same(layer_kl(made, text, queries), expected.double(), made)


@pytest.mark.parametrize("name", POSITIVE)
def test_no_map_is_kept_that_does_not_fit_into_a_tile(name: str, monkeypatch: pytest.MonkeyPatch):
    """What is kept for the way back grows with the text as queries and features do."""
    made = mixer(POSITIVE[name])

    def in_all(length: int) -> int:
        monkeypatch.setattr(maploss, "TILE", 4 * SHAPE.heads * length)
        drawn = [torch.randn(1, count, length, SHAPE.head_dim) for count in (4, 2, 2)]
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
            layer_kl(made, Heads(torch.nn.Identity(), *drawn, SCALING))
        return sum(kept)

    assert in_all(96) < 2.5 * in_all(48)


def test_map_kl_runs_from_the_teacher_to_the_student():
    """In a case small enough to do by hand: P = (½, ½), A = (¾, ¼)."""
    teacher, student = (torch.tensor(row).log()[None, None, None, None] for row in ([0.5, 0.5], [0.75, 0.25]))
    expected = 0.5 * torch.tensor([0.5 / 0.75, 0.5 / 0.25]).log().sum()
    torch.testing.assert_close(map_kl(teacher, student), expected[None])
    assert map_kl(teacher, teacher) == 0


def test_maps_of_chosen_queries_are_the_same_rows():
    made, given, rows = mixer(POSITIVE["products"]), heads(), torch.tensor([6, 1, 3])
    torch.testing.assert_close(log_teacher(given, rows), log_teacher(given)[..., rows, :])
    whole = log_student(made, given)
    torch.testing.assert_close(log_student(made, given, rows), whole[..., rows, :])
    assert torch.allclose(whole.exp().sum(-1), torch.ones(()))
    assert (whole.exp().triu(1) == 0).all()


@pytest.mark.parametrize("options", [*POSITIVE.values(), SIGNED, NORM], ids=[*POSITIVE, "signed", "norm"])
def test_output_error(options: dict):
    made, given = mixer(options, seed=3), heads()
    assert_same(output_error(made, given), loop_output_error(given, made), made)


def alone(given: Heads) -> list[Heads]:
    """Each text by itself, without its padding."""
    cut = [[x[b : b + 1, :, PADDING[b] != 0] for x in (given.query, given.key, given.value)] for b in range(BATCH)]
    return [Heads(torch.nn.Identity(), *each, SCALING, given.causal) for each in cut]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both directions"])
@pytest.mark.parametrize("queries", [None, torch.tensor([6, 1, 3])], ids=["all", "chosen"])
def test_padding_is_neither_attended_to_nor_compared(causal: bool, queries: Tensor | None):
    """Every mean over queries is one over the tokens that are there, as if each text had been read alone."""
    made = mixer(POSITIVE["products"])
    made.causal = causal
    whole = heads()._replace(padding=PADDING, causal=causal)
    there = [PADDING[b, :LENGTH] != 0 if queries is None else PADDING[b, queries] != 0 for b in range(BATCH)]
    rows = [torch.arange(LENGTH)[real] if queries is None else queries[real] for real in there]
    each = [kl(text, made, mine) * len(mine) for text, mine in zip(alone(whole), rows, strict=True)]
    maps = log_teacher(whole, queries), log_student(made, whole, queries)
    found = map_kl(*maps, PADDING, queries)
    assert_same(found, sum(each).double() / sum(map(len, rows)), made)


def test_errors_and_shares_are_of_real_tokens():
    made, whole = mixer(SIGNED), heads()._replace(padding=PADDING)
    error, size, share, count = 0.0, 0.0, 0.0, 0
    for text in alone(whole):
        wanted = log_teacher(text).exp() @ text.value[:, :, None]
        norm = wanted.square().sum((0, 3, 4)).flatten()
        error, size = error + output_error(made, text) * norm, size + norm
        length = text.key.shape[2]
        share = share + length * negative_share(made.scores(text.query, text.key, SCALING))
        count += length
    torch.testing.assert_close(output_error(made, whole), error / size)
    weights = made.scores(whole.query, whole.key, SCALING, PADDING)
    torch.testing.assert_close(negative_share(weights, PADDING), share / count)


def test_negative_share():
    made, given = mixer(SIGNED), heads()
    found = negative_share(made.scores(given.query, given.key, given.scaling))
    assert found.min() > 0.001 and found.max() > 0.05
    assert_same(found, loop_negative_share(given, made), made)


def test_positive_weights_have_no_negative_share():
    made, given = mixer(POSITIVE["products"]), heads()
    assert (negative_share(made.scores(given.query, given.key, given.scaling)) == 0).all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("below", [-1e-3, 1e-9])
def test_a_kernel_below_its_minimum_counts_as_the_minimum(below: float, groups: int, monkeypatch: pytest.MonkeyPatch):
    """`below` stands for what rounding made of the kernel of the last query and the first key; w is 0."""
    made, given = mixer(PRODUCTS | {"decay": "learned", "decay_groups": groups}, seed=5), heads()
    made.decay.log_rate.data.fill_(-40.0)
    depth = 0.95 * made.map.raw_depth.sigmoid().unflatten(-1, (-1, 2))
    least = torch.stack([made.map.amplitude[h].softmax(0) @ (1 - depth[h // 2]).prod(-1) for h in range(SHAPE.heads)])
    assert (least > 1e-6).all()
    query = torch.ones(1, SHAPE.heads, 2, groups)
    key = torch.tensor([below, 2.0])[:, None].expand(1, SHAPE.kv_heads, 2, groups) / groups
    made_of = Features(query, key, torch.zeros(1, SHAPE.kv_heads, 2), torch.zeros(1, SHAPE.kv_heads, 2, groups))
    monkeypatch.setattr(made, "features", lambda *args: made_of)
    found = log_student(made, given._replace(query=query, key=key)).flatten(1, 2)
    expected = torch.stack([least, torch.full_like(least, 2.0)], -1)
    torch.testing.assert_close(found[0, :, 1].exp(), expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("name", POSITIVE)
def test_extreme_logits_stay_finite(name: str, size: float):
    made, given = mixer(POSITIVE[name]), heads(size=size)
    loss = kl(given, made) + output_error(made, given)
    loss.sum().backward()
    assert loss.isfinite().all() and all(each.grad.isfinite().all() for each in made.parameters())


def test_kernels_that_vanish_stay_finite(monkeypatch: pytest.MonkeyPatch):
    """In float32 a product of softmax features can be 0, whose logarithm is not to be taken."""
    made, given = mixer(POSITIVE["exponential"]), heads()
    features = made.features

    def faded(*args: Any) -> Features:
        whole = features(*args)
        return whole._replace(query=whole.query * 1e-30, key=whole.key * 1e-30)

    monkeypatch.setattr(made, "features", faded)
    loss = map_kl(log_teacher(given), log_student(made, given))
    loss.sum().backward()
    assert loss.isfinite().all() and all(each.grad.isfinite().all() for each in made.parameters())
