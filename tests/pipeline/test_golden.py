"""Golden metrics: what a short run of the embedded teacher on a fixed text came to, so that quality is not lost unseen.

The text is this project's own code as it once was, and stays as it is, whatever becomes of the code.
"""

import json
from pathlib import Path

import pytest

from distill.pipeline import distil

from .conftest import compose

TEXT = Path(__file__).parent / "golden" / "code.txt"
SHORT = [
    f"data.path={TEXT}",
    "data.context=128",
    "data.validation_blocks=30",
    "matmul_precision=highest",
    "trainer.accelerator=cpu",
    "measure.fidelity_blocks=1",
    "report.sections=[headline]",
    "stages.attention.max_steps=30",
    "stages.logits.max_steps=40",
    "stages.allocation.max_steps=20",
    "stages.logits.learning_rate=2e-4",
]
#: Student over teacher perplexity, and the share of tokens that both find likeliest. A change that loses more than
#: processors differ by has to say why; one that gains as much sets a new mark here.
GOLDEN = {
    "stationary-delta-window": (1.067, 0.738),
    "stationary-delta": (1.063, 0.440),
    "exponential": (1.159, 0.578),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_short_run_ends_as_it_did(name: str, tmp_path: Path):
    run = distil(compose("recipe=pocket", f"mixer={name}", *SHORT, f"run_dir={tmp_path / 'run'}"))
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    found = headline["ratio"]["code"], headline["agreement"]["code"]
    assert found == pytest.approx(GOLDEN[name], rel=0.02)
