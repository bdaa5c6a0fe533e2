"""The gate before a program is handed over: it says what the student says."""

import torch
from torch import Tensor

from ..flexformer.model import FlexformerForCausalLM
from ..parity import MOST, Apart, difference
from ..positions import within_positions
from .runtimes import Program
from .step import State

#: Tokens that a program writes to be looked at, as far as there are positions.
WRITTEN = 64


@torch.no_grad()
def agree(program: Program, student: FlexformerForCausalLM, state: State) -> tuple[int, int]:
    """How many tokens the program wrote, and how many of them the student, which reads them whole, would write: all,
    but where two are as likely. Apart where their predictions differ by more than rounding does."""
    count = within_positions(student.lm, WRITTEN)
    token = torch.arange(len(state["0.seen"]))[:, None] % student.config.vocab_size
    tokens, said = [token], []
    for _ in range(count):
        logits, state = program(tokens[-1], state)
        said.append(logits)
        tokens.append(logits.argmax(-1, keepdim=True))
    written, predicted = torch.cat(tokens, 1), torch.stack(said, 1)
    whole: Tensor = student(input_ids=written[:, :-1], use_cache=False).logits
    # Not `>`, which nothing is that is no number.
    if not (far := difference(predicted, whole)) <= MOST:
        raise Apart(f"its predictions differ from the student's by {far:.1e}, and {MOST:.0e} may be")
    return count, int((whole.argmax(-1) == written[:, 1:]).all(0).sum())
