"""Where to compute when nobody says."""

import torch


def best_device() -> str:
    """The accelerator there is, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None else "cpu"
