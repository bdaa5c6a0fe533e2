"""What the tests of this folder share: a student of the embedded teacher, exported, and answers to compare with."""

import json
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from transformers import AutoTokenizer

import distill.checkpoint  # noqa: F401  # so that the student's files travel with it
from distill.__main__ import register_recipes
from distill.config import read
from distill.flexformer.model import FlexformerForCausalLM
from distill.folders import folder
from distill.student import build_student
from distill.task import TASKS
from distill.teacher import load_teacher

torch.set_num_threads(1)

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'nobody' %}{{ raise_exception('nobody speaks') }}{% endif %}"
    "# {{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant: {% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its mixers are as drawn, which is enough to write varied text."""
    register_recipes()
    with hydra.initialize_config_dir(str(folder("conf")), version_base="1.3"):
        config = read(hydra.compose("config", ["recipe=pocket", "run_dir=unused"]))
    teacher = load_teacher(config.teacher, config.data.context, TASKS["causal_lm"])
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("served") / "student"
    build_student(teacher, config.mixer).save_pretrained(path)
    teacher.tokenizer.save_pretrained(path)
    told = {"task": "causal_lm", "teacher": {"name": "pocket"}, "mixer": config.mixer, "data": {"domains": {}}}
    (path / "provenance.json").write_text(json.dumps(told))
    return path


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)


@pytest.fixture(scope="session")
def student(checkpoint: Path) -> FlexformerForCausalLM:
    """In float64, so that who else stands in a batch changes no choice."""
    return FlexformerForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
