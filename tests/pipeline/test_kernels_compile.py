"""Kernels are compiled for a GPU, too: the interpreter that other tests run them with takes more than the compiler."""

import os
import subprocess
import sys
from pathlib import Path


def test_every_kernel_compiles_for_a_gpu(tmp_path: Path):
    """In a process of its own, since this one interprets them."""
    script = Path(__file__).with_name("compile_kernels.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("all\n"), done.stderr[-2000:]
