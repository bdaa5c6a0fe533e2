"""Where to compute, as --device says."""

import torch

from .errors import UserError


def named_device(name: str | None) -> torch.device:
    """The one of this name, or else the accelerator there is, or the CPU; UserError where there is none such."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        found = torch.device(name or there or "cpu")
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        others = f" or {there.type}" if there else ""
        raise UserError(f"--device {name}: there is none such here; give cpu{others}") from error
    return found


def compile_on(device: torch.device, key: str) -> None:
    """UserError, which names the key, where gradients of what PyTorch's compiler makes cannot be trusted.

    Some of its code for processors writes past its end: pytorch/pytorch#196681.
    """
    if device.type != "cuda":
        raise UserError(f"{key}: PyTorch's compiler is trusted on CUDA alone, and this is {device.type}; leave it out")


def slow_in_bfloat16(device: torch.device) -> bool:
    """Where oneDNN has no products of bfloat16 PyTorch's own take 4 to 200 times as long as float32's, GPT-2's most."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("AVX2", "NO AVX")
