"""What a student's speed is, beside its exact teacher: `python -m distill.bench decode|prefill CHECKPOINT`.

`__main__` → `serving` (what is timed, side by side) → `faster` (what is done to a step) → `table` (rows, a page, a
figure).
"""
