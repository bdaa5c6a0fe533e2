"""The jobs of a sweep. sweep.json in its folder lists them, so that those are known, too, that never began."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from ..errors import UserError
from ..whole import whole

LIST = "sweep.json"


@dataclass(frozen=True)
class Job:
    """directory: that of its run. overrides: what it is given beside the configuration, `resume` aside."""

    number: int
    directory: Path
    overrides: list[str]

    def __str__(self) -> str:
        return f"job {self.number}"


@dataclass(frozen=True)
class Sweep:
    """command: goes on with what is left of it."""

    folder: Path
    command: str
    jobs: list[Job]


def differing(jobs: Sequence[Job]) -> list[str]:
    """Of every job, the overrides that not all have."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return [" ".join(each for each in job.overrides if each not in common) for job in jobs]


def place(loader: ConfigLoader, config: DictConfig, given: Sequence[Sequence[str]]) -> list[Job]:
    """Composes every job, as Hydra's own sweepers do before any begins, to see that it can be, and where it runs.

    UserError where two would share a directory.
    """
    jobs: list[Job] = []
    for number, overrides in enumerate(given):
        try:
            composed = loader.load_sweep_config(config, list(overrides))
        except HydraException as error:
            told = differing([Job(i, Path(), list(each)) for i, each in enumerate(given)])
            error.add_note(f"job {number}: {told[number]}")
            raise
        with open_dict(composed.hydra.job):
            composed.hydra.job.id = composed.hydra.job.num = number
        # Where a directory's name says ${hydra:…}, this is what is looked at.
        HydraConfig.instance().set_config(composed)
        if composed.run_dir is not None:
            raise UserError(
                f"run_dir={composed.run_dir}: every job of a sweep has a directory of its own; "
                "leave it out, and give hydra.sweep.dir"
            )
        directory = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir))
        if not directory.is_relative_to(str(composed.hydra.sweep.dir)):
            raise UserError(f"hydra.sweep.subdir={composed.hydra.sweep.subdir}: give a path within hydra.sweep.dir")
        jobs.append(Job(number, directory, [each for each in overrides if not each.startswith("resume=")]))
    names = [job.directory for job in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"hydra.sweep.subdir gives two jobs {twice}; add ${{hydra:job.num}} to it")
    return jobs


def check_begun(folder: Path, resumes: bool) -> None:
    """UserError where a sweep lives in the folder that is not to be resumed."""
    if (folder / LIST).exists() and not resumes:
        raise UserError(f"hydra.sweep.dir={folder} already holds a sweep; choose another, or go on with resume=true")


def begin(sweep: Sweep) -> None:
    """Writes sweep.json. One that is resumed may have more jobs than before, of a random search further draws, and
    others in the place of those that never began, such as that of a mistake.

    UserError where the folder holds other jobs, or cannot be written.
    """
    named = f"hydra.sweep.dir={sweep.folder}"
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        before = read(sweep.folder) if (sweep.folder / LIST).exists() else sweep
        begun = [job.directory for job, now in zip(before.jobs, sweep.jobs, strict=False) if not goes_on(job, now)]
        if begun or len(sweep.jobs) < len(before.jobs):
            anew = f", or delete {begun[0]}, and that job begins anew" if begun else ""
            raise UserError(
                f"{named} holds a sweep of other jobs; choose another, or go on with {before.command}{anew}"
            )
        with whole(sweep.folder / LIST) as file:
            file.write_text(json.dumps(content(sweep), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{named} cannot be written: {error.strerror}") from error


def goes_on(before: Job, now: Job) -> bool:
    return before == now or not (before.directory / "config.yaml").exists()


def content(sweep: Sweep) -> dict[str, Any]:
    """Directories as seen from the folder, which may be moved."""
    jobs = [
        {"directory": str(job.directory.relative_to(sweep.folder)), "overrides": job.overrides} for job in sweep.jobs
    ]
    return {"command": sweep.command, "jobs": jobs}


def read(folder: Path) -> Sweep:
    """UserError where the folder holds no sweep, or the list is damaged."""
    try:
        found = json.loads((folder / LIST).read_text(encoding="utf-8"))
        jobs = [Job(i, folder / each["directory"], list(each["overrides"])) for i, each in enumerate(found["jobs"])]
        return Sweep(folder, str(found["command"]), jobs)
    except OSError as error:
        raise UserError(f"{folder}: no sweep, it has no {LIST}; give the hydra.sweep.dir of one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / LIST} is damaged: {error}; the sweep's own command writes it anew") from error
