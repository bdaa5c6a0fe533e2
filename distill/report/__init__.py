"""The report of a run: renders what lies in a run directory and never touches training.

    python -m distill.report RUN_DIR [--sections headline,fidelity]

A new section is one new file in `sections/`.
"""

from .build import render

__all__ = ["render"]
