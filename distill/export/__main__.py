"""`python -m distill.export torch|onnx CHECKPOINT OUT`: a student's step of decoding as a program with its state."""

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..command_line import CommandLine
from ..errors import UserError, exit_code, reason
from ..exported import load_decoder
from ..whole import whole

if TYPE_CHECKING:
    from .runtimes import Runtime
    from .step import Step

PROGRAM = "python -m distill.export"

CARD = """# One step of decoding

(token, state) → (logits, state) of `{student}`, {batch} at a time, in float32, without transformers and with shapes
that never change: `{file}` is the program{data}, `start.safetensors` the state before the first token, {size:.2f} MiB
for each text, and `tokenizer.json` the tokenizer. Of {written} tokens that the program wrote when it was made, {same}
were those that the student would write.

```sh
pip install {packages}
```

```python
{usage}
```

A prompt is read a token at a time, as an answer is written. Rows are independent: a row begins a text anew when its
part of the state is that of `start.safetensors` again.{longest}
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`."""
    given = parser().parse_args(arguments)
    return exit_code(lambda: export(given))


def parser() -> CommandLine:
    made = CommandLine(PROGRAM, description="Write a student's step of decoding for another runtime.")
    made.add_argument("runtime", choices=("torch", "onnx"), help="a torch.export program, or ONNX")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the student/ that a run exported")
    made.add_argument("out", type=Path, metavar="OUT", help="the folder to write, which must not be there yet")
    made.add_argument("--batch", type=int, default=1, help="texts that are written side by side (%(default)s)")
    return made


def export(given: argparse.Namespace) -> Path:
    """Writes OUT under another name, and renames it once what the program says is what the student says."""
    checkpoint, out = given.checkpoint.expanduser(), given.out.expanduser()
    if given.batch < 1:
        raise UserError("--batch has to be 1 at least")
    if out.exists():
        raise UserError(f"{out} is there already; name another folder, or remove it")

    from ..parity import Apart
    from .runtimes import RUNTIMES
    from .step import Step

    runtime = RUNTIMES[given.runtime]
    for name in runtime.needs:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install 'distill[onnx]'")
    student = load_decoder(checkpoint)
    if kept := student.config.exact_layers:
        raise UserError(
            f"{checkpoint} keeps layers {', '.join(map(str, kept))} exact, whose keys grow with the text: "
            "no step of a fixed size can be made of it"
        )
    if not (checkpoint / "tokenizer.json").exists():
        raise UserError(f"{checkpoint} has no tokenizer.json, without which nobody can write a text with the program")
    try:
        with whole(out) as unfinished:
            unfinished.mkdir(parents=True)
            write(runtime, Step(student, given.batch), unfinished, checkpoint)
    except Apart as apart:
        raise UserError(f"{unfinished} is not fit to be used: {apart}") from apart
    except OSError as error:
        raise UserError(f"{out} cannot be written: {reason(error)}") from error
    return out


def write(runtime: "Runtime", step: "Step", folder: Path, checkpoint: Path) -> None:
    """The program, the state that it starts from, the tokenizer, and a card that says how to use them."""
    import torch
    from safetensors.torch import save_file

    from ..positions import learned_positions
    from ..weights import readable
    from .agreement import agree

    file, batch = folder / runtime.file, len(step.start["0.seen"])
    try:
        runtime.write(step, torch.zeros(batch, 1, dtype=torch.long), file)
    except Exception as error:
        # Of a trace that fails, whatever the reason, the user can do nothing but take something else.
        shutil.rmtree(folder)
        raise UserError(f"{checkpoint} cannot be written as {runtime.file}: {reason(error)}") from error
    beside = [f"`{each.name}`" for each in sorted(folder.iterdir()) if each != file]
    written, same = agree(runtime.load(file), step.student, step.start)
    save_file(step.start, folder / "start.safetensors")
    shutil.copy(checkpoint / "tokenizer.json", folder)
    model = step.student.lm
    most = model.config.max_position_embeddings if learned_positions(model) else None
    card = CARD.format(
        student=checkpoint,
        batch=batch,
        file=runtime.file,
        data=f" (its weights in {', '.join(beside)})" if beside else "",
        size=sum(part.nbytes for part in step.start.values()) / batch / 2**20,
        written=written,
        same=same,
        packages=runtime.packages,
        usage=runtime.usage.format(batch=batch),
        longest=f" A text has {most:,} tokens at most: no more positions were learned." if most else "",
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    readable(folder, like="README.md")


if __name__ == "__main__":
    sys.exit(main())
