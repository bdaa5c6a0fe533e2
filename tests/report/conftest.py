"""A run directory with believable numbers, as the pipeline leaves one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

LAYERS, HEADS, CONTEXT, MAP_TOKENS = 4, 4, 512, 64

CONFIG = """\
recipe: quick
seed: 3
teacher: {path: teachers/books-6x512}
mixer: {map: spectral, features: 126, key_weight: linear}
stages: {attention: {loss: kl}}
measure: {teacher_tuned: true}
report: {sections: [headline, fidelity, transfer, contribution, length, cost]}
"""


def write_run(path: Path, domains: tuple[str, ...] = ("code", "prose")) -> Path:
    """Write every artefact of a run on `domains`."""
    (path / "measurements").mkdir(parents=True)
    (path / "student").mkdir()
    (path / "config.yaml").write_text(CONFIG)
    dump(path / "measurements/headline.json", headline(domains))
    fidelity, maps = heads(domains)
    dump(path / "measurements/fidelity.json", fidelity)
    save_file(maps, path / "measurements/fidelity_maps.safetensors")
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps()))
    dump(path / "measurements/cost.json", cost())
    dump(path / "measurements/length.json", length(domains))
    dump(path / "measurements/transfer.json", transfer(domains))
    dump(path / "measurements/contribution.json", contribution(domains))
    dump(path / "student/provenance.json", {"teacher": {"name": "books-6x512", "weights": "5f2c"}, "seeds": [3]})
    return path


def dump(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def headline(domains: tuple[str, ...]) -> dict[str, Any]:
    def by_domain(first: float, growth: float) -> dict[str, float]:
        return {domain: first * growth**place for place, domain in enumerate(domains)}

    return {
        "teacher_ppl": by_domain(9.42, 2.3),
        "swapped_ppl": by_domain(70.1, 1.7),
        "stage1_ppl": by_domain(15.9, 1.7),
        "student_ppl": by_domain(11.13, 2.18),
        "ratio": by_domain(1.1815, 0.948),
        "ratio_error": by_domain(0.0093, 0.6),
        "teacher_tuned_ppl": by_domain(9.17, 2.28),
        "kl": by_domain(0.0612, 1.5),
        "teacher_tuned_kl": by_domain(0.0457, 1.5),
        "agreement": by_domain(0.823, 0.95),
        "evaluation_tokens": {domain: 131072 for domain in domains},
        "context": CONTEXT,
        "tokens": {"attention": 1228800, "logits": 1638400},
        "seconds": {"data": 14.2, "attention": 213.5, "logits": 402.8, "measure": 61.0},
        "parameters": {"teacher": 44730368, "student": 45123584, "mixers": 393216},
        "state_bytes": 3120 * 1024,
        "cache_bytes_per_token": 12288,
        "student_cache_bytes_per_token": 0,
        "mixer": {"map": "spectral", "features": 126},
    }


def cost() -> dict[str, Any]:
    """The student reads faster from 512 tokens on, never decodes faster, and keeps less from 256 on."""
    return {
        "prefill": {"teacher": [0.01, 0.02, 0.05, 0.2], "student": [0.02, 0.03, 0.04, 0.08]},
        "decode": {"teacher": [0.004, 0.004, 0.004, 0.005], "student": [0.006] * 4},
        "kept_bytes": {"teacher": [2**20, 2**21, 2**22, 2**23], "student": [2**20] * 4},
        "peak_bytes": None,
        "contexts": [128, 256, 512, 1024],
        "wanted": [128, 256, 512, 1024],
        "hardware": "2 CPU cores",
        "precision": "32-true",
        "flops_per_token": 10_000_000,
        "flops": {"attention": 2e13, "logits": 8e13},
        "tokens": {"attention": 1_000_000, "logits": 1_000_000},
        "seconds": {"attention": 100.0, "logits": 200.0, "measure": 60.0},
        "teacher_training": {"tokens": 10_000_000, "seconds": 60.0, "hardware": "one NVIDIA H100 80GB HBM3"},
    }


def length(domains: tuple[str, ...]) -> dict[str, Any]:
    """At twice the context of training; on the last domain sampling wanders off, and no passkey is ever found."""
    spoken = {"until": 12.5, "identical": 0.25, "tokens": 32, "prompts": 8, "error": 0.1}
    nats = {"teacher": 2.5, "student": 2.6, "text": 3.0}
    generation = {domain: {**spoken, "nats": nats} for domain in domains}
    generation[domains[-1]] = {**spoken, "nats": {**nats, "student": 3.1}}
    ppl = {str(512 * times): {"teacher": 20.0, "student": 20.0 + times, "error": 0.01} for times in (1, 2)}
    positions = {"from": [1, 16, 32], "teacher": [4.0, 3.5, 3.0], "student": [4.0, 3.6, 3.2]}
    return {
        "context": 512,
        "contexts": [512, 1024],
        "ppl": dict.fromkeys(domains, ppl),
        "positions": dict.fromkeys(domains, positions),
        "recall": {
            "copy": recalled([16, 32, 64], [0.8, 0.5, 0.1], [0.7, 0.2, 0.0]),
            "passkey": recalled([16], [0.0], [0.0]),
        },
        "generation": generation,
    }


def recalled(distance: list[int], teacher: list[float], student: list[float]) -> dict[str, Any]:
    """Of whom twice as much is gained as found."""
    who = {"teacher": teacher, "student": student}
    return {
        "distance": distance,
        **{
            name: {"found": found, "gain": [2 * each for each in found], "error": [0.01] * len(found)}
            for name, found in who.items()
        },
    }


def transfer(domains: tuple[str, ...]) -> dict[str, Any]:
    """Two seeds: 2.0 untrained, 0.5 and 0.6 where fitted, 0.8 and 0.8 elsewhere; 0.2 more with fixed frequencies."""
    sources = [*domains, "mixture"]

    def table(more: float) -> dict[str, Any]:
        return {
            source: {domain: [0.5 + more, 0.6 + more] if source == domain else [0.8 + more] * 2 for domain in domains}
            for source in sources
        }

    def measures(make: Any) -> dict[str, Any]:
        return {"kl": make(0.0), "output_error": make(0.1), "ppl": make(10.0)}

    return {
        "learned": measures(table),
        "fixed": measures(lambda more: table(more + 0.2)),
        "fresh": measures(lambda more: {domain: [2.0 + more] * 2 for domain in domains}),
        "train": {
            kind: measures(lambda more, gap=gap: {source: [0.4 + gap + more, 0.5 + gap + more] for source in sources})
            for kind, gap in (("learned", 0.0), ("fixed", 0.25))
        },
        "sources": sources,
        "domains": list(domains),
        "weights": {domain: 1 / len(domains) for domain in domains},
        "seeds": [0, 1],
        "steps": 40,
        "tokens": 40960,
        "comparable": True,
    }


def contribution(domains: tuple[str, ...]) -> dict[str, Any]:
    """Of a hybrid of four layers: layer 2 does nothing, and neither does the linear part on the last domain."""
    lost = {"zero": 0.9, "uniform": 0.7, "key_weight": 0.6, "window": 0.04, "linear": 0.5}
    nats = {
        where: {name: dict.fromkeys(domains, 0.001 if where == "2" else value * size) for name, value in lost.items()}
        for where, size in {"all": 4.0, "0": 0.3, "1": 1.0, "2": 0.0, "3": 1.2}.items()
    }
    nats["all"]["window"][domains[-1]] = 0.003
    errors = {where: {name: dict.fromkeys(domains, 0.002) for name in lost} for where in nats}
    student = dict.fromkeys(domains, 2.5)
    return {"nats": nats, "error": errors, "student": student, "blocks": dict.fromkeys(domains, 8)}


def heads(domains: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """fidelity.json and the maps of a best, a median and a worst head."""
    random = np.random.default_rng(0)
    measured, shown, maps = {}, [], {}
    for domain in domains:
        kl = random.gamma(1.3, 0.12, (LAYERS, HEADS))
        entropy = random.uniform(0.6, 4.2, (LAYERS, HEADS))
        measured[domain] = {
            "kl": kl.tolist(),
            "output_error": (0.4 * kl * random.uniform(0.6, 1.4, kl.shape)).tolist(),
            "entropy_teacher": entropy.tolist(),
            "entropy_student": (entropy + 0.8 * kl).tolist(),
            "negative_share": np.zeros_like(kl).tolist(),
            "smallest_denominator": (10.0 ** random.uniform(-5, -1, kl.shape)).tolist(),
        }
        order = np.argsort(kl, axis=None)
        for why, place in (("best", 0), ("median", len(order) // 2), ("worst", -1)):
            layer, head = (int(index) for index in np.unravel_index(order[place], kl.shape))
            shown.append({"domain": domain, "layer": layer, "head": head, "why": why})
            for whose, blur in (("teacher", 0.0), ("student", float(kl[layer, head]))):
                maps[f"{domain}.{layer}.{head}.{whose}"] = attention(random, blur)
    fidelity = {"layers": LAYERS, "heads": HEADS, "comparable": True, "domains": measured, "shown": shown}
    told = {"norm_before": [1.0, 2.0, 3.0], "norm_after": [2.0, 3.0, 4.0], "cosine": [0.5, 0.7, 0.9]}
    told |= {"directions_before": 9.0, "directions_after": 6.0}
    spectra = {str(layer): {"query_frequency": told, "key_frequency": told} for layer in range(LAYERS)}
    return fidelity | {"tokens": 8192, "spectra": spectra}, maps


def attention(random: np.random.Generator, blur: float) -> np.ndarray:
    """Causal weights: near tokens, the first token and a few distant ones, flattened by `blur`."""
    query, key = np.ogrid[:MAP_TOKENS, :MAP_TOKENS]
    scores = -(query - key) / 3.0 + 9 * (key == 0) + 7 * (random.random((MAP_TOKENS, MAP_TOKENS)) > 0.97)
    weights = np.where(key <= query, np.exp(scores / (1 + 2 * blur)), 0)
    shares: np.ndarray = weights / weights.sum(1, keepdims=True)
    return shares.astype(np.float32)


def steps() -> list[dict[str, Any]]:
    """300 logged steps of stage 1, with layers, and 400 of stage 2."""
    random = np.random.default_rng(1)
    lines: list[dict[str, Any]] = []
    for stage, number, start, end in (("attention", 300, 1.6, 0.14), ("logits", 400, 0.9, 0.11)):
        for step in range(1, number + 1):
            loss = (end + (start - end) * step**-0.7) * random.uniform(0.93, 1.07)
            line = {
                "stage": stage,
                "step": step,
                "tokens": 4096 * step,
                "loss": loss,
                "lr": 0.03,
                "seconds": 0.7 * step,
            }
            layers = [loss * size for size in (0.5, 0.8, 1.1, 1.6)]
            lines.append(line | ({"layers": layers} if stage == "attention" else {}))
    return lines


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run below the test's folder: make_run(name="run", domains=("code", "prose"))."""

    def make(name: str = "run", domains: tuple[str, ...] = ("code", "prose")) -> Path:
        return write_run(tmp_path / name, domains)

    return make


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, to read only."""
    return write_run(tmp_path_factory.mktemp("runs") / "run")
