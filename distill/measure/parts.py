"""What each part of a hybrid does: the finished student with the window alone, and with the linear part alone."""

from ..config import Config
from ..data import Corpus
from ..flexformer.mixer import PARTS
from ..flexformer.model import Flexformer
from ..rundir import RunDirectory
from .perplexity import Reading, read_domains
from .replaced import part, replaced


def read_parts(student: Flexformer, corpus: Corpus, config: Config, run: RunDirectory) -> dict[str, dict[str, Reading]]:
    """A reading of every domain per part, of a student that has both; nothing for any other."""
    found = {}
    for name in PARTS:
        alone = {layer: part(mixer, name) for layer, mixer in student.mixers.items()}
        if mixers := {layer: mixer for layer, mixer in alone.items() if mixer is not None}:
            with replaced(student, mixers):
                found[name] = read_domains(student, corpus, config, run)
    return found
