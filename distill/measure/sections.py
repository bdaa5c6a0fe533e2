"""The measurements that a section of the report each asks for, made when the student is done and safe."""

import logging
from collections.abc import Callable
from typing import Any

from .contribution import measure_contribution
from .cost import measure_cost
from .length import measure_length
from .subject import NotMeasured, Subject
from .transfer import measure_transfer

#: What report.sections names beside headline and fidelity. Each writes measurements/NAME.json.
MEASURES: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "transfer": measure_transfer,
    "contribution": measure_contribution,
    "length": measure_length,
    "cost": measure_cost,
}

log = logging.getLogger(__name__)


def measure_sections(subject: Subject) -> None:
    """Every one that was asked for. One that cannot be measured leaves its reason, and the others still stand."""
    for name, measure in MEASURES.items():
        if name in subject.config.report.sections:
            try:
                found = measure(subject)
            except NotMeasured as reason:
                found = {"skipped": str(reason)}
            except Exception as error:
                log.warning("measuring %s failed", name, exc_info=True)
                found = {"skipped": f"measuring it failed with {type(error).__name__}: {error}"}
            subject.run.write_measurement(name, found)
