"""How a sweep ends: in one line, where not all of its jobs are finished."""

from ..errors import UserError
from .jobs import Sweep
from .state import state

#: As many jobs are told of one by one.
TOLD = 4


def check_finished(sweep: Sweep) -> None:
    """Says where to look; UserError names the jobs that are not, and what became of each."""
    states = [state(job.directory) for job in sweep.jobs]
    left = [f"{number} {found}" for number, found in enumerate(states) if found.name != "finished"]
    if left:
        more = f"; and {len(left) - TOLD} more" if len(left) > TOLD else ""
        raise UserError(
            f"{len(left)} of the sweep's {len(states)} jobs are not finished: {'; '.join(left[:TOLD])}{more}. "
            f"`python -m distill.sweep {sweep.folder}` tells of all, and how to go on"
        )
    print(f"sweep {sweep.folder}: {len(states)} jobs finished; `python -m distill.sweep {sweep.folder}` compares them")
