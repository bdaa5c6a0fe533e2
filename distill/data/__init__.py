"""From text to batches.

`domains` reads what the configuration names: texts, which `sources` finds (the `stdlib` corpus, local `files`, the hub)
and `packing` cuts into blocks of tokens; or rows of `tables`: a `labelled` text, two in `pairs`, or a `chat`. `mixture`
deals out the blocks of all domains by weight; `digest` tells whether they are what they were.
"""

from .digest import digests
from .domains import prepare, training_texts
from .mixture import Corpus

__all__ = ["Corpus", "digests", "prepare", "training_texts"]
