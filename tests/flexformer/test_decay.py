"""Each form of decay against its formula, and what the papers make of it."""

import math

import pytest
import torch

from distill.flexformer.decay import DECAYS, FASTEST, GROUPED, SLOWEST, half_lives
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.mixer import Mixer

from .examples import PLAIN, SHAPE, draw, randomise
from .paths import PATHS
from .reference import GAMMAS, share, step

EXACT = {"rtol": 1e-12, "atol": 1e-14}
GROUPS = {form: 3 if form in GROUPED else 1 for form in DECAYS}
RETNET = PLAIN | {"map": "identity", "decay": "fixed", "normaliser": "norm"}


@pytest.mark.parametrize("form", DECAYS)
def test_decay_is_the_formula(form: str):
    decay, key = randomise(DECAYS[form](SHAPE, GROUPS[form]).double()), draw(0, 5).key
    log_gamma, weight = decay(key)
    assert log_gamma.shape == (2, SHAPE.kv_heads, 5, GROUPS[form])
    weights = {"selective": step, "delta": share}
    assert (weight is not None) == (form in weights)
    for b, g, i in torch.cartesian_prod(*map(torch.arange, key.shape[:3])).tolist():
        torch.testing.assert_close(log_gamma[b, g, i].exp(), GAMMAS[type(decay)](decay, g, key[b, g, i]), **EXACT)
        if weight is not None:
            torch.testing.assert_close(weight[b, g, i].exp(), weights[form](decay, g, key[b, g, i]), **EXACT)


@pytest.mark.parametrize("form", sorted(DECAYS.keys() - {"none"}))
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_weights_never_grow_and_stay_numbers(form: str, size: float):
    decay, key = randomise(DECAYS[form](SHAPE, GROUPS[form])), size * draw(0, 50, dtype=torch.float32).key
    log_gamma, weight = decay(key.requires_grad_())
    assert log_gamma.isfinite().all() and (log_gamma <= 0).all() and (log_gamma < 0).any()
    if weight is not None:
        assert weight.isfinite().all()
        gradients = torch.autograd.grad(weight.sum() + log_gamma.sum(), (key, *decay.parameters()))
        assert all(each.isfinite().all() for each in gradients)


@pytest.mark.parametrize("form", GROUPED)
def test_half_lives_at_the_start(form: str):
    """Whatever the keys: from the slowest group to the fastest in equal ratios, and the same in every head."""
    log_gamma, _ = DECAYS[form](SHAPE, 5).double()(draw(0, 4).key)
    found = math.log(0.5) / log_gamma
    torch.testing.assert_close(found[0, 0, 0], half_lives(5).double(), rtol=1e-5, atol=0)
    assert (found == found[0, 0, 0]).all()
    assert half_lives(5).tolist() == pytest.approx([4096, 1024, 256, 64, 16])
    assert half_lives(1).tolist() == [SLOWEST] and half_lives(2).tolist() == pytest.approx([SLOWEST, FASTEST])


@pytest.mark.parametrize("form", ["selective", "delta"])
def test_heads_start_with_different_memories(form: str):
    log_gamma, weight = DECAYS[form](HeadShape(6, 3, 4), 1).double()(draw(0, 4, shape=HeadShape(6, 3, 4)).key)
    torch.testing.assert_close(math.log(0.5) / log_gamma[1, :, 2, 0], half_lives(3).double(), rtol=1e-5, atol=0)
    # e^a = 1 at first: Δ is −log γ. A key of the delta rule starts with half of its place.
    expected = -log_gamma[..., 0] if form == "selective" else torch.full_like(weight, 0.5)
    torch.testing.assert_close(weight.exp(), expected)


def test_fixed_decay_is_exact_in_float32():
    """γ₁₅ = 1 − 2⁻²⁰ is near the resolution of float32; its logarithm is not."""
    shape = HeadShape(16, 16, 4)
    found, _ = DECAYS["fixed"](shape, 1)(draw(0, 1, shape=shape, dtype=torch.float32).key)
    expected = torch.tensor([math.log1p(-(2.0 ** (-5 - h))) for h in range(16)])
    torch.testing.assert_close(found[0, :, 0, 0], expected, rtol=1e-6, atol=0)
    assert not list(DECAYS["fixed"](shape, 1).parameters())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_retnet(path):
    """S_n = γ S_{n−1} + k_nᵀ v_n, o_n = q_n S_n, γ_h = 1 − 2^(−5−h), up to the norm of the output."""
    shape = HeadShape(heads=3, kv_heads=3, head_dim=4)
    mixer, (q, k, v, *_) = randomise(Mixer(shape, RETNET).double()), draw(0, 12, shape=shape)
    out, _ = mixer(q, k, v, 0.5, path=path(mixer))
    for h in range(3):
        gamma = 1 - 2.0 ** (-5 - h)
        state = torch.zeros(2, 4, 4, dtype=torch.float64)
        for n in range(12):
            state = gamma * state + 0.5 * k[:, h, n, :, None] * v[:, h, n, None, :]
            y = (q[:, h, n, None, :] @ state).squeeze(1)
            expected = mixer.normaliser.gain[h] * y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            torch.testing.assert_close(out[:, h, n], expected, rtol=1e-9, atol=1e-9)


def test_a_group_is_a_run_of_atoms():
    """The faster half fades first: what is left is the kernel of the first atoms alone."""
    options = PLAIN | {"map": "exponential", "features": 6, "frequency_scale": 1.0, "decay_groups": 2}
    mixer, (q, k, *_) = randomise(Mixer(SHAPE, options | {"decay": "learned"}).double()), draw(0, 9)
    mixer.decay.log_rate.data = torch.tensor([[-40.0, 10.0]] * 2).double()
    found = mixer.scores(q, k, 0.5).flatten(1, 2)
    position = torch.zeros(2, 9, dtype=torch.long)
    query, (key, _) = mixer.map.query_features(q * 0.5**0.5, position), mixer.map.key_features(k * 0.5**0.5, position)
    slow = query[..., :3] @ key[..., :3].repeat_interleave(SHAPE.group, 1).mT
    torch.testing.assert_close(found.tril(-1), slow.tril(-1), **EXACT)
    whole = query @ key.repeat_interleave(SHAPE.group, 1).mT
    torch.testing.assert_close(found.diagonal(dim1=-2, dim2=-1), whole.diagonal(dim1=-2, dim2=-1), **EXACT)


@pytest.mark.parametrize("form", sorted(DECAYS.keys() - {"none"}))
def test_padding_fades_nothing(form: str):
    """A hole in the text, however long, leaves what came before it as it was."""
    mixer = Mixer(SHAPE, PLAIN | {"map": "elu", "decay": form}).double()
    q, k, v, *_ = draw(0, 40)
    padding = torch.ones(2, 40, dtype=torch.long)
    padding[:, 3:38] = 0
    real = padding[0].bool()
    whole, alone = mixer(q, k, v, 0.5, padding)[0], mixer(*(x[:, :, real] for x in (q, k, v)), 0.5)[0]
    torch.testing.assert_close(whole[:, :, real], alone, **EXACT)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_past_forgotten_at_once_costs_the_rest_no_digits(path):
    """Where one token's step is huge, float32 still tells apart those that follow it."""
    torch.manual_seed(0)
    options = PLAIN | {"map": "exponential", "features": 6, "frequency_scale": 1.0, "decay": "selective"}
    mixer = randomise(Mixer(SHAPE, options).double())
    q, k, v = draw(8, 60)[:3]
    k[:, :, 10] = 1e6 * mixer.decay.direction.detach()
    exact, _ = mixer(q, k, v, 0.5, path=path(mixer))
    rough, _ = mixer.float()(q.float(), k.float(), v.float(), 0.5, path=path(mixer))
    torch.testing.assert_close(rough[:, :, 12:].double(), exact[:, :, 12:], rtol=1e-3, atol=1e-3)
