"""Names that come from data, as names of files."""

import re
from hashlib import sha256

#: What all domains together are called: kernels that were fitted on every one.
MIXTURE = "mixture"


def slug(name: str) -> str:
    """A name for files and addresses: names may come from data, so only letters and digits are kept."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]


def file_name(name: str) -> str:
    """The `slug` of a name, told apart from those of other names that it would be the same as."""
    short = slug(name)
    return short if short == name else f"{short}-{sha256(name.encode()).hexdigest()[:6]}".strip("-")
