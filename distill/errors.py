"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what was asked for: one line that names the key or file and what to do. Exit code 2."""


def reason(error: Exception) -> str:
    """The first line of what an error says, without its full stop; its type where it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line.rstrip(".") for line in lines if line), type(error).__name__)
