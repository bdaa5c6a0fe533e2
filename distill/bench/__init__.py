"""What a student's speed is, beside its exact teacher: `python -m distill.bench decode|prefill CHECKPOINT`.

`__main__` → `serving` (what is timed, side by side) → `steps` (what one step is) → `table` (rows, a page, a figure).
"""
