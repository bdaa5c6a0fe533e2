"""`python -m distill.sweep FOLDER`: what became of a sweep, in a table and a figure."""

import sys
from pathlib import Path

from ..command_line import CommandLine
from ..errors import UserError, exit_code
from ..report.terminal import aligned
from .jobs import read
from .result import METRICS
from .summary import NAME, summarise

PROGRAM = "python -m distill.sweep"


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`."""
    parser = CommandLine(
        PROGRAM, description=f"Tell what became of a sweep, and write it down: FOLDER/{NAME}.md, .json and .svg."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="its hydra.sweep.dir: outputs/NAME/sweep_DATE_TIME")
    parser.add_argument("--by", default="ratio", choices=METRICS, help="what the best job is chosen by")
    parser.add_argument("--on", metavar="DOMAIN", help="on which text; by default the mean over all")
    given = parser.parse_args(arguments)
    return exit_code(lambda: told(given.folder, given.by, given.on))


def told(folder: Path, by: str, domain: str | None) -> str:
    try:
        summary = summarise(read(folder), by, domain)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be written, {error.strerror}") from error
    return "\n".join(
        [*aligned(summary.table()), "", *summary.told(), *summary.commands(), f"written: {folder / NAME}.md"]
    )


if __name__ == "__main__":
    sys.exit(main())
