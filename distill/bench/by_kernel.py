"""Linear attention kernel by kernel: what each takes on a GPU, and what it would for what it moves, for its products or
for its instructions alone. Where all of these are less, none of these rates is what holds it up.
"""

import re
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from ..flexformer.engine import CHUNK
from ..flexformer.levels import fused
from ..measure.steps import Step
from ..report.compare.case import Case, mixer_words, parse
from ..report.compare.rows import Row
from ..report.quantities import count, number
from ..report.section import Table
from .attention import KERNELS, batch, ways
from .layer import Layer, Measured

#: Steps that are looked at, after so many others.
STEPS, WARM = 5, 3
#: Instructions that a multiprocessor begins at once, of a warp each.
AT_ONCE = 4
#: How the names of kernels end.
KERNEL = "_kernel"
#: Of a number that kernels read or write, all but the sums of whole parts: bfloat16.
BYTES = torch.bfloat16.itemsize
#: What is found of a kernel: its unit, the column that it stands in, and how it is written there.
METRICS = {
    "kernel_ms": ("ms", "ms", number),
    "moved_ms": ("ms", "What it moves, ms", number),
    "multiplied_ms": ("ms", "Its products, ms", number),
    "issued_ms": ("ms", "Its instructions, ms", number),
    "registers": ("of a thread", "Registers", count),
    "spilled": ("numbers of a thread", "Spilled", count),
    "programs": ("on a multiprocessor", "Programs at a time", count),
}
#: How registers are given out, to a warp at a time, and what of shared memory is not a program's own.
REGISTERS, RESERVED = 256, 1024


class Chunk(NamedTuple):
    """What a kernel has to do with a chunk of tokens of a head: of a query's, or of a key's and of all that ask it.

    numbers: read and written once, but for those that several programs share; products: multiplications, each with its
    addition, but for what sums rows; once: whether a program is done then, and goes through each instruction once.
    """

    of_queries: bool
    numbers: int
    products: int
    once: bool


def chunks(layer: Layer) -> dict[str, Chunk]:
    """By kernel, see `linear_kernels` and `linear_gradients`."""
    group, width, features = layer.shape.heads // layer.shape.kv_heads, layer.shape.head_dim, layer.feature_dim
    tokens, sums = CHUNK * width, features * (width + 1)
    mapped, scored, compared = CHUNK * features * width, CHUNK * CHUNK * width, CHUNK * CHUNK * features
    kept = (2 * tokens + sums) // group
    return {
        "sums": Chunk(False, 2 * tokens + sums, 2 * mapped, False),
        "output": Chunk(True, 2 * tokens + kept, 3 * mapped + scored + compared, True),
        "query_gradient": Chunk(True, 4 * tokens + kept, 6 * mapped + scored + compared, True),
        "later": Chunk(False, 2 * group * tokens + sums, 2 * group * mapped, False),
        "key_gradient": Chunk(
            False,
            (4 + 2 * group) * tokens + sums,
            5 * mapped + group * (mapped + 2 * scored + 2 * compared),
            group == 1,
        ),
    }


def rows(
    layer: Layer, found: list[Measured], rates: tuple[float, float], command: str, hardware: str, commit: str | None
) -> list[Row]:
    """Of the longest texts that were `found` to have room; none where it is not known here what kernels do: only where
    they make the features, all in one tile, and have no window to go through.

    rates: operations of a product and bytes a second, see `layer`.
    """
    lengths, mixer = [each.length for each in found if each.way == KERNELS], layer.mixer()
    if not lengths or not fused(mixer) or mixer.width or not in_one_tile(layer):
        return []
    words = mixer_words(layer.name, layer.options, layer.feature_dim)
    made = []
    for name, values in measured(layer, max(lengths), *rates).items():
        domain = f"{name} of attention at {max(lengths)} tokens, {hardware}"
        case = str(Case(words, layer.words, domain))
        made += [
            Row(case, metric, value, None, [0], METRICS[metric][0], None, command, hardware, commit)
            for metric, value in values.items()
        ]
    return made


def in_one_tile(layer: Layer) -> bool:
    # Not everywhere is there Triton.
    from ..flexformer.linear_layout import WIDEST

    return layer.feature_dim <= WIDEST


def measured(layer: Layer, length: int, multiplied: float, copied: float) -> dict[str, dict[str, float]]:
    """By kernel, the longest first, as `METRICS` name it; of the scan only what it takes."""
    from ..flexformer import linear_function

    kernels = {name: getattr(linear_function, f"{name}{KERNEL}") for name in chunks(layer)}
    for each in kernels.values():
        # Of what was built for other lengths nothing is told.
        each.device_caches.clear()
    step = ways(layer)[KERNELS](length)
    assert step is not None
    made = {}
    for name, seconds in profiled(step).items():
        made[name] = {"kernel_ms": 1e3 * seconds}
        if chunk := chunks(layer).get(name):
            built, programs = compiled(kernels[name]), chunks_of(layer, length, chunk)
            made[name] |= floors(chunk, programs, multiplied, copied)
            if chunk.once:
                made[name]["issued_ms"] = 1e3 * programs * issued(built)
            made[name] |= {"registers": built.n_regs, "spilled": built.n_spills, "programs": at_a_time(built, here())}
    return made


def chunks_of(layer: Layer, length: int, chunk: Chunk) -> int:
    """How many of these there are."""
    heads = layer.shape.heads if chunk.of_queries else layer.shape.kv_heads
    return batch(layer, length) * -(-length // CHUNK) * heads


def floors(chunk: Chunk, programs: int, multiplied: float, copied: float) -> dict[str, float]:
    """What so many take at least, milliseconds, at these rates of operations and of bytes a second."""
    return {
        "moved_ms": 1e3 * programs * chunk.numbers * BYTES / copied,
        "multiplied_ms": 1e3 * programs * chunk.products * 2 / multiplied,
    }


def found_in(there: list[Row]) -> dict[tuple[str, int], dict[str, float | None]]:
    """By kernel and length, what was measured of it."""
    found: dict[tuple[str, int], dict[str, float | None]] = {}
    for row in there:
        if place := re.match(r"(\w+) of attention at (\d+) tokens", parse(row.case).domain):
            found.setdefault((place[1], int(place[2])), {})[row.metric] = row.value
    return found


def table(there: list[Row]) -> Table:
    lines = [
        [name, f"{length:,}", *(written(values.get(metric)) for metric, (_, _, written) in METRICS.items())]
        for (name, length), values in found_in(there).items()
    ]
    columns = ["Kernel", "Tokens", *(column for _, column, _ in METRICS.values())]
    return Table("Attention by kernel, a step: what it takes, and the least that each part of it would", columns, lines)


def notes(there: list[Row]) -> list[str]:
    """What holds a step up, of each length."""
    by_length: dict[int, list[dict[str, float | None]]] = {}
    for (_, length), values in found_in(there).items():
        by_length.setdefault(length, []).append(values)
    return [bound(length, kernels) for length, kernels in by_length.items()]


def bound(length: int, kernels: list[dict[str, float | None]]) -> str:
    taken, moved, multiplied, issued = (
        number(sum(values.get(metric) or 0 for values in kernels))
        for metric in ("kernel_ms", "moved_ms", "multiplied_ms", "issued_ms")
    )
    told = (
        f"What bounds a step of texts of {length:,} tokens: its kernels take {taken} ms; what they move takes {moved} "
        f"at least, their products {multiplied}, and to begin the instructions of those without loops {issued}. What "
        "is left of it they wait for results of their own"
    )
    room = [programs for values in kernels if (programs := values.get("programs"))]
    fit = f", and a multiprocessor has room for {count(min(room))} to {count(max(room))} of them" if room else ""
    return f"{told}{fit}."


def profiled(step: Step) -> dict[str, float]:
    """Seconds of a step by kernel of linear attention, the longest first."""
    taken = every_kernel(step)
    ours = (name for name in sorted(taken, key=taken.__getitem__, reverse=True) if name.endswith(KERNEL))
    return {name.removesuffix(KERNEL): taken[name] for name in ours}


def every_kernel(step: Step) -> dict[str, float]:
    """Seconds of a step by the name of what it launches."""
    for _ in range(WARM):
        step()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    return {each.key: each.device_time_total / 1e6 / STEPS for each in found.key_averages()}


def compiled(kernel: Any) -> Any:
    """What Triton built of it last."""
    *_, built = kernel.device_caches[torch.cuda.current_device()][0].values()
    return built


def here() -> Any:
    return torch.cuda.get_device_properties(torch.cuda.current_device())


def at_a_time(built: Any, there: Any) -> int:
    """Programs of `built` that a multiprocessor has room for, which is what hides that one waits for its own results.

    there: what is known of the GPU.
    """
    warps = built.metadata.num_warps
    registers = warps * -(-built.n_regs * there.warp_size // REGISTERS) * REGISTERS
    return min(
        there.regs_per_multiprocessor // registers,
        there.shared_memory_per_multiprocessor // (built.metadata.shared + RESERVED),
        there.max_threads_per_multi_processor // (warps * there.warp_size),
    )


def issued(built: Any) -> float:
    """Seconds in which a GPU begins all instructions of a program of `built`, where there is always one to begin."""
    from triton.runtime import driver

    there = driver.active.utils.get_device_properties(torch.cuda.current_device())
    a_second = AT_ONCE * there["multiprocessor_count"] * there["sm_clock_rate"] * 1e3
    return instructions(built.asm["sass"]) * built.metadata.num_warps / a_second


def instructions(assembly: str) -> int:
    """Of a thread of a program without loops; NOPs are what it is filled up with."""
    return sum(";" in line and "NOP" not in line for line in assembly.splitlines())
