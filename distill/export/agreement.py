"""The gate before a program is handed over: it says what the student says."""

import torch
from torch import Tensor

from ..flexformer.model import FlexformerForCausalLM
from ..parity import MOST, Apart, difference
from .runtimes import Program
from .step import State

#: Tokens that a program writes to be looked at.
WRITTEN = 64


@torch.no_grad()
def agree(program: Program, student: FlexformerForCausalLM, state: State, batch: int) -> int:
    """How many of the tokens that the program writes are those that the student, which reads them whole, would write:
    all, but where two are as likely. Apart where their predictions differ by more than rounding does."""
    token = torch.arange(batch)[:, None] % student.config.vocab_size
    tokens, said = [token], []
    for _ in range(WRITTEN):
        logits, state = program(tokens[-1], state)
        said.append(logits)
        tokens.append(logits.argmax(-1, keepdim=True))
    written, predicted = torch.cat(tokens, 1), torch.stack(said, 1)
    whole: Tensor = student(input_ids=written[:, :-1], use_cache=False).logits
    # Not `>`, which nothing is that is no number.
    if not (far := difference(predicted, whole)) <= MOST:
        raise Apart(f"its predictions differ from the student's by {far:.1e}, and {MOST:.0e} may be")
    return int((whole.argmax(-1) == written[:, 1:]).all(0).sum())
