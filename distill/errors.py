"""The one kind of error that is the user's to mend, and how a command tells of it."""

import sys
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """A mistake in what was asked for: one line that names the key or file and what to do. Exit code 2."""


class InUse(UserError):
    """It would be right, but for another run that is at it."""


def exit_code(work: Callable[[], Any]) -> int:
    """Prints what the work returns, if anything. Exit code: 0, 2 with one line on stderr for a UserError, or 130 where
    Ctrl-C ended it."""
    try:
        if (made := work()) is not None:
            print(made)
    except UserError as error:
        print(f"distill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("distill: stopped", file=sys.stderr)
        return 130
    return 0


def reason(error: Exception) -> str:
    """The first line of what an error says, without its full stop; its type where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line.rstrip(".") for line in lines if line), type(error).__name__)
