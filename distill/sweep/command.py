"""The commands of a sweep: that of every job, and the one that goes on with what is left."""

import re
import shlex
import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from .jobs import Job

#: What of Hydra's own overrides is about the sweep and not about each job.
OF_THE_SWEEP = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.")


def of_job(job: Job, config: DictConfig) -> list[str]:
    """That of a run by itself, so that what starts its own command again, as several GPUs need, starts this job."""
    return [
        *(sys.executable, "-m", "distill", *flags(config)),
        *job.overrides,
        *(["resume=true"] if config.resume else []),
        *(each for each in config.hydra.overrides.hydra if not each.startswith(OF_THE_SWEEP)),
        f"hydra.job.num={job.number}",
        f"hydra.sweep.dir={quoted(config.hydra.sweep.dir)}",
        f"hydra.run.dir={quoted(job.directory)}",
    ]


def again(arguments: Sequence[str], config: DictConfig) -> str:
    """What was typed, for a shell, in the same folder and to be resumed."""
    kept = [each for each in arguments if not each.startswith("resume=")]
    own = [each for each in config.hydra.overrides.hydra if not each.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    there = [f"hydra.sweep.dir={quoted(config.hydra.sweep.dir)}", "resume=true"]
    return shlex.join(["python", "-m", "distill", "-m", *flags(config), *kept, *own, *there])


def flags(config: DictConfig) -> list[str]:
    """A folder of configurations beside ours, where one was given."""
    sources = [each.path for each in config.hydra.runtime.config_sources if each.provider == "command-line"]
    return [word for path in sources for word in ("--config-dir", path)]


def quoted(value: object) -> str:
    """As Hydra takes a text with characters of its own grammar."""
    text = str(value)
    escaped = text.replace("'", "\\'")
    return text if re.fullmatch(r"[\w./-]+", text) else f"'{escaped}'"
