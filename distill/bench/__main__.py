"""`python -m distill.bench decode|prefill|train CHECKPOINT`: a student's speed beside its exact teacher's.

`python -m distill.bench attention|maploss|step|stage1|stage2`: a layer, its loss, its step, or a stage of twelve.

`python -m distill.bench devices`: the stages of a run on several devices beside one.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, exit_code, reason
from ..exported import load_decoder, provenance
from ..report.compare.case import mixer_words, teacher_name
from . import PROGRAM
from .arguments import SEVERAL, Work, lengths_of, parser


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`."""
    typed = sys.argv[1:] if arguments is None else arguments
    given = parser(bench, bench_layer, bench_devices).parse_args(typed)
    work: Work = given.work
    return exit_code(lambda: work(given, f"{PROGRAM} {shlex.join(typed)}"))


def bench(given: argparse.Namespace, command: str) -> str:
    """Measures, and adds what was found to OUT.json; returns it as tables, and where it is."""
    # Told before what takes seconds to import.
    source = provenance(str(given.checkpoint), "")

    from ..checkpoint import git_commit
    from ..device import compile_on, named_device
    from ..measure.origin import hardware
    from ..positions import within_positions
    from ..stages.compiled import refusing
    from .faster import captured, compiled
    from .serving import Timing, time_decode, time_prefill, time_train
    from .table import KINDS, TITLE, printed, rows, save, section, writable

    writable(given.out, KINDS)
    device = named_device(given.device)
    if given.compile and given.what == "train":
        compile_on(device, "--compile")
    if given.graphs and device.type != "cuda":
        raise UserError(f"--graphs: CUDA graphs are for a GPU, and --device is {device.type}; leave it out")
    models = loaded(given, source, device)
    wanted = lengths_of(given, device)
    longest = within_positions(models["teacher"], max(wanted) + 1) - 1
    lengths = sorted(length for length in wanted if length <= longest)
    if not lengths:
        raise UserError(f"--lengths: the teacher has positions for {longest + 1:,} tokens; give shorter ones")
    told_of_positions(models["teacher"], lengths)
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
        return printed(made, section, save(given.out, made, TITLE, section))
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written: {reason(error)}") from error


def told_of_positions(teacher: Any, lengths: list[int]) -> None:
    """Where a text is longer than any that it has learned from."""
    known = getattr(teacher.config, "max_position_embeddings", None)
    if known and known < max(lengths):
        told = f"distill: the teacher is for texts of {known:,} tokens; of longer ones speed alone is told"
        print(told, file=sys.stderr)


def told_of(found: list[Any], lengths: list[int], batches: list[int]) -> None:
    """What there was no memory for is not left out without a word; UserError where that is all."""
    there = {(each.batch, each.length) for each in found}
    absent = [f"{batch} × {length:,}" for batch in batches for length in lengths if (batch, length) not in there]
    if not there:
        raise UserError("--lengths: there is no memory for the shortest; give shorter ones, or smaller --batches")
    if absent:
        print(f"distill: no memory for texts of {', '.join(absent)} tokens", file=sys.stderr)


def bench_layer(given: argparse.Namespace, command: str) -> str:
    """Measures, and adds what was found to OUT.json; returns it as tables, and where it is."""
    # Told before what takes seconds to import.
    heads = heads_of(given)
    if given.mixer == "softmax":
        raise UserError("--mixer softmax: it stands beside every other; give another")

    import torch

    from ..checkpoint import git_commit
    from ..device import compile_on, named_device
    from ..flexformer.feature_map import HeadShape
    from ..measure.origin import hardware
    from ..mixer import named_options
    from ..stages.compiled import refusing
    from . import attention, by_group, by_kernel, maploss, stage1, stage2, step
    from .layer import Layer, copied_per_second, multiplied_per_second, time_ways
    from .layer_table import ATTENTION, KINDS, MAP_LOSS, STAGE_1, STAGE_2, STEP, TITLE, rows, section
    from .table import printed, save, writable

    timed, goals = {
        "attention": (attention, ATTENTION),
        "maploss": (maploss, MAP_LOSS),
        "step": (step, STEP),
        "stage1": (stage1, STAGE_1),
        "stage2": (stage2, STAGE_2),
    }[given.what]
    writable(given.out, KINDS)
    shape = HeadShape(*heads)
    said = {key: getattr(given, key) for key in ("features", "window") if getattr(given, key) is not None}
    device = named_device(given.device)
    lengths = lengths_of(given, device)
    options = named_options(given.mixer, max(lengths))
    if unknown := [key for key in said if key not in options]:
        raise UserError(f"--{unknown[0]} {said[unknown[0]]}: --mixer {given.mixer} has none; leave it out")
    options |= said
    layer = Layer(shape, options, device, getattr(torch, given.dtype), given.mixer)
    try:
        mixer = layer.mixer()
    except (ValueError, KeyError) as error:
        raise UserError(f"--mixer {given.mixer}: {error}") from error
    if timed in (stage1, stage2) and shape.kv_heads != shape.heads:
        raise UserError(f"--kv-heads {given.kv_heads}: stages are of a GPT-2, whose keys have all heads; leave it out")
    if timed in (maploss, stage1) and not (mixer.comparable and any(True for _ in mixer.parameters())):
        raise UserError(f"--mixer {given.mixer}: it has no map that could be fitted; give attention or step")
    if given.compile:
        compile_on(device, "--compile")
    ways = timed.ways(layer) | (stage2.compiled(layer) if given.compile else {})
    torch.set_float32_matmul_precision(given.precision)
    try:
        on_gpu = device.type == "cuda"
        often = (goals.times if on_gpu else 1), goals.graphs and on_gpu
        with refusing("--compile") if given.compile else nullcontext():
            found = time_ways(device, lengths, ways, goals.what, *often)
        if not found:
            raise UserError("--lengths: there is no memory for the shortest; give shorter ones")
        rates = multiplied_per_second(device), copied_per_second(device)
        floors = {length: timed.floor(layer, length, *rates) for length in lengths}
        told = command, f"{hardware(device)}, {given.dtype}, {given.precision} precision", git_commit()
        made = rows(layer, goals, found, floors, timed.errors(layer), *told)
        page = save(given.out, made, TITLE, section)
        more = by_kernel.rows(layer, found, rates, *told) if timed is attention else []
        if timed in (stage1, stage2):
            more = by_group.rows(layer, goals.what, ways, found, *told)
        if more:
            save(given.out, more, TITLE, section)
        return printed(made + more, section, page)
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written: {reason(error)}") from error


def heads_of(given: argparse.Namespace) -> tuple[int, int, int]:
    """Query heads, key heads, head_dim; UserError where there is no such layer."""
    heads = given.heads, given.heads if given.kv_heads is None else given.kv_heads, given.head_dim
    if min(heads) < 1:
        raise UserError(f"--heads {heads[0]}, --kv-heads {heads[1]}, --head-dim {heads[2]}: at least 1 each")
    if heads[0] % heads[1]:
        raise UserError(f"--heads {heads[0]} must be a multiple of --kv-heads {heads[1]}")
    return heads


def bench_devices(given: argparse.Namespace, command: str) -> str:
    """Measures, and adds what was found to OUT.json; returns it as tables, and where it is."""
    import torch

    from ..checkpoint import git_commit
    from ..measure.origin import hardware
    from .devices import TITLE, Job, measure, rows, section
    from .table import printed, save, writable

    writable(given.out, ["devices"])
    there = torch.cuda.device_count()
    if given.accelerator == "gpu" and there < given.devices:
        raise UserError(f"--devices {given.devices}: there are {there} GPUs here; give fewer, or --accelerator cpu")
    sizes = {name.removeprefix("--"): getattr(given, name.removeprefix("--")) for name, _, _ in SEVERAL}
    on_gpu = given.accelerator == "gpu"
    found = measure(Job(graphs=on_gpu, **sizes))
    one = hardware(torch.device("cuda" if on_gpu else "cpu"))
    where = f"{given.devices} × {one.removeprefix('one ')}, {given.precision}" if on_gpu else one
    made = rows(found, given.mixer, command, where, git_commit())
    return printed(made, section, save(given.out, made, TITLE, section))


def loaded(given: argparse.Namespace, source: dict[str, Any], device: Any) -> dict[str, Any]:
    """Teacher and student in the same precision."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from ..config import Teacher
    from ..loading import location
    from .free import FREE
    from .serving import REST
    from .unmasked import UNMASKED

    path = location(Teacher(given.teacher or source["teacher"]["name"], given.dtype, None, None))
    if given.teacher is not None and not Path(path).is_dir():
        raise UserError(f"--teacher {given.teacher}: no such directory")
    student = load_decoder(given.checkpoint, given.dtype, device)
    # Read whole, a text may be longer than a sliding window, which only a mask tells of.
    ways = {"teacher": UNMASKED if given.what == "decode" else "sdpa"}
    ways |= {REST: FREE} if given.what == "train" else {}
    try:
        exact = {
            who: AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, given.dtype), attn_implementation=way)
            for who, way in ways.items()
        }
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--teacher {path} cannot be loaded: {reason(error)}") from error
    return {who: model.eval().to(device) for who, model in exact.items()} | {"student": student}


if __name__ == "__main__":
    sys.exit(main())
