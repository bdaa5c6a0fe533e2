"""Many finished runs in one table and one figure for each domain.

python -m distill.report compare RUNS… --out docs/results/compare
"""

from .build import compare

__all__ = ["compare"]
