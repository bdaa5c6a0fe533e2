"""A step of a stage by what its kernels are for: where its time goes on a GPU."""

import re
from collections.abc import Callable, Mapping

from ..measure.steps import Step
from ..report.compare.case import Case, mixer_words, parse
from ..report.compare.rows import Row
from ..report.quantities import number, share
from ..report.section import Table
from .by_kernel import KERNEL, every_kernel
from .layer import Layer, Measured

#: The way that is looked into.
WAY = "as a run"
LINEAR, LOSS, ELSE = "linear attention", "loss", "all else"
#: What kernels of other libraries are for, by what is found in their names, the first of these.
OTHERS = {"softmax attention": r"flash|fmha|sdpa", "products": r"nvjet|gemm|cutlass|xmma|splitk|cublas"}


def own() -> dict[str, str]:
    """What kernels of this project are for, by their names; attention without is products and all else."""
    # Not everywhere is there Triton.
    from .. import logit_kernel, map_gradients, map_kernels
    from ..flexformer import linear_function

    modules = {linear_function: LINEAR, map_kernels: LOSS, map_gradients: LOSS, logit_kernel: LOSS}
    return {name: group for module, group in modules.items() for name in vars(module) if name.endswith(KERNEL)}


def group_of(name: str) -> str:
    others = (group for group, pattern in OTHERS.items() if re.search(pattern, name, re.IGNORECASE))
    return own().get(name) or next(others, ELSE)


def rows(
    layer: Layer, what: str, ways: Mapping[str, Callable[[int], Step]], found: list[Measured], command: str,
    hardware: str, commit: str | None,
) -> list[Row]:  # fmt: skip
    """Of the longest text that was `found` to have room; none where there is no GPU, whose kernels have names.

    what: the stage; ways: by name, what makes a step of a length.
    """
    lengths = [each.length for each in found if each.way == WAY]
    if not lengths or layer.device.type != "cuda":
        return []
    length = max(lengths)
    taken = dict.fromkeys((*OTHERS, LINEAR, LOSS, ELSE), 0.0)
    for name, seconds in every_kernel(ways[WAY](length)).items():
        taken[group_of(name)] += 1e3 * seconds
    mixer = mixer_words(layer.name, layer.options, layer.feature_dim)
    return [
        Row(
            str(Case(mixer, layer.words, f"{group} of {what} at {length} tokens, {hardware}")),
            "kernel_ms", milliseconds, None, [0], "ms", None, command, hardware, commit,
        )
        for group, milliseconds in taken.items()
        if milliseconds
    ]  # fmt: skip


def tables(there: list[Row]) -> list[Table]:
    """One of every stage that was looked into."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for row in there:
        if place := re.match(r"(.+) of (stage \d) at (\d+) tokens", parse(row.case).domain):
            found.setdefault(place[2], {})[place[1], int(place[3])] = row.value or 0.0
    return [table(stage, values) for stage, values in found.items()]


def table(stage: str, values: dict[tuple[str, int], float]) -> Table:
    lines = []
    for (group, length), milliseconds in values.items():
        whole = sum(each for (_, at), each in values.items() if at == length)
        lines.append([group, f"{length:,}", number(milliseconds), share(milliseconds / whole if whole else None)])
    caption = f"{stage.capitalize()} as a run, a step: what its kernels are for"
    return Table(caption, ["For", "Tokens", "ms", "Of it"], lines)
