"""What the papers say of their maps, beside the kernel's closed form."""

import math
from collections.abc import Callable

import pytest
import torch

from distill.flexformer.cosformer import Cosformer
from distill.flexformer.elu import Elu
from distill.flexformer.favor import Favor
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.hedgehog import Hedgehog
from distill.flexformer.options import MAPS
from distill.flexformer.rfa import Rfa
from distill.flexformer.t2r import T2r

from .examples import EXAMPLES, SHAPE, draw, randomise
from .test_frequencies import DRAWS, FAR
from .test_kernel import kernel_matrix

EXACT = {"rtol": 1e-12, "atol": 1e-14}
POSITION = torch.zeros(1, 1, dtype=torch.long)


def off_diagonal(frequency: torch.Tensor) -> torch.Tensor:
    gram = frequency @ frequency.mT
    return gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))


def test_favor_redraws_in_place_from_the_same_distribution():
    torch.manual_seed(0)
    favor = Favor(HeadShape(DRAWS, DRAWS, 4), features=6, redraw_every=3).double()
    assert favor.redraw_every == 3
    buffer, first = favor.frequency, favor.frequency.clone()
    favor.redraw()
    assert favor.frequency is buffer and buffer.dtype == torch.float64
    assert not torch.isclose(first, buffer, rtol=1e-6).any(-1).all(-1).any()
    assert off_diagonal(buffer[:, :4]).abs().max() < 1e-4
    assert (first * buffer).mean(0).abs().max() < FAR
    assert buffer.mean(0).abs().max() < FAR
    assert (buffer.square().mean(0) - 1).abs().max() < FAR * 2**0.5
    assert (buffer.pow(4).mean(0) - 3).abs().max() < FAR * 96**0.5


def test_favor_redraw_changes_the_kernel():
    torch.manual_seed(0)
    favor, inputs = Favor(SHAPE, features=6, redraw_every=1).double(), draw(0, 5)
    before = kernel_matrix(favor, inputs.query, inputs.key)
    favor.redraw()
    assert not torch.isclose(before, kernel_matrix(favor, inputs.query, inputs.key)).any()


def test_only_random_maps_redraw():
    for name, ((options, _), *_) in EXAMPLES.items():
        if name != "favor":
            assert MAPS[name](SHAPE, **options).redraw_every == 0
            with pytest.raises(TypeError):
                MAPS[name](SHAPE, **options).redraw()


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0, 1.0), (0.5, 2.0, 1.5, 0.1)])
def test_rfa_is_unbiased(scale: tuple[float, ...]):
    """E[κ] = exp(−|σ∘(q̂ − k̂)|²/2), which for σ = 1, as at the start, is exp(q̂·k̂ − 1)."""
    torch.manual_seed(0)
    rfa = Rfa(HeadShape(DRAWS, DRAWS, 4), features=12).double()
    sigma = torch.tensor(scale, dtype=torch.float64)
    if scale != (1.0, 1.0, 1.0, 1.0):
        rfa.scale.data.copy_(sigma)
    q, k = torch.tensor([[0.5, -0.3, 2.0, 0.4], [0.3, 0.6, -0.1, 0.2]], dtype=torch.float64)
    query, key = (x.expand(1, DRAWS, 1, 4) for x in (q, k))
    estimates = (rfa.query_features(query, POSITION) * rfa.key_features(key, POSITION)[0]).sum((0, 2, 3))
    q, k = q / q.norm(), k / k.norm()
    expected = (-(sigma * (q - k)).square().sum() / 2).exp()
    if rfa.scale.eq(1).all():
        torch.testing.assert_close(expected, (q @ k - 1).exp())
    assert estimates.std() > 0.1
    assert (estimates.mean() - expected).abs() < FAR * estimates.std()


@pytest.mark.parametrize("first", [0, 100_195, 10**9 - 10])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_cosformer_reweights_by_the_distance(first: int, dtype: torch.dtype, tolerance: float):
    """Far positions lose nothing, nor does passing a whole turn of 200; up to its floor it is relu's kernel."""
    horizon = 50
    cosformer, inputs = Cosformer(SHAPE, horizon), draw(0, 20, dtype=dtype)
    found = kernel_matrix(cosformer, inputs.query, inputs.key, first)
    assert found.dtype == dtype
    i, j = torch.arange(20)[:, None], torch.arange(20)
    cosine = torch.cos(math.pi * (i - j).double() / (2 * horizon)).to(dtype)
    query, key = (x.relu() + 1e-6 for x in (inputs.query, inputs.key.repeat_interleave(SHAPE.group, 1)))
    torch.testing.assert_close(found, query @ key.mT * cosine, rtol=0, atol=tolerance * 10)
    torch.testing.assert_close(found, inputs.query.relu() @ (key - 1e-6).mT * cosine, rtol=0, atol=1e-4)


def test_cosformer_is_positive_below_the_horizon_alone():
    ones = torch.ones(1, SHAPE.heads, 40, SHAPE.head_dim, dtype=torch.float64)
    cosformer = Cosformer(SHAPE, 30)
    values = kernel_matrix(cosformer, ones, ones[:, : SHAPE.kv_heads])
    distance = (torch.arange(40)[:, None] - torch.arange(40)).abs()
    assert (values[..., distance < 30] > 0).all() and (values[..., distance > 30] < 0).all()


def test_t2r_starts_half_alive_as_the_arc_cosine_kernel():
    """E[κ] = |q||k| (sin θ + (π − θ) cos θ)/π for an angle θ between q and k."""
    torch.manual_seed(0)
    t2r = T2r(HeadShape(DRAWS, DRAWS, 4), features=6).double()
    q, k = torch.tensor([[0.5, -0.3, 2.0, 0.4], [0.3, 0.6, -0.1, 0.2]], dtype=torch.float64)
    for other in (q, k, -q):
        query, key = (x.expand(1, DRAWS, 1, 4) for x in (q, other))
        query, key = t2r.query_features(query, POSITION), t2r.key_features(key, POSITION)[0]
        assert 0.49 < (query > 1e-6).double().mean() < 0.51
        estimates = (query * key).sum((0, 2, 3))
        sizes = q.norm() * other.norm()
        theta = (q @ other / sizes).clamp(-1, 1).acos()
        expected = sizes * (theta.sin() + (torch.pi - theta) * theta.cos()) / torch.pi
        assert (estimates.mean() - expected).abs() < FAR * estimates.std() + 1e-4


def test_elu_is_its_definition_and_keeps_small_values():
    x = torch.linspace(-30, 3, 331, dtype=torch.float64).expand(1, SHAPE.heads, SHAPE.head_dim, 331).mT
    features = Elu(SHAPE).query_features(x, POSITION)
    torch.testing.assert_close(features, torch.where(x > 0, x + 1, x.exp()), rtol=1e-12, atol=0)
    torch.testing.assert_close(features, torch.nn.functional.elu(x) + 1, **EXACT)
    assert (Elu(SHAPE).query_features(torch.full((1, 4, 1, 4), -30.0), POSITION) > 0).all()
    zero = torch.zeros(1, 4, 1, 4, requires_grad=True)
    Elu(SHAPE).query_features(zero, POSITION).sum().backward()
    assert (zero.grad == 1).all()


def test_hedgehog_starts_at_the_identity():
    hedgehog, inputs = Hedgehog(SHAPE, features=2 * SHAPE.head_dim).double(), draw(0, 6)
    query, (key, _) = hedgehog.query_features(inputs.query, POSITION), hedgehog.key_features(inputs.key, POSITION)
    for features, x in ((query, inputs.query), (key, inputs.key)):
        for sign, half in ((1, features[..., ::2]), (-1, features[..., 1::2])):
            e = torch.exp(sign * x)
            torch.testing.assert_close(half, e / e.sum(-1, keepdim=True), **EXACT)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_hedgehog_starts_from_different_unit_rows(count: int):
    torch.manual_seed(0)
    hedgehog = Hedgehog(SHAPE, features=2 * count + 1)
    rows = hedgehog.key_projection.detach()
    assert rows.shape == (SHAPE.kv_heads, count, SHAPE.head_dim)
    for block in rows.split(SHAPE.head_dim, 1):
        torch.testing.assert_close(block @ block.mT, torch.eye(block.shape[1]).expand(2, -1, -1), rtol=0, atol=1e-5)
    assert off_diagonal(rows).max() < 0.99
    assert torch.equal(rows[0, :4], torch.eye(4)) == (count >= 4)
    assert torch.equal(hedgehog.query_projection, rows.repeat_interleave(SHAPE.group, 0))


FORMS = pytest.mark.parametrize(
    ("name", "options", "kernel"),
    [(name, *example) for name, examples in EXAMPLES.items() for example in examples],
)


def build(name: str, options: dict):
    torch.manual_seed(0)
    return randomise(MAPS[name](SHAPE, **options).double())


@FORMS
def test_frozen_frequencies_are_kept_and_not_trained(name: str, options: dict, kernel: Callable):
    feature_map, inputs = build(name, options), draw(0, 6)
    before = {key: value.clone() for key, value in feature_map.state_dict().items()}
    trained = {key for key, _ in feature_map.named_parameters()}
    values = kernel_matrix(feature_map, inputs.query, inputs.key)
    feature_map.freeze()
    after = feature_map.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert {key for key, _ in feature_map.named_parameters()} == trained - set(feature_map.frequencies)
    assert torch.equal(kernel_matrix(feature_map, inputs.query, inputs.key), values)


@FORMS
def test_frequencies_are_what_multiplies_queries_and_keys(name: str, options: dict, kernel: Callable):
    """Which is what has head_dim columns: biases, depths and amplitudes stay learned."""
    feature_map = MAPS[name](HeadShape(4, 2, head_dim=7), **options)
    found = {key for key, value in feature_map.named_parameters() if value.shape[-1] == 7}
    assert found == set(feature_map.frequencies)


@FORMS
def test_features_give_the_closed_form(name: str, options: dict, kernel: Callable):
    """Its size, too, which a row sum would hide; but favor drops a factor of the query, which is put back."""
    feature_map, inputs = build(name, options), draw(21, 4)
    found = kernel_matrix(feature_map, inputs.query, inputs.key, 7)
    for b, h, i, j in torch.cartesian_prod(*map(torch.arange, found.shape)).tolist():
        g = h // SHAPE.group
        q, k = inputs.query[b, h, i], inputs.key[b, g, j]
        dropped = (feature_map.frequency[g] @ q - q @ q / 2).amax().exp() if name == "favor" else 1.0
        expected = kernel(feature_map, h, g, q, k, 7 + i, 7 + j).sum()
        torch.testing.assert_close(dropped * found[b, h, i, j], expected, rtol=1e-9, atol=1e-12)
