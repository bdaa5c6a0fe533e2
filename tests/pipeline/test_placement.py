"""Where frequencies start: centroids of the keys that the teacher makes of the text."""

from pathlib import Path

import pytest
import torch

from distill.placement import centroids, place_kernels
from distill.student import build_student
from distill.teacher import Teacher

from . import tiny
from .conftest import compose
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


@pytest.mark.parametrize("name", ["exponential", "spectral"])
def test_every_layer_starts_nearer_to_its_own_keys(teacher: Teacher, name: str):
    """Closer than drawn at random, and than the other layer's centroids."""
    mixers = build_student(teacher, compose(f"mixer={name}", "mixer.features=36").mixer).mixers
    corpus = tiny.corpus(8)
    layers = teacher.heads(next(iter(corpus.batches(1, 8, 0)))["input_ids"])
    keys = [(heads.key * heads.scaling**0.5).transpose(0, 1).flatten(1, 2) for heads in layers]

    def distances() -> torch.Tensor:
        """[layer of the keys][layer of the mixer]"""
        places = [mixer.map.key_frequency.detach()[:, : mixer.map.centroids] for mixer in mixers]
        return torch.tensor([[torch.cdist(own, place).amin(-1).mean() for place in places] for own in keys])

    drawn = distances()
    place_kernels(teacher, mixers, corpus, 0, torch.device("cpu"))
    placed = distances()
    assert (placed.diagonal() < 0.9 * drawn.diagonal()).all()
    assert placed[0, 0] < placed[0, 1] and placed[1, 1] < placed[1, 0]


def test_maps_whose_frequencies_are_no_places_keep_their_draw(teacher: Teacher):
    mixers = build_student(teacher, compose("mixer=nonstationary", "mixer.features=27").mixer).mixers
    before = [parameter.clone() for mixer in mixers for parameter in mixer.parameters()]
    place_kernels(teacher, mixers, tiny.corpus(8), 0, torch.device("cpu"))
    after = [parameter for mixer in mixers for parameter in mixer.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
