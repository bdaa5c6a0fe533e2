"""`python -m distill.report compare`: what becomes of many runs in one table."""

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.errors import UserError
from distill.report.__main__ import main
from distill.report.compare import compare
from distill.report.compare.case import is_control, mixer_words
from distill.report.compare.compared import by_teacher
from distill.report.compare.rows import read_rows
from distill.report.compare.tables import score_table

from .conftest import dump, headline, heads
from .test_report import HOSTILE, Page

#: The tests below read one table, so they belong into one process.
pytestmark = pytest.mark.xdist_group("compare")

#: F, options and log ratio by the name of the mixer: thirty, of which some are controls or have no KL.
MIXERS: dict[str, tuple[int | None, dict[str, Any], float]] = {
    **{f"map-{i}": (16 * (1 + i % 4), {}, 0.1 + 0.01 * i) for i in range(20)},
    **{f"hybrid-{i}": (64, {"window": 32 << i, "decay": "learned"}, 0.08 - 0.01 * i) for i in range(4)},
    "exponential-frozen": (128, {"frozen": True}, 0.35),
    "uniform": (1, {}, 1.4),
    "window-only": (1, {"window": 64}, 0.112),
    "retnet": (64, {"decay": "fixed"}, 0.3),
    "signed": (128, {}, 9.0),
    "softmax": (None, {"exact_layers": "all"}, 0.06),
}
TEACHER = {"code": 9.0, "prose": 20.0}
KEYS = ["case", "metric", "value", "spread", "seeds", "unit", "goal", "command", "hardware", "commit"]


def write(
    path: Path,
    name: str = "hedgehog",
    seed: int = 0,
    features: int | None = 128,
    ratio: dict[str, float | None] | None = None,
    options: dict[str, Any] | None = None,
    teacher: str = "teachers/books-6x512",
    **changes: Any,
) -> Path:
    """A run of mixer `name`; `changes` are made to its headline."""
    ratio = ratio or {"code": 1.2, "prose": 1.1}
    (path / "measurements").mkdir(parents=True)
    (path / "student").mkdir()
    perplexity = {domain: TEACHER.get(domain, 30.0) for domain in ratio}
    measured = headline(tuple(ratio)) | {
        "teacher_ppl": perplexity,
        "ratio": ratio,
        "stage1_ppl": {domain: 1.5 * each for domain, each in perplexity.items()},
        "teacher_tuned_ppl": None,
        "teacher_tuned_kl": None,
        "state_bytes": 1000 * (features or 1),
        "feature_dim": features,
    }
    dump(path / "measurements/headline.json", measured | changes)
    dump(path / "measurements/fidelity.json", fidelity(tuple(ratio)))
    dump(path / "student/provenance.json", {})
    command = f"python -m distill recipe=books mixer={name} seed={seed}"
    origin = {"command": command, "mixer": name, "hardware": "2 CPU cores", "commit": "c0ffee"}
    dump(path / "measurements/run.json", origin)
    config = {"seed": seed, "teacher": {"path": teacher}, "mixer": {"map": "a", **(options or {})}}
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"stages": {"logits": {"max_steps": 400}}}))
    return path


@cache
def fidelity(domains: tuple[str, ...]) -> dict[str, Any]:
    return heads(domains)[0]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def table(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = json.loads(out.with_name(out.name + ".json").read_text())
    rows = {(row["case"], row["metric"]): row for row in found}
    assert len(rows) == len(found)
    return rows


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirty mixers, two seeds, two domains."""
    home, runs = tmp_path_factory.mktemp("many"), []
    for place, (name, (features, options, log)) in enumerate(MIXERS.items()):
        for seed in (0, 1):
            ratio = {"code": math.exp(1.3 * log) + 0.01 * seed, "prose": math.exp(log) + 0.02 * seed}
            run = write(home / f"{place}-{seed}", name, seed, features, ratio, options)
            if name == "signed":
                edit(run / "measurements/fidelity.json", comparable=False)
            runs.append(run)
    return runs


@pytest.fixture(scope="module")
def out(many: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results") / "compare"
    compare(many, out, out.with_suffix(".html"))
    return out


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.report.compare.quality.draw", lambda *given: "<svg></svg>")


def test_a_sweeps_folder_stands_for_its_runs(many: list[Path], out: Path, undrawn: None, tmp_path: Path) -> None:
    (many[0].parent / "multirun.yaml").touch()
    compare([many[0].parent], tmp_path / "swept.md")
    assert table(tmp_path / "swept") == table(out)


def test_rows_keep_the_contract(out: Path) -> None:
    rows = table(out)
    assert all(list(row) == KEYS for row in rows.values())
    assert len({case for case, _ in rows}) == len(MIXERS) * 2
    metrics = {metric for case, metric in rows if case == "hybrid-0 F=64 window=32 decay=learned | books-6x512 | code"}
    assert metrics == {
        *("ratio", "stage1_ratio", "kl", "map_kl", "output_error", "agreement", "state_bytes"),
        *("context", "cache_bytes_per_token", "student_cache_bytes_per_token", "attention_tokens", "logits_tokens"),
    }


def test_a_value_is_the_mean_over_seeds_and_the_spread_their_deviation(many: list[Path], out: Path) -> None:
    row = table(out)["map-3 F=64 | books-6x512 | prose", "ratio"]
    assert row["value"] == pytest.approx(math.exp(0.13) + 0.01)
    assert row["spread"] == pytest.approx(0.02 / math.sqrt(2))
    assert row["seeds"] == [0, 1] and row["goal"] is None
    assert row["command"] == "python -m distill -m recipe=books mixer=map-3 seed=0,1"
    assert (row["hardware"], row["commit"]) == ("2 CPU cores", "c0ffee")


def test_where_each_number_comes_from(many: list[Path], out: Path) -> None:
    rows, run = table(out), many[2]
    value = {metric: row["value"] for (case, metric), row in rows.items() if case == "map-1 F=32 | books-6x512 | code"}
    heads = json.loads((run / "measurements/fidelity.json").read_text())["domains"]["code"]
    for metric, name in (("map_kl", "kl"), ("output_error", "output_error")):
        every = [each for layer in heads[name] for each in layer]
        assert value[metric] == pytest.approx(sum(every) / len(every))
    assert value["stage1_ratio"] == pytest.approx(1.5) and value["agreement"] == 0.823
    assert value["kl"] == 0.0612 and rows["map-1 F=32 | books-6x512 | code", "kl"]["unit"] == "nats per token"
    assert (value["state_bytes"], value["context"], value["cache_bytes_per_token"]) == (32000, 512, 12288)
    assert (value["attention_tokens"], value["logits_tokens"]) == (1228800, 1638400)


def test_one_seed_has_no_spread(tmp_path: Path, undrawn: None) -> None:
    compare([write(tmp_path / "run", seed=7)], tmp_path / "out")
    row = table(tmp_path / "out")["hedgehog F=128 | books-6x512 | code", "ratio"]
    assert (row["value"], row["spread"], row["seeds"]) == (1.2, None, [7])
    assert row["command"] == "python -m distill recipe=books mixer=hedgehog seed=7"


def test_what_is_unknown_is_null(tmp_path: Path, undrawn: None) -> None:
    signed = write(tmp_path / "signed", "signed", stage1_ppl=None)
    edit(signed / "measurements/fidelity.json", comparable=False)
    rowless = write(tmp_path / "rowless", "retnet")
    found = json.loads((rowless / "measurements/fidelity.json").read_text())["domains"]
    found["code"]["kl"] = [[None] * 4] * 4
    found["prose"]["kl"][1][2] = None
    edit(rowless / "measurements/fidelity.json", domains=found)
    compare([signed, rowless], tmp_path / "out")
    rows = table(tmp_path / "out")
    for domain in ("code", "prose"):
        assert rows[f"signed F=128 | books-6x512 | {domain}", "map_kl"]["value"] is None
        assert rows[f"signed F=128 | books-6x512 | {domain}", "output_error"]["value"] is not None
        assert rows[f"signed F=128 | books-6x512 | {domain}", "stage1_ratio"]["value"] is None
        assert rows[f"retnet F=128 | books-6x512 | {domain}", "map_kl"]["value"] is None


def test_a_seed_that_diverged_is_not_averaged_away(tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    runs.append(write(tmp_path / "2", seed=2, ratio={"code": None, "prose": 1.4}))
    compare(runs, tmp_path / "out")
    rows = table(tmp_path / "out")
    row = rows["hedgehog F=128 | books-6x512 | code", "ratio"]
    assert (row["value"], row["spread"], row["seeds"]) == (None, None, [0, 1, 2])
    assert rows["hedgehog F=128 | books-6x512 | prose", "ratio"]["value"] == pytest.approx(1.2)


def test_the_tuned_teacher_counts_the_seeds_it_was_measured_with(tmp_path: Path, undrawn: None) -> None:
    tuned = {"code": 8.1, "prose": 19.0}
    compare([write(tmp_path / "a", teacher_tuned_ppl=tuned), write(tmp_path / "b", seed=1)], tmp_path / "out")
    row = table(tmp_path / "out")["hedgehog F=128 | books-6x512 | code", "teacher_tuned_ratio"]
    assert (row["value"], row["seeds"]) == (pytest.approx(0.9), [0])
    assert row["command"].endswith(" seed=0")


def test_kl_to_the_teacher_stands_beside_that_of_the_maps(tmp_path: Path, undrawn: None) -> None:
    """And beside that of the tuned teacher; a run that was not held against its teacher has a dash."""
    tuned = {"code": 0.0457, "prose": 0.0701}
    old = write(tmp_path / "old", "elu", kl=None)
    compare([write(tmp_path / "a", kl={"code": 0.0613, "prose": None}, teacher_tuned_kl=tuned), old], tmp_path / "out")
    rows, text = table(tmp_path / "out"), (tmp_path / "out.md").read_text().replace("\\", "")
    case = "hedgehog F=128 | books-6x512 |"
    assert [rows[f"{case} {domain}", "kl"]["value"] for domain in tuned] == [0.0613, None]
    assert [rows[f"{case} {domain}", "teacher_tuned_kl"]["value"] for domain in tuned] == list(tuned.values())
    assert rows[f"{case} code", "teacher_tuned_kl"]["unit"] == "nats per token"
    assert not [metric for mixer, metric in rows if mixer.startswith("elu") and metric in ("kl", "teacher_tuned_kl")]
    beside = text[text.index("Other measures of quality") :]
    head = cells(lines(beside, "| Mixer |")[0])
    told = {name: dict(zip(head, cells(lines(beside, f"| {name} ")[0]), strict=True)) for name in ("hedgehog", "elu")}
    shown = ["KL to teacher, code", "KL to teacher, prose", "Tuned, KL to teacher, code", "Tuned, KL to teacher, prose"]
    assert [told["hedgehog"][name] for name in shown] == ["0.0613", "–", "0.0457", "0.0701"]
    assert [told["elu"][name] for name in shown] == ["–"] * 4
    assert "KL to teacher runs from what the teacher predicts" in text


def test_a_table_without_kl_to_the_teacher_does_not_speak_of_it(tmp_path: Path, undrawn: None) -> None:
    run = write(tmp_path / "run")
    found = json.loads((run / "measurements/headline.json").read_text())
    dump(run / "measurements/headline.json", {name: each for name, each in found.items() if not name.endswith("kl")})
    compare([run], tmp_path / "out")
    assert not [metric for _, metric in table(tmp_path / "out") if metric in ("kl", "teacher_tuned_kl")]
    text = (tmp_path / "out.md").read_text()
    assert "KL to teacher" not in text and "Same first choice" in text


@pytest.mark.parametrize(
    ("name", "options", "features", "words"),
    [
        ("exponential", {}, 128, "exponential F=128"),
        ("exponential-frozen", {"frozen": True, "window": 0, "decay": "none"}, 128, "exponential F=128 frozen"),
        ("mine-delta-window", {"decay": "delta", "window": 64}, 128, "mine F=128 window=64 decay=delta"),
        ("exponential-decay", {"decay": "learned"}, 128, "exponential F=128 decay=learned"),
        ("gated-deltanet", {"decay": "delta"}, 64, "gated-deltanet F=64 decay=delta"),
        ("mine-delta", {"decay": "none"}, 64, "mine-delta F=64"),
        ("not-frozen", {"frozen": False, "exact_layers": []}, 4, "not-frozen F=4"),
        (
            "spectral",
            {"window": 64, "decay": "learned", "exact_layers": [0, 5]},
            126,
            "spectral F=126 window=64 decay=learned exact_layers=[0,5]",
        ),
        ("softmax", {"exact_layers": "all"}, None, "exact"),
        ("zero", {}, 0, "zero F=0"),
        ("exponential-512", {"map": "exponential", "features": 512}, 512, "exponential F=512"),
        ("exponential-512", {"map": "exponential", "features": 64}, 64, "exponential F=64"),
        ("mine-2", {"map": "other", "features": 64}, 64, "mine-2 F=64"),
    ],
)
def test_a_mixer_in_words(name: str, options: dict[str, Any], features: int | None, words: str) -> None:
    assert mixer_words(name, options, features) == words


def test_what_was_said_of_a_mixer_is_part_of_its_name(tmp_path: Path, undrawn: None) -> None:
    """Or it would be joined with the mixer as it is, or stand beside it under the same name."""
    plain, weighted, unplaced = (write(tmp_path / each) for each in ("plain", "weighted", "unplaced"))
    command = "python -m distill mixer=hedgehog mixer.key_weight=linear +mixer.decay_groups=4 mixer.features=128 seed=0"
    edit(weighted / "measurements/run.json", command=command)
    config = yaml.safe_load((unplaced / "config.yaml").read_text())
    config["stages"]["attention"] = {"place": False, "loss": "both"}
    (unplaced / "config.yaml").write_text(yaml.safe_dump(config))
    compare([plain, weighted, unplaced], tmp_path / "out")
    assert {case.split(" | ")[0] for case, _ in table(tmp_path / "out")} == {
        "hedgehog F=128",
        "hedgehog F=128 decay_groups=4 key_weight=linear",
        "hedgehog F=128 loss=both place=false",
    }


def test_rows_are_told_apart_by_what_is_asked_for(tmp_path: Path, undrawn: None, capsys) -> None:
    """Where a run was given it; else runs that differ in it would be seeds of one case, and are refused."""
    whole, part = write(tmp_path / "whole"), write(tmp_path / "part", seed=1)
    edit(part / "measurements/run.json", command="python -m distill mixer=hedgehog stages.logits.train=mixers")
    config = yaml.safe_load((part / "config.yaml").read_text())
    config["stages"]["logits"]["train"] = "mixers"
    (part / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["compare", str(whole), str(part), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2 and "stages.logits.train" in capsys.readouterr().err
    assert main([*arguments, "--tell", "stages.logits.tain"]) == 2
    assert "did you mean 'stages.logits.train'?" in capsys.readouterr().err
    assert main([*arguments, "--tell", "stages.logits.train"]) == 0
    assert {case.split(" | ")[0] for case, _ in table(tmp_path / "out")} == {
        "hedgehog F=128",
        "hedgehog F=128 logits.train=mixers",
    }


@pytest.mark.parametrize(
    ("mixer", "control"),
    [
        ("constant F=1", True),
        ("window-only F=1 window=64", True),
        ("exponential F=128 frozen", True),
        ("spectral F=126 window=64 only=linear", True),
        ("spectral F=126 window=64", False),
        ("exact", False),
    ],
)
def test_controls_are_known_by_their_words(mixer: str, control: bool) -> None:
    assert is_control(mixer) is control


def test_without_an_origin_the_map_names_the_mixer_and_the_checkpoint_the_commit(tmp_path: Path, undrawn: None) -> None:
    run = write(tmp_path / "run")
    (run / "measurements/run.json").unlink()
    edit(run / "student/provenance.json", git_commit="decade")
    compare([run], tmp_path / "out")
    row = table(tmp_path / "out")["a F=128 | books-6x512 | code", "ratio"]
    assert (row["command"], row["hardware"], row["commit"]) == (None, None, "decade")


def test_commands_that_differ_are_all_told(tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    edit(runs[1] / "measurements/run.json", command="python -m distill recipe=books 'x=a b' seed=1", hardware="a GPU")
    compare(runs, tmp_path / "out")
    row = table(tmp_path / "out")["hedgehog F=128 | books-6x512 | code", "ratio"]
    assert row["command"] == (
        "python -m distill recipe=books mixer=hedgehog seed=0; python -m distill recipe=books 'x=a b' seed=1"
    )
    assert row["hardware"] == "2 CPU cores; a GPU"


def test_a_hybrid_is_also_told_in_parts(tmp_path: Path, undrawn: None) -> None:
    parts = {"window": {"code": 18.0, "prose": 30.0}, "linear": {"code": 27.0, "prose": None}}
    compare([write(tmp_path / "run", "spectral", options={"window": 64}, parts=parts)], tmp_path / "out")
    rows = table(tmp_path / "out")
    assert rows["spectral F=128 window=64 only=window | books-6x512 | code", "ratio"]["value"] == 2.0
    assert rows["spectral F=128 window=64 only=linear | books-6x512 | code", "ratio"]["value"] == 3.0
    assert rows["spectral F=128 window=64 only=linear | books-6x512 | prose", "ratio"]["value"] is None
    assert rows["spectral F=128 window=64 | books-6x512 | code", "ratio"]["value"] == 1.2
    text = (tmp_path / "out.md").read_text()
    assert "| spectral window=64 only=window (control) | 128 | – | – | – | 2.000 |" in text
    assert "Not shown" not in text
    # Of a part nothing but its ratio is measured.
    assert len(lines(text, "| spectral window=64 only=window")) == 1


def test_tables_of_two_machines_are_joined(tmp_path: Path, undrawn: None) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    compare([write(tmp_path / "a", "hedgehog")], here)
    compare([write(tmp_path / "b", "t2r"), write(tmp_path / "c", "elu")], there)
    again = write(tmp_path / "d", "elu", seed=5, ratio={"code": 1.7})
    files = [Path(f"{here}.json"), Path(f"{there}.json")]
    compare([*files, again], tmp_path / "both")
    first, second, both = table(here), table(there), table(tmp_path / "both")
    assert both.keys() == first.keys() | second.keys()
    rebuilt = {key for key in both if key[0] == "elu F=128 | books-6x512 | code"}
    assert all(both[key] == (first | second)[key] for key in both.keys() - rebuilt)
    assert rebuilt and all(both[key]["seeds"] == [5] for key in rebuilt)
    # Two files may disagree about what is measured anew.
    dump(tmp_path / "old.json", [row | {"value": 9.9} for row in second.values() if row["case"].startswith("elu")])
    elu = write(tmp_path / "e", "elu")
    compare([*files, tmp_path / "old.json", elu], tmp_path / "anew")
    assert table(tmp_path / "anew") == first | second
    compare([again, *reversed(files)], tmp_path / "turned")
    assert Path(f"{tmp_path / 'turned'}.json").read_text() == Path(f"{tmp_path / 'both'}.json").read_text()


def test_a_goal_is_kept_with_its_row(tmp_path: Path, undrawn: None) -> None:
    run, out = write(tmp_path / "run"), tmp_path / "out"
    case = "hedgehog F=128 | books-6x512 | "
    compare([run], out, goals=[f"{case}prose=ratio<=1.19", f"{case}code=ratio < 1.2", f"{case}code=agreement>=.8"])
    expected = {(f"{case}prose", "ratio"): "<= 1.19", (f"{case}code", "ratio"): "< 1.2"}
    expected[f"{case}code", "agreement"] = ">= .8"
    assert {key: row["goal"] for key, row in table(out).items() if row["goal"]} == expected
    told = [line.split(" | ")[-1] for line in lines(Path(f"{out}.md").read_text(), "| hedgehog F=128 \\|")]
    assert told == ["missed |", "kept |", "kept |"]
    # A goal is not measured: it outlives a new measurement.
    compare([Path(f"{out}.json"), run], out)
    assert {key: row["goal"] for key, row in table(out).items() if row["goal"]} == expected


def test_pages_are_rendered_from_the_rows_alone(out: Path, tmp_path: Path) -> None:
    compare([Path(f"{out}.json")], tmp_path / "compare", tmp_path / "compare.html")
    made = sorted(path.name for path in out.parent.iterdir())
    assert made == ["compare-books-6x512-code.svg", "compare-books-6x512-prose.svg", *made[2:]]
    assert made[2:] == ["compare.html", "compare.json", "compare.md"]
    for name in made:
        assert (tmp_path / name).read_bytes() == (out.parent / name).read_bytes(), name


def test_the_order_of_the_runs_does_not_matter(many: list[Path], out: Path, tmp_path: Path, undrawn: None) -> None:
    compare(many[::-1], tmp_path / "compare")
    assert (tmp_path / "compare.json").read_bytes() == Path(f"{out}.json").read_bytes()


def test_the_table_is_in_the_order_of_quality(out: Path) -> None:
    text = Path(f"{out}.md").read_text()
    quality = text.split("**Quality and size of state**")[1].split("![")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines(quality, "| ")[2:]]
    assert [row[0] for row in rows[:2]] == ["exact (ceiling)", "hybrid-3 window=256 decay=learned"]
    assert [row[0] for row in rows[-2:]] == ["uniform (control)", "signed"] and len(rows) == len(MIXERS)
    ratios = [float(row[5].split(" ")[0].replace(",", "")) for row in rows[1:]]
    assert ratios == sorted(ratios)
    window = next(row for row in rows if row[0] == "window-only window=64 (control)")
    assert window[1:3] == ["1", "1000 B"]
    assert window[5] == "1.162 ± 0.007" and window[7] == "1.50×"
    assert rows[-1][3:5] == ["–", "–"]


def test_what_a_control_beats_is_said(tmp_path: Path, undrawn: None) -> None:
    runs = [
        write(tmp_path / "a", "good", ratio={"code": 1.1, "prose": 1.3}),
        write(tmp_path / "b", "bad", ratio={"code": None, "prose": 1.0}),
        write(tmp_path / "c", "window-only", ratio={"code": 1.2, "prose": 1.2}),
        write(tmp_path / "d", "uniform", ratio={"code": 1.3, "prose": 1.25}),
        write(tmp_path / "e", "softmax", features=None, ratio={"code": 1.4, "prose": 1.4}),
    ]
    compare(runs, tmp_path / "out")
    text = (tmp_path / "out.md").read_text()
    assert [line.replace("\\", "") for line in lines(text, "> ")] == [
        "> Beaten by a control that is no larger: window-only F=128, on prose, beats good F=128.",
        "> Beaten by a control that is no larger: window-only F=128, on code, beats bad F=128.",
    ]
    assert (
        "Of all that are no controls good F=128 comes nearest: 1.10× the teacher's on code and 1.30× on prose" in text
    )
    assert "The best control, window-only F=128, is at 1.20× on code and 1.20× on prose." in text


def test_the_sentence_tells_how_it_was_measured(tmp_path: Path, undrawn: None) -> None:
    compare([write(tmp_path / "a"), write(tmp_path / "b", seed=2)], tmp_path / "out")
    text = (tmp_path / "out.md").read_text().replace("\N{NO-BREAK SPACE}", " ").replace("\\", "")
    assert (
        "Context 512 tokens; 1.23 M tokens in stage 1; 1.64 M tokens in stage 2; seeds 0, 2; on 2 CPU cores; "
        "commit c0ffee: python -m distill -m recipe=books mixer=hedgehog seed=0,2."
    ) in text


def test_each_teacher_has_a_section_and_figures_of_its_own(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "a", teacher="hub/a_b"),
        write(tmp_path / "b", teacher="x/a-b", ratio={"码": 1.1, "語": 1.2}),
    ]
    compare(runs, tmp_path / "out")
    text = (tmp_path / "out.md").read_text()
    assert [line for line in lines(text, "## ") if "beside" not in line] == ["## a-b", "## a\\_b"]
    shown = re.findall(r"\]\((.+?\.svg)\)", text)
    assert len(shown) == 4 and sorted(shown) == sorted(path.name for path in tmp_path.glob("*.svg"))


def test_the_figure_names_what_it_shows_and_what_it_leaves_out(out: Path) -> None:
    drawing = Path(f"{out}-books-6x512-prose.svg").read_text()
    written = set(re.findall(r"<text[^>]*>([^<]*)</text>", drawing))
    assert {"map-0", "hybrid-2 window=128 decay=learned", "teacher", "exponential frozen"} <= written
    assert not {"uniform", "signed"} & written and "teacher's cache" in drawing
    text = Path(f"{out}.md").read_text().replace("\\", "")
    caption = next(line for line in text.splitlines() if line.startswith("prose: student over"))
    assert "uniform F=1 (4.07×)" in caption and "window-only window=64" in written
    assert re.search(r"Not shown: signed F=128 \(8,\d+×\).* and uniform F=1 \(4.07×\)\.$", caption)


def test_a_state_that_all_share_or_nobody_has_can_be_drawn(tmp_path: Path) -> None:
    compare([write(tmp_path / "a", state_bytes=0)], tmp_path / "none")
    compare([write(tmp_path / "b", cache_bytes_per_token=0, ratio={"code": 0.9})], tmp_path / "one")
    assert "no finite" not in (tmp_path / "none.md").read_text()
    for name in ("none", "one"):
        assert "nan" not in (tmp_path / f"{name}-books-6x512-code.svg").read_text()


def test_names_from_data_stay_text(tmp_path: Path) -> None:
    run = write(tmp_path / "run", f"x{HOSTILE}", ratio={HOSTILE: 1.1, "a | b": 1.2}, teacher=f"t/{HOSTILE[:7]} | x")
    compare([run], tmp_path / "o_u t", tmp_path / "page.html")
    html, text = (tmp_path / "page.html").read_text(), (tmp_path / "o_u t.md").read_text()
    assert len(Page(html).named("script")) == html.count("<script") == 1 and HOSTILE in Page(html).text
    assert "<script" not in text and not any("<script" in path.read_text() for path in tmp_path.glob("*.svg"))
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert {key[0].split(" | ")[2] for key in table(tmp_path / "o_u t")} == {HOSTILE, "a|b"}
    links = [link.replace("\\", "").replace("%20", " ") for link in re.findall(r"\]\((\S+?\.svg)\)", text)]
    assert sorted(links) == sorted(path.name for path in tmp_path.glob("*.svg"))


def test_the_page_needs_nothing_from_elsewhere(out: Path) -> None:
    page = Page(out.with_suffix(".html").read_text())
    assert not any(page.named(tag) for tag in ("link", "img")) and len(page.named("svg")) == 2
    links = [attributes["href"] for attributes in page.named("a") if attributes.get("class") != "term"]
    assert links == [f"#{attributes['id']}" for attributes in page.named("section")]
    assert any(attributes.get("class") == "aside" for attributes in page.named("tr"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such run directory"),
        (["a", "twin"], "a and twin are both 'hedgehog F=128 | books-6x512 | code' with seed 0"),
        (["a", "other"], "but differ in stages.logits.max_steps (400, 9)"),
        (["unfinished"], "unfinished: measurements/headline.json is missing"),
        (["torn"], "torn: measurements/headline.json is damaged or cut off"),
        (["old"], "old: measurements/headline.json has no 'feature_dim'"),
        (["odd"], "odd: its measurements are not as a run writes them"),
        (["seedless"], "seedless: config.yaml names no seed or no teacher.path"),
        (["absent.json"], "absent.json: cannot be read, No such file"),
        (["cut.json"], "cut.json: damaged or cut off"),
        (["object.json"], "object.json: holds no list of rows"),
        (["keys.json"], "keys.json: row 1 is not as compare writes it"),
        (["types.json"], "types.json: row 1 is not as compare writes it, see value"),
        (["case.json"], "case.json: row 1, case 'ratio' is not mixer | teacher | domain"),
        (["one.json", "two.json"], "m F=1 | t | d: one.json and two.json hold different rows for ratio"),
        (["a", "--goal", "elu F=1 | t | d=ratio<=1"], "no row has this case and metric"),
        (["a", "--goal", "hedgehog F=128 | books-6x512 | code=ratio"], "give 'CASE=METRIC<=NUMBER'"),
        (["a", "--goal", "hedgehog F=128 | books-6x512 | code=ratio<=1.2.3"], "give 'CASE=METRIC<=NUMBER'"),
        (["a", "--out", "file/out"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
    undrawn: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "twin", "other", "unfinished", "torn", "old", "odd", "seedless"):
        write(tmp_path / name)
    config = (tmp_path / "other/config.yaml").read_text()
    (tmp_path / "other/config.yaml").write_text(config.replace("400", "9").replace("seed: 0", "seed: 1"))
    (tmp_path / "unfinished/measurements/headline.json").unlink()
    (tmp_path / "torn/measurements/headline.json").write_text('{"ratio": ')
    old = json.loads((tmp_path / "old/measurements/headline.json").read_text())
    del old["feature_dim"]
    dump(tmp_path / "old/measurements/headline.json", old)
    edit(tmp_path / "odd/measurements/headline.json", teacher_ppl=3)
    (tmp_path / "seedless/config.yaml").write_text("recipe: a")
    row = dict.fromkeys(KEYS) | {"case": "m F=1 | t | d", "metric": "ratio", "value": 1.0, "seeds": [0]}
    dump(tmp_path / "one.json", [row])
    dump(tmp_path / "two.json", [row | {"value": 2.0}])
    dump(tmp_path / "types.json", [row | {"value": "1"}])
    dump(tmp_path / "case.json", [row | {"case": "ratio"}])
    dump(tmp_path / "keys.json", [{"case": "m F=1 | t | d"}])
    dump(tmp_path / "object.json", {})
    (tmp_path / "cut.json").write_text("[{")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", "--out", "out", *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert printed.out == "" and sorted(tmp_path.rglob("*")) == before


def test_the_door_prints_the_page_for_readers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undrawn: None
) -> None:
    run = write(tmp_path / "run")
    assert main(["compare", str(run), "--out", str(tmp_path / "docs/results/new.json")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'docs/results/new.md'}\n"
    page = tmp_path / "page.html"
    assert (
        main(["compare", str(tmp_path / "docs/results/new.json"), "--out", str(tmp_path / "x"), "--html", str(page)])
        == 0
    )
    assert capsys.readouterr().out == f"{page}\n" and page.exists()


def test_a_failed_write_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None) -> None:
    out = tmp_path / "results/out"
    compare([write(tmp_path / "a")], out)
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    from distill.report.compare import build

    plain = build._write_text

    def full(path: Path, text: str) -> None:
        if "svg" in text:
            raise OSError(28, "No space left on device")
        plain(path, text)

    monkeypatch.setattr(build, "_write_text", full)
    with pytest.raises(UserError, match="cannot be written, No space left on device"):
        compare([write(tmp_path / "b", "t2r")], out)
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before


def test_layers_kept_exact_count_with_their_cache(tmp_path: Path, undrawn: None) -> None:
    exact = {"student_cache_bytes_per_token": 2048, "context": 512, "state_bytes": 2**20}
    ceiling = {"student_cache_bytes_per_token": 4096, "cache_bytes_per_token": 4096, "context": 512, "state_bytes": 0}
    runs = [
        write(tmp_path / "a", "favor", options={"exact_layers": [0]}, **exact),
        write(tmp_path / "b", "softmax", features=None, options={"exact_layers": "all"}, **ceiling),
    ]
    compare(runs, tmp_path / "out")
    text = (tmp_path / "out.md").read_text()
    assert "| favor exact_layers=[0] | 128 | 2 MiB |" in text.replace("\N{NO-BREAK SPACE}", " ").replace("\\", "")
    assert "| exact (ceiling) | – | 2 MiB |" in text.replace("\N{NO-BREAK SPACE}", " ")


def test_encoders_keep_no_state_and_are_drawn_by_their_features(tmp_path: Path) -> None:
    none = {"state_bytes": None, "cache_bytes_per_token": 0, "student_cache_bytes_per_token": 0}
    runs = [write(tmp_path / name, name, features=size, **none) for name, size in (("elu", 64), ("linformer", 128))]
    compare([*runs, write(tmp_path / "c", "uniform", features=1, **none)], tmp_path / "out")
    text = (tmp_path / "out-books-6x512-code.svg").read_text()
    assert all(word in text for word in ("features F", "linformer", "elu", "uniform")) and "KiB" not in text
    page = (tmp_path / "out.md").read_text()
    assert "Not shown" not in page and "against the features F" in page and "State is what" not in page


def test_a_control_smaller_than_all_is_drawn_at_the_edge(tmp_path: Path) -> None:
    sizes = {"elu": 64, "hedgehog": 128, "key-weight-only": 1}
    compare([write(tmp_path / name, name, features=size) for name, size in sizes.items()], tmp_path / "out")
    text = (tmp_path / "out-books-6x512-code.svg").read_text()
    assert "key-weight-only" in text
    # Or the axis would reach down to its 1,000 bytes.
    ticks = set(re.findall(r">(\d+)\N{NO-BREAK SPACE}(K?i?B)<", text))
    assert ticks and not ticks & {(str(2**i), unit) for unit in ("B", "KiB") for i in range(4)}
    assert "Not shown" not in (tmp_path / "out.md").read_text()


def test_a_control_beats_only_by_more_than_the_spread(tmp_path: Path, undrawn: None) -> None:
    runs = [
        write(tmp_path / f"{name}-{seed}", name, seed, ratio={"code": ratio + off * seed})
        for name, ratio, off in (("window-only", 1.18, 0.02), ("level", 1.20, 0.02), ("worse", 1.30, 0.02))
        for seed in (0, 1)
    ]
    compare(runs, tmp_path / "out")
    told = [line.replace("\\", "") for line in lines((tmp_path / "out.md").read_text(), "> ")]
    assert told == ["> Beaten by a control that is no larger: window-only F=128, on code, beats worse F=128."]


def test_a_larger_control_does_not_count_and_the_best_clear_one_does(tmp_path: Path, undrawn: None) -> None:
    """Nor does a noisy control hide a clear one, or a system that diverged hide behind its spread."""
    ratios = {
        ("window-only", 512): (1.01, 0.0),
        ("uniform", 1): (1.05, 0.2),
        ("zero", 1): (1.11, 0.001),
        ("elu", 128): (1.2, 0.001),
        ("signed", 128): (10.0, 80.0),
    }
    for (name, size), (ratio, off) in ratios.items():
        for seed in (0, 1):
            write(tmp_path / f"{name}-{seed}", name, seed, size, ratio={"code": ratio + off * seed})
    compare(sorted(tmp_path.iterdir()), tmp_path / "out")
    told = [line.replace("\\", "") for line in lines((tmp_path / "out.md").read_text(), "> ")]
    assert told == ["> Beaten by a control that is no larger: zero F=1, on code, beats elu F=128 and signed F=128."]


def test_each_line_of_origin_has_its_own_commit(tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a", "elu"), write(tmp_path / "b", "t2r")]
    origin = json.loads((runs[1] / "measurements/run.json").read_text())
    edit(runs[1] / "measurements/run.json", **origin | {"commit": "decade"})
    compare(runs, tmp_path / "out")
    told = [line for line in lines((tmp_path / "out.md").read_text(), "| 2 CPU cores")]
    assert [("c0ffee" in line, "decade" in line) for line in told] == [(True, False), (False, True)]


def test_rows_can_be_left_out(tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a", "elu"), write(tmp_path / "b", "t2r")]
    compare(runs, tmp_path / "out", without=["elu F=128"])
    assert {case.split(" | ")[0] for case, _ in table(tmp_path / "out")} == {"t2r F=128"}
    with pytest.raises(UserError, match=r"^--without 'elu': no row is of this mixer or teacher"):
        compare(runs, tmp_path / "out", without=["elu"])
    other = write(tmp_path / "e", "elu", teacher="teachers/other")
    compare([*runs, other], tmp_path / "out", without=["books-6x512"])
    assert {case for case, _ in table(tmp_path / "out")} == {"elu F=128 | other | code", "elu F=128 | other | prose"}
    parts = {"window": {"code": 18.0, "prose": 30.0}}
    hybrid = write(tmp_path / "c", "favor", options={"window": 8}, parts=parts)
    # Not even a clash with itself keeps it in.
    again = write(tmp_path / "d", "favor", options={"window": 8}, parts=parts)
    compare([*runs, hybrid, again], tmp_path / "out", without=["favor F=128 window=8"])
    assert {case.split(" | ")[0] for case, _ in table(tmp_path / "out")} == {"elu F=128", "t2r F=128"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("task", "masked_lm"),
        ("trainer", {"precision": "bf16"}),
        ("trainer", {"accumulate_grad_batches": 2}),
        ("mixer", {"map": "a", "workers": 3}),
    ],
)
def test_seeds_of_other_settings_are_not_joined(key: str, value: Any, tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config | {key: value}))
    with pytest.raises(UserError, match=f"differ in {key}"):
        compare(runs, tmp_path / "out")


@pytest.mark.parametrize(
    "setting",
    [
        {"data": {"workers": 3}},
        {"stages": {"logits": {"max_steps": 400, "gradient_checkpointing": True}}},
        {"stages": {"logits": {"max_steps": 400}, "pretrain": {"gradient_checkpointing": True}}},
    ],
)
def test_how_a_run_was_computed_makes_no_case_of_its_own(setting: Any, tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    config = yaml.safe_load((runs[1] / "config.yaml").read_text())
    (runs[1] / "config.yaml").write_text(yaml.safe_dump(config | setting))
    compare(runs, tmp_path / "out")
    assert {tuple(row["seeds"]) for row in table(tmp_path / "out").values()} == {(0, 1)}


def test_seeds_of_other_weights_are_not_joined(tmp_path: Path, undrawn: None) -> None:
    runs = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    edit(runs[1] / "student/provenance.json", teacher={"weights_sha256": "beef"})
    with pytest.raises(UserError, match="differ in the teacher's weights"):
        compare(runs, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"context": 64}, "tokens of context"),
        ({"tokens": {"attention": 7, "logits": 8}}, "tokens of stage 1"),
        ({"tokens": {"allocation": 7}}, "tokens that features were shared out by"),
    ],
)
def test_mixers_of_other_budgets_are_not_ranked(changes: Any, what: str, tmp_path: Path, undrawn: None) -> None:
    """Not even where one of them comes from an earlier table."""
    spent = headline(("code",))["tokens"] | {"allocation": 9}
    compare([write(tmp_path / "a", "elu", context=512, tokens=spent)], tmp_path / "out")
    other = write(tmp_path / "b", "t2r", **{"context": 512} | changes)
    with pytest.raises(UserError, match=f"^books-6x512: rows differ in {what} .*tables of their own"):
        compare([tmp_path / "out.json", other], tmp_path / "out")
    # What is not fitted to maps has no such tokens.
    none = headline(("code",))["tokens"] | {"attention": 0}
    compare([tmp_path / "out.json", write(tmp_path / "c", "t2r", context=512, tokens=none)], tmp_path / "out")


def test_a_budget_that_is_told_stands_beside_others(tmp_path: Path, undrawn: None) -> None:
    """An ablation of the budget: also once it is a row of an earlier table."""
    usual, spent = write(tmp_path / "a"), headline(("code",))["tokens"]
    long = write(tmp_path / "b", tokens=spent | {"logits": 2 * spent["logits"]})
    edit(long / "measurements/run.json", command="python -m distill mixer=hedgehog stages.logits.max_steps=9")
    with pytest.raises(UserError, match=r"tokens of stage 2 .*, --tell stages.logits.max_steps"):
        compare([usual, write(tmp_path / "c", "elu", tokens=spent | {"logits": 1})], tmp_path / "out")
    # The context changes what a ratio is a ratio to.
    elsewhere = write(tmp_path / "d", "elu", context=64)
    edit(elsewhere / "measurements/run.json", command="python -m distill mixer=elu data.context=64")
    with pytest.raises(UserError, match=r"tokens of context .* tables of their own$"):
        compare([usual, elsewhere], tmp_path / "out", tell=["data.context"])
    compare([usual, long], tmp_path / "out", tell=["stages.logits.max_steps"])
    compare([tmp_path / "out.json", usual], tmp_path / "out")
    mixers = {case.split(" | ")[0] for case, _ in table(tmp_path / "out")}
    assert mixers == {"hedgehog F=128", "hedgehog F=128 logits.max_steps=9"}


@pytest.mark.parametrize("name", ["hedgehog", "uniform"])
def test_a_budget_of_its_own_is_not_ranked(name: str, tmp_path: Path, undrawn: None) -> None:
    """Neither as what comes nearest, nor as a control that beats the others."""
    better = write(tmp_path / "b", name, ratio={"code": 1.01}, features=1)
    edit(better / "measurements/run.json", command=f"python -m distill mixer={name} stages.attention.max_steps=9")
    compare(
        [write(tmp_path / "a", "elu", ratio={"code": 1.2}), better],
        tmp_path / "out",
        tell=["stages.attention.max_steps"],
    )
    text = (tmp_path / "out.md").read_text()
    assert "no controls elu F=128 comes nearest" in text and "Beaten" not in text
    assert f"| {name} attention.max\\_steps=9" in text


def test_runs_of_a_sweep_that_did_not_finish_are_told(
    tmp_path: Path, undrawn: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    write(sweep / "0-elu", "elu")
    (write(sweep / "1-t2r", "t2r") / "measurements/headline.json").unlink()
    (tmp_path / "refused").mkdir()
    for folder in (sweep, tmp_path / "refused"):
        (folder / "multirun.yaml").touch()
    compare([sweep, tmp_path / "refused"], tmp_path / "out")
    assert {case.split(" | ")[0] for case, _ in table(tmp_path / "out")} == {"elu F=128"}
    assert capsys.readouterr().err == f"{sweep / '1-t2r'}: left out, it did not finish\n"
    with pytest.raises(UserError, match="no finished run"):
        compare([tmp_path / "refused"], tmp_path / "out")


def test_layers_kept_exact_do_not_take_the_others_figures_away(tmp_path: Path, undrawn: None) -> None:
    run = write(tmp_path / "run", options={"exact_layers": [0]})
    found = json.loads((run / "measurements/fidelity.json").read_text())
    found["domains"]["code"]["kl"] = [[None, None], [0.25, 0.75]]
    dump(run / "measurements/fidelity.json", found)
    compare([run], tmp_path / "out")
    assert table(tmp_path / "out")["hedgehog F=128 exact_layers=[0] | books-6x512 | code", "map_kl"]["value"] == 0.5


def test_a_case_that_is_not_there_brings_those_that_are_like_it(tmp_path: Path, undrawn: None) -> None:
    run = write(tmp_path / "run")
    for given, hint in (
        ({"without": ["Hedgehog"]}, "did you mean 'hedgehog F=128'?"),
        ({"goals": ["hedgehog F=128 | books-6x512 | prose=ration<=1"]}, "its metrics are agreement, .*ratio"),
        ({"goals": ["hedgehog | books-6x512 | prose=ratio<=1"]}, "did you mean 'hedgehog F=128 | books-6x512 | "),
    ):
        with pytest.raises(UserError, match=hint.replace("?", r"\?").replace("|", r"\|")):
            compare([run], tmp_path / "out", **given)


def test_right_answers_come_first(tmp_path: Path) -> None:
    """The teacher's, then every mixer's with its spread; rows whose texts have no right answer are not among them."""

    def scores(accuracy: float, cosine: float | None = None) -> dict[str, Any]:
        of_teacher = {"teacher": 0.9, "student": accuracy, "recovery": accuracy / 0.9, "error": 0.01, "constant": 0.5}
        near = {} if cosine is None else {"cosine": {"teacher": 1.0, "student": cosine, "recovery": cosine}}
        return {"scores": {domain: {"accuracy": of_teacher, **near} for domain in TEACHER}}

    runs = [
        # By perplexity it is ahead.
        write(tmp_path / "z", "elu", 0, 64, {"code": 1.01, "prose": 1.01}, **scores(0.6)),
        write(tmp_path / "a", "hedgehog", 0, **scores(0.8)),
        write(tmp_path / "b", "hedgehog", 1, **scores(0.82)),
        write(tmp_path / "c", "uniform", 0, 1, {"code": 2.0, "prose": 2.0}, **scores(0.54)),
        write(tmp_path / "d", "hedgehog", 0, teacher="teachers/embedder", **scores(0.9, 0.98)),
        write(tmp_path / "e", "hedgehog", 0, teacher="teachers/language"),
    ]
    out = tmp_path / "out"
    compare(runs, out)
    found = table(out)
    assert found["hedgehog F=128 | books-6x512 | code", "accuracy"]["value"] == pytest.approx(0.81)
    assert found["hedgehog F=128 | books-6x512 | code", "teacher_accuracy"]["value"] == pytest.approx(0.9)
    assert found["hedgehog F=128 | books-6x512 | code", "accuracy_recovery"]["value"] == pytest.approx(0.9)
    assert found["hedgehog F=128 | embedder | code", "cosine"]["value"] == pytest.approx(0.98)
    books, embedder, language = (
        out.with_name("out.md").read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for name in ("books-6x512", "embedder", "language")
    )
    books = books.replace("\N{NO-BREAK SPACE}", " ")
    assert "hedgehog F=128 keeps 90.0 % on code and 90.0 % on prose of the teacher's accuracy; uniform F=1" in books
    assert "keeps 60.0 % on code and 60.0 % on prose.**" in books and "nearest" not in books
    assert "in the order of the mean accuracy" in books and "![" not in books and "![" in language
    rows = [cells(line) for line in books.partition("**Right answers**")[2].partition("**Quality")[0].splitlines()[2:]]
    assert [row[:4] for row in rows if len(row) == 4] == [
        ["Mixer", "F", "Accuracy, code", "Accuracy, prose"],
        ["---", "---:", "---:", "---:"],
        ["always the same answer", "–", "50.0 %", "50.0 %"],
        ["teacher", "–", "90.0 %", "90.0 %"],
        ["hedgehog", "128", "81.0 % ± 1.4", "81.0 % ± 1.4"],
        ["elu", "64", "60.0 %", "60.0 %"],
        ["uniform (control)", "1", "54.0 %", "54.0 %"],
    ]
    # The teacher and the control stand back, and no system does.
    (compared,) = [each for each in by_teacher(read_rows(out.with_name("out.json"))) if each.teacher == "books-6x512"]
    assert score_table(compared).aside == {0, 1, 4}
    # By perplexity elu would be ahead of all, and would not be beaten here.
    assert compared.mixers == ["hedgehog F=128", "elu F=64", "uniform F=1"]
    assert "Cosine to teacher, code" in embedder
    assert "Right answers" not in language and "teacher's accuracy" not in language


def test_controls_alone_keep_something_too(tmp_path: Path) -> None:
    accuracy = {"teacher": 0.9, "student": 0.54, "recovery": 0.6, "error": 0.01, "constant": 0.5}
    scores = {"scores": {domain: {"accuracy": accuracy} for domain in TEACHER}}
    compare([write(tmp_path / "a", "uniform", 0, 1, **scores)], tmp_path / "out")
    said = (tmp_path / "out.md").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "uniform F=1 keeps 60.0 % on code and 60.0 % on prose of the teacher's accuracy." in said


def test_a_cache_is_told_apart_only_where_there_is_one(tmp_path: Path) -> None:
    """Runs from before there were any join those without; a folder is no setting, and what is lost in it is one."""

    def run(name: str, seed: int, **logits: Any) -> Path:
        path = write(tmp_path / name, "hedgehog", seed)
        config = yaml.safe_load((path / "config.yaml").read_text())
        config["stages"]["logits"] |= logits
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        return path

    compare([run("old", 0), run("new", 1, cache=None, top_k=64)], tmp_path / "out")
    compare([run("a", 0, cache="/x/y", top_k=64), run("b", 1, cache="z", top_k=64)], tmp_path / "cached")
    with pytest.raises(UserError, match=r"stages\.logits\.top_k"):
        compare([run("c", 0, cache="z", top_k=8), run("d", 1, cache="z", top_k=64)], tmp_path / "no")


def test_partners_are_sought_among_as_many(tmp_path: Path) -> None:
    runs = [write(tmp_path / str(among), "hedgehog", among, partners={"code": among}) for among in (8, 9)]
    with pytest.raises(UserError, match="texts a partner is sought among"):
        compare(runs, tmp_path / "out")
