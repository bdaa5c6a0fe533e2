"""The gate before a program is handed over: it says what the student says."""

import torch
from torch import Tensor

from ..flexformer.model import FlexformerForCausalLM
from ..parity import MOST, Apart, difference
from ..positions import within_positions
from .runtimes import Program
from .step import State

#: Tokens that a program writes to be looked at, after a window of others, as far as there are positions.
WRITTEN = 64
#: How far apart these others are in the vocabulary: what a text of one token says of a state is little.
STRIDE = 31


@torch.no_grad()
def agree(program: Program, student: FlexformerForCausalLM, state: State) -> tuple[int, int]:
    """How many tokens the program wrote, and how many of them the student, which reads them whole, would write: all,
    but where two are as likely. Apart where their predictions differ by more than rounding does, of what is read first,
    too: as many tokens as the window has, so that all that is written is written from the state."""
    count = within_positions(student.lm, student.config.window + WRITTEN)
    first = max(0, count - WRITTEN)
    row, place = torch.arange(len(state["0.seen"]))[:, None], torch.arange(first + 1)
    read, said = (row + STRIDE * place) % student.config.vocab_size, list[Tensor]()
    for _ in range(count):
        logits, state = program(read[:, len(said), None], state)
        said.append(logits)
        if len(said) > first:
            read = torch.cat([read, logits.argmax(-1, keepdim=True)], 1)
    predicted = torch.stack(said, 1)
    whole: Tensor = student(input_ids=read[:, :-1], use_cache=False).logits
    # Not `>`, which nothing is that is no number.
    if not (far := difference(predicted, whole)) <= MOST:
        raise Apart(f"its predictions differ from the student's by {far:.1e}, and {MOST:.0e} may be")
    return count - first, int((whole.argmax(-1) == read[:, 1:])[:, first:].all(0).sum())
