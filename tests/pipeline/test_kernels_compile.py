"""Kernels are compiled for a GPU, too: the interpreter that other tests run them with takes more than the compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.stages import built


def compiled(script: str, cache: Path) -> list[str]:
    """What it prints, in a process of its own, since this one interprets kernels."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, Path(__file__).with_name(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("all\n"), done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path):
    compiled("compile_kernels.py", tmp_path)


def test_kernels_are_built_before_they_are_launched(tmp_path: Path):
    """Each but once, and what cannot be built says nothing before it is launched."""
    (told, _) = compiled("build_kernels.py", tmp_path)
    assert told.split() == ["broken", *["doubled"] * 4, "output_kernel", "scan_kernel", "sums_kernel"]


@pytest.mark.parametrize(
    ("processes", "bound", "there", "threads"),
    [(0, 16, 16, 16), (1, 2, 2, 2), (8, 128, 128, 16), (8, 16, 128, 16), (4, 2, 128, 2), (8, 4, 4, 1)],
)
def test_processes_share_cores_that_none_is_bound_to(
    processes: int, bound: int, there: int, threads: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(built, "cpu_cores", lambda: bound)
    monkeypatch.setattr(built.os, "cpu_count", lambda: there)
    assert built.threads_of(processes) == threads
