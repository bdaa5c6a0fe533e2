"""The commands of a sweep: that of every job, and the one that goes on with what is left; and how each is put."""

import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from .jobs import Job

#: What of Hydra's own overrides is about the sweep and not about each job.
OF_THE_SWEEP = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.")


def of_job(job: Job, config: DictConfig) -> list[str]:
    """That of a run by itself, so that what starts its own command again, as several GPUs need, starts this job."""
    return [
        *(sys.executable, "-m", "distill", *flags(config.hydra)),
        *job.overrides,
        *(["resume=true"] if config.resume else []),
        *of_a_run(config.hydra),
        *of_a_job(job.number, config.hydra.sweep.dir, job.directory),
    ]


def of_a_run(hydra: Any) -> list[str]:
    """Hydra's own overrides that are as good for a run by itself."""
    return [each for each in hydra.overrides.hydra if not each.startswith(OF_THE_SWEEP)]


def of_a_job(number: int, sweep: object, directory: object) -> list[str]:
    """By these a run is a job of a sweep, see `job.of_a_sweep`."""
    return [f"hydra.job.num={number}", f"hydra.sweep.dir={quoted(sweep)}", f"hydra.run.dir={quoted(directory)}"]


def again(arguments: Sequence[str], config: DictConfig) -> str:
    """What was typed, for a shell, in the same folder and to be resumed."""
    kept = [each for each in arguments if not each.startswith("resume=")]
    own = [each for each in config.hydra.overrides.hydra if not each.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    there = [f"hydra.sweep.dir={quoted(config.hydra.sweep.dir)}", "resume=true"]
    return shlex.join(["python", "-m", "distill", "-m", *flags(config.hydra), *kept, *own, *there])


def flags(hydra: Any) -> list[str]:
    """A folder of configurations beside ours, where one was given."""
    sources = [each.path for each in hydra.runtime.config_sources if each.provider == "command-line"]
    return [word for path in sources for word in ("--config-dir", path)]


def quoted(value: object) -> str:
    """As Hydra takes a text with characters of its own grammar: a backslash is one, but before a quote."""
    text = str(value)
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text)
    return text if re.fullmatch(r"[\w./-]+", text) else f"'{escaped}'"
