"""Where learned frequencies start: on the teacher's own keys, instead of at random."""

import torch
from torch import Tensor

from .data import Corpus
from .flexformer.token_mixer import TokenMixer
from .teacher import Teacher

#: Blocks of text whose keys are looked at.
BLOCKS = 8
#: Rounds of Lloyd's algorithm. The centroids are a start, not a result.
ROUNDS = 5


@torch.no_grad()
def place_kernels(
    teacher: Teacher, mixers: dict[int, TokenMixer], corpus: Corpus, seed: int, device: torch.device
) -> None:
    """Gives every map that wants them the centroids of the keys that its layer makes of some training text."""
    batch = {name: each.to(device) for name, each in next(iter(corpus.batches(1, BLOCKS, seed))).items()}
    teacher.to(device)
    heads = teacher.heads(batch)
    for layer, mixer in mixers.items():
        if mixer.centroids:
            keys = heads[layer].key.float().transpose(0, 1).flatten(1, 2) * heads[layer].scaling ** 0.5
            real = heads[layer].padding
            mixer.place(centroids(keys if real is None else keys[:, real.flatten() != 0], mixer.centroids))


def centroids(points: Tensor, count: int) -> Tensor:
    """k-means (Lloyd): points (K, P, D) → centroids (K, count, D); one that nothing is near stays where it began."""
    found = points[:, torch.randperm(points.shape[1], device=points.device)[:count]]
    if found.shape[1] < count:
        # Fewer points than centroids: some start twice, and training parts them.
        found = found[:, torch.arange(count, device=points.device) % found.shape[1]]
    for _ in range(ROUNDS):
        member = torch.nn.functional.one_hot(torch.cdist(points, found).argmin(-1), count).to(points.dtype)
        size = member.sum(1)[..., None]
        found = torch.where(size > 0, member.mT @ points / size.clamp(min=1), found)
    return found
