"""What the sections say about the numbers they are given."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill.report.quantities import DASH, with_error
from distill.report.run import ArtefactError, Run
from distill.report.section import Section, Table, without_dashes
from distill.report.sections import load
from distill.report.terminal import aligned, wrapped

from .conftest import dump, recalled

MakeRun = Callable[..., Path]
HEADLINE, FIDELITY = "measurements/headline.json", "measurements/fidelity.json"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests read what is said; drawing takes most of the time of a report."""
    monkeypatch.setattr("distill.report.plots.draw", lambda paint, height, alt: "")


def section(name: str, run: Path, **changes: Any) -> Section:
    """A section after changes to its JSON artefact."""
    file = run / f"measurements/{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return load(name)(Run(run))


def test_the_verdict_is_computed(make_run: MakeRun) -> None:
    verdict = section("headline", make_run()).verdict
    assert verdict.replace("\N{NO-BREAK SPACE}", " ") == (
        "Perplexity is 1.18× the teacher's on code and 1.12× on prose. "
        "Against the teacher trained on the same tokens it is 1.21× on code and 1.16× on prose. "
        "The decoding state stays at 3.05 MiB; the teacher's cache is larger from 261 tokens on."
    )


def test_a_student_that_is_only_evaluated_was_not_trained(make_run: MakeRun) -> None:
    run = make_run()
    trained = section("headline", run, tokens={"allocation": 9, "logits": 9})
    assert "No features by layer: measurements/allocation.json is missing." in trained.notes
    assert "18 tokens" in {fact.value for fact in trained.facts}
    evaluated = section("headline", run, tokens={})
    assert not any("features by layer" in note for note in evaluated.notes)
    assert "Trained on" not in {fact.label for fact in evaluated.facts}


@pytest.mark.parametrize(("state", "tokens"), [(999, 10), (1000, 11), (1001, 11)])
def test_the_cache_must_be_larger_not_equal(make_run: MakeRun, state: int, tokens: int) -> None:
    data = section("headline", make_run(), state_bytes=state, cache_bytes_per_token=100).data
    assert data["state_smaller_from_tokens"] == tokens
    assert 100 * (tokens - 1) <= state < 100 * tokens


def test_a_gain_beyond_the_measured_context_is_called_so(make_run: MakeRun) -> None:
    verdict = section("headline", make_run(), state_bytes=12288 * 600).verdict
    assert verdict.endswith("from 601 tokens on, which is beyond the 512 measured here.")


def test_nothing_is_less_than_nought() -> None:
    assert with_error(-0.0004, 0.001) == "0.000 ± 0.001" and with_error(-0.0006, None) == "-0.001"


def test_a_difference_within_its_error_is_not_sold_as_one(make_run: MakeRun) -> None:
    verdict = section(
        "headline", make_run(), ratio={"code": 1.01, "prose": 1.1}, ratio_error={"code": 0.006, "prose": 0.01}
    ).verdict
    assert "1.10× on prose; on code the two are level within two standard errors." in verdict


def test_a_diverged_domain_is_in_the_verdict(make_run: MakeRun) -> None:
    run = make_run()
    text = (run / HEADLINE).read_text()
    found = json.loads(text)
    found["ratio"]["code"] = found["student_ppl"]["code"] = float("inf")
    (run / HEADLINE).write_text(json.dumps(found))
    shown = load("headline")(Run(run))
    assert "On code it has no finite ratio." in shown.verdict
    assert shown.data["ratio"]["code"] is None


def test_many_domains_are_told_by_their_extremes(make_run: MakeRun) -> None:
    verdict = section("headline", make_run(domains=("a", "b", "c", "d"))).verdict
    assert verdict.startswith("Perplexity is between 1.01× (d) and 1.18× (a) the teacher's, over 4 domains.")


def test_without_a_control_the_reason_is_given(make_run: MakeRun) -> None:
    run = make_run()
    shown = section("headline", run, teacher_tuned_ppl=None)
    assert shown.notes == ["No control, the teacher trained on the same tokens: measurements/headline.json holds none."]
    assert "Teacher tuned" not in shown.tables[0].columns
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("teacher_tuned: true", "teacher_tuned: false"))
    assert "measure.teacher_tuned was off" in load("headline")(Run(run)).notes[0]


def test_kl_to_the_teacher_has_columns_of_its_own(make_run: MakeRun) -> None:
    shown = section("headline", make_run(), kl={"code": 0.0612, "prose": None})
    table = shown.tables[0]
    told = {name: [row[place] for row in table.rows] for place, name in enumerate(table.columns)}
    assert told["KL to teacher"] == ["0.0612", "–"] and told["Tuned, KL to teacher"] == ["0.0457", "0.0685"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert "KL to teacher runs from what the teacher predicts" in shown.intro
    assert [("KL to teacher" in fact.detail, fact.label) for fact in shown.numbers] == [(True, "code"), (True, "prose")]
    assert "KL to teacher 0.0612 ·" in shown.numbers[0].detail


def test_a_run_that_was_not_held_against_its_teacher_is_shown_without(make_run: MakeRun) -> None:
    run = make_run()
    found = json.loads((run / HEADLINE).read_text())
    (run / HEADLINE).write_text(json.dumps({name: each for name, each in found.items() if not name.endswith("kl")}))
    shown = load("headline")(Run(run))
    table = shown.tables[0]
    assert not any("KL" in text for text in (*table.columns, shown.intro, *(fact.detail for fact in shown.numbers)))
    assert all(len(row) == len(table.columns) for row in table.rows) and "Teacher tuned" in table.columns
    assert shown.data["kl"] is None and shown.data["teacher_tuned_kl"] is None


def test_without_a_control_there_is_no_kl_of_it(make_run: MakeRun) -> None:
    shown = section("headline", make_run(), teacher_tuned_ppl=None, teacher_tuned_kl=None)
    assert [name for name in shown.tables[0].columns if "KL" in name] == ["KL to teacher"]


def test_gpu_memory_has_a_column_where_there_was_one(make_run: MakeRun) -> None:
    run = make_run()
    assert not any("GPU" in column for table in section("headline", run).tables for column in table.columns)
    shown = section("headline", run, peak_bytes={"attention": 3 * 2**30, "logits": 5 * 2**30})
    took = next(table for table in shown.tables if "GPU memory at its peak" in table.columns)
    assert {row[0]: row[-1] for row in took.rows}["stage 2, logits"] == "5\N{NO-BREAK SPACE}GiB"
    assert any("at most 5\N{NO-BREAK SPACE}GiB of GPU" in fact.detail for fact in shown.facts)


def test_a_stage_that_was_not_run_has_no_column(make_run: MakeRun) -> None:
    run = make_run()
    table = section("headline", run, stage1_ppl=None).tables[0]
    assert table.columns[:4] == ["Domain", "Teacher", "Swapped in", "Student"]
    table = section("headline", run, stage1_ppl={"code": 3.0}).tables[0]
    assert [row[3] for row in table.rows] == ["3.00", "–"]


def test_loss_curves_survive_a_line_cut_off_and_go_without_a_log(make_run: MakeRun) -> None:
    run = make_run()
    log = run / "metrics.jsonl"
    log.write_text(log.read_text()[:-40])
    names = [figure.name for row in section("headline", run).figures for figure in row]
    assert names == ["staircase", "loss-attention", "loss-logits"]
    log.unlink()
    shown = load("headline")(Run(run))
    assert [figure.name for row in shown.figures for figure in row] == ["staircase"]
    assert shown.notes == ["No loss curves: metrics.jsonl is missing."]
    # Nor are there any of a student that is only measured, and nobody misses them.
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{settings}\ngoal: evaluate\n")
    assert load("headline")(Run(run)).notes == []


def test_the_worst_heads_come_first(make_run: MakeRun) -> None:
    run = make_run()
    found = json.loads((run / FIDELITY).read_text())
    found["domains"]["prose"]["kl"][2][1] = 9.87
    found["domains"]["code"]["kl"][0][0] = 8.76
    table = section("fidelity", run, domains=found["domains"]).tables[0]
    rows = table.rows
    layers, heads = np.shape(found["domains"]["code"]["kl"])
    assert table.caption.startswith(f"The 10 worst of {layers * heads} heads on 2 domains by ")
    assert [row[:4] for row in rows[:2]] == [["prose", "2", "1", "9.87"], ["code", "0", "0", "8.76"]]
    assert len(rows) == 10


def test_the_summary_is_over_heads(make_run: MakeRun) -> None:
    run = make_run()
    found = json.loads((run / FIDELITY).read_text())
    found["domains"]["code"]["kl"] = [[0.0, 0.1, 0.2, None]] * 3 + [[0.0, 0.1, 0.2, 0.9]]
    summary = section("fidelity", run, domains=found["domains"]).data["summary"]["code"]["kl"]
    assert summary == pytest.approx({"mean": (4 * 0.3 + 0.9) / 13, "median": 0.1, "worst": 0.9})


def test_a_signed_map_is_ordered_by_output_error_and_called_not_comparable(make_run: MakeRun) -> None:
    run = make_run()
    shown = section("fidelity", run, comparable=False)
    assert any("not comparable" in note for note in shown.notes)
    errors = [float(row[4]) for row in shown.tables[0].rows]
    assert errors == sorted(errors, reverse=True)
    assert shown.numbers[0].label == "code, output error"


def test_a_mixer_without_kl_is_shown_by_output_error(make_run: MakeRun) -> None:
    run = make_run()
    found = json.loads((run / FIDELITY).read_text())
    for kinds in found["domains"].values():
        kinds["kl"] = [[None] * 4] * 4
    shown = section("fidelity", run, domains=found["domains"])
    assert "No KL: this mixer has none." in shown.notes
    assert shown.data["summary"]["code"]["kl"] == {"mean": None, "median": None, "worst": None}
    assert [figure.name for figure in shown.figures[0]] == ["output_error-code", "output_error-prose"]


def test_attention_maps_missing_damaged_or_signed(make_run: MakeRun) -> None:
    run = make_run()
    file = run / "measurements/fidelity_maps.safetensors"
    maps = load_file(file)
    student = next(key for key in maps if key.endswith("student"))

    save_file(maps | {student: maps[student] - 0.01}, file)
    captions = [figure.caption for row in load("fidelity")(Run(run)).figures for figure in row]
    assert sum("negative weights are pink" in caption for caption in captions) == 1

    save_file({key: weights for key, weights in maps.items() if key != student}, file)
    assert f"has no '{student}'" in load("fidelity")(Run(run)).notes[0]

    file.write_bytes(file.read_bytes()[:100])
    assert "fidelity_maps.safetensors is damaged or cut off" in load("fidelity")(Run(run)).notes[0]

    file.unlink()
    shown = load("fidelity")(Run(run))
    assert shown.notes == ["No attention maps: measurements/fidelity_maps.safetensors is missing."]
    assert [row[0].name for row in shown.figures] == ["kl-code", "output_error-code", "spectrum-query_frequency"]


def test_the_spectra_stand_below_the_heads(make_run: MakeRun) -> None:
    run = make_run()
    shown = load("fidelity")(Run(run))
    assert shown.tables[1].rows[0] == [
        "0",
        "query frequency",
        "2.00 (1.00 to 3.00)",
        "3.00 (2.00 to 4.00)",
        "0.700 (0.500 to 0.900)",
        "9.00",
        "6.00",
    ]
    assert [figure.name for figure in shown.figures[-1]] == ["spectrum-query_frequency", "spectrum-key_frequency"]
    assert "before 2.00, 2.00" in shown.figures[-1][0].alt
    assert len(section("fidelity", run, spectra=None).tables) == 1


def test_transfer_says_what_is_kept_elsewhere(make_run: MakeRun) -> None:
    """(2 − 0.8) / (2 − 0.5) and … / (2 − 0.6), of two seeds."""
    run = make_run()
    shown = load("transfer")(Run(run))
    assert shown.data["retention"]["kl"]["code"]["prose"] == pytest.approx([0.8, 1.2 / 1.4])
    assert shown.data["retention"]["kl"]["mixture"].keys() == {"code", "prose"}
    logs = [math.log(12 / 10.8) / math.log(12 / each) for each in (10.5, 10.6)]
    assert shown.data["retention"]["ppl"]["code"]["prose"] == pytest.approx(logs)
    said = shown.verdict.replace("\N{NO-BREAK SPACE}", " ")
    assert said == (
        "Frozen on another domain, kernels keep 82.9 % (code on prose) and 82.9 % (prose on code) of what fitting "
        "there gains in KL. Where they were fitted, KL on held-out text is 0.550 with learned frequencies and 0.750 "
        "with fixed ones, and on the text trained on 0.450 and 0.700."
    )
    tables = {table.caption: table.rows for table in shown.tables}
    matrix = tables["On held-out text of each domain: KL"]
    assert matrix[0] == ["untrained", "", "2.000 ± 0.000", "2.000 ± 0.000"]
    assert matrix[1] == ["code", "learned", "0.550 ± 0.071", "0.800 ± 0.000"] and len(matrix) == 7
    kept = tables["Retention: what is kept on each domain of what fitting there gains in KL"]
    assert kept[0][1] == "–" and kept[0][2].replace("\N{NO-BREAK SPACE}", " ") == "82.9 % ± 4.0"
    gaps = tables["Learned, or learned by heart? On the same domain: KL"]
    assert gaps[2] == ["mixture", "learned", "0.450 ± 0.071", "0.800 ± 0.000", "0.350 ± 0.071"] and len(gaps) == 6


def test_transfer_goes_without_what_is_not_there(make_run: MakeRun) -> None:
    """One seed, no frequencies to fix, a signed map without KL, and a domain that nothing was fitted on."""
    run = make_run()
    found = json.loads((run / "measurements/transfer.json").read_text())

    def first(node: Any) -> Any:
        return {key: first(value) for key, value in node.items()} if isinstance(node, dict) else node[:1]

    changed = {name: first(found[name]) for name in ("learned", "fresh", "train")}
    for name in ("learned", "fresh"):
        for by_domain in (
            changed[name]["output_error"].values() if name == "learned" else [changed[name]["output_error"]]
        ):
            by_domain["poems"] = [0.9]
    changed["learned"]["kl"] = {
        source: {domain: [None] for domain in ("code", "prose", "poems")} for source in found["sources"]
    }
    changed["fresh"]["kl"] = {domain: [None] for domain in ("code", "prose", "poems")}
    changed |= {"fixed": None, "seeds": [0], "comparable": False, "domains": ["code", "prose", "poems"]}
    for name in ("learned", "fresh"):
        for by_domain in changed[name]["ppl"].values() if name == "learned" else [changed[name]["ppl"]]:
            by_domain["poems"] = [30.0]
    shown = section("transfer", run, **changed)
    assert "gains in output error." in shown.verdict and "fixed" not in shown.verdict
    assert "One seed" in shown.intro and shown.notes == [
        "No fixed frequencies beside them: this map learns none, or keeps them fixed."
    ]
    captions = [table.caption for table in shown.tables]
    assert not any(caption.endswith(" KL") for caption in captions)
    assert shown.tables[0].columns == ["Fitted on", "Frequencies", "code", "prose", "poems"]
    assert shown.tables[2].columns == ["Fitted on", "code", "prose"]


def test_length_says_how_far_it_holds(make_run: MakeRun) -> None:
    run = make_run()
    shown = load("length")(Run(run))
    assert shown.verdict.replace("\N{NO-BREAK SPACE}", " ") == (
        "Read 1,024 tokens at a time, perplexity is 1.10× the teacher's on code and 1.10× on prose. "
        "Of a copy over 32 tokens it finds 20.0 %, the teacher 50.0 %. "
        "Going on greedily, it says the same as its teacher for 12.5 of 32 tokens on code and 12.5 of "
        "32 tokens on prose. "
        "Sampling on prose, it wanders off."
    )
    by_context, recall, generation = shown.tables
    assert by_context.rows[1] == ["code", "1,024", "20.0", "22.0", "1.100 ± 0.011"] and shown.notes == [
        "The teacher itself finds next to nothing of a passkey: compare what they gain instead."
    ]
    assert [row[:2] for row in recall.rows] == [["copy", "16"], ["copy", "32"], ["copy", "64"], ["passkey", "16"]]
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in recall.rows[1][2:]] == [
        "50.0 %",
        "20.0 %",
        "1.000 ± 0.010",
        "0.400 ± 0.010",
    ]
    assert "share found at 16, 32, 64" in shown.figures[1][0].alt and "nats gained at 16" in shown.figures[1][1].alt
    assert generation.rows[1][3:] == ["3.00", "2.50", "3.10", "0.100"]
    noisy = json.loads((run / "measurements/length.json").read_text())["generation"]
    noisy["prose"]["error"] = 0.4
    assert "wanders" not in section("length", run, generation=noisy).verdict
    assert [figure.name for row in shown.figures for figure in row] == [
        "positions-code",
        "positions-prose",
        "recall-copy",
        "recall-passkey",
    ]
    found = json.loads((run / "measurements/length.json").read_text())
    found["recall"]["passkey"] = recalled([16, 32, 64], [0.02, 0.02, 0.02], [0.02, 0.02, 0.02]) | {
        "teacher": {"found": [0.02] * 3, "gain": [0.3, 1.0, 1.0], "error": [0.2, 0.1, 0.1]},
        "student": {"found": [0.0] * 3, "gain": [0.0, 0.6, 0.4], "error": [0.1] * 3},
    }
    told = "From a passkey read 64 tokens before it gains 0.400 nats a token, and the teacher 1.00."
    assert told in section("length", run, **found).verdict
    found["recall"] = {name: recalled([], [], []) for name in found["recall"]}
    found["positions"]["code"]["student"][0] = None
    found["ppl"]["code"]["512"]["student"] = None
    shown = section("length", run, **found | {"contexts": [512]})
    assert "Of a" not in shown.verdict and "the teacher's on prose." in shown.verdict and len(shown.tables) == 2
    assert shown.notes == ["Not read at longer contexts: there are no more positions, or no more text."]


def test_cost_says_from_which_length_on_it_pays(make_run: MakeRun) -> None:
    run = make_run()
    shown = load("cost")(Run(run))
    assert shown.data["crossover"] == {"prefill": 512, "decode": None, "kept_bytes": 256}
    assert shown.verdict == (
        "On 2 CPU cores the student needs less than its teacher for reading a text from 512 tokens on and what is kept "
        "for decoding from 256 tokens on. For decoding a token it does not up to 1,024 tokens. A token decoded after "
        "1,024 takes 1.00× the time of one after 128, and the teacher's 1.25×."
    )
    lengths, stages = shown.tables
    assert lengths.rows[3] == ["1,024", "200", "80.0", "0.40×", "5.00", "6.00", "1.20×", "8.00", "1.00", "0.12×"]
    assert [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in stages.rows[1]] == [
        "stage 2, logits",
        "1 M",
        "3 min 20 s",
        "5 k",
        "8e+13 FLOP",
    ]
    assert [(fact.label, fact.value) for fact in shown.facts] == [
        ("To make it", "1e+14 FLOP"),
        ("Its teacher took", "3e+14 FLOP"),
    ]
    nothing = {
        "flops": {},
        "tokens": {},
        "seconds": {},
        "teacher_training": None,
        "decode": None,
        "wanted": [128, 2048],
    }
    shown = section("cost", run, **nothing)
    assert shown.facts == [] and len(shown.tables) == 1 and "decoded" not in shown.verdict
    assert shown.notes == ["There is no memory for the teacher or the student to read 2,048 tokens here."]


def test_contribution_says_what_does_nothing(make_run: MakeRun) -> None:
    run = make_run()
    shown = load("contribution")(Run(run))
    assert "Without attention perplexity would be 36.6× what it is on code and 36.6× on prose." in shown.verdict
    assert "Without the linear part it would be 1.17× on code and 1.00× on prose, where it does nothing on prose." in (
        shown.verdict
    )
    assert "Layer 2 could do without: next to nothing is lost there." in shown.verdict
    whole, layers = shown.tables
    assert [row[0] for row in whole.rows] == [
        "no attention",
        "uniform",
        "key weight only",
        "window only",
        "linear only",
    ]
    assert whole.rows[0][1:3] == ["3.600 ± 0.002", "36.6×"]
    assert [row[:2] for row in layers.rows[3:5]] == [["code", "3"], ["prose", "0"]] and len(layers.rows) == 8
    found = json.loads((run / "measurements/contribution.json").read_text())
    # What is lost within its error may be much: nothing can be said of it.
    found["error"]["all"]["window"]["prose"] = found["error"]["2"]["zero"]["prose"] = 0.2
    dump(run / "measurements/contribution.json", found)
    shown = load("contribution")(Run(run))
    assert "1.00× on prose; on prose that cannot be told from nothing." in shown.verdict
    assert "could do without" not in shown.verdict
    for controls in found["nats"].values():
        for name in ("key_weight", "window", "linear"):
            del controls[name]
    found["nats"]["all"]["zero"]["code"] = None
    dump(run / "measurements/contribution.json", found)
    shown = load("contribution")(Run(run))
    assert "part" not in shown.verdict and "what it is on prose." in shown.verdict
    assert [row[0] for row in shown.tables[0].rows] == ["no attention", "uniform"]


def test_a_section_that_was_not_measured_says_why(make_run: MakeRun) -> None:
    run = make_run()
    dump(run / "measurements/contribution.json", {"skipped": "no layer was swapped"})
    with pytest.raises(ArtefactError, match=r"^no layer was swapped$"):
        load("contribution")(Run(run))


def test_provenance_is_flattened(make_run: MakeRun) -> None:
    rows = load("provenance")(Run(make_run())).tables[0].rows
    assert rows == [["teacher.name", "books-6x512"], ["teacher.weights", "5f2c"], ["seeds", "3"]]


def test_columns_with_nothing_to_tell_are_left_out():
    """The names that are left stand to the left, numbers to the right."""
    table = Table("", ["a", "name", "n", "none"], [[DASH, "long one", "1", DASH], [DASH, "b", "22", DASH]], labels=2)
    shown = without_dashes(table)
    assert shown == Table("", ["name", "n"], [["long one", "1"], ["b", "22"]], labels=1)
    assert aligned(shown) == ["name       n", "long one   1", "b         22"]


def test_what_is_to_be_copied_stays_whole():
    words = ["a" * 60, "b" * 60, "/" + "c/" * 60, "--d"]
    assert wrapped(" ".join(words)).split("\n") == words
