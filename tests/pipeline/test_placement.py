"""Where frequencies start: centroids of the keys that the teacher makes of the text."""

from pathlib import Path

import pytest
import torch

from distill.placement import centroids, place_kernels
from distill.student import build_student
from distill.teacher import Teacher

from . import tiny
from .conftest import compose, sized
from .test_teacher import load


def clusters(seed: int) -> torch.Tensor:
    """Two heads of 40 points around four places each, far from each other."""
    torch.manual_seed(seed)
    places = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0], [20.0, 20.0]]) + torch.tensor([[[0.0]], [[100.0]]])
    return (places[:, :, None] + 0.1 * torch.randn(2, 4, 10, 2)).flatten(1, 2)


def test_centroids_are_means_of_the_points_near_them():
    points = clusters(0)
    found = centroids(points, 4)
    nearest = torch.cdist(points, found).argmin(-1)
    for head in range(2):
        for each in nearest[head].unique():
            expected = points[head][nearest[head] == each].mean(0)
            torch.testing.assert_close(found[head, each], expected, rtol=1e-4, atol=1e-4)


def test_fewer_points_than_centroids():
    points = clusters(1)[:, :3]
    found = centroids(points, 7)
    assert found.shape == (2, 7, 2) and found.isfinite().all()
    assert torch.cdist(points, found).amin(-1).max() < 1e-3


@pytest.fixture(params=["gpt2", "llama"])
def teacher(request: pytest.FixtureRequest, teachers: dict[str, Path]) -> Teacher:
    return load(teachers[request.param])


@pytest.mark.parametrize("name", ["exponential", "spectral", "exponential-decay", "exponential-window"])
def test_every_layer_starts_nearer_to_its_own_keys(teacher: Teacher, name: str):
    """Closer than drawn at random, and than the other layer's centroids."""
    mixers = build_student(teacher, compose(*sized(name)).mixer).mixers
    corpus = tiny.corpus(8)
    layers = teacher.heads(next(iter(corpus.batches(1, 8, 0))))
    keys = [(heads.key * heads.scaling**0.5).transpose(0, 1).flatten(1, 2) for heads in layers]

    def distances() -> torch.Tensor:
        """[layer of the keys][layer of the mixer]"""
        places = [mixer.map.key_frequency.detach()[:, : mixer.map.centroids] for mixer in mixers.values()]
        return torch.tensor([[torch.cdist(own, place).amin(-1).mean() for place in places] for own in keys])

    drawn = distances()
    place_kernels(teacher, mixers, corpus, 0, torch.device("cpu"))
    placed = distances()
    assert (placed.diagonal() < 0.9 * drawn.diagonal()).all()
    assert placed[0, 0] < placed[0, 1] and placed[1, 1] < placed[1, 0]


@pytest.mark.parametrize("name", ["nonstationary", "hedgehog", "exponential-frozen", "spectral-frozen", "favor"])
def test_what_is_no_place_or_frozen_keeps_its_draw(teacher: Teacher, name: str):
    mixers = build_student(teacher, compose(*sized(name)).mixer).mixers
    before = [each.clone() for mixer in mixers.values() for each in mixer.state_dict().values()]
    place_kernels(teacher, mixers, tiny.corpus(8), 0, torch.device("cpu"))
    after = [each for mixer in mixers.values() for each in mixer.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_layers_that_stay_exact_are_passed_over(teacher: Teacher):
    """Each mixer is placed among the keys of its own layer, wherever that is in the list."""
    alone = build_student(teacher, compose(*sized("exponential"), "mixer.exact_layers=[0]").mixer).mixers
    both = build_student(teacher, compose(*sized("exponential")).mixer).mixers
    assert list(alone) == [1]
    for mixers in (alone, both):
        place_kernels(teacher, mixers, tiny.corpus(8), 0, torch.device("cpu"))
    heads = teacher.heads(next(iter(tiny.corpus(8).batches(1, 8, 0))))[1]
    keys = (heads.key * heads.scaling**0.5).transpose(0, 1).flatten(1, 2)
    own, same, other = (
        torch.cdist(keys, mixer.map.key_frequency.detach()).amin(-1).mean().item()
        for mixer in (alone[1], both[1], both[0])
    )
    assert own < other and own == pytest.approx(same, rel=0.1)


def test_padding_is_no_place(teachers: dict[str, Path]):
    """Keys of padding, far from all others, draw no centroid to them."""
    teacher = load(teachers["gpt2"])
    mixers = build_student(teacher, compose(*sized("exponential")).mixer).mixers
    corpus = tiny.corpus(8)
    heads = teacher.heads(next(iter(corpus.batches(1, 8, 0))))
    real = torch.ones(8, tiny.CONTEXT, dtype=torch.long)
    real[:, 20:] = 0
    far = [each._replace(key=each.key + 1000.0 * (1 - real)[:, None, :, None], padding=real) for each in heads]
    teacher.heads = lambda batch: far  # type: ignore[method-assign]
    place_kernels(teacher, mixers, corpus, 0, torch.device("cpu"))
    for mixer in mixers.values():
        assert mixer.map.key_frequency[:, : mixer.map.centroids].abs().max() < 100
