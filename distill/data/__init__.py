"""From text to batches: `sources` finds a domain's texts (the `stdlib` corpus, local `files`, the hub), `packing`
cuts them into blocks of tokens, once and for all, and `mixture` deals the blocks of all domains out by weight.
"""

from .mixture import Corpus, prepare, training_texts

__all__ = ["Corpus", "prepare", "training_texts"]
