"""`python -m distill.evaluate CHECKPOINT [key=value …]`: an exported student held against its teacher, on any text."""

import re
import sys

from .__main__ import main

USAGE = """python -m distill.evaluate CHECKPOINT [key=value …]

CHECKPOINT is the student/ that a run exported. Task, teacher, context and text are those it was made with, unless a key
says otherwise: data.path=my.txt, teacher.path=DIR, data.context=512. Writes a run directory with a report, as
`python -m distill` does; short for `python -m distill goal=evaluate student.path=CHECKPOINT`."""


def arguments(given: list[str]) -> list[str] | None:
    """Those of `python -m distill`; None where help is asked for or no checkpoint is named."""
    if not given or given[0] in ("-h", "--help") or "=" in given[0]:
        return None
    # Hydra takes few characters for what they are.
    path = given[0] if re.fullmatch(r"[\w./~-]+", given[0]) else f"'{given[0]}'"
    return ["goal=evaluate", f"student.path={path}", *given[1:]]


if __name__ == "__main__":
    made = arguments(sys.argv[1:])
    if made is None:
        print(USAGE)
        sys.exit(0 if sys.argv[1:2] in (["-h"], ["--help"]) else 2)
    sys.argv[1:] = made
    main()
