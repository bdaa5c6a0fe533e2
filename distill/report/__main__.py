"""`python -m distill.report`: render what lies in run directories.

python -m distill.report RUN_DIR [--sections headline,fidelity]     the report of one run
python -m distill.report compare RUNS… --out docs/results/compare   many runs in one table
"""

import sys
from pathlib import Path

from ..command_line import CommandLine
from ..errors import exit_code
from .build import render
from .compare import compare
from .run import Run
from .sections import available

PROGRAM = "python -m distill.report"


def main(arguments: list[str] | None = None) -> int:
    """Exit code, see `errors.exit_code`."""
    given = sys.argv[1:] if arguments is None else arguments
    return exit_code(lambda: compared(given[1:]) if given[:1] == ["compare"] else rebuilt(given))


def rebuilt(arguments: list[str]) -> Path:
    """RUN_DIR/report from the artefacts of a run; returns its page."""
    parser = CommandLine(
        PROGRAM,
        description="Rebuild RUN_DIR/report from artefacts.",
        epilog=f"Many runs in one table: {PROGRAM} compare --help",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="what a run wrote: outputs/NAME/DATE_TIME")
    parser.add_argument(
        "--sections",
        metavar="NAME,…",
        help=f"of {', '.join(available())}; by default those that the run asked for in report.sections",
    )
    given = parser.parse_args(arguments)
    sections = given.sections.split(",") if given.sections else asked_for(given.run_dir)
    return render(given.run_dir, sections) / "report.html"


def compared(arguments: list[str]) -> Path:
    """OUT.json, OUT.md and figures from runs and earlier tables; returns the page for readers."""
    parser = CommandLine(
        f"{PROGRAM} compare",
        description="Compare finished runs: OUT.json, and rendered from it OUT.md and OUT-TEACHER-DOMAIN.svg.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUNS",
        help="run directories, folders of sweeps, and earlier OUT.json, whose rows are kept unless measured anew",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="OUT", help="such as docs/results/compare")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write it as one page that needs no other file")
    parser.add_argument(
        "--goal",
        action="append",
        default=[],
        metavar="CASE=METRIC<=NUMBER",
        help="a bound to keep: 'hedgehog F=128 | books-6x512 | prose=ratio<=1.19'; may be repeated",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NAME",
        help="leave out the rows of a mixer, 'favor F=128', or of a teacher; may be repeated",
    )
    parser.add_argument(
        "--tell",
        action="append",
        default=[],
        metavar="KEY",
        help="name rows by this key, too, where a run's command gives it: stages.logits.train; may be repeated. "
        "Rows named by a stage's max_steps may have other budgets, and are not ranked",
    )
    parser.add_argument(
        "--gap",
        action="append",
        default=[],
        metavar="MIXER / OTHER [<= NUMBER]",
        help="what a mixer leaves of another's log ratio: 'spectral F=126 / hedgehog F=128 <= 0.6'; may be repeated",
    )
    given = parser.parse_args(arguments)
    return compare(given.runs, given.out, given.html, given.goal, given.without, given.tell, given.gap)


def asked_for(run_dir: Path) -> list[str]:
    """The sections named in the run's configuration; every one there is when it names none."""
    return (Run(run_dir).config.get("report") or {}).get("sections") or available()


if __name__ == "__main__":
    sys.exit(main())
