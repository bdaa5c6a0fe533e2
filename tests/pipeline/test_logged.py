"""The report where the rest of a run is logged: Weights & Biases, offline."""

from pathlib import Path

import pytest

from distill.pipeline import distil

from .conftest import Compose


def test_the_report_is_an_artefact_of_the_run(small: Compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    run = distil(small("logger=wandb", "stages.attention.max_steps=1", "stages.logits.max_steps=1"))
    # Not finish(), which comes back before the file is closed.
    wandb.teardown()
    (shown,) = run.glob("wandb/offline-run-*/files/media/html/report*.html")
    assert shown.read_text() == (run / "report/report.html").read_text()
    (log,) = run.glob("wandb/offline-run-*/run-*.wandb")
    kept = log.read_bytes()
    assert all(name in kept for name in (b"report/report.json", b"measurements/headline.json", b"attention/loss"))
