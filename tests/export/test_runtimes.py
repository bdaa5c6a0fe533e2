"""What a runtime makes of a step says the same, token for token."""

from pathlib import Path

import pytest
import torch
from flexformer.tiny import KINDS, student

from distill.export.agreement import WRITTEN, agree
from distill.export.runtimes import RUNTIMES
from distill.export.step import State, Step
from distill.parity import Apart


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_program_writes_what_the_student_writes(name: str, kind: str, tmp_path: Path):
    runtime, model = RUNTIMES[name], student(kind, seed=2, exact=[]).float()
    step = Step(model, 2)
    runtime.write(step, torch.zeros(2, 1, dtype=torch.long), tmp_path / runtime.file)
    program = runtime.load(tmp_path / runtime.file)
    assert agree(program, model, step.start) == (WRITTEN, WRITTEN)
    # And what it was made from is needed no more.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(-1)
    with pytest.raises(Apart, match="differ from the student's by "):
        agree(program, model, step.start)


def test_tokens_that_are_others_are_not_counted():
    """Of two that are as likely, the student takes the first, and this program the second."""
    model = student("llama").float()
    with torch.no_grad():
        head = model.get_output_embeddings().weight
        head[1::2] = head[::2]
    step = Step(model, 2)

    def other(token: torch.Tensor, state: State) -> tuple[torch.Tensor, State]:
        logits, state = step(token, state)
        logits[:, 1::2] += 1e-5
        return logits, state

    assert agree(step, model, step.start) == (WRITTEN, WRITTEN)
    assert agree(other, model, step.start) == (WRITTEN, 0)


def test_what_lies_beyond_the_window_is_looked_at_too(monkeypatch: pytest.MonkeyPatch):
    """Within it all students of a teacher say the same, whatever their kernels are."""
    kind = KINDS["llama"]
    monkeypatch.setitem(KINDS, "llama", kind._replace(mixer=kind.mixer | {"window": 80}))
    model, other = (student("llama").float() for _ in range(2))
    with torch.no_grad():
        for mixer in other.mixers.values():
            mixer.window.bias.fill_(10.0)
    with pytest.raises(Apart):
        agree(Step(other, 1), model, Step(model, 1).start)


def test_a_number_that_is_none_is_no_agreement():
    model = student("gpt2", exact=[]).float()

    def broken(token, state):
        return torch.full((2, model.config.vocab_size), torch.nan), state

    with pytest.raises(Apart, match="by nan"):
        agree(broken, model, Step(model, 2).start)
