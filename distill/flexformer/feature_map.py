"""The contract that every feature map keeps.

Shape suffixes used in this folder: B batch, H query heads, K key-value heads, N tokens, D head_dim,
M atoms (frequencies), F feature dimension.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class HeadShape(NamedTuple):
    """What a mixer has to know of the attention that it replaces."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.heads // self.kv_heads


class FeatureMap(nn.Module):
    """A kernel κ(q, k) = φ_q(q)·φ_k(k), with φ_q, φ_k: R^D → R^F.

    Queries and keys arrive after projection and position encoding, each scaled by √scaling. A key's features may
    come with a log-scale c(k), so that the kernel is e^{c(k)} φ_q(q)·φ_k(k): the engine carries it in a running
    maximum, and nothing overflows.

    `position` (B, N) counts each token within its text from 0, padding not counted; few maps use it.
    """

    #: Every kernel value is above 0 and has a logarithm. If not, denominators can vanish, and there is no log loss.
    positive = True
    #: And it stays so with features rounded to bfloat16. Not where they have signs and their sum can be next to nought.
    coarse = True
    #: Float32 tells its least value from nought.
    clear = True
    #: The parameters that are frequencies: what `freeze` keeps at the draw.
    frequencies: tuple[str, ...] = ()
    #: Training steps after which `redraw` is called; 0: never.
    redraw_every = 0
    #: Features that one atom makes. They lie side by side, so that decay can differ between atoms and not within one.
    per_atom = 1
    #: Denominators below this in magnitude are replaced by it (with their sign).
    epsilon = 1e-20
    #: Features have length 1 as they are.
    unit = False
    #: How many points of key space `place` takes; 0 for a map whose frequencies are no such points.
    centroids = 0

    def __init__(self, shape: HeadShape, feature_dim: int):
        super().__init__()
        self.shape = shape
        self.feature_dim = feature_dim

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        """(B, H, N, D) → (B, H, N, F)."""
        raise TypeError(f"{type(self).__name__} defines no query features")

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, K, N, D) → features (B, K, N, F) and their log-scale (B, K, N), None where it is 0."""
        raise TypeError(f"{type(self).__name__} defines no key features")

    def dropped(self, query: Tensor) -> Tensor | None:
        """Log of the factor that `query_features` leaves out, (B, H, N), None where there is none.

        The normaliser cancels it, but not beside a window.
        """
        return None

    def place(self, centroids: Tensor) -> None:
        """Start from these points among the scaled keys, (K, `centroids`, D), instead of from the draw."""
        raise TypeError(f"{type(self).__name__} has no frequencies to place")

    def freeze(self) -> None:
        """Keep the frequencies at the draw, under the same names: the control for learning them."""
        self.centroids = 0
        for name in self.frequencies:
            frequency = self.get_parameter(name).detach()
            delattr(self, name)
            self.register_buffer(name, frequency)

    def redraw(self) -> None:
        """Draw the random frequencies anew."""
        raise TypeError(f"{type(self).__name__} has no frequencies to redraw")

    def minimum(self) -> Tensor | None:
        """What each atom adds to κ at least, (H, M): rounding must not take the kernel below. None: just above 0."""
        return None


def project(x: Tensor, frequency: Tensor) -> Tensor:
    """Per head ω_m·x: (B, H, N, D) and (H, M, D) → (B, H, N, M)."""
    # A model served in half precision has such parameters; the arithmetic stays in that of x, which is float32.
    return x @ frequency.transpose(-1, -2).to(x.dtype)


def atoms(features: int, per_atom: int, name: str) -> int:
    """How many atoms of `per_atom` features each fit into `features`; the rest is left unused."""
    if features < per_atom:
        raise ValueError(f"mixer.features={features} is too small for {name}: it needs at least {per_atom}")
    return features // per_atom


def draw_frequencies(heads: int, rows: int, head_dim: int, scale: float) -> Tensor:
    """Frequencies (heads, rows, head_dim) ~ N(0, scale² I), orthogonal in blocks of head_dim.

    Each block is a random rotation whose rows get the lengths of independent Gaussian vectors, so that every
    row alone is exactly Gaussian and the rows of a block repel each other (Yu et al. 2016, arXiv:1610.09072).
    """
    blocks = -(-rows // head_dim)
    rotation, upper = torch.linalg.qr(torch.randn(heads, blocks, head_dim, head_dim))
    # QR as libraries compute it prefers some signs; with the diagonal of R positive its Q is uniform.
    rotation = rotation * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
    lengths = torch.randn(heads, blocks, head_dim, head_dim).norm(dim=-1, keepdim=True)
    return scale * (rotation * lengths).flatten(1, 2)[:, :rows].contiguous()
