"""`python -m distill.bench decode|prefill|train CHECKPOINT`: a student's speed beside its exact teacher's.

`python -m distill.bench attention|maploss|step|stage1`: a layer, its loss, its step of decoding, or stage 1 of twelve.

`python -m distill.bench devices`: the stages of a run on several devices beside one.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, exit_code, reason
from ..exported import DTYPES, load_decoder, provenance
from ..report.compare.case import mixer_words, teacher_name
from . import PROGRAM

#: Tokens where a step of many would take a CPU minutes.
ON_CPU = [256, 1024]
#: Of one layer.
SIZES = (
    ("--features", None, "features of the map, if not as conf/mixer/ has it"),
    ("--window", None, "tokens of exact softmax, if not so"),
    ("--heads", 12, "of queries"),
    ("--kv-heads", 12, "of keys and values"),
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


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`."""
    typed = sys.argv[1:] if arguments is None else arguments
    given = parser().parse_args(typed)
    work: Callable[[argparse.Namespace, str], Path] = given.work
    return exit_code(lambda: work(given, shlex.join(["python", "-m", "distill.bench", *typed])))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(PROGRAM, description="Time what there is to be faster.")
    commands = made.add_subparsers(dest="what", required=True)
    students = {
        "decode": "a token after so many",
        "prefill": "so many tokens at once",
        "train": "so many tokens, and back to all weights",
    }
    for name, told in students.items():
        student = commands.add_parser(name, help=f"a student beside its exact teacher: {told}")
        student.set_defaults(work=bench)
        student.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the student/ that a run exported")
        student.add_argument(
            "--teacher", metavar="DIR", help="its teacher, by default where it was when it was distilled"
        )
        common(student, [1024, 2048, 4096, 8192, 16384], "serving", "OUT.json, OUT.md, OUT-*.svg")
        student.add_argument("--batches", type=counts, default=[1, 8], help="texts at a time, 1,8")
        student.add_argument(
            "--dtype", choices=DTYPES, default="float32", help="of weights and keys; a state is float32 (%(default)s)"
        )
        student.add_argument(
            "--compile", action="store_true", help="decode, and train on a GPU: let the compiler fuse both steps"
        )
        student.add_argument("--graphs", action="store_true", help="decode, train: capture both steps as CUDA graphs")
    layers = {
        "attention": "one layer, forwards and backwards",
        "maploss": "the loss of stage 1, of one layer, forwards and backwards",
        "step": "one layer, a step of decoding",
        "stage1": "a step of stage 1, of a model of twelve layers",
    }
    for name, told in layers.items():
        layer = commands.add_parser(name, help=f"{told}, of random numbers")
        layer.set_defaults(work=bench_layer)
        layer.add_argument(
            "--mixer",
            default="exponential",
            metavar="NAME",
            help="of conf/mixer/, as it is drawn (%(default)s)",
        )
        common(layer, [1024, 4096, 16384, 65536], "speed", "OUT.json, OUT.md")
        layer.add_argument(
            "--dtype", choices=DTYPES, default="float32", help="of queries, keys and values (%(default)s)"
        )
        layer.add_argument(
            "--precision",
            choices=("medium", "high", "highest"),
            default="medium",
            help="of float32 products, as matmul_precision of a run (%(default)s)",
        )
        for option, default, means in SIZES:
            shown = means if default is None else f"{means} ({default})"
            layer.add_argument(option, type=int, default=default, metavar="N", help=shown)
    several = commands.add_parser("devices", help="stages 1 and 2 on several devices beside one, of a random GPT-2")
    several.set_defaults(work=bench_devices)
    for option, usual, means in SEVERAL:
        several.add_argument(option, type=type(usual), default=usual, metavar="X", help=f"{means} (%(default)s)")
    several.add_argument(
        "--out", type=stem, metavar="OUT", default=Path("devices"), help="OUT.json, OUT.md (%(default)s)"
    )
    return made


def common(made: argparse.ArgumentParser, lengths: list[int], out: str, files: str) -> None:
    usual, few = (",".join(map(str, each)) for each in (lengths, ON_CPU))
    made.add_argument("--lengths", type=counts, metavar="N,N", help=f"tokens ({usual}; on a CPU {few})")
    made.set_defaults(usual=lengths)
    made.add_argument("--device", help="cpu, cuda (a GPU, if there is one)")
    made.add_argument("--out", type=stem, metavar="OUT", default=Path(out), help=f"{files} (%(default)s)")


def stem(text: str) -> Path:
    """OUT, of which somebody may have typed one of its files."""
    path = Path(text)
    return path.with_suffix("") if path.suffix in (".json", ".md") else path


def counts(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} must be numbers of at least 1, as in 1024,4096")
    return [int(part) for part in parts]


def bench(given: argparse.Namespace, command: str) -> Path:
    """Measures, and adds what was found to OUT.json; returns OUT.md."""
    from ..checkpoint import git_commit
    from ..device import compile_on, named_device
    from ..measure.origin import hardware
    from ..positions import within_positions
    from ..stages.compiled import refusing
    from .faster import captured, compiled
    from .serving import Timing, time_decode, time_prefill, time_train
    from .table import KINDS, TITLE, rows, save, section, writable

    source = provenance(str(given.checkpoint), "")
    writable(given.out, KINDS)
    device = named_device(given.device)
    if given.compile and given.what == "prefill":
        raise UserError("--compile: only steps of decoding and of training are compiled; leave it out")
    if given.compile and given.what == "train":
        compile_on(device, "--compile")
    if given.graphs and given.what == "prefill":
        raise UserError("--graphs: only steps of decoding and of training are captured; leave it out")
    if given.graphs and device.type != "cuda":
        raise UserError(f"--graphs: CUDA graphs are for a GPU, and --device is {device.type}; leave it out")
    models = loaded(given, source, device)
    wanted = lengths_of(given, device)
    longest = within_positions(models["teacher"], max(wanted) + 1) - 1
    lengths = sorted(length for length in wanted if length <= longest)
    if not lengths:
        raise UserError(f"--lengths: the teacher has positions for {longest + 1:,} tokens; give shorter ones")
    ways = {"compiled": compiled} if given.compile else {}
    ways |= {"as CUDA graphs": captured} if given.graphs else {}
    timed: dict[str, Callable[[dict[str, Any], list[int], list[int]], list[Timing]]] = {
        "decode": partial(time_decode, faster=list(ways.values())),
        "prefill": time_prefill,
        "train": partial(time_train, graphs=given.graphs, compiled=given.compile),
    }
    with refusing("--compile"):
        found = timed[given.what](models, lengths, given.batches)
    told_of(found, lengths, given.batches)
    mixer = source["mixer"]
    features = models["student"].config.mixer.get("features")
    label = mixer_words(mixer["map"], mixer, features)
    teacher = teacher_name(source["teacher"]["name"])
    try:
        where = ", ".join([hardware(device), given.dtype, *ways])
        made = rows(found, label, teacher, command, where, git_commit(), device.type == "cuda")
        return save(given.out, made, TITLE, section)
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written: {reason(error)}") from error


def lengths_of(given: argparse.Namespace, device: Any) -> list[int]:
    """Those that were asked for, or what is usual on such a device."""
    found: list[int] = given.lengths or (ON_CPU if device.type == "cpu" else given.usual)
    return found


def told_of(found: list[Any], lengths: list[int], batches: list[int]) -> None:
    """What there was no memory for is not left out without a word; UserError where that is all."""
    there = {(each.batch, each.length) for each in found}
    absent = [f"{batch} × {length:,}" for batch in batches for length in lengths if (batch, length) not in there]
    if not there:
        raise UserError("--lengths: there is no memory for the shortest; give shorter ones, or smaller --batches")
    if absent:
        print(f"distill: no memory for texts of {', '.join(absent)} tokens", file=sys.stderr)


def bench_layer(given: argparse.Namespace, command: str) -> Path:
    """Measures, and adds what was found to OUT.json; returns OUT.md."""
    import torch

    from ..checkpoint import git_commit
    from ..device import named_device
    from ..flexformer.feature_map import HeadShape
    from ..measure.origin import hardware
    from ..mixer import named_options
    from . import attention, by_kernel, maploss, stage1, step
    from .layer import Layer, copied_per_second, multiplied_per_second, time_ways
    from .layer_table import ATTENTION, KINDS, MAP_LOSS, STAGE_1, STEP, TITLE, rows, section
    from .table import save, writable

    timed, goals = {
        "attention": (attention, ATTENTION),
        "maploss": (maploss, MAP_LOSS),
        "step": (step, STEP),
        "stage1": (stage1, STAGE_1),
    }[given.what]
    writable(given.out, KINDS)
    shape = HeadShape(given.heads, given.kv_heads, given.head_dim)
    if min(shape) < 1 or given.heads % given.kv_heads:
        raise UserError(f"--heads {given.heads} must be a multiple of --kv-heads {given.kv_heads}, and all at least 1")
    if given.mixer == "softmax":
        raise UserError("--mixer softmax: it stands beside every other; give another")
    said = {key: getattr(given, key) for key in ("features", "window") if getattr(given, key) is not None}
    device = named_device(given.device)
    lengths = lengths_of(given, device)
    options = named_options(given.mixer, max(lengths)) | said
    layer = Layer(shape, options, device, getattr(torch, given.dtype), given.mixer)
    try:
        mixer = layer.mixer()
    except (ValueError, KeyError) as error:
        raise UserError(f"--mixer {given.mixer}: {error}") from error
    if timed is stage1 and given.kv_heads != given.heads:
        raise UserError(f"--kv-heads {given.kv_heads}: stage 1 is of a GPT-2, whose keys have all heads; leave it out")
    if timed in (maploss, stage1) and not (mixer.comparable and any(True for _ in mixer.parameters())):
        raise UserError(f"--mixer {given.mixer}: it has no map that could be fitted; give attention or step")
    torch.set_float32_matmul_precision(given.precision)
    try:
        on_gpu = device.type == "cuda"
        often = (goals.times if on_gpu else 1), goals.graphs and on_gpu
        found = time_ways(device, lengths, timed.ways(layer), goals.what, *often)
        rates = multiplied_per_second(device), copied_per_second(device)
        floors = {length: timed.floor(layer, length, *rates) for length in lengths}
        told = command, f"{hardware(device)}, {given.dtype}, {given.precision} precision", git_commit()
        page = save(given.out, rows(layer, goals, found, floors, timed.errors(layer), *told), TITLE, section)
        if timed is attention:
            save(given.out, by_kernel.rows(layer, found, rates, *told), TITLE, section)
        return page
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written: {reason(error)}") from error


def bench_devices(given: argparse.Namespace, command: str) -> Path:
    """Measures, and adds what was found to OUT.json; returns OUT.md."""
    import torch

    from ..checkpoint import git_commit
    from ..measure.origin import hardware
    from .devices import TITLE, Job, measure, rows, section
    from .table import save, writable

    writable(given.out, ["devices"])
    there = torch.cuda.device_count()
    if given.accelerator == "gpu" and there < given.devices:
        raise UserError(f"--devices {given.devices}: there are {there} GPUs here; give fewer, or --accelerator cpu")
    sizes = {name.removeprefix("--"): getattr(given, name.removeprefix("--")) for name, _, _ in SEVERAL}
    on_gpu = given.accelerator == "gpu"
    found = measure(Job(graphs=on_gpu, **sizes))
    one = hardware(torch.device("cuda" if on_gpu else "cpu"))
    where = f"{given.devices} × {one.removeprefix('one ')}, {given.precision}" if on_gpu else one
    return save(given.out, rows(found, given.mixer, command, where, git_commit()), TITLE, section)


def loaded(given: argparse.Namespace, source: dict[str, Any], device: Any) -> dict[str, Any]:
    """Teacher and student in the same precision."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from ..config import Teacher
    from ..loading import location
    from .unmasked import UNMASKED

    student = load_decoder(given.checkpoint, given.dtype, device)
    path = location(Teacher(given.teacher or source["teacher"]["name"], given.dtype, None, None))
    try:
        teacher = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, given.dtype),
            # Read whole, a text may be longer than a sliding window, which only a mask tells of.
            attn_implementation=UNMASKED if given.what == "decode" else "sdpa",
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--teacher {path} cannot be loaded: {reason(error)}") from error
    return {"teacher": teacher.eval().to(device), "student": student}


if __name__ == "__main__":
    sys.exit(main())
