"""Compiles every kernel for a GPU, which takes none: what Triton's interpreter lets pass and its compiler does not."""

import re
from collections.abc import Mapping
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compiled

from distill import logit_kernel, map_gradients, map_kernels
from distill.flexformer import linear_gradients, linear_kernels, linear_key_gradients, linear_scan, step_kernel

#: An H100 or H200.
TARGET = GPUTarget("cuda", 90, 32)
HEAD: dict[str, Any] = {"G": 2, "F": 32, "D": 32, "V": 32, "BLOCK_D": 32, "BLOCK_V": 32}
STEP = HEAD | {
    "K": 2, "R": 2, "W": 16, "DEGREE": 2, "DECAYS": True, "PADDED": True, "NO_KEYS": -1e30, "FORGOTTEN": -50.0,
    "BLOCK_F": 32, "BLOCK_R": 2, "BLOCK_W": 16,
}  # fmt: skip
MAP = HEAD | {
    "W": 16, "DEGREE": 2, "BIASED": True, "SAMPLED": True, "CAUSAL": True, "PADDED": True,
    "TILE": 32, "BLOCK_N": 32, "BLOCK_F": 32,
}  # fmt: skip
LINEAR = HEAD | {
    "W": 16, "SKIP": 16, "DEGREE": 2, "PADDED": True, "C": 32, "BLOCK_F": 32,
    "REVERSE": False, "GOES_ON": True, "BLOCK": 64,
}  # fmt: skip
#: As they are run: features that come from PyTorch have products of float32 in the loss, and of bfloat16 in attention.
HALF, FULL = {"MODE": "bf16", "GIVEN": False}, {"MODE": "tf32x3", "GIVEN": True}
#: Pointer and strides of batch, head and token.
PLACED: dict[str, Any] = dict.fromkeys(
    ("query", "key", "value", "out", "far", "given", "by_query", "by_key", "by_value"), ("*bf16", "i64", "i64", "i32")
)
#: Of a model in bfloat16.
LOGITS: dict[str, Any] = dict.fromkeys(("teacher", "student", "gradient"), "*bf16") | {
    "factor": "fp32", "teacher_row": "i64", "student_row": "i64", "gradient_row": "i64",
}  # fmt: skip
KERNELS: list[tuple[Any, ...]] = [
    (step_kernel.step_kernel, STEP),
    (logit_kernel.logit_kl_kernel, {"V": 101, "BLOCK": 64, "TRACKED": True}, LOGITS),
    (logit_kernel.scale_kernel, {"BLOCK": 64}, {"x": "*bf16"}),
    (map_kernels.features_kernel, MAP | HALF),
    (map_kernels.forward_kernel, MAP | HALF),
    (map_kernels.forward_kernel, MAP | FULL),
    (map_gradients.query_kernel, MAP | HALF),
    (map_gradients.key_kernel, MAP | HALF),
    (map_gradients.query_kernel, MAP | FULL),
    (map_gradients.key_kernel, MAP | FULL),
    (linear_scan.scan_kernel, LINEAR | HALF | {"AT_ONCE": 16}),
    (linear_scan.scan_kernel, LINEAR | HALF | {"REVERSE": True, "GOES_ON": False, "AT_ONCE": 4}),
    *(
        (kernel, LINEAR | HALF | more, PLACED)
        for kernel in (
            linear_kernels.sums_kernel,
            linear_kernels.output_kernel,
            linear_gradients.later_kernel,
            linear_gradients.query_gradient_kernel,
            linear_key_gradients.key_gradient_kernel,
        )
        # Those of given features without a window, and of fewer than a tile has; and more than one has.
        for more in ({"GIVEN": True, "W": 0, "SKIP": 0, "F": 23}, {"F": 50})
    ),
    *(
        (kernel, LINEAR | HALF, PLACED)
        for kernel in (
            linear_kernels.output_kernel,
            linear_gradients.query_gradient_kernel,
            linear_key_gradients.key_gradient_kernel,
        )
    ),
    (linear_key_gradients.value_gradient_kernel, LINEAR | HALF | {"F": 50}, PLACED),
]
#: What arguments are that are no pointers to float32.
TYPES = (
    dict.fromkeys(("scale", "scaling", "epsilon"), "fp32")
    | dict.fromkeys(("N", "K", "H", "Q", "R", "SPAN", "CHUNKS", "PARTS"), "i32")
    | dict.fromkeys(("seen", "new_seen", "positions"), "*i64")
    | dict.fromkeys(("real", "present", "new_present", "there"), "*i1")
    | dict.fromkeys(
        ("query", "key", "value", "keys", "values", "new_keys", "new_values", "out", "query_phi", "key_phi", "phi"),
        "*bf16",
    )
)


def build(kernel: Any, sizes: dict[str, Any], types: Mapping[str, Any] = TYPES) -> str:
    """What it is to a GPU, as PTX."""
    constants = {each.name: sizes[each.name] for each in kernel.params if each.is_constexpr}
    types = {**TYPES, **types, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    made = compiled(ASTSource(kernel, signature, constants), target=TARGET, options={"num_warps": 8})
    print(kernel.__name__, sizes.get("MODE", ""), flush=True)
    ptx: str = made.asm["ptx"]
    return ptx


def fused_with(kernel: Any, name: str, ptx: str) -> list[str]:
    """Instructions that multiply by an argument and add in one, rounding once: the interpreter has none."""
    place = kernel.arg_names.index(name)
    (register,) = re.findall(rf"ld\.param\.\w+\s+(%\w+), \[{kernel.__name__}_param_{place}\]", ptx)
    return re.findall(rf"fma\..*{register}\b.*", ptx)


if __name__ == "__main__":
    built = {kernel: build(kernel, *more) for kernel, *more in KERNELS}
    # What stands for no token, scaled and taken from itself, is 0 if it is rounded in between.
    assert not fused_with(logit_kernel.logit_kl_kernel, "scale", built[logit_kernel.logit_kl_kernel])
    print("all")
