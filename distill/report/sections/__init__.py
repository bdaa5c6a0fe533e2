"""The sections of a report, each one file with `section(run) -> Section`, found by its name."""

import pkgutil
from collections.abc import Callable
from importlib import import_module

from ...errors import UserError
from ..run import Run
from ..section import Section


def available() -> list[str]:
    """The names of the section files present."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(names: list[str]) -> None:
    """UserError names the first section that no file stands for."""
    for name in names:
        if name not in available():
            raise UserError(f"report.sections: '{name}' is unknown; there are {', '.join(available())}")


def load(name: str) -> Callable[[Run], Section]:
    """The `section` function of a file in this folder."""
    function: Callable[[Run], Section] = import_module(f"{__name__}.{name}").section
    return function
