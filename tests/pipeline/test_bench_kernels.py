"""The benchmark of an attention layer, kernel by kernel: what each has to do, and what is told of it."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distill.bench import by_group, by_kernel, stage1, stage2
from distill.bench.__main__ import main
from distill.bench.attention import KERNELS
from distill.bench.by_kernel import Chunk
from distill.bench.layer import Layer, Measured
from distill.bench.layer_table import section
from distill.flexformer.feature_map import HeadShape
from distill.mixer import bare
from distill.report.quantities import number

from .compile_kernels import KERNELS as COMPILED

CPU = torch.device("cpu")
OPTIONS = bare("exponential", features=32, frequency_scale=0.3, key_weight="quadratic")
TOLD = (1e12, 1e12), "c", "one GPU", "abc"
THERE = {
    "later": {"kernel_ms": 0.25, "moved_ms": 0.1, "registers": 255.0, "spilled": 40.0, "programs": 2.0},
    "output": {"kernel_ms": 0.35, "moved_ms": 0.1, "multiplied_ms": 0.05, "issued_ms": 0.2, "programs": 4.0},
    "scan": {"kernel_ms": 0.06},
}


def layer(heads: int, kv_heads: int, **more: Any) -> Layer:
    return Layer(HeadShape(heads, kv_heads, 16), OPTIONS | more, CPU)


def test_what_kernels_have_to_do():
    """Of 64 tokens of 16 numbers and 32 features: what is read and written, and multiplied, product by product."""
    tokens, sums = 64 * 16, 32 * 17
    mapped, scored, compared = 64 * 16 * 32, 64 * 64 * 16, 64 * 64 * 32
    assert by_kernel.chunks(layer(2, 2)) == {
        "sums": Chunk(False, 2 * tokens + sums, mapped + mapped, False),
        "output": Chunk(True, 4 * tokens + sums, 2 * mapped + mapped + compared + scored, True),
        "query_gradient": Chunk(True, 6 * tokens + sums, (2 + 2 + 1 + 1) * mapped + scored + compared, True),
        "later": Chunk(False, 2 * tokens + sums, mapped + mapped, False),
        "key_gradient": Chunk(False, 6 * tokens + sums, (2 + 2 + 1 + 1) * mapped + 2 * compared + 2 * scored, True),
    }
    # Two queries to a key: what is the key's is there once, what is theirs twice.
    shared = by_kernel.chunks(layer(4, 2))
    assert shared["output"] == Chunk(True, 2 * tokens + (2 * tokens + sums) // 2, 3 * mapped + compared + scored, True)
    assert shared["later"] == Chunk(False, 4 * tokens + sums, 4 * mapped, False)
    assert shared["key_gradient"] == Chunk(False, 8 * tokens + sums, 7 * mapped + 4 * compared + 4 * scored, False)


def test_floors_are_of_all_programs():
    """A text of 70 tokens has two chunks of each head that asks, or is asked; of bfloat16, and two operations each."""
    shared, texts = layer(4, 2), 2048 // 70
    chunks = by_kernel.chunks(shared)
    assert by_kernel.chunks_of(shared, 70, chunks["output"]) == texts * 2 * 4
    assert by_kernel.chunks_of(shared, 70, chunks["sums"]) == texts * 2 * 2
    found = by_kernel.floors(Chunk(True, 100, 30, True), 7, 3e3, 4e3)
    assert found == {"moved_ms": pytest.approx(1e3 * 7 * 200 / 4e3), "multiplied_ms": pytest.approx(1e3 * 7 * 60 / 3e3)}


def test_they_are_told_of_at_the_longest_texts(monkeypatch: pytest.MonkeyPatch):
    lengths: list[int] = []
    monkeypatch.setattr(by_kernel, "measured", lambda layer, length, *rates: lengths.append(length) or THERE)
    found = [Measured(KERNELS, n, 0.02, 7) for n in (4096, 1024)] + [Measured("linear, plain", 8192, 0.02, 7)]
    made = by_kernel.rows(layer(2, 1), found, *TOLD)
    (table,) = [each for each in section("speed", made).tables if each.caption.startswith("Attention by kernel")]
    assert lengths == [4096] and table.columns[2:4] == ["ms", "What it moves, ms"]
    assert table.rows == [
        ["later", "4,096", "0.250", "0.100", "–", "–", "255", "40", "2"],
        ["output", "4,096", "0.350", "0.100", "0.0500", "0.200", "–", "–", "4"],
        ["scan", "4,096", "0.0600", "–", "–", "–", "–", "–", "–"],
    ]
    (note,) = section("speed", made).notes
    assert "texts of 4,096 tokens: its kernels take 0.660 ms; what they move takes 0.200 at least" in note
    assert "products 0.0500, and to begin the instructions of those without loops 0.200." in note
    assert note.endswith("a multiprocessor has room for 2 to 4 of them.")
    # Of what is computed by others, or has loops of its own, nothing is known.
    assert not by_kernel.rows(layer(2, 1), found[2:], *TOLD)
    for more in ({"window": 3}, {"features": 129}):
        assert not by_kernel.rows(layer(2, 1, **more), found, *TOLD)


def test_the_benchmark_of_attention_tells_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(by_kernel, "KERNELS", "linear, plain")
    monkeypatch.setattr(by_kernel, "measured", lambda *given: THERE)
    options = ["--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--features", "16", "--device", "cpu"]
    assert main(["attention", *options, "--lengths", "32", "--out", str(tmp_path / "speed")]) == 0
    cases = [row["case"] for row in json.loads((tmp_path / "speed.json").read_text()) if row["metric"] == "kernel_ms"]
    assert sum("later of attention at 32 tokens" in case for case in cases) == 1
    assert "Attention by kernel" in (tmp_path / "speed.md").read_text()


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "room"),
    [
        (255, 40_000, 4, 2),
        (168, 40_000, 4, 3),
        (168, 113_000, 4, 2),
        (129, 1000, 8, 1),
        (128, 1000, 8, 2),
        (16, 0, 4, 16),
    ],
)
def test_a_multiprocessor_has_room(registers: int, shared: int, warps: int, room: int):
    """An H200's: of registers, given out to a warp 256 at a time, of shared memory, or of threads."""
    told = {"warp_size": 32, "regs_per_multiprocessor": 65536, "max_threads_per_multi_processor": 2048}
    there = SimpleNamespace(**told, shared_memory_per_multiprocessor=228 * 1024)
    built = SimpleNamespace(n_regs=registers, metadata=SimpleNamespace(num_warps=warps, shared=shared))
    assert by_kernel.at_a_time(built, there) == room


def test_instructions_are_those_of_a_thread():
    assembly = "Function:sums_kernel\n--:-:-:Y:2\tMOV R1, R2;\n.L_1:\n01:-:-:-:1\t@P0 EXIT;\n--:-:-:-:0\tNOP;"
    assert by_kernel.instructions(assembly) == 2


NAMES = {
    "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT": "products",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16>": "products",
    "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64": "softmax attention",
    "void pytorch_flash::flash_bwd_kernel<Flash_bwd_kernel_traits<64, cutlass::bfloat16_t>>": "softmax attention",
    "query_gradient_kernel": "linear attention",
    "scan_kernel": "linear attention",
    "query_kernel": "loss",
    "logit_kl_kernel": "loss",
    "scale_kernel": "loss",
    "void at::native::vectorized_elementwise_kernel<8, at::native::bfloat16_copy_kernel_cuda>": "all else",
    "Memcpy DtoD (Device -> Device)": "all else",
}


def test_what_kernels_of_a_stage_are_for(monkeypatch: pytest.MonkeyPatch):
    assert {name: by_group.group_of(name) for name in NAMES} == NAMES
    steps: list[int] = []
    monkeypatch.setattr(by_group, "every_kernel", lambda step: step() or dict.fromkeys(NAMES, 0.001))
    ways = {by_group.WAY: lambda length: lambda: steps.append(length)}
    found = [Measured(by_group.WAY, n, 0.02, 7) for n in (4096, 1024)] + [Measured("plain", 8192, 0.02, 7)]
    on_gpu = Layer(HeadShape(2, 1, 16), OPTIONS, torch.device("cuda"))
    made = by_group.rows(on_gpu, "stage 2", ways, found, *TOLD[1:])
    (table,) = section("speed", made).tables
    assert steps == [4096] and table.caption.startswith("Stage 2 as a run")
    assert {group: milliseconds for group, _, milliseconds, _ in table.rows} == {
        group: number(count) for group, count in Counter(NAMES.values()).items()
    }
    assert [row[3] for row in table.rows if row[0] == "loss"] == ["27.3\N{NO-BREAK SPACE}%"]
    assert not by_group.rows(layer(2, 1), "stage 2", ways, found, *TOLD[1:])
    assert not by_group.rows(on_gpu, "stage 2", ways, found[2:], *TOLD[1:])


def test_every_kernel_that_is_compiled_is_for_something():
    """But that of decoding, which no stage does."""
    names = {kernel.fn.__name__ for kernel, *_ in COMPILED} - {"step_kernel"}
    assert names <= by_group.own().keys()


def test_benchmarks_of_stages_tell_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage2, "WORDS", 90)
    monkeypatch.setattr(stage1, "LAYERS", 2)
    asked: list[str] = []
    monkeypatch.setattr(by_group, "rows", lambda layer, what, ways, *given: asked.append(what) or [])
    options = ["--heads", "2", "--head-dim", "16", "--features", "16", "--device", "cpu", "--lengths", "8"]
    for what in ("stage1", "stage2"):
        assert main([what, *options, "--out", str(tmp_path / "speed")]) == 0
    assert asked == ["stage 1", "stage 2"]
