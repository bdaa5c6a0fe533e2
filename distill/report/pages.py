"""The two pages: the same sections as HTML and as Markdown."""

import re
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader
from markupsafe import Markup

from .section import Figure, Section
from .terms import Linker


@dataclass
class Page:
    """What a page shows. identity: name and value, for its head. skipped: the reason by section.

    figure_file: where a page finds figure (section, row, column, figure) as a file.
    """

    title: str
    identity: list[tuple[str, str]]
    sections: dict[str, Section]
    figure_file: Callable[[str, int, int, Figure], str]
    skipped: dict[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """One file that needs no other."""
        return self._render("page.html.jinja", autoescape=True)

    def markdown(self) -> str:
        return self._render("page.md.jinja", finalize=plain)

    def _render(self, template: str, **options: Any) -> str:
        environment = Environment(loader=FunctionLoader(part), trim_blocks=True, lstrip_blocks=True, **options)
        linker = Linker()
        environment.filters["linked"] = linker.linked
        script = part("page.js")
        return environment.get_template(template).render(
            vars(self), definitions=linker.definitions, script=Markup(script), script_hash=fingerprint(script)
        )


def part(name: str) -> str:
    """A file beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def fingerprint(script: str) -> str:
    """By which a page that trusts nothing else knows its script."""
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode()


def plain(value: Any) -> str:
    """Text that Markdown shows as it is."""
    text = re.sub(r"\s+", " ", str(value)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", text)
