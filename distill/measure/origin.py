"""What made a run's numbers: the command, the machine and the code."""

import shlex

import torch
from hydra.core.hydra_config import HydraConfig

from .. import ranks
from ..checkpoint import git_commit
from ..config import Config
from ..cores import cpu_cores
from ..rundir import RunDirectory


def write_origin(config: Config, run: RunDirectory, device: torch.device) -> None:
    """Writes measurements/run.json: {"command", "mixer", "hardware", "commit"}.

    mixer: the name in the group `mixer` that was chosen. A run that did not come through the door has no command
    (null), and its mixer goes by the name of its map.
    """
    door = HydraConfig.get() if HydraConfig.initialized() else None
    run.write_measurement(
        "run",
        {
            "command": command(list(door.overrides.task)) if door else None,
            "mixer": door.runtime.choices["mixer"] if door else config.mixer["map"],
            "hardware": hardware(device),
            "commit": git_commit(),
        },
    )


def command(overrides: list[str]) -> str:
    """The command line with these arguments, as a shell takes it; where the run was to be left is not part of it."""
    kept = [override for override in overrides if override.lstrip("+").split("=")[0] != "run_dir"]
    return shlex.join(["python", "-m", "distill", *kept])


def hardware(device: torch.device) -> str:
    """What a run computes on, such as "one NVIDIA H100 80GB HBM3", "8 × NVIDIA H100 80GB HBM3" or "2 CPU cores"."""
    count = f"{ranks.size()} ×" if ranks.size() > 1 else "one"
    if device.type == "cuda":
        return f"{count} {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{count} {device.type} device"
    cores = min(cpu_cores(), ranks.size() * torch.get_num_threads())
    return f"{cores} CPU core{'s' if cores > 1 else ''}"
