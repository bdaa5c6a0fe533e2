"""Timings become rows, and rows a table with goals."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from distill.bench import PROGRAM, serving
from distill.bench.__main__ import main
from distill.bench.free import FREE, added
from distill.bench.serving import Timing, timing
from distill.bench.table import TITLE, rows, section
from distill.bench.table import save as save_page
from distill.errors import UserError
from distill.exported import load_decoder
from distill.measure.turns import in_turn
from distill.report.compare.rows import Row
from distill.stages.graphs import Inputs, Steps

COMMAND = f"{PROGRAM} decode DIR"
SMALL = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SECONDS = {1024: (0.01, 0.02), 4096: (0.02, 0.021), 16384: (0.05, 0.02)}


def save(out: Path, new: list[Row]) -> Path:
    return save_page(out, new, TITLE, section)


def timings(batch: int = 8, slower: float = 1.0) -> list[Timing]:
    return [
        Timing(
            what="decode",
            batch=batch,
            length=length,
            seconds={"teacher": t, "student": s * slower},
            speedup=t / s / slower,
            error=0.1,
            kept_bytes={"teacher": length, "student": 7},
        )
        for length, (t, s) in SECONDS.items()
    ]


def made(found: list[Timing], hardware: str = "one GPU", command: str = COMMAND) -> dict[tuple[str, str], Row]:
    built = rows(found, "hedgehog F=128", "pocket", command, hardware, "abc", "GPU" in hardware)
    return {(row.case, row.metric): row for row in built}


def test_every_timing_is_a_row_and_how_flat_decoding_is():
    found = made([*timings(), Timing("prefill", 1, 64, {"teacher": 1.0, "student": 2.0}, 0.5, 0.1)])
    case = "hedgehog F=128 | pocket | decode at 16384 tokens, batch 8, one GPU"
    speedup = found[case, "speedup"]
    assert (speedup.value, speedup.spread, speedup.goal) == (2.5, 0.1, ">= 2")
    assert found[case, "teacher_ms"].value == 50 and found[case, "student_bytes"].value == 7
    flat = found["hedgehog F=128 | pocket | decode from 1024 to 16384 tokens, batch 8, one GPU", "slowdown"]
    assert flat.value == pytest.approx(1.05) and flat.goal == "<= 1.15"
    assert len(found) == 3 * 5 + 1 + 3
    # On a CPU, and of another batch, there is no goal for the speed.
    assert not any(row.goal for (_, metric), row in made(timings(), "2 CPU cores").items() if metric == "speedup")
    assert not any(row.goal for (_, metric), row in made(timings(1)).items() if metric == "speedup")


def test_a_step_of_training_is_to_be_faster_at_two_lengths():
    found = [Timing("train", 1, n, {"teacher": 1.0, "student": 1.0}, 1.0, 0.1) for n in (1024, 4096, 16384)]
    wanted = {case.split("at ")[1].split(" ")[0]: row.goal for (case, metric), row in made(found).items() if row.goal}
    assert wanted == {"4096": ">= 1.1", "16384": ">= 1.7"}
    assert not any(row.goal for row in made(found, "2 CPU cores").values())


def test_what_any_attention_could_gain_is_told(tmp_path: Path):
    found = Timing("train", 1, 4096, {"teacher": 0.02, "student": 0.016, "rest": 0.0125}, 1.25, 0.1)
    page = save(tmp_path / "train", list(made([found]).values())).read_text()
    assert "Teacher / student | Without attention, ms | Teacher / that |" in page
    assert "| train | 1 | 4,096 | 20.0 | 16.0 | 1.250 ± 0.100 | 12.5 | 1.60× |" in page
    assert "ithout attention" not in save(tmp_path / "decode", list(made(timings()).values())).read_text()


@pytest.mark.parametrize(("kv_heads", "width"), [(4, 8), (2, 8), (4, 6)])
def test_attention_that_costs_nothing_reaches_all(kv_heads: int, width: int):
    """Queries may share keys, and rows of values be shorter than those of queries."""
    query = torch.randn(2, 4, 5, 8, requires_grad=True)
    key, value = (torch.randn(2, kv_heads, 5, n, requires_grad=True) for n in (8, width))
    out, _ = added(torch.nn.Identity(), query, key, value, None, scaling=0.5)
    for head in range(4):
        of = head * kv_heads // 4
        expected = query[:, head, :, :width] + key[:, of, :, :width] + value[:, of]
        torch.testing.assert_close(out[:, :, head], expected)
    out.sum().backward()
    assert all((each.grad[..., :width] != 0).all() for each in (query, key, value))


def test_a_model_without_attention_is_one():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1, attn_implementation=FREE))
    seen: list[int] = []
    model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda *given: seen.append(given[1][0].shape[-1]))
    ids = torch.arange(6)[None]
    serving.training(model, 1, 6, False, False)()
    assert seen == [16] and all((each.grad != 0).any() for each in model.parameters())
    # A token is all that its own logits know of.
    changed = ids.clone()
    changed[0, 0] = 9
    torch.testing.assert_close(model(changed).logits[:, 1:], model(ids).logits[:, 1:])


def test_a_step_of_training_reaches_all_weights(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Compiled, too, and then they are the same."""
    student, by, made = load_decoder(checkpoint, "float32", "cpu"), [], []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    for compiled in (False, True):
        torch.manual_seed(0)
        serving.training(student, 1, 8, False, compiled)()
        assert all(each.grad is not None for each in student.parameters())
        by.append([each.grad.clone() for each in student.parameters()])
    torch.testing.assert_close(*by)
    assert len(made) == 1


def test_a_table_keeps_what_was_not_measured_anew(tmp_path: Path):
    out = tmp_path / "results" / "serving"
    save(out, list(made(timings()).values()))
    save(out, list(made(timings(1), "2 CPU cores").values()))
    page = save(out, list(made(timings(slower=3.0)).values())).read_text()
    found = {(row["case"], row["metric"]): row["value"] for row in json.loads(out.with_suffix(".json").read_text())}
    assert len(found) == 2 * (3 * 5 + 1)
    assert found["hedgehog F=128 | pocket | decode at 16384 tokens, batch 8, one GPU", "student_ms"] == pytest.approx(
        60
    )
    assert "| decode | 8 | 16,384 | 50.0 | 60.0 | 0.833 ± 0.100 | 16 KiB | 7 B |" in page.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert "speedup | &gt;= 2 | 0.833 | missed |" in page and "slowdown | &lt;= 1.15 | 1.05 | kept |" in page
    figures = sorted(path.name for path in out.parent.glob("*.svg"))
    assert len(figures) == 2 and all(name in page for name in figures)


def test_all_have_their_turn_in_every_round(monkeypatch: pytest.MonkeyPatch):
    turns: list[Any] = []

    def step(who: str, length: int) -> Any:
        def work() -> None:
            if (who, length) == ("student", 64):
                raise torch.OutOfMemoryError
            turns.append((who, length))

        return work

    steps = {length: {who: step(who, length) for who in ("teacher", "student")} for length in (32, 16, 64, 128)}
    found = in_turn(steps, 2, torch.device("cpu"), "told", 15, 3)
    assert list(found) == [16, 32] and all(len(each) == 15 for by in found.values() for each in by.values())
    tried = [("teacher", 16), ("student", 16), ("teacher", 32), ("student", 32), ("teacher", 64)]
    each = [place for place in tried[:4] for _ in range(2)]
    assert turns == tried + each * 18


def test_quotients_are_of_the_same_round():
    seconds = {"teacher": [2.0 * i for i in range(4, 19)], "student": [1.0] * 15}
    found = timing("decode", 1, 64, seconds)
    # 8 to 36, of which 22 is the middle, and 14 and 30 are the quartiles.
    assert found.seconds == {"teacher": 22.0, "student": 1.0} and (found.speedup, found.error) == (22.0, 8.0)
    assert timing("decode", 1, 64, {"teacher": [1.0, 3.0, 9.0], "student": [1.0, 1.0, 3.0]}).speedup == 3.0


@pytest.mark.parametrize("option", ["--compile", "--graphs"])
def test_reading_is_neither_compiled_nor_captured(option: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["prefill", str(checkpoint), option])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda", 4)])
def test_steps_of_seconds_are_taken_once_to_a_round(device: str, times: int, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(serving, "time_whole", lambda *given: asked.append(given[-1]) or [])
    serving.time_train({"teacher": SimpleNamespace(device=torch.device(device))}, [8], [1], False, False)
    assert asked == [times]


@pytest.mark.parametrize(
    ("problem", "raised", "said"),
    [
        (torch.OutOfMemoryError("of a graph"), torch.OutOfMemoryError, "of a graph"),
        (ValueError("it waits"), UserError, "--graphs: a step of 1 × 8 tokens makes no CUDA graph here: it waits; "),
    ],
)
def test_what_there_is_no_memory_for_as_a_graph_is_not_what_makes_none(
    problem: Exception, raised: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
):
    """While one is made something else goes wrong in the end."""

    def captured(steps: Steps, inputs: Inputs) -> None:
        try:
            raise problem
        finally:
            raise RuntimeError("in the end")

    monkeypatch.setattr(Steps, "captured", captured)
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    with pytest.raises(raised, match=said):
        serving.training(model, 1, 8, graphs=True, compiled=False)


@pytest.mark.parametrize("what", ["decode", "prefill", "train"])
def test_the_command_measures_a_student(
    checkpoint: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving, "TURNS", (3, 0))
    command = [what, str(checkpoint), "--lengths", "32,64", "--batches", "1,2"]
    assert main([*command, "--device", "cpu", "--teacher", "pocket", "--out", str(tmp_path / "speed")]) == 0
    title, _, *printed, page = capsys.readouterr().out.splitlines()
    assert title.startswith("exponential F=") and page == str(tmp_path / "speed.md")
    assert printed[0].startswith("Decoding is one token after so many") and max(map(len, printed)) < 140
    assert [line.split()[:3] for line in printed if line.startswith(what)] == [
        [what, batch, length] for batch in "12" for length in ("32", "64")
    ]
    found = json.loads((tmp_path / "speed.json").read_text())
    assert all(row["value"] > 0 for row in found) and found[0]["command"].startswith(f"python -m distill.bench {what}")
    places = {row["case"].split(" | ")[2].rsplit(",", 2)[0] for row in found}
    assert places == {f"{what} at {length} tokens, batch {batch}" for length in (32, 64) for batch in (1, 2)}
    assert ("rest_ms" in {row["metric"] for row in found}) == (what == "train")


def test_mistakes_are_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "encoder").mkdir()
    told = json.loads((checkpoint / "provenance.json").read_text()) | {"task": "embedding"}
    (tmp_path / "encoder/provenance.json").write_text(json.dumps(told))
    other = tmp_path / "other"
    save(other, list(made(timings()).values()))
    for arguments, said in (
        (["decode", str(tmp_path)], "no provenance.json"),
        (["decode", str(tmp_path / "encoder")], "embedding, which writes no text"),
        (["step", "--device", "abacus"], "--device abacus: "),
        (["step", "--device", "cpu", "--out", str(tmp_path / "encoder/provenance")], "holds no list of rows"),
        (["decode", str(checkpoint), "--graphs", "--device", "cpu"], "--graphs"),
        # No build of PyTorch is for these and for a CPU alone.
        (["decode", str(checkpoint), "--device", "xpu", "--teacher", "pocket"], "--device xpu: "),
        (
            ["train", str(checkpoint), "--compile", "--device", "cpu"],
            "--compile: PyTorch's compiler is trusted on CUDA alone",
        ),
        (
            ["decode", str(checkpoint), "--device", "cpu", "--teacher", str(tmp_path / "none")],
            "none: no such directory",
        ),
        (["decode", str(checkpoint), "--device", "cpu", "--teacher", str(tmp_path)], "cannot be loaded"),
        (["decode", str(checkpoint), "--out", str(tmp_path)], f"--out {tmp_path} is a folder"),
        (["step", "--out", str(other)], f"--out {other} holds what another command, decode, has timed"),
        (["stage1", "--kv-heads", "4"], "--kv-heads 4: stages are of a GPT-2"),
    ):
        assert main(arguments) == 2
        printed = capsys.readouterr().err.splitlines()[-1]
        assert printed.startswith("distill: ") and said in printed


@pytest.mark.parametrize(("least", "code"), [(32, 2), (64, 0)])
def test_what_there_is_no_memory_for_is_told(
    least: int, code: int, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    make = serving.reading

    def reading(model: Any, batch: int, length: int) -> Any:
        if length >= least:
            raise torch.OutOfMemoryError
        return make(model, batch, length)

    monkeypatch.setattr(serving, "reading", reading)
    monkeypatch.setattr(serving, "TURNS", (3, 0))
    command = ["prefill", str(checkpoint), "--lengths", "32,64", "--batches", "1", "--device", "cpu"]
    assert main([*command, "--teacher", "pocket", "--out", str(tmp_path / "speed")]) == code
    said = "no memory for texts of 1 × 64 tokens" if code == 0 else "--lengths: there is no memory for the shortest; "
    assert f"distill: {said}" in capsys.readouterr().err
    assert (tmp_path / "speed.json").exists() is (code == 0)


@pytest.mark.parametrize("wrong", ["0", "8,-1", "two"])
def test_numbers_are_above_nought(wrong: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["decode", str(checkpoint), "--batches", wrong])
    assert ended.value.code == 2 and wrong in capsys.readouterr().err


def test_who_stops_it_is_told_no_more(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.bench.__main__.bench", stopped)
    assert main(["decode", str(checkpoint)]) == 130
    assert capsys.readouterr() == ("", "distill: stopped\n")


@pytest.mark.parametrize(("length", "told"), [(1024, False), (1025, True)])
def test_texts_that_a_teacher_is_not_for_are_told(
    length: int, told: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setattr(serving, "TURNS", (3, 0))
    command = ["prefill", str(checkpoint), "--lengths", f"{length}", "--batches", "1", "--device", "cpu"]
    assert main([*command, "--teacher", "pocket", "--out", str(tmp_path / "speed")]) == 0
    said = "distill: the teacher is for texts of 1,024 tokens; of longer ones speed alone is told\n"
    assert (said in capsys.readouterr().err) == told
