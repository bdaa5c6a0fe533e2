"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """A mistake in what was asked for: one line that names the key or file and what to do. Exit code 2."""
