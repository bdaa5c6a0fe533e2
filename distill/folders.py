"""Where the configuration lies."""

from pathlib import Path


def folder(name: str) -> Path:
    """`conf` or `recipes`: inside the package where it was installed from a wheel, else beside it."""
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name
