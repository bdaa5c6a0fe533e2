"""`python -m distill.bench decode|prefill CHECKPOINT`: a student's speed beside its exact teacher's, here and now."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from ..errors import UserError, exit_code, reason
from ..exported import DTYPES, load_decoder, provenance
from ..report.compare.case import mixer_words, teacher_name

PROGRAM = "python -m distill.bench"


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`."""
    typed = sys.argv[1:] if arguments is None else arguments
    given = parser().parse_args(typed)
    return exit_code(lambda: bench(given, shlex.join(["python", "-m", "distill.bench", *typed])))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(PROGRAM, description="Time a student beside its exact teacher.")
    made.add_argument("what", choices=("decode", "prefill"), help="a token after so many, or so many at once")
    made.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the student/ that a run exported")
    made.add_argument("--teacher", metavar="DIR", help="its teacher, by default where it was when it was distilled")
    made.add_argument("--lengths", type=counts, default=[1024, 2048, 4096, 8192, 16384], help="tokens, 1024,2048,…")
    made.add_argument("--batches", type=counts, default=[1, 8], help="rows decoded at a time, 1,8")
    made.add_argument("--device", help="cpu, cuda (a GPU, if there is one)")
    made.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of weights and keys; a state is float32 (%(default)s)"
    )
    made.add_argument("--compile", action="store_true", help="decode: let the compiler fuse both steps")
    made.add_argument("--graphs", action="store_true", help="decode: capture both steps as CUDA graphs")
    made.add_argument(
        "--out", type=Path, metavar="OUT", default=Path("serving"), help="OUT.json, OUT.md, OUT-*.svg (%(default)s)"
    )
    return made


def counts(text: str) -> list[int]:
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be numbers of at least 1")
    return found


def bench(given: argparse.Namespace, command: str) -> Path:
    """Measures, and adds what was found to OUT.json; returns OUT.md."""
    import torch

    from ..checkpoint import git_commit
    from ..device import best_device
    from ..measure.origin import hardware
    from ..positions import within_positions
    from .faster import captured, compiled
    from .serving import time_decode, time_prefill
    from .table import rows, save

    source = provenance(str(given.checkpoint), "")
    device = torch.device(given.device or best_device())
    if given.what == "prefill" and (given.graphs or given.compile):
        raise UserError("--graphs, --compile: only steps of decoding are compiled and captured; leave them out")
    if given.graphs and device.type != "cuda":
        raise UserError(f"--graphs: CUDA graphs are for a GPU, and --device is {device.type}; leave it out")
    models = loaded(given, source, device)
    longest = within_positions(models["teacher"], max(given.lengths) + 1) - 1
    lengths = sorted(length for length in given.lengths if length <= longest)
    if not lengths:
        raise UserError(f"--lengths: the teacher has positions for {longest + 1:,} tokens; give shorter ones")
    ways = {"compiled": compiled} if given.compile else {}
    ways |= {"as CUDA graphs": captured} if given.graphs else {}
    found = (
        time_decode(models, lengths, given.batches, list(ways.values()))
        if given.what == "decode"
        else time_prefill(models, lengths, given.batches)
    )
    mixer = source["mixer"]
    features = models["student"].config.mixer.get("features")
    label = mixer_words(mixer["map"], mixer, features)
    teacher = teacher_name(source["teacher"]["name"])
    try:
        where = ", ".join([hardware(device), *ways])
        made = rows(found, label, teacher, command, where, git_commit(), device.type == "cuda")
        return save(given.out, made)
    except OSError as error:
        raise UserError(f"--out {given.out} cannot be written: {reason(error)}") from error


def loaded(given: argparse.Namespace, source: dict[str, Any], device: Any) -> dict[str, Any]:
    """Teacher and student in the same precision."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    from ..config import Teacher
    from ..loading import location
    from .unmasked import UNMASKED

    student = load_decoder(given.checkpoint, given.dtype, str(device))
    path = location(Teacher(given.teacher or source["teacher"]["name"], given.dtype, None, None))
    try:
        teacher = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, given.dtype), attn_implementation=UNMASKED
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} cannot be loaded: {reason(error)}") from error
    return {"teacher": teacher.eval().to(device), "student": student}


if __name__ == "__main__":
    sys.exit(main())
