"""What the student was made of and with, as its checkpoint says."""

from typing import Any

from ..quantities import DASH
from ..run import Run
from ..section import Section, Table


def section(run: Run) -> Section:
    evaluated = run.setting("goal") == "evaluate"
    provenance = run.json(f"{'measurements' if evaluated else 'student'}/provenance.json")
    return Section(
        title="Provenance",
        intro="What this student was made of: with the run's config.yaml, enough to make it again. The same record "
        "lies beside its weights.",
        data=provenance,
        tables=[Table("Recorded with the student", ["Entry", "Value"], flattened(provenance), labels=2)],
    )


def flattened(node: Any, key: str = "") -> list[list[str]]:
    """One row per leaf of nested dictionaries, under its dotted key."""
    if not isinstance(node, dict) or not node:
        return [[key, ", ".join(map(str, node)) if isinstance(node, list) else DASH if node is None else str(node)]]
    return [row for name, child in node.items() for row in flattened(child, f"{key}.{name}" if key else str(name))]
