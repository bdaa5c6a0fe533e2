"""`python -m distill.report RUN_DIR`: rebuild RUN_DIR/report from the artefacts of a run."""

import argparse
import sys
from pathlib import Path

from ..errors import UserError
from .build import render
from .run import Run
from .sections import available


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, or 2 with one line on stderr when the user can mend it."""
    parser = argparse.ArgumentParser("python -m distill.report", description="Rebuild RUN_DIR/report from artefacts.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what a run wrote: outputs/NAME/DATE_TIME")
    parser.add_argument(
        "--sections",
        metavar="NAME,…",
        help=f"of {', '.join(available())}; by default those that the run asked for in report.sections",
    )
    given = parser.parse_args(arguments)
    try:
        sections = given.sections.split(",") if given.sections else asked_for(given.run_dir)
        print(render(given.run_dir, sections) / "report.html")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def asked_for(run_dir: Path) -> list[str]:
    """The sections named in the run's configuration; every one there is when it names none."""
    return (Run(run_dir).config.get("report") or {}).get("sections") or available()


if __name__ == "__main__":
    sys.exit(main())
