"""What each part of a hybrid does: the finished student with the window alone, and with the linear part alone."""

from typing import Any

from ..config import Config
from ..data import Corpus
from ..flexformer.constant import Zero
from ..flexformer.mixer import PARTS
from ..flexformer.model import Flexformer
from ..rundir import RunDirectory
from .perplexity import Reading, read_domains


def read_parts(student: Flexformer, corpus: Corpus, config: Config, run: RunDirectory) -> dict[str, dict[str, Reading]]:
    """A reading of every domain per part, of a student that has both; nothing for any other."""
    mixers: list[Any] = [mixer for mixer in student.mixers.values() if mixer.width]
    mixers = [mixer for mixer in mixers if not isinstance(mixer.map, Zero)]
    found = {}
    for part in PARTS if mixers else ():
        for mixer in mixers:
            mixer.parts = {part}
        found[part] = read_domains(student, corpus, config, run)
    for mixer in mixers:
        mixer.parts = set(PARTS)
    return found
