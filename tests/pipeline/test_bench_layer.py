"""The benchmarks of a layer and of its loss: every way computes the same, and what is told of them."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from distill import divergence
from distill.bench import attention, maploss, public, stage1, stage2, step
from distill.bench.__main__ import main
from distill.bench.layer import Layer, Measured, time_ways
from distill.bench.layer_table import ATTENTION, MAP_LOSS, STAGE_1, rows, section
from distill.bench.table import printed
from distill.flexformer.feature_map import HeadShape
from distill.maploss import layer_kl
from distill.mixer import bare

CPU = torch.device("cpu")
OPTIONS = bare("exponential", features=16, frequency_scale=0.3, key_weight="quadratic")
PARTS = ("query", "key", "value")
LAYER = Layer(HeadShape(2, 1, 16), OPTIONS | {"window": 3}, CPU)


def test_every_way_is_the_loss():
    mixer, heads = LAYER.mixer(), LAYER.heads(70)
    expected = layer_kl(mixer, heads)
    for loss in (maploss.dense, maploss.in_blocks, maploss.streamed):
        torch.testing.assert_close(loss(mixer, heads).mean((0, 3)).flatten(), expected, rtol=5e-3, atol=1e-5)
    assert list(maploss.ways(LAYER)) == ["dense", "in blocks"]
    assert max(maploss.errors(LAYER).values()) < 1e-4


def test_every_way_is_linear_attention():
    layer = Layer(HeadShape(2, 1, 16), OPTIONS, CPU)
    mixer, heads = layer.mixer(), layer.heads(70, 2)
    torch.testing.assert_close(attention.kernels(mixer, heads), attention.plain(mixer, heads), rtol=1e-4, atol=1e-5)
    assert list(attention.ways(layer)) == ["softmax (SDPA)", "linear, plain"]
    assert max(attention.errors(layer).values()) < 1e-4
    torch.testing.assert_close(attention.softmax(mixer, heads)[:, :, 0], heads.value[:, :, 0].expand(-1, 2, -1))


def test_a_public_package_is_given_the_same(monkeypatch: pytest.MonkeyPatch):
    """Its kernels take a GPU; here is what they compute of these features."""
    layer = Layer(HeadShape(2, 1, 16), OPTIONS, CPU)
    mixer, heads = layer.mixer(), layer.heads(20, 2)
    with torch.no_grad():
        mixer.key_weight.coefficients[0].normal_()
    query, key = public.features(mixer, heads.query, heads.key, heads.scaling)
    weights = (query @ key.mT).tril()
    out = weights @ heads.value / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(out, attention.plain(mixer, heads), rtol=1e-4, atol=1e-5)
    on_gpu: Any = SimpleNamespace(query=SimpleNamespace(is_cuda=True))
    monkeypatch.setattr(public, "find_spec", lambda name: name == "fla")
    others = ({"window": 3}, {"decay": "fixed"}, {"normaliser": "norm"})
    assert public.takes(mixer, on_gpu) and not public.takes(mixer, heads)
    assert not any(public.takes(Layer(layer.shape, OPTIONS | each, CPU).mixer(), on_gpu) for each in others)


@torch.no_grad()
def test_every_way_is_a_step():
    mixer, (kept, new) = LAYER.mixer(), step.kept_and_new(LAYER, 9)
    whole = LAYER.heads(10, step.BATCH)
    whole = whole._replace(**{part: torch.cat([getattr(each, part) for each in (kept, new)], 2) for part in PARTS})
    memory = step.read(mixer, kept)
    expected = attention.plain(mixer, whole)[:, :, -1:]
    for decode in (step.plain, step.kernel):
        torch.testing.assert_close(decode(mixer, new, memory), expected, rtol=1e-4, atol=1e-5)
    kept = kept._replace(key=whole.key, value=whole.value)
    torch.testing.assert_close(step.softmax(kept, new), attention.softmax(mixer, whole)[:, :, -1:])
    assert list(step.ways(LAYER)) == ["softmax (SDPA)", "linear, plain"] and max(step.errors(LAYER).values()) < 1e-4
    # Sums of 16 features by 17 numbers, their maximum, how many tokens were read, and a window of three.
    assert step.floor(LAYER, 64, 1.0, 1.0) == 2 * 8 * (4 * (16 * 17 + 1) + 8 + 3 * (2 * 16 * 4 + 1))


def test_a_step_of_stage_1_is_the_same_in_both_ways():
    layer = Layer(HeadShape(2, 2, 16), OPTIONS | {"window": 3}, CPU)
    found, batch = [], {"input_ids": torch.arange(20)[None]}
    for stage in stage1.stages(CPU).values():
        torch.manual_seed(0)
        taught = stage1.teacher(layer, 20)
        made = stage(taught, {i: layer.mixer() for i in range(stage1.LAYERS)}, stage1.WANTED)
        made.training_step(batch, 0).backward()
        found.append([each.grad for each in made.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert stage1.floor(layer, 10, 2.0, 1.0) == 12 * maploss.floor(layer, 10, 2.0, 1.0)


def test_a_step_of_stage_2_is_the_same_in_both_ways(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage2, "WORDS", 90)
    layer, found, asked = Layer(HeadShape(2, 2, 16), OPTIONS | {"window": 3}, CPU), [], []
    kls = divergence.kls
    monkeypatch.setattr(divergence, "kls", lambda *given: asked.append(len(found)) or kls(*given))
    for stage in stage2.STAGES.values():
        torch.manual_seed(0)
        made = stage2.staged(layer, stage, 20)
        made.training_step({"input_ids": torch.arange(20)[None]}, 0).backward()
        found.append([each.grad for each in made.student.parameters()])
    torch.testing.assert_close(*found)
    # A kernel is asked for as a run is, the last of them.
    assert asked == [1]
    # Forwards of one model and both ways of another, of 12 · 12 · 32² weights and a head of 90 words.
    assert stage2.floor(layer, 10, 2.0, 1.0) == 4 * (12 * 12 * 32**2 + 90 * 32) * 10


@pytest.mark.parametrize(("stage", "models"), [(stage1, [1, 1]), (stage2, [0, 2])])
def test_stages_are_timed_with_the_shortcuts_of_a_run(stage: Any, models: list[int], monkeypatch: pytest.MonkeyPatch):
    """A teacher, and a student beside it; plain is without."""
    monkeypatch.setattr(stage2, "WORDS", 90)
    taken: list[int] = []
    monkeypatch.setattr(stage1, "take", lambda running: taken.append(len(running)))
    for make in stage.ways(Layer(HeadShape(2, 2, 16), OPTIONS, CPU)).values():
        make(8)
    assert taken == models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stage", [stage1, stage2])
def test_stages_are_timed_in_the_precision_of_a_run(stage: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """Products of bfloat16, of weights of float32."""
    monkeypatch.setattr(stage2, "WORDS", 90)
    monkeypatch.setattr(stage1, "LAYERS", 2)
    steps = [make(8) for make in stage.ways(Layer(HeadShape(2, 2, 16), OPTIONS, CPU, dtype)).values()]
    found = set()

    def told(module: nn.Module, given: Any, out: Any) -> None:
        if isinstance(module, Conv1D):
            found.add((module.weight.dtype, out.dtype))

    with torch.nn.modules.module.register_module_forward_hook(told):
        for step in steps:
            step()
    assert found == {(torch.float32, dtype)}


def test_every_length_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch):
    """As a run's is, although all are the same lines of code."""
    monkeypatch.setattr(stage2, "WORDS", 90)
    monkeypatch.setattr(stage1, "LAYERS", 1)
    torch._dynamo.reset()
    given: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        given.extend(inputs)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    (make,) = stage2.compiled(Layer(HeadShape(2, 2, 16), OPTIONS, CPU)).values()
    for length in (8, 12):
        make(length)()
    # What is compiled for any length is given it, too.
    assert all(isinstance(each, Tensor) for each in given)
    assert {(1, 8), (1, 12)} <= {each.shape for each in given}


def test_a_speedup_is_over_the_way_it_is_told_to_be():
    layer = Layer(HeadShape(12, 12, 64), OPTIONS | {"features": 128}, torch.device("cuda"))
    found = [Measured("dense (compiled)", 4096, 0.06, 7), *(Measured("as a run", n, 0.02, 7) for n in (4096, 8192))]
    made = rows(layer, STAGE_1, found, {4096: 0.001, 8192: 0.01}, {}, "c", "one GPU", "abc")
    (speedup,) = [row for row in made if row.metric == "speedup"]
    assert speedup.value == pytest.approx(3.0) and speedup.goal == ">= 3"


def test_the_floor_of_the_loss_is_what_is_not_computed_twice():
    # Of 2 heads and half of 10 × 10 pairs: q·k of 16, and three products of 16 features.
    assert maploss.floor(LAYER, 10, 2.0, 1.0) == 2 * 50 * 2 * (16 + 3 * 16) / 2


def test_the_floor_of_attention_is_products_or_memory():
    tokens = attention.TOKENS["cpu"]
    products = 2 * 3 * 4 * 16 * 16 * 2 * tokens
    moved = (5 * 2 + 6 * 1) * 16 * 4 * tokens
    assert attention.floor(LAYER, 64, 1.0, 1e9) == products
    assert attention.floor(LAYER, 64, 1e9, 1.0) == moved


def test_a_way_that_has_no_memory_is_left_out_from_there_on(capsys: pytest.CaptureFixture[str]):
    def make(length: int) -> attention.Step:
        if length == 12:
            raise torch.OutOfMemoryError
        return lambda: None

    found = time_ways(CPU, [16, 8, 12], {"first": make, "second": lambda length: lambda: None}, "told")
    assert {(each.way, each.length) for each in found} == {("first", 8), *(("second", n) for n in (8, 12, 16))}
    assert "distill: no memory for told, first, of 12 tokens\n" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="broken"):
        time_ways(CPU, [8], {"first": lambda length: exec("raise RuntimeError('broken')")}, "told")


def test_goals_are_for_one_way_on_a_gpu():
    layer = Layer(HeadShape(12, 12, 64), OPTIONS | {"features": 128}, torch.device("cuda"))
    found = [Measured(way, length, 0.02, 7) for way in ("streamed", "in blocks") for length in (1024, 16384)]
    floors = {1024: 0.001, 16384: 0.01}
    made = rows(layer, MAP_LOSS, found, floors, {"streamed": 0.003, "in blocks": 0.1}, "c", "one GPU", "abc")
    goals = {(row.case.split(" | ")[2], row.metric): row.goal for row in made if row.goal}
    assert goals == {
        ("map loss at 16384 tokens, streamed, one GPU", "fwdbwd_ms"): "<= 10",
        ("map loss at 16384 tokens, streamed, one GPU", "peak_bytes"): "<= 500000000",
        ("map loss error, streamed, one GPU", "error"): "<= 0.01",
    }
    found = [Measured(way, length, 0.02, 7) for way in ("linear, kernels", "linear, plain") for length in (1024, 16384)]
    more = rows(layer, ATTENTION, found, floors, {"linear, kernels": 0.02}, "c", "one GPU", "abc")
    assert [row.case.split(" | ")[2] for row in more if row.goal == "<= 1.3"] == [
        f"attention at {length} tokens, linear, kernels, one GPU" for length in (1024, 16384)
    ]
    shown = section("name", made + more)
    assert [table.caption.split(",")[0].split(":")[0] for table in shown.tables] == [
        "Goals", "Map loss", "Map loss", "Attention", "Attention",
    ]  # fmt: skip
    assert shown.tables[1].rows[0] == ["streamed", "1,024", "20.0", "1.00", "20.0×", "7\N{NO-BREAK SPACE}B"]
    assert shown.tables[2].rows == [["streamed", "0.00300"], ["in blocks", "0.100"]]
    assert [line[1] for line in shown.tables[3].rows] == ["1,024", "1,024", "16,384", "16,384"]
    assert shown.tables[4].rows == [["linear, kernels", "0.0200"]]
    title, _, loss, *_, page = printed(made, section, Path("speed.md")).split("\n\n")
    assert title == "exponential F=128 | 12 heads of 64 | one GPU" and page == "speed.md"
    assert loss.splitlines()[1:3] == [
        "Way        Tokens    ms  Floor, ms  Over it  Memory at its peak",
        "streamed    1,024  20.0       1.00    20.0×                 7\N{NO-BREAK SPACE}B",
    ]
    other = Layer(HeadShape(12, 12, 64), OPTIONS | {"features": 64}, torch.device("cuda"))
    assert not any(row.goal for row in rows(other, MAP_LOSS, found, floors, {"streamed": 1.0}, "c", "one GPU", "abc"))
    assert not any(row.goal for row in rows(LAYER, MAP_LOSS, [], {}, {"streamed": 1.0}, "c", "2 CPU cores", "abc"))


def test_all_stand_beside_softmax_which_has_no_floor_of_theirs():
    found = [Measured("softmax (SDPA)", 1024, 0.03, None), Measured("linear, kernels", 1024, 0.02, None)]
    made = rows(LAYER, ATTENTION, found, {1024: 0.01}, {}, "c", "2 CPU cores", "abc")
    table = section("name", made).tables[0]
    assert table.columns == ["Way", "Tokens", "ms", "Softmax / it", "Floor, ms", "Over it"]
    assert sorted(table.rows) == [
        ["linear, kernels", "1,024", "20.0", "1.50×", "10.0", "2.00×"],
        ["softmax (SDPA)", "1,024", "30.0", "–", "–", "–"],
    ]


def test_the_commands_add_to_their_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setitem(attention.TOKENS, "cpu", 32)
    sizes = ["--device", "cpu", "--heads", "2", "--head-dim", "16", "--features", "16"]
    monkeypatch.setattr(stage2, "WORDS", 90)
    captions = {"Attention": 2, "Map loss": 2, "Step": 2, "Stage 1": 1, "Stage 2": 1}
    for caption, tables in captions.items():
        what = caption.lower().replace(" ", "")
        assert main([what, *sizes, "--lengths", "8,16", "--out", str(tmp_path / "speed")]) == 0
        title, intro, *parts, page = capsys.readouterr().out.split("\n\n")
        assert intro.startswith("A layer forwards and backwards") and intro.count("python -m distill.bench") == 1
        assert title.startswith("exponential F=16 | 2 heads of 16 | ") and page == f"{tmp_path / 'speed.md'}\n"
        # What was timed before is on the page alone, and of a processor there is no memory to tell.
        assert len(parts) == tables and parts[0].startswith(f"{caption}, ")
        beside = "  Softmax / it" if caption in ("Attention", "Step") else ""
        assert " ".join(parts[0].splitlines()[1].split()) == " ".join(
            f"Way Tokens ms{beside} Floor, ms Over it".split()
        )
    found = json.loads((tmp_path / "speed.json").read_text())
    # All but softmax are held to a floor.
    assert len(found) == 5 * 2 * 2 * 2 - 2 * 2 + 2 + 2 + 1 + 2 and all(row["value"] > 0 for row in found)
    page = (tmp_path / "speed.md").read_text()
    assert page.count("\n## ") == 1 and "| linear, plain | 16 |" in page


@pytest.mark.parametrize("mixer", ["zero", "cosformer", "stationary-delta-window"])
def test_any_mixer_is_timed(mixer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(attention.TOKENS, "cpu", 32)
    sizes = ["--device", "cpu", "--heads", "2", "--head-dim", "16", "--mixer", mixer]
    assert main(["attention", *sizes, "--lengths", "16", "--out", str(tmp_path / "speed")]) == 0
    page = (tmp_path / "speed.md").read_text()
    assert "| linear, plain | 16 |" in page and f"## {mixer.partition('-')[0]} F=" in page


def test_products_are_made_as_a_run_makes_them(tmp_path: Path):
    sizes = ["--device", "cpu", "--heads", "1", "--head-dim", "16", "--features", "16"]
    for precision in ("medium", "highest"):
        main(["maploss", *sizes, "--lengths", "8", "--precision", precision, "--out", str(tmp_path / "speed")])
        assert torch.get_float32_matmul_precision() == precision
    assert (tmp_path / "speed.md").read_text().count("medium precision") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--features", "0"], "mixer.features=0"),
        (["--mixer", "spektral"], "mixer=spektral is unknown; known: cosformer"),
        (["--mixer", "stationary-delta"], "no map that could be fitted"),
        (["--mixer", "uniform"], "no map that could be fitted"),
        (["--mixer", "softmax"], "--mixer softmax"),
        (["--mixer", "elu", "--features", "9"], "--features 9: --mixer elu has none; leave it out"),
        (["--heads", "4", "--kv-heads", "3"], "--kv-heads 3"),
        (["--kv-heads", "0"], "--kv-heads 0"),
        (["--head-dim", "0"], "at least 1"),
    ],
)
def test_a_mistake_is_one_line(wrong: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["maploss", "--device", "cpu", *wrong, "--out", str(tmp_path / "speed")]) == 2
    assert said in capsys.readouterr().err


def test_a_page_of_nothing_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def without_memory(*given: object) -> attention.Step:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(maploss, "ways", lambda layer: {"streamed": without_memory})
    assert main(["maploss", "--device", "cpu", "--lengths", "8", "--out", str(tmp_path / "speed")]) == 2
    told = capsys.readouterr().err
    assert "distill: no memory for map loss, streamed, of 8 tokens\n" in told
    assert told.splitlines()[-1] == "distill: --lengths: there is no memory for the shortest; give shorter ones"
    assert not [*tmp_path.iterdir()]
