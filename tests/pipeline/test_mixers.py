"""Every option of the group `mixer` through a whole run, as short as can be; and a map of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from distill.flexformer.engine import chunked, parallel, recurrent
from distill.flexformer.feature_map import FeatureMap, HeadShape
from distill.flexformer.mixer import Mixer
from distill.flexformer.options import MAPS
from distill.measure.fidelity import HeadFidelity
from distill.mixer import swapped_options
from distill.pipeline import distil

from . import tiny
from .conftest import MIXERS, Compose, sized

SHORT = [
    *(f"stages.{stage}.max_steps=1" for stage in ("attention", "logits")),
    "data.validation_blocks=2",
    "measure.fidelity_blocks=1",
    "report.sections=[headline,fidelity]",
]


def told(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "measurements" / f"{name}.json").read_text())


def fields(run: Path) -> dict[str, list[list[float | None]]]:
    """The fidelity of every head by its name, for the only domain."""
    (domain,) = told(run, "fidelity")["domains"].values()
    assert domain.keys() == set(HeadFidelity._fields)
    return domain


def known(rows: list[list[float | None]]) -> bool:
    """Whether every head has a number; the other possibility is that none has."""
    numbers = [each is not None and each == each for row in rows for each in row]
    assert all(numbers) or not any(numbers)
    return all(numbers)


#: Without those that are another but for what of it learns, which other tests look at.
GOES_THROUGH = [name for name in MIXERS if name != "softmax" and not name.endswith("-frozen")]


@pytest.mark.parametrize("name", GOES_THROUGH)
def test_every_option_goes_through(small: Compose, name: str):
    config = small(*sized(name), *SHORT)
    run = distil(config)
    assert json.loads((run / "student" / "config.json").read_text())["mixer"]["map"] == config.mixer["map"]
    assert (run / "report" / "report.html").exists() and told(run, "headline")["ratio"]["prose"] > 0
    if not config.mixer["match_maps"]:
        assert not (run / "measurements" / "fidelity.json").exists()
        skipped = json.loads((run / "report" / "report.json").read_text())["fidelity"]["skipped"]
        assert skipped.startswith("with mixer.match_maps=false nothing")
        return
    found, averages = fields(run), config.mixer["normaliser"] == "sum" and config.mixer["decay"] != "delta"
    assert known(found["output_error"]) and known(found["entropy_teacher"])
    assert known(found["kl"]) == known(found["negative_share"]) == averages
    assert known(found["far_teacher"]) == known(found["far_student"]) == known(found["gate"])
    assert known(found["gate"]) == (averages and config.mixer["window"] > 0)
    assert told(run, "fidelity")["window"] == config.mixer["window"]


def test_all_layers_exact_are_the_teacher(small: Compose):
    """Nothing is fitted, nothing compared, and nothing lost."""
    run = distil(small(*sized("softmax"), *SHORT))
    headline = told(run, "headline")
    assert headline["ratio"]["prose"] == pytest.approx(1, abs=1e-5) and headline["state_bytes"] == 0
    assert not (run / "measurements" / "fidelity.json").exists()
    assert json.loads((run / "student" / "config.json").read_text())["exact_layers"] == [0, 1]


def test_some_layers_exact(small: Compose):
    run = distil(small("mixer.exact_layers=[0]", *SHORT))
    assert {name.split(".")[0] for name in load_file(run / "kernels" / "mixture.safetensors")} == {"1"}
    exact, swapped = fields(run)["kl"]
    assert not known([exact]) and known([swapped])
    assert {each["layer"] for each in told(run, "fidelity")["shown"]} == {1}
    assert "kl" in fields(run) and json.loads((run / "student" / "config.json").read_text())["exact_layers"] == [0]


class Toy(FeatureMap):
    """φ(x) = e^{tanh(Wx)}: a map as anyone might write it, W shared by all."""

    frequencies = ("projection",)

    def __init__(self, shape: HeadShape, features: int, spread: float):
        super().__init__(shape, features)
        self.projection = nn.Parameter(spread * torch.randn(features, shape.head_dim))

    def query_features(self, query: Tensor, position: Tensor) -> Tensor:
        return (query @ self.projection.mT).tanh().exp()

    def key_features(self, key: Tensor, position: Tensor) -> tuple[Tensor, Tensor | None]:
        return (key @ self.projection.mT).tanh().exp(), None


TOY = {"map": "toy", "features": 6, "spread": 1.0}
OPTIONS = swapped_options(tiny.PLAIN) | TOY


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line that a new map needs beside its own file."""
    monkeypatch.setitem(MAPS, "toy", Toy)


@pytest.mark.parametrize("parts", [{}, {"decay": "gated", "decay_groups": 2, "window": 3, "key_weight": "linear"}])
def test_a_new_map_is_one_class_and_one_line(toy: None, parts: dict[str, Any]):
    torch.manual_seed(0)
    mixer = Mixer(HeadShape(4, 2, 4), OPTIONS | parts).double()
    q, k, v = (torch.randn(2, heads, 70, 4, dtype=torch.float64) for heads in (4, 2, 2))
    out, *others = (mixer(q, k, v, 0.5, path=path)[0] for path in (parallel, chunked, recurrent))
    for other in others:
        torch.testing.assert_close(other, out, rtol=1e-10, atol=1e-10)
    weights = mixer.log_weights(q, k, 0.5).exp()
    torch.testing.assert_close((weights @ v[:, :, None]).flatten(1, 2), out, rtol=1e-10, atol=1e-10)


def test_a_new_map_can_be_distilled(toy: None, small: Compose):
    """By the keys of its constructor, without a file in conf/."""
    config = small(*sized("elu"), *SHORT)
    config.mixer |= TOY
    run = distil(config)
    assert told(run, "fidelity")["comparable"]
    kernels = load_file(run / "kernels" / "mixture.safetensors")
    assert kernels.keys() == {f"{layer}.map.projection" for layer in (0, 1)}
    assert json.loads((run / "student" / "config.json").read_text())["mixer"]["spread"] == 1.0


def test_a_wrong_key_of_a_new_map_is_named(toy: None):
    with pytest.raises(ValueError, match=r"mixer\.spread=wide is of the wrong type: give float"):
        Mixer(HeadShape(4, 2, 4), OPTIONS | {"spread": "wide"})
