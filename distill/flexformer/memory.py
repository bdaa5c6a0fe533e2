"""What decoding remembers of a layer."""

from typing import NamedTuple

from torch import Tensor


class Memory(NamedTuple):
    """All that decoding remembers of a layer, whatever the length.

    sums (B, K, F, D+1) and maximum (B, K, R): the linear part's state.
    seen (B,): tokens so far, padding not counted. keys, values (B, K, w, D), present (B, w): the window, as it came in.
    """

    sums: Tensor
    maximum: Tensor
    seen: Tensor
    keys: Tensor
    values: Tensor
    present: Tensor
