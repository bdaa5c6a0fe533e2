"""Kernels of one domain on another: every number against one that is computed from the kernels themselves."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill.capture import Heads
from distill.config import Config
from distill.data import prepare
from distill.kernels import load_kernels
from distill.measure import transfer
from distill.measure.subject import NotMeasured, Subject
from distill.measure.transfer import measure_transfer
from distill.pipeline import distil
from distill.report.run import Run
from distill.report.sections import load as load_section
from distill.rundir import RunDirectory
from distill.student import build_student
from distill.teacher import Teacher

from . import tiny
from .conftest import SMALL, Compose, compose
from .test_teacher import load

pytestmark = pytest.mark.xdist_group("transfer")

STEPS, SEEDS, BLOCKS = 4, 2, 3
DOMAINS = ("one", "two", "three")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home, found = tmp_path_factory.mktemp("domains"), {}
    for place, name in enumerate(DOMAINS):
        found[name] = home / f"{name}.txt"
        found[name].write_text(tiny.prose(place, 120).upper() if place else tiny.prose(place, 120))
    return found


@pytest.fixture(scope="module")
def config(teachers: dict[str, Path], texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Two domains that are trained on, unequally, and one that is only measured."""
    domains = [f"+data.domains.{name}.path={path}" for name, path in texts.items()]
    return compose(
        "recipe=pocket",
        *[each for each in SMALL if not each.startswith("report")],
        f"teacher.path={teachers['gpt2']}",
        "data=text",
        *domains,
        "+data.domains.one.weight=3",
        "+data.domains.three.weight=0",
        "report.sections=[headline,transfer]",
        f"measure.transfer.max_steps={STEPS}",
        f"measure.transfer.seeds={SEEDS}",
        f"measure.transfer.blocks={BLOCKS}",
        "stages.attention.place=true",
        f"run_dir={tmp_path_factory.mktemp('runs') / 'run'}",
    )


@pytest.fixture(scope="module")
def run(config: Config) -> Path:
    return distil(config)


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    return json.loads((run / "measurements/transfer.json").read_text())


@pytest.fixture(scope="module")
def teacher(config: Config) -> Teacher:
    return load(Path(str(config.teacher.path)))


def blocks(config: Config, teacher: Teacher, domain: str, count: int) -> torch.Tensor:
    held_out = prepare(config.data, teacher.tokenizer, 0).validation[domain]
    return torch.stack([held_out[i * len(held_out) // count]["input_ids"] for i in range(count)])


def weights(heads: Heads) -> torch.Tensor:
    """The teacher's attention in double precision: (B, H, N, N)."""
    logits = heads.query.double() @ heads.key.double().mT * heads.scaling
    unseen = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(unseen, -torch.inf).softmax(-1)


@torch.no_grad()
def kl(teacher: Teacher, mixers: Any, rows: torch.Tensor) -> float:
    """Mean over layers, heads, blocks and queries, of A as the mixer's exponential map has it, written out."""
    each = []
    for layer, heads in enumerate(teacher.heads({"input_ids": rows})):
        mixer, wanted = mixers[layer].double(), weights(heads)
        scores = mixer.scores(heads.query.double(), heads.key.double(), heads.scaling).flatten(1, 2)
        gap = wanted * (wanted.clamp(min=1e-300).log() - (scores / scores.sum(-1, keepdim=True)).clamp(1e-300).log())
        each.append(gap.sum(-1).mean().item())
        mixer.float()
    return sum(each) / len(each)


def test_a_kernel_is_held_to_every_domain(found: dict[str, Any], run: Path, config: Config, teacher: Teacher):
    assert found["sources"] == ["one", "two", "mixture"] and found["domains"] == list(DOMAINS)
    assert found["seeds"] == [0, 1] and found["steps"] == STEPS and found["comparable"]
    assert found["tokens"] == STEPS * 2 * tiny.CONTEXT and found["weights"] == {"one": 0.75, "two": 0.25}
    for source in ("one", "two"):
        student = build_student(teacher, config.mixer).eval()
        load_kernels(student, str(run / "kernels" / f"{source}.safetensors"))
        for domain in DOMAINS:
            expected = kl(teacher, student.mixers, blocks(config, teacher, domain, config.measure.fidelity_blocks))
            assert found["learned"]["kl"][source][domain][0] == pytest.approx(expected, rel=1e-4)
            rows = blocks(config, teacher, domain, BLOCKS)
            with torch.no_grad():
                log_p = student(rows, use_cache=False).logits[:, :-1].double().log_softmax(-1)
            expected = math.exp(-log_p.gather(-1, rows[:, 1:, None]).mean().item())
            assert found["learned"]["ppl"][source][domain][0] == pytest.approx(expected, rel=1e-4)


def test_every_place_has_a_value_of_each_seed(found: dict[str, Any]):
    for kind in ("learned", "fixed"):
        for name in ("kl", "output_error", "ppl"):
            assert list(found[kind][name]) == found["sources"]
            for by_domain in found[kind][name].values():
                assert list(by_domain) == found["domains"]
                assert all(len(values) == SEEDS and all(values) for values in by_domain.values())
        assert all(len(values) == SEEDS for values in found["train"][kind]["kl"].values())
    first, second = found["learned"]["kl"]["one"]["one"]
    assert first != second
    assert all(len(values) == SEEDS for values in found["fresh"]["ppl"].values())


def test_fitting_helps_most_where_it_was_done(found: dict[str, Any]):
    """Against nothing fitted, and against one fitted elsewhere, of both seeds."""
    for source in ("one", "two"):
        for seed in range(SEEDS):
            fitted = found["learned"]["kl"][source][source][seed]
            assert fitted < found["fresh"]["kl"][source][seed]
    own = sum(found["learned"]["kl"][each][each][0] for each in ("one", "two"))
    other = sum(found["learned"]["kl"][a][b][0] for a, b in (("one", "two"), ("two", "one")))
    assert own < other


def test_fixed_frequencies_stay_as_drawn(config: Config, run: Path):
    """And all else is fitted: the last states of two fits from the same draw."""
    folder = run / "checkpoints"
    states = [
        torch.load(folder / f"transfer-{source}-fixed-0-step={STEPS}.ckpt", weights_only=False)["state_dict"]
        for source in ("one", "two")
    ]
    kept = {name for name in states[0] if name.endswith("_frequency")}
    moved = {name for name in states[0] if "coefficients" in name}
    assert kept and moved
    assert all(torch.equal(states[0][name], states[1][name]) == (name in kept) for name in kept | moved)


def test_learned_and_fixed_frequencies_start_alike(
    config: Config, teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Or what learning gains would be what a start from the domain's own keys gains."""
    corpus, student = prepare(config.data, teacher.tokenizer, 0), build_student(teacher, config.mixer)
    assert config.stages.attention.place and all(mixer.centroids for mixer in student.mixers.values())
    run = RunDirectory(replace(config, run_dir=str(tmp_path / "run")))
    fits = transfer.start(Subject(teacher, student, corpus, config, run, torch.device("cpu")))
    begun = []

    def fit(stage: Any, *_: Any) -> int:
        begun.append({name: each.clone() for name, each in stage.mixers.state_dict().items()})
        return 0

    monkeypatch.setattr(transfer, "fit", fit)
    for source, frozen, seed in product(("one", "mixture"), (False, True), (0, 1)):
        fits.fit(source, seed, frozen)
    ones, others = begun[::2], begun[1::2]
    assert all(torch.equal(each[name], same[0][name]) for same in (ones, others) for each in same for name in each)
    assert not all(torch.equal(ones[0][name], others[0][name]) for name in ones[0])


def test_the_gap_is_to_text_that_was_trained_on(found: dict[str, Any], run: Path, config: Config, teacher: Teacher):
    corpus = prepare(config.data, teacher.tokenizer, config.seed)
    alone = replace(corpus, train={"two": corpus.train["two"]}, weights={"two": 1.0})
    batches = alone.batches(STEPS, config.stages.attention.batch_size, config.seed)
    rows = torch.cat([batch["input_ids"] for batch in batches])[: config.measure.fidelity_blocks]
    student = build_student(teacher, config.mixer)
    load_kernels(student, str(run / "kernels" / "two.safetensors"))
    assert found["train"]["learned"]["kl"]["two"][0] == pytest.approx(kl(teacher, student.mixers, rows), rel=1e-4)
    trained = torch.load(run / f"checkpoints/transfer-two-0-step={STEPS}.ckpt", weights_only=False)["state_dict"]
    kernels = load_file(run / "kernels" / "two.safetensors")
    assert all(torch.equal(each, trained[f"mixers.{name}"]) for name, each in kernels.items())


def test_the_runs_own_kernels_stay(run: Path):
    """kernels/mixture.safetensors is what stage 1 left, and not what was fitted to be compared."""
    fitted = torch.load(run / "checkpoints/attention-step=3.ckpt", weights_only=False)["state_dict"]
    kernels = load_file(run / "kernels" / "mixture.safetensors")
    assert all(torch.equal(each, fitted[f"mixers.{name}"]) for name, each in kernels.items())


def test_the_report_shows_it(found: dict[str, Any], run: Path):
    shown = load_section("transfer")(Run(run))
    learned, fresh = found["learned"]["kl"], found["fresh"]["kl"]
    for seed in range(SEEDS):
        expected = (fresh["two"][seed] - learned["one"]["two"][seed]) / (
            fresh["two"][seed] - learned["two"]["two"][seed]
        )
        assert shown.data["retention"]["kl"]["one"]["two"][seed] == pytest.approx(expected)
    mixed = 0.75 * learned["mixture"]["one"][0] + 0.25 * learned["mixture"]["two"][0]
    assert shown.data["gap"]["learned"]["mixture"]["test"][0] == pytest.approx(mixed)
    assert json.loads((run / "report/report.json").read_text())["transfer"]["retention"]


def test_where_there_is_nothing_to_transfer(small: Compose, teacher: Teacher):
    def measured(*overrides: str) -> Any:
        config = small(*overrides)
        corpus = prepare(config.data, teacher.tokenizer, 0)
        student = build_student(teacher, config.mixer)
        return measure_transfer(Subject(teacher, student, corpus, config, RunDirectory(config), torch.device("cpu")))

    for overrides, reason in (
        ([], "one domain to train on: give data.domains"),
        (["mixer.match_maps=false"], "match_maps=false"),
        (["mixer=elu"], "nothing to fit"),
        (["mixer=softmax"], "nothing to fit"),
    ):
        with pytest.raises(NotMeasured, match=reason):
            measured(*overrides)
