"""How much of a processor there is to compute with."""

import os


def cpu_cores() -> int:
    """Those that this process may use, where the system tells; else all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
