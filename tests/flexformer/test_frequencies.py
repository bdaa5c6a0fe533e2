"""Frequencies at the start: orthogonal, Gaussian row by row, and decided by the seed."""

import torch

from distill.flexformer.favor import Favor
from distill.flexformer.feature_map import HeadShape, draw_frequencies
from distill.flexformer.options import MAPS

from .examples import EXAMPLES, SHAPE

#: Independent draws, one per head, and how far a mean of so many may stray (five standard errors).
DRAWS = 8000
FAR = 5 / DRAWS**0.5


def test_orthogonal_within_blocks():
    torch.manual_seed(0)
    frequency = draw_frequencies(3, 10, 4, 0.5).double()
    assert frequency.shape == (3, 10, 4)
    for block in frequency.split(4, 1):
        gram = block @ block.mT
        assert (gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))).abs().max() < 1e-5
    between = frequency[:, :4] @ frequency[:, 4:8].mT
    assert between.abs().min() > 1e-5


def test_every_coordinate_is_gaussian():
    """Mean 0, variance scale², kurtosis 3, in every row and column of the block, the last and incomplete one too."""
    torch.manual_seed(0)
    frequency = draw_frequencies(DRAWS, 6, 4, 0.3).double() / 0.3
    assert frequency.mean(0).abs().max() < FAR
    assert (frequency.square().mean(0) - 1).abs().max() < FAR * 2**0.5
    assert (frequency.pow(4).mean(0) - 3).abs().max() < FAR * 96**0.5
    assert (frequency.square().sum(-1).mean(0) - 4).abs().max() < FAR * 8**0.5


def test_the_seed_decides():
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(draw_frequencies(2, 5, 3, 1.0))
    assert torch.equal(draws[0], draws[1])
    assert not torch.isclose(draws[0], draws[2]).any()


def test_favor_is_unbiased():
    """E[κ] = exp(q·k), once the query's dropped maximum is put back."""
    torch.manual_seed(0)
    favor = Favor(HeadShape(DRAWS, DRAWS, 4), features=6, redraw_every=0).double()
    q, k = torch.tensor([[0.5, -0.3, 0.2, 0.4], [0.3, 0.6, -0.1, 0.2]], dtype=torch.float64)
    query, key = (x.expand(1, DRAWS, 1, 4) for x in (q, k))
    position = torch.zeros(1, 1, dtype=torch.long)
    features, log_scale = favor.key_features(key, position)
    dropped = (favor.frequency @ q - q @ q / 2).amax(-1)
    estimates = (favor.query_features(query, position) * features).sum((0, 2, 3)) * (log_scale[0, :, 0] + dropped).exp()
    assert estimates.std() > 0.1
    assert (estimates.mean() - (q @ k).exp()).abs() < FAR * estimates.std()


def test_scales_are_those_of_the_options():
    """`frequency_scale` reaches every map that takes one; `amplitude_scale` only spectral's amplitudes."""
    for name, examples in EXAMPLES.items():
        for options, _ in examples:
            if "frequency_scale" in options:
                first, second = [], []
                for scale, found in ((1.0, first), (0.1, second)):
                    torch.manual_seed(0)
                    drawn = MAPS[name](SHAPE, **options | {"frequency_scale": scale})
                    found += [p for n, p in drawn.named_parameters() if "frequency" in n or "partner" in n]
                for one, two in zip(first, second, strict=True):
                    waves = slice(one.shape[1] // 2 if name == "spectral" else 0, None)
                    torch.testing.assert_close(two[:, waves], 0.1 * one[:, waves])


def test_spectral_amplitude_scale():
    torch.manual_seed(0)
    drawn = MAPS["spectral"](SHAPE, features=600, frequency_scale=0.1, amplitude_scale=2.0)
    for frequency in (drawn.query_frequency, drawn.key_frequency):
        assert 1.8 < frequency[:, :200].std() < 2.2
        assert 0.09 < frequency[:, 200:].std() < 0.11


def test_query_and_key_start_from_one_draw():
    """The untrained kernel already favours keys that resemble the query."""
    for name, options in (("exponential", {}), ("spectral", {"amplitude_scale": 1.0})):
        drawn = MAPS[name](SHAPE, features=12, frequency_scale=1.0, **options)
        assert torch.equal(drawn.query_frequency, drawn.key_frequency.repeat_interleave(SHAPE.group, 0))
    drawn = MAPS["nonstationary"](SHAPE, features=12, frequency_scale=1.0, positive=True, order=1)
    assert torch.equal(drawn.query_frequency, drawn.key_frequency.repeat_interleave(SHAPE.group, 0))
