"""Where jobs that run at a time compute: each is given its share of the GPUs and of the processor's cores."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from itertools import pairwise

from ..cores import cpu_cores

GPUS, THREADS = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


def places(at_a_time: int) -> list[dict[str, str]]:
    """What each of them finds in its environment; one job alone has everything, as a run has."""
    if at_a_time == 1:
        return [{}]
    threads = {} if THREADS in os.environ else {THREADS: str(max(1, cpu_cores() // at_a_time))}
    dealt = deal(gpus(os.environ), at_a_time)
    return [threads | ({GPUS: ",".join(each)} if each else {}) for each in dealt]


def deal(found: list[str], at_a_time: int) -> list[list[str]]:
    """Neighbours to one job, where there are several for each; where there are fewer than jobs, one is shared."""
    if len(found) < at_a_time:
        return [found[i % len(found) : i % len(found) + 1] if found else [] for i in range(at_a_time)]
    bounds = [i * len(found) // at_a_time for i in range(at_a_time + 1)]
    return [found[low:high] for low, high in pairwise(bounds)]


def gpus(environment: Mapping[str, str]) -> list[str]:
    """Those that this process may use, as the variable names them; the driver is asked, since torch takes seconds."""
    if (visible := environment.get(GPUS)) is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.splitlines()
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in told))]
