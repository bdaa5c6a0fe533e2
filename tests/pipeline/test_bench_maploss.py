"""The benchmark of the map loss: what is timed is the loss, and what is told of it."""

import json
from pathlib import Path

import pytest
import torch

from distill.bench import maploss
from distill.bench.__main__ import main
from distill.bench.maploss import Layer, Measured
from distill.bench.maploss_table import rows, section
from distill.flexformer.feature_map import HeadShape
from distill.maploss import layer_kl
from distill.mixer import bare

OPTIONS = bare("exponential", features=8, frequency_scale=0.3, key_weight="quadratic", window=3)
LAYER = Layer(HeadShape(2, 1, 4), OPTIONS, torch.device("cpu"))


def test_every_way_is_the_loss():
    mixer, heads = LAYER.mixer(), LAYER.heads(70)
    expected = layer_kl(mixer, heads)
    for loss in (maploss.dense, maploss.in_blocks, maploss.streamed):
        torch.testing.assert_close(loss(mixer, heads).mean((0, 3)).flatten(), expected, rtol=5e-3, atol=1e-5)
    assert list(maploss.ways(LAYER)) == ["dense", "in blocks"]
    assert max(maploss.errors(LAYER).values()) < 1e-4


def test_what_is_not_computed_twice_is_counted():
    # Of 2 heads and half of 10 × 10 pairs: q·k of 4, and three products of 8 features.
    assert LAYER.operations(10) == 2 * 50 * 2 * (4 + 3 * 8)


def test_a_way_that_has_no_memory_is_left_out_from_there_on(monkeypatch: pytest.MonkeyPatch):
    whole = maploss.dense

    def dense(mixer: object, heads: maploss.Heads) -> torch.Tensor:
        if heads.key.shape[2] == 12:
            raise torch.OutOfMemoryError
        return whole(mixer, heads)

    monkeypatch.setattr(maploss, "dense", dense)
    found = {(each.way, each.length) for each in maploss.time_maploss(LAYER, [16, 8, 12])}
    assert found == {("dense", 8), ("in blocks", 8), ("in blocks", 12), ("in blocks", 16)}


def test_goals_are_for_the_streamed_one_on_a_gpu():
    layer = Layer(LAYER.shape, OPTIONS, torch.device("cuda"))
    found = [Measured(way, length, 0.02, 7) for way in ("streamed", "in blocks") for length in (1024, 16384)]
    made = rows(layer, found, {"streamed": 0.003, "in blocks": 0.1}, 1e12, "c", "one GPU", "abc")
    goals = {(row.case.split(" | ")[2], row.metric): row.goal for row in made if row.goal}
    assert goals == {
        ("map loss at 16384 tokens, streamed, one GPU", "fwdbwd_ms"): "<= 10",
        ("map loss at 16384 tokens, streamed, one GPU", "peak_bytes"): "<= 500000000",
        ("map loss gradient, streamed, one GPU", "error"): "<= 0.01",
    }
    shown = section("name", made)
    assert [table.caption.split()[0] for table in shown.tables] == ["Goals", "Forwards", "Error"]
    floor = 1e3 * layer.operations(1024) / 1e12
    assert shown.tables[1].rows[0][:3] == ["streamed", "1,024", "20.0"]
    assert shown.tables[1].rows[0][4] == f"{20 / floor:.0f}×"
    assert shown.tables[2].rows == [["streamed", "0.00300"], ["in blocks", "0.100"]]


def test_the_command_adds_to_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["maploss", "--device", "cpu", "--heads", "2", "--kv-heads", "1", "--head-dim", "4", "--features", "8"]
    for window in ("0", "3"):
        assert main([*command, "--window", window, "--lengths", "8,16", "--out", str(tmp_path / "speed")]) == 0
    assert capsys.readouterr().out == 2 * f"{tmp_path / 'speed.md'}\n"
    found = json.loads((tmp_path / "speed.json").read_text())
    assert len(found) == 2 * (2 * 2 * 2 + 2) and all(row["value"] > 0 for row in found)
    assert (tmp_path / "speed.md").read_text().count("\n## ") == 2


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["maploss", "--device", "cpu", "--features", "0", "--out", str(tmp_path / "speed")]) == 2
    assert "mixer.features=0" in capsys.readouterr().err
