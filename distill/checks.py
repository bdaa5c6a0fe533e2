"""What can be refused before anything slow begins or anything is written."""

from . import config
from .errors import UserError
from .flexformer.mixer import check_options
from .report.sections import check as check_sections

#: Keys that choose by name, and the names there are.
CHOICES = {
    "teacher.dtype": ("float32", "bfloat16"),
    "matmul_precision": ("highest", "high", "medium"),
    "stages.attention.loss": ("kl", "output", "both"),
    "stages.logits.train": ("all", "lora", "mixers"),
}


def check(wanted: config.Config) -> None:
    """UserError for an unknown choice, mixer key or report section."""
    for key, known in CHOICES.items():
        value = wanted
        for name in key.split("."):
            value = getattr(value, name)
        if value not in known:
            raise UserError(f"{key}={value} is unknown; known: {', '.join(known)}")
    try:
        check_options(wanted.mixer)
    except ValueError as error:
        raise UserError(str(error)) from error
    check_sections(wanted.report.sections)
