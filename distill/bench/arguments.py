"""What one can type after `python -m distill.bench`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..command_line import CommandLine
from ..exported import DTYPES
from . import PROGRAM

#: From what was typed, and the command as it was, to what is said of it.
Work = Callable[[argparse.Namespace, str], str]
#: Tokens where a step of many would take a CPU minutes.
ON_CPU = [256, 1024]
#: Of one layer.
SIZES = (
    ("--features", None, "features of the map, if not as conf/mixer/ has it"),
    ("--window", None, "tokens of exact softmax, if not so"),
    ("--heads", 12, "of queries"),
    ("--kv-heads", None, "of keys and values, if not as many"),
    ("--head-dim", 64, "numbers to a head"),
)
#: Of a run on several devices.
SEVERAL = (
    ("--devices", 2, "processes, each on a device of its own"),
    ("--strategy", "ddp", "ddp or fsdp"),
    ("--mixer", "exponential-window", "of conf/mixer/"),
    ("--batch", 8, "rows of a step on one device"),
    ("--steps", 90, "of each stage"),
    ("--layers", 12, "of the model"),
    ("--width", 768, "of the model"),
    ("--heads", 12, "of the model"),
    ("--words", 50257, "of the model"),
    ("--context", 1024, "tokens of a row"),
    ("--precision", "bf16-mixed", "as trainer.precision of a run"),
    ("--accelerator", "gpu", "gpu or cpu"),
)


def parser(of_student: Work, of_layer: Work, of_devices: Work) -> CommandLine:
    """Each of what is given times what its name says."""
    made = CommandLine(PROGRAM, description="Time what there is to be faster.")
    commands = made.add_subparsers(dest="what", required=True)
    students = {
        "decode": "a token after so many",
        "prefill": "so many tokens at once",
        "train": "so many tokens, and back to all weights; and the teacher without attention",
    }
    for name, told in students.items():
        student = commands.add_parser(name, help=f"a student beside its exact teacher: {told}")
        student.set_defaults(work=of_student)
        student.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the student/ that a run exported")
        student.add_argument(
            "--teacher", metavar="DIR", help="its teacher, by default where it was when it was distilled"
        )
        held = "weights and keys; a state is float32"
        common(student, [1024, 2048, 4096, 8192, 16384], "serving", "OUT.json, OUT.md, OUT-*.svg", held)
        student.add_argument("--batches", type=counts, default=[1, 8], help="texts at a time (1,8)")
        student.set_defaults(compile=False, graphs=False)
    for name, where in {"decode": "", "train": "on a GPU: "}.items():
        steps = commands.choices[name]
        steps.add_argument("--compile", action="store_true", help=f"{where}let the compiler fuse both steps")
        steps.add_argument("--graphs", action="store_true", help="on a GPU: capture both steps as CUDA graphs")
    layers = {
        "attention": "one layer, forwards and backwards; on a GPU kernel by kernel, too",
        "maploss": "the loss of stage 1, of one layer, forwards and backwards",
        "step": "one layer, a step of decoding",
        "stage1": "a step of stage 1, of a model of twelve layers; on a GPU what its kernels are for, too",
        "stage2": "a step of stage 2, likewise, of a model of 50,257 words",
    }
    for name, told in layers.items():
        layer = commands.add_parser(name, help=f"of random numbers: {told}")
        layer.set_defaults(work=of_layer)
        layer.add_argument(
            "--mixer",
            default="exponential",
            metavar="NAME",
            help="of conf/mixer/, as it is drawn (%(default)s)",
        )
        common(layer, [1024, 4096, 16384, 65536], "speed", "OUT.json, OUT.md", "queries, keys and values")
        layer.add_argument(
            "--precision",
            choices=("medium", "high", "highest"),
            default="medium",
            help="of float32 products, as matmul_precision of a run (%(default)s)",
        )
        for option, default, means in SIZES:
            shown = means if default is None else f"{means} ({default})"
            layer.add_argument(option, type=int, default=default, metavar="N", help=shown)
        layer.set_defaults(compile=False)
    commands.choices["stage2"].add_argument(
        "--compile", action="store_true", help="on a GPU, and by the compiler, too: minutes a length"
    )
    several = commands.add_parser("devices", help="stages 1 and 2 on several devices beside one, of a random GPT-2")
    several.set_defaults(work=of_devices)
    for option, usual, means in SEVERAL:
        several.add_argument(option, type=type(usual), default=usual, metavar="X", help=f"{means} (%(default)s)")
    several.add_argument(
        "--out", type=stem, metavar="OUT", default=Path("devices"), help="OUT.json, OUT.md (%(default)s)"
    )
    return made


def common(made: CommandLine, lengths: list[int], out: str, files: str, held: str) -> None:
    usual, few = (",".join(map(str, each)) for each in (lengths, ON_CPU))
    made.add_argument("--lengths", type=counts, metavar="N,N", help=f"tokens ({usual}; on a CPU {few})")
    made.set_defaults(usual=lengths)
    made.add_argument("--device", help="cpu, cuda (a GPU, if there is one)")
    made.add_argument("--dtype", choices=DTYPES, default="float32", help=f"of {held} (%(default)s)")
    made.add_argument("--out", type=stem, metavar="OUT", default=Path(out), help=f"{files} (%(default)s)")


def stem(text: str) -> Path:
    """OUT, of which somebody may have typed one of its files."""
    path = Path(text)
    return path.with_suffix("") if path.suffix in (".json", ".md") else path


def counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} must be whole numbers of at least 1, with commas between")
    return [int(part) for part in parts]


def lengths_of(given: argparse.Namespace, device: Any) -> list[int]:
    """Those that were asked for, or what is usual on such a device."""
    found: list[int] = given.lengths or (ON_CPU if device.type == "cpu" else given.usual)
    return found
