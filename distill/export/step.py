"""One token through a student as a function of tensors alone: (token, state) → (logits, state)."""

import torch
from torch import Tensor, nn

from ..flexformer.cache import CACHE
from ..flexformer.model import FlexformerForCausalLM
from ..states import empty, memories, restored, tensors

#: What the layers remember, by their index and the part's name: "0.sums". Every tensor has a fixed shape.
State = dict[str, Tensor]


class Step(nn.Module):
    """(token (B, 1), state) → (logits (B, V) of the token after it, the state that has read it).

    `start` is the state before the first token, of B = `batch` rows; parts that hold no number, as a window of no
    tokens, are left out. A token's position is how many its state has seen, so that rows of different lengths stand
    side by side.
    """

    def __init__(self, student: FlexformerForCausalLM, batch: int):
        super().__init__()
        # Or every state would keep what led to it, for gradients that nobody asks for.
        self.student = student.requires_grad_(False)
        parts = tensors(empty(student, batch))
        self.start: State = {name: part for name, part in parts.items() if part.numel()}
        self.left_out = {name: (part.shape, part.dtype) for name, part in parts.items() if not part.numel()}

    def forward(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        nothing = {name: torch.zeros(s, dtype=d, device=token.device) for name, (s, d) in self.left_out.items()}
        # How many tokens the cache has seen only decides about masks, which a single token has none of.
        cache = restored(state | nothing, self.student.new_cache(), 1, token.device)
        place = memories(cache)[0].seen[:, None]
        out = self.student(input_ids=token, position_ids=place, cache=cache, use_cache=True)
        after = tensors(getattr(out, CACHE))
        return out.logits[:, -1], {name: after[name] for name in state}
