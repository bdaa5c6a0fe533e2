"""Where to compute when nobody says."""

import torch

from .errors import UserError


def best_device() -> str:
    """The accelerator there is, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found is not None else "cpu"


def device_of(named: str | None) -> torch.device:
    """What --device names, or the best there is; UserError where there is none such."""
    try:
        found = torch.device(named or best_device())
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {named}: there is none such here; name cpu, cuda or cuda:1, or leave it out"
        ) from error
    return found
