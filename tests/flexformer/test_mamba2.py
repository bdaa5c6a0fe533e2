"""The engine with a step for each token is Mamba-2's scan, as transformers has it."""

import pytest
import torch
from torch.nn.functional import silu, softplus
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from distill.flexformer.engine import SUMS, Features

HEADS, HEAD_DIM, GROUPS, STATE, LENGTH = 4, 8, 2, 6, 13
CONFIG = Mamba2Config(
    hidden_size=16,
    expand=2,
    num_heads=HEADS,
    head_dim=HEAD_DIM,
    n_groups=GROUPS,
    state_size=STATE,
    conv_kernel=4,
    chunk_size=5,
    num_hidden_layers=1,
)


@pytest.fixture(scope="module")
def theirs() -> Mamba2Mixer:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(CONFIG, layer_idx=0)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.5)
        mixer.D.zero_()
    return mixer.eval()


@torch.no_grad()
@pytest.mark.parametrize("path", SUMS, ids=SUMS._fields)
def test_the_recurrence_is_mamba2s(theirs: Mamba2Mixer, path):
    """φ = 1, query C, key B, value x, log γ = −e^A Δ, w = log Δ; compared before the gate and the norm."""
    scanned = []
    hook = theirs.norm.register_forward_pre_hook(lambda module, given: scanned.append(given[0]))
    hidden = torch.randn(2, LENGTH, 16, generator=torch.Generator().manual_seed(1))
    theirs(hidden)
    hook.remove()

    inner, shared = HEADS * HEAD_DIM, GROUPS * STATE
    _, mixed, step = theirs.in_proj(hidden).split([inner, inner + 2 * shared, HEADS], -1)
    mixed = silu(theirs.conv1d(mixed.mT)[..., :LENGTH]).mT
    x, b, c = mixed.split([inner, shared, shared], -1)
    value = x.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)
    key, query = (
        each.unflatten(-1, (GROUPS, STATE)).repeat_interleave(HEADS // GROUPS, 2).transpose(1, 2) for each in (b, c)
    )
    step = softplus(step + theirs.dt_bias).transpose(1, 2)
    features = Features(query, key, step.log(), -(theirs.A_log.exp()[:, None] * step)[..., None])
    (sums, shift), _ = path(features, value)
    found = (sums[..., :-1] * shift.exp()[..., None]).transpose(1, 2).flatten(2)
    assert found.std() > 0.05
    torch.testing.assert_close(found, scanned[0].float(), rtol=1e-4, atol=1e-5)
