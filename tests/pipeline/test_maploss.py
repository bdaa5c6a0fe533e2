"""The losses of stage 1 against their definitions, as loops in float64: values and gradients."""

import pytest
import torch
from torch import Tensor

from distill.flexformer.engine import Features
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer
from distill.maploss import log_student, log_teacher, map_kl, negative_share, output_error
from distill.teacher import Heads

#: Two query heads per key-value head.
SHAPE = HeadShape(heads=4, kv_heads=2, head_dim=4)
BATCH, LENGTH, SCALING = 2, 7, 0.4
PRODUCTS = {"map": "nonstationary", "features": 18, "frequency_scale": 1.0, "positive": True, "order": 2}
POSITIVE = {
    "exponential": {"map": "exponential", "features": 5, "frequency_scale": 1.0, "key_weight": "quadratic"},
    "products": PRODUCTS | {"key_weight": "linear"},
}
SIGNED = PRODUCTS | {"positive": False, "key_weight": "linear"}


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


def features(made: Mixer, given: Heads) -> Features:
    return made.features(given.query, given.key, given.scaling)


def teacher_weights(given: Heads, b: int, h: int, i: int) -> Tensor:
    """P_ij over j ≤ i."""
    g = h // SHAPE.group
    logits = [given.query[b, h, i].double() @ given.key[b, g, j].double() * SCALING for j in range(i + 1)]
    return torch.stack(logits).softmax(0)


def student_scores(made: Features, b: int, h: int, i: int) -> Tensor:
    """e^{w_j} κ_ij over j ≤ i."""
    g = h // SHAPE.group
    kappa = [made.query[b, h, i].double() @ made.key[b, g, j].double() for j in range(i + 1)]
    return torch.stack(kappa) * made.log_weight[b, g, : i + 1].double().exp()


def loop_kl(given: Heads, made: Features, rows: range | list[int]) -> Tensor:
    total = []
    for h in range(SHAPE.heads):
        terms = []
        for b in range(BATCH):
            for i in rows:
                p, s = teacher_weights(given, b, h, i), student_scores(made, b, h, i)
                a = s / s.sum()
                terms.append(sum(p[j] * (p[j].log() - a[j].log()) for j in range(i + 1)))
        total.append(torch.stack(terms).mean())
    return torch.stack(total)


def loop_output_error(given: Heads, made: Features) -> Tensor:
    result = []
    for h in range(SHAPE.heads):
        wrong, size = 0.0, 0.0
        for b in range(BATCH):
            for i in range(LENGTH):
                p, s = teacher_weights(given, b, h, i), student_scores(made, b, h, i)
                values = given.value[b, h // SHAPE.group, : i + 1].double()
                wrong = wrong + ((p - s / s.sum()) @ values).square().sum()
                size = size + (p @ values).square().sum()
        result.append(wrong / size)
    return torch.stack(result)


def loop_negative_share(made: Features) -> Tensor:
    result = []
    for h in range(SHAPE.heads):
        rows = [student_scores(made, b, h, i) for b in range(BATCH) for i in range(LENGTH)]
        shares = [sum(max(-x, 0 * x) for x in row) / sum(abs(x) for x in row) for row in rows]
        result.append(torch.stack(shares).mean())
    return torch.stack(result)


def kl(given: Heads, made: Mixer, queries: Tensor | None = None) -> Tensor:
    return map_kl(log_teacher(given, queries), log_student(made, features(made, given), queries))


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
    assert_same(kl(given, made), loop_kl(given, features(made, given), range(LENGTH)), made)


@pytest.mark.parametrize("name", POSITIVE)
def test_map_kl_of_chosen_queries(name: str):
    made, given, rows = mixer(POSITIVE[name]), heads(), [5, 0, 2]
    expected = loop_kl(given, features(made, given), rows)
    assert_same(kl(given, made, torch.tensor(rows)), expected, made)


def test_map_kl_runs_from_the_teacher_to_the_student():
    """In a case small enough to do by hand: P = (½, ½), A = (¾, ¼)."""
    teacher, student = (torch.tensor(row).log()[None, None, None, None] for row in ([0.5, 0.5], [0.75, 0.25]))
    expected = 0.5 * torch.tensor([0.5 / 0.75, 0.5 / 0.25]).log().sum()
    torch.testing.assert_close(map_kl(teacher, student), expected[None])
    assert map_kl(teacher, teacher) == 0


def test_maps_of_chosen_queries_are_the_same_rows():
    made, given, rows = mixer(POSITIVE["products"]), heads(), torch.tensor([6, 1, 3])
    torch.testing.assert_close(log_teacher(given, rows), log_teacher(given)[..., rows, :])
    made_features = features(made, given)
    whole = log_student(made, made_features)
    torch.testing.assert_close(log_student(made, made_features, rows), whole[..., rows, :])
    assert torch.allclose(whole.exp().sum(-1), torch.ones(()))
    assert (whole.exp().triu(1) == 0).all()


@pytest.mark.parametrize("options", [*POSITIVE.values(), SIGNED], ids=[*POSITIVE, "signed"])
def test_output_error(options: dict):
    made, given = mixer(options, seed=3), heads()
    made_features = features(made, given)
    assert_same(output_error(given, made_features), loop_output_error(given, made_features), made)


def test_negative_share():
    made, given = mixer(SIGNED), heads()
    made_features = features(made, given)
    found = negative_share(made_features)
    assert found.min() > 0.001 and found.max() > 0.05
    assert_same(found, loop_negative_share(made_features), made)


def test_positive_weights_have_no_negative_share():
    made = mixer(POSITIVE["products"])
    assert (negative_share(features(made, heads())) == 0).all()


@pytest.mark.parametrize("below", [-1e-3, 1e-9])
def test_a_kernel_below_its_minimum_counts_as_the_minimum(below: float):
    """`below` stands for what rounding made of the kernel of the last query and the first key; w is 0."""
    made = mixer(PRODUCTS | {"key_weight": "none"}, seed=5)
    depth = 0.95 * made.map.raw_depth.sigmoid().unflatten(-1, (-1, 2))
    least = torch.stack([made.map.amplitude[h].softmax(0) @ (1 - depth[h // 2]).prod(-1) for h in range(SHAPE.heads)])
    assert (least > 1e-6).all()
    query = torch.ones(1, SHAPE.heads, 2, 1)
    key = torch.tensor([below, 2.0])[:, None].expand(1, SHAPE.kv_heads, 2, 1)
    found = log_student(made, Features(query, key, torch.zeros(1, SHAPE.kv_heads, 2), 1e-20)).flatten(1, 2)
    expected = torch.stack([least, torch.full_like(least, 2.0)], -1)
    torch.testing.assert_close(found[0, :, 1].exp(), expected / expected.sum(-1, keepdim=True))


@pytest.mark.parametrize("size", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("name", POSITIVE)
def test_extreme_logits_stay_finite(name: str, size: float):
    made, given = mixer(POSITIVE[name]), heads(size=size)
    loss = kl(given, made) + output_error(given, features(made, given))
    loss.sum().backward()
    assert loss.isfinite().all() and all(each.grad.isfinite().all() for each in made.parameters())


def test_kernels_that_vanish_stay_finite():
    """In float32 a product of softmax features can be 0, whose logarithm is not to be taken."""
    made, given = mixer(POSITIVE["exponential"]), heads()
    faded = features(made, given)
    query = (faded.query * 1e-30).detach().requires_grad_()
    loss = map_kl(log_teacher(given), log_student(made, faded._replace(query=query, key=faded.key * 1e-30)))
    loss.sum().backward()
    assert loss.isfinite().all() and query.grad.isfinite().all()
