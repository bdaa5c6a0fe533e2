"""One token through a student as a function of tensors alone: (token, state) → (logits, state)."""

from torch import Tensor, nn

from ..flexformer.model import FlexformerForCausalLM
from ..states import empty, memories, restored, tensors

#: What the layers remember, by their index and the part's name: "0.sums". Every tensor has a fixed shape.
State = dict[str, Tensor]


class Step(nn.Module):
    """(token (B, 1), state) → (logits (B, V) of the token after it, the state that has read it).

    A token's position is how many its state has seen, so that rows of different lengths stand side by side.
    """

    def __init__(self, student: FlexformerForCausalLM):
        super().__init__()
        self.student = student

    def forward(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        whole = tensors(empty(self.student, len(token))) | state
        cache = restored(whole, self.student.new_cache(), 1, token.device)
        place = memories(cache)[0].seen[:, None]
        out = self.student(input_ids=token, position_ids=place, past_key_values=cache, use_cache=True)
        after = tensors(out.past_key_values)
        return out.logits[:, -1], {name: after[name] for name in state}


def start(student: FlexformerForCausalLM, batch: int) -> State:
    """The state before the first token, of `batch` rows; without parts of no numbers, as a window of no tokens."""
    return {name: part for name, part in tensors(empty(student, batch)).items() if part.numel()}
