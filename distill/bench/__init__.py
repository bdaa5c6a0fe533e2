"""How fast it is: a student beside its exact teacher, and a layer, its loss and its step in each way that there is.

`__main__` (from what `arguments` takes) → `unmasked`, `free` (a teacher's attention) → `serving` (a step, a text, a
step of training) → `faster` (what is done to a step) → `table` (rows, a page, a figure);
`__main__` → `attention`, `maploss`, `step`, `stage1`, `stage2` (the ways) → `layer` (what is timed) → `by_kernel` (what
kernels of attention take, one by one) and `by_group` (what those of a stage are for) → `layer_table`.
"""

#: What one types.
PROGRAM = "python -m distill.bench"
