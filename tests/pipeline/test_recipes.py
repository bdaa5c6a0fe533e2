"""Every recipe and every option composes, and the largest story runs at its own shape."""

import contextlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import GPT2Config, PreTrainedTokenizerFast

from distill.__main__ import main
from distill.config import Config, Domain
from distill.flexformer.decay import DECAYS
from distill.flexformer.feature_map import HeadShape
from distill.flexformer.key_weight import DEGREES
from distill.flexformer.mixer import Mixer
from distill.flexformer.normaliser import NORMALISERS
from distill.flexformer.options import MAPS
from distill.folders import folder
from distill.mixer import swapped_options
from distill.pipeline import PIPELINES, distil

from . import tiny
from .conftest import MIXERS, compose, options
from .families import FAMILIES, configuration

RECIPES = sorted(path.stem for path in folder("recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_composes(name: str):
    config = compose(f"recipe={name}")
    assert isinstance(config, Config) and config.recipe == name and config.goal in PIPELINES
    assert config.data.path or all(isinstance(domain, Domain) for domain in config.data.domains.values())
    if config.goal == "student":
        assert config.teacher.path is not None
        Mixer(HeadShape(4, 2, 64), swapped_options(config.mixer))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_yields_to_the_command_line(name: str):
    config = compose(f"recipe={name}", "mixer=favor", "mixer.features=7", "stages.attention.max_steps=11", "seed=5")
    assert config.mixer["map"] == "favor" and config.mixer["features"] == 7
    assert config.stages.attention.max_steps == 11 and config.seed == 5


@pytest.mark.parametrize("file", sorted(folder("conf").glob("report/*.yaml")), ids=lambda file: file.stem)
def test_what_a_report_asks_for_is_measured(file: Path):
    """Nothing that its file says is said otherwise by one that is read after it."""
    config = OmegaConf.structured(compose(f"report={file.stem}"))
    wanted = OmegaConf.load(file)
    wanted.pop("defaults", None)
    assert OmegaConf.merge(config, wanted) == config


def test_the_pocket_recipe_is_the_default():
    assert compose() == compose("recipe=pocket")


# Together, for `options` are kept.
@pytest.mark.xdist_group("mixers")
@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_composes_and_can_be_built(name: str):
    mixer = Mixer(HeadShape(4, 2, 64), swapped_options(options(name)))
    if features := options(name).get("features"):
        assert 0.9 * features <= mixer.map.feature_dim <= features


@pytest.mark.xdist_group("mixers")
def test_every_map_has_an_option():
    """And every way to decay and to normalise; what cannot be selected by name is hard to find."""
    composed = [options(name) for name in MIXERS]
    for key, known in (("map", MAPS), ("decay", DECAYS), ("normaliser", NORMALISERS), ("key_weight", DEGREES)):
        assert {mixer[key] for mixer in composed} >= known.keys() - {"linear"}


@pytest.mark.parametrize("group", ["data", "trainer", "logger"])
def test_every_option_of_a_group_composes(group: str):
    for path in folder("conf").glob(f"{group}/*.yaml"):
        compose(f"{group}={path.stem}")


def test_domains_on_the_command_line():
    """In the place of the recipe's own, as the README says."""
    notes = ["+data.domains.notes.path=notes.txt", "+data.domains.notes.weight=2"]
    config = compose("recipe=gpt2-small", "data.path=null", *notes)
    assert config.data.path is None and config.data.domains == {"notes": Domain("notes.txt", weight=2.0)}


def test_help_lists_recipes_and_keys(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(sys, "argv", ["distill", "--help"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with contextlib.suppress(SystemExit):
        main()
    said = capsys.readouterr().out
    assert all(name in said for name in [*RECIPES, *MIXERS, "max_steps", "run_dir"])


@pytest.mark.xdist_group("large")
def test_gpt2_small_at_its_own_shape(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, text: Path):
    """Twelve heads of 64; three of its twelve layers and a small vocabulary, for more would only take longer."""
    # All that says how much is trained; shapes, mixer, precision and rates are the recipe's own.
    shorter = [f"stages.{stage}.max_steps=1" for stage in ("allocation", "attention", "logits")]
    shorter += ["measure.teacher_tuned=false", "report.sections=[headline,fidelity]"]
    smaller = ["data.context=80", "data.validation_blocks=2", "measure.batch_size=1", "measure.fidelity_blocks=1"]
    smaller += [f"stages.{stage}.batch_size=1" for stage in ("attention", "logits")]
    try:
        shape = GPT2Config(vocab_size=512, n_layer=3, bos_token_id=0, eos_token_id=0)
        teacher = tiny.save(tmp_path / "teacher", shape, tokenizer)
        given = [f"teacher.path={teacher}", f"data.path={text}", "data.name=null", f"run_dir={tmp_path / 'run'}"]
        config = compose("recipe=gpt2-small", *given, *shorter, *smaller, "trainer.accelerator=cpu")
        assert OmegaConf.load(folder("recipes") / "gpt2-small.yaml").trainer.precision == config.trainer["precision"]
        run = distil(config)
        headline = json.loads((run / "measurements" / "headline.json").read_text())
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        student = json.loads((run / "student" / "config.json").read_text())
    finally:
        # Half a gigabyte, which pytest would keep.
        shutil.rmtree(tmp_path)
    assert headline["parameters"]["teacher"] > 21e6 and headline["ratio"]["prose"] > 0
    assert {line["stage"] for line in lines} == {"allocation", "logits"} and len(lines[0]["layers"]) == 3
    layer = {"module": "transformer.h.2.attn", "heads": 12, "kv_heads": 12, "head_dim": 64}
    assert student["layers"][2].items() > layer.items()
    assert sum(layer["features"] for layer in student["layers"]) == 3 * 128


#: Recipes for models that people have, and the family of each.
LARGE = {
    "gpt2-medium": "gpt2",
    "pythia-410m": "gpt_neox",
    "qwen3-0.6b": "qwen3",
    "llama-3.2-1b": "llama, tied",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_recipe_for_a_large_model_runs_from_a_directory(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, text: Path
):
    """On a tiny model of its family, everything else as the recipe has it; each says what memory it wants."""
    options = FAMILIES[LARGE[name]] | {"vocab_size": tiny.VOCABULARY}
    teacher = tiny.save(tmp_path / "teacher", configuration(LARGE[name], options), tokenizer)
    shorter = [f"stages.{stage}.max_steps=2" for stage in ("allocation", "logits")]
    smaller = [f"data.context={tiny.CONTEXT}", "data.validation_blocks=2", "mixer.features=12", "mixer.window=8"]
    smaller += ["report.sections=[headline,fidelity]"]
    given = [f"teacher.path={teacher}", f"data.path={text}", "data.name=null", f"run_dir={tmp_path / 'run'}"]
    run = distil(compose(f"recipe={name}", *given, *shorter, *smaller, "trainer.accelerator=cpu"))
    headline = json.loads((run / "measurements" / "headline.json").read_text())
    assert headline["ratio"]["prose"] > 0
    assert "GiB of GPU" in (folder("recipes") / f"{name}.yaml").read_text()


def test_a_mixer_may_ask_for_rates_of_its_own_and_the_command_line_decides():
    slow, common = (
        compose("recipe=compare", "mixer=stationary-signed").stages,
        compose("recipe=compare", "mixer=favor").stages,
    )
    assert (slow.attention.learning_rate, common.attention.learning_rate) == (3e-3, 3e-2)
    assert (slow.logits.learning_rate, common.logits.learning_rate) == (2e-5, 2e-4)
    assert (slow.logits.mixer_learning_rate, common.logits.mixer_learning_rate) == (2e-5, 3e-3)
    assert (
        compose(
            "recipe=compare", "mixer=stationary-signed", "stages.attention.learning_rate=0.5"
        ).stages.attention.learning_rate
        == 0.5
    )
