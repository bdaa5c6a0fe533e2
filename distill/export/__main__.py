"""`python -m distill.export torch|onnx CHECKPOINT OUT`: a student's step of decoding as a program with its state."""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, reason
from ..exported import load_decoder

if TYPE_CHECKING:
    from ..flexformer.model import FlexformerForCausalLM
    from .runtimes import Runtime
    from .step import State

PROGRAM = "python -m distill.export"

CARD = """# One step of decoding

(token, state) → (logits, state) of `{student}`, {batch} at a time, without transformers and with shapes that never
change: `{file}` is the program, `start.safetensors` the state before the first token, {size:.2f} MiB for each text, and
`tokenizer.json` the tokenizer. Of {written} tokens that the program wrote when it was made, {same} were those that the
student would write.

```python
{usage}
```

A prompt is read a token at a time, as an answer is written. Rows are independent: a row begins a text anew when its
part of the state is that of `start.safetensors` again.
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr when the user can mend it."""
    given = parser().parse_args(arguments)
    try:
        print(export(given))
    except UserError as error:
        print(f"distill: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(PROGRAM, description="Write a student's step of decoding for another runtime.")
    made.add_argument("runtime", choices=("torch", "onnx"), help="a torch.export program, or ONNX")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the student/ that a run exported")
    made.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not be there yet")
    made.add_argument("--batch", type=int, default=1, help="texts that are written side by side (%(default)s)")
    return made


def export(given: argparse.Namespace) -> Path:
    """Writes OUT under another name, and renames it once the program has written what the student writes."""
    from ..parity import Apart
    from .runtimes import RUNTIMES
    from .step import start

    runtime = RUNTIMES[given.runtime]
    for name in runtime.needs:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install 'distill[onnx]'")
    if given.batch < 1:
        raise UserError("--batch has to be 1 at least")
    if given.out.exists():
        raise UserError(f"{given.out} is there already; name another folder, or remove it")
    student = load_decoder(given.checkpoint)
    if kept := student.config.exact_layers:
        raise UserError(
            f"{given.checkpoint} keeps layers {', '.join(map(str, kept))} exact, whose keys grow with the text: "
            "no step of a fixed size can be made of it"
        )
    unfinished = given.out.with_name(f"{given.out.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(runtime, student, start(student, given.batch), unfinished, given)
        unfinished.rename(given.out)
    except Apart as apart:
        raise UserError(f"{unfinished} is not fit to be used: {apart}") from apart
    except OSError as error:
        raise UserError(f"{given.out} cannot be written: {reason(error)}") from error
    return given.out


def write(
    runtime: "Runtime", student: "FlexformerForCausalLM", state: "State", folder: Path, given: argparse.Namespace
) -> None:
    """The program, the state that it starts from, the tokenizer, and a card that says how to use them."""
    import torch
    from safetensors.torch import save_file

    from .agreement import WRITTEN, agree
    from .step import Step

    file = folder / runtime.file
    runtime.write(Step(student), torch.zeros(given.batch, 1, dtype=torch.long), state, file)
    same = agree(runtime.load(file), student, state, given.batch)
    save_file(state, folder / "start.safetensors")
    if (tokenizer := given.checkpoint.expanduser() / "tokenizer.json").exists():
        shutil.copy(tokenizer, folder)
    size = sum(part.nbytes for part in state.values()) / given.batch / 2**20
    card = CARD.format(
        **{"student": given.checkpoint, "batch": given.batch, "file": runtime.file, "size": size, "written": WRITTEN},
        **{"same": same, "usage": runtime.usage.format(batch=given.batch)},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
