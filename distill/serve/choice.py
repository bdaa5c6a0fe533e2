"""Which token comes next: what a request wants, and the choice it leads to."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

#: The warpers look at logits alone.
NOTHING_SAID: Any = torch.empty(1, 0, dtype=torch.long)


@dataclass(frozen=True)
class Wanted:
    """How a request wants its answer written.

    temperature: 0 takes the likeliest token. frequency_penalty, presence_penalty: taken off the logit of a token for
    each time it was said, and for its having been said at all. logit_bias: by token, added. stop: texts that end the
    answer and are not part of it.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    seed: int | None = None


class Choice:
    """Chooses the tokens of one answer; with a seed always the same ones, whoever else is answered meanwhile."""

    def __init__(self, wanted: Wanted):
        self.wanted = wanted
        self.said: Counter[int] = Counter()
        self.generator = torch.Generator()
        self.generator.seed() if wanted.seed is None else self.generator.manual_seed(wanted.seed)
        self.warpers = LogitsProcessorList()
        if wanted.temperature:
            self.warpers.append(TemperatureLogitsWarper(wanted.temperature))
            if wanted.top_k:
                self.warpers.append(TopKLogitsWarper(wanted.top_k))
            if wanted.top_p < 1:
                self.warpers.append(TopPLogitsWarper(wanted.top_p))

    def __call__(self, logits: Tensor) -> int:
        """The next token, from logits (V,) on the CPU."""
        scores = self.corrected(logits.float())
        if self.wanted.temperature:
            # From the largest down, or one divided by next to nothing is no number.
            likely = self.warpers(NOTHING_SAID, (scores - scores.max())[None]).softmax(-1)
            token = int(torch.multinomial(likely[0], 1, generator=self.generator))
        else:
            token = int(scores.argmax())
        self.said[token] += 1
        return token

    def corrected(self, logits: Tensor) -> Tensor:
        """Less likely what was said before, more or less likely what the request says so of."""
        wanted, change = self.wanted, dict(self.wanted.logit_bias)
        if wanted.frequency_penalty or wanted.presence_penalty:
            for token, times in self.said.items():
                less = wanted.frequency_penalty * times + wanted.presence_penalty
                change[token] = change.get(token, 0.0) - less
        if not change:
            return logits
        at = torch.tensor(list(change))
        return logits.index_add(0, at, torch.tensor(list(change.values()), dtype=logits.dtype))
