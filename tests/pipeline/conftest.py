"""What the tests of this folder share: teachers on disk, a text, and configurations as the door composes them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import hydra
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from transformers import PreTrainedTokenizerFast

from distill.__main__ import register_recipes
from distill.config import Config, read
from distill.flexformer.options import PROJECTIONS
from distill.folders import folder

from . import tiny

# Tensors are tiny: threads would only fight with the other test workers.
torch.set_num_threads(1)

Compose = Callable[..., Config]
#: Every option of the group `mixer` that a causal model takes.
MIXERS = sorted(path.stem for path in folder("conf").glob("mixer/*.yaml") if path.stem not in PROJECTIONS)
#: A run of seconds: few short steps, and one layer of everything else.
SMALL = [
    f"data.context={tiny.CONTEXT}",
    "data.validation_blocks=6",
    "stages.allocation.max_steps=2",
    "stages.attention.max_steps=3",
    "stages.attention.batch_size=2",
    "stages.attention.queries=null",
    "stages.logits.max_steps=3",
    "stages.logits.batch_size=2",
    "stages.pretrain.max_steps=3",
    "stages.pretrain.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=1",
    "measure.fidelity_blocks=2",
    "measure.map_tokens=8",
    "report.sections=[headline,fidelity]",
    "stages.logits.learning_rate=2e-4",
    # Purely linear, although the recipe has a window, or the exact part would do all the work.
    "mixer=exponential",
    "mixer.features=12",
]
#: For every option of `mixer`: its keys that make it small, and a window that is shorter than a text.
SIZES = {"features": 56, "window": 8}


@pytest.fixture(autouse=True, scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(autouse=True)
def closed_door():
    """What goes through the door here leaves Hydra's configuration open, and later runs would tell of its command."""
    yield
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "prose.txt"
    path.write_text(tiny.prose(0, 150))
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.train_tokenizer(tiny.prose(0, 150))


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("teachers")
    return {family: tiny.save(home / family, config, tokenizer) for family, config in tiny.CONFIGS.items()}


#: Once is enough, and takes a third of what composing does.
registered = cache(register_recipes)


def compose(*overrides: str) -> Config:
    """The configuration that the door would run with these arguments."""
    registered()
    with hydra.initialize_config_dir(str(folder("conf").resolve()), version_base="1.3"):
        composed = hydra.compose("config", ["run_dir=somewhere", *overrides])
    return read(composed)


def sized(name: str) -> list[str]:
    """The option `name` of the group `mixer`, small, as overrides."""
    return [f"mixer={name}", *(f"mixer.{key}={size}" for key, size in SIZES.items() if options(name).get(key))]


@cache
def options(name: str) -> dict[str, Any]:
    return compose(f"mixer={name}").mixer


@pytest.fixture
def small(teachers: dict[str, Path], text: Path, tmp_path: Path) -> Compose:
    """Composes a small run of the tiny GPT-2 below the test's folder; further overrides have the last word."""

    def make(*overrides: str) -> Config:
        given = [f"teacher.path={teachers['gpt2']}", f"data.path={text}", f"run_dir={tmp_path / 'run'}"]
        # Another mixer says of itself how small it is.
        other = any(each.startswith("mixer=") for each in overrides)
        sizes = [each for each in SMALL if not (other and each.startswith("mixer"))]
        return compose("recipe=pocket", *sizes, *given, *overrides)

    return make
