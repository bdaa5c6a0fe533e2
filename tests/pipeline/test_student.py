"""The student as built: its teacher in all but attention."""

from pathlib import Path

import pytest
import torch

from distill.errors import UserError
from distill.flexformer.options import check_options
from distill.mixer import swapped_options
from distill.student import build_student
from distill.teacher import Teacher

from . import tiny
from .conftest import MIXERS, compose, sized
from .test_teacher import ids, load

GOOD = tiny.MIXER


@pytest.fixture(params=["gpt2", "llama"])
def teacher(request: pytest.FixtureRequest, teachers: dict[str, Path]) -> Teacher:
    return load(teachers[request.param])


def test_all_weights_but_the_mixers_are_the_teachers(teacher: Teacher):
    teacher.model.generation_config.top_k = 7
    student, theirs = build_student(teacher, GOOD), teacher.model.state_dict()
    ours = {name: each for name, each in student.lm.state_dict().items() if ".mixer." not in name}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(student.mixers) == 2
    assert student.generation_config.top_k == 7


def test_with_softmax_put_back_it_is_the_teacher(teacher: Teacher):
    student = build_student(teacher, GOOD).eval()
    student.lm.set_attn_implementation("sdpa")
    # Not to the bit: where the copies lie in memory decides how a product is summed up.
    torch.testing.assert_close(student.lm(ids()).logits, teacher.predict({"input_ids": ids()}), rtol=1e-5, atol=1e-5)


def test_nothing_is_shared_with_the_teacher(teacher: Teacher):
    before = teacher.weights_hash()
    student = build_student(teacher, GOOD)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    student.config.layers[0]["heads"] = 99
    assert teacher.weights_hash() == before and teacher.layers[0]["heads"] != 99


def test_tied_weights_stay_tied(teachers: dict[str, Path]):
    student = build_student(load(teachers["gpt2"]), GOOD)
    assert student.get_input_embeddings().weight is student.get_output_embeddings().weight


@pytest.mark.parametrize("name", MIXERS)
def test_it_runs_untrained_with_any_mixer(teacher: Teacher, name: str):
    student = build_student(teacher, compose(*sized(name)).mixer).eval()
    with torch.no_grad():
        logits = student(ids()).logits
    assert logits.shape == teacher.predict({"input_ids": ids()}).shape and logits.isfinite().all()
    if name == "softmax":
        torch.testing.assert_close(logits, teacher.predict({"input_ids": ids()}), rtol=1e-4, atol=1e-4)
    else:
        assert not torch.isclose(logits, teacher.predict({"input_ids": ids()}), atol=1e-2).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"map": "softmax"}, "mixer.map=softmax is unknown.*exponential"),
        ({"colour": "red"}, "mixer.colour is unknown.*features"),
        ({"key_weight": "cubic"}, "mixer.key_weight=cubic is unknown.*quadratic"),
        ({"features": 0}, "mixer.features=0 is too small"),
        ({"decay": "slow"}, "mixer.decay=slow is unknown.*gated"),
        ({"decay": "learned", "decay_groups": 3}, "mixer.decay_groups=3 must divide.*4 atoms"),
        ({"window": -1}, "mixer.window=-1"),
        ({"map": "favor", "frozen": True}, "mixer"),
    ],
)
def test_a_wrong_mixer_is_a_mistake(teacher: Teacher, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        build_student(teacher, GOOD | change)


OPTIONS = swapped_options(GOOD)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_missing_mixer_key_is_a_mistake(name: str):
    check_options(OPTIONS)
    with pytest.raises(ValueError, match=f"mixer.{name}"):
        check_options({key: value for key, value in OPTIONS.items() if key != name})


@pytest.mark.parametrize(("wanted", "kept"), [([], []), ([1], [1]), ([1, 0, 1], [0, 1]), ("all", [0, 1])])
def test_layers_stay_exact(teacher: Teacher, wanted: list[int] | str, kept: list[int]):
    student = build_student(teacher, GOOD | {"exact_layers": wanted})
    assert student.config.exact_layers == kept and list(student.mixers) == [i for i in range(2) if i not in kept]


@pytest.mark.parametrize("wanted", [[2], [-1], "none", [0.5], [True], 1, None])
def test_layers_that_are_not_there_are_a_mistake(teacher: Teacher, wanted):
    with pytest.raises(UserError, match=r"^mixer.exact_layers=.*0 to 1, or all$"):
        build_student(teacher, GOOD | {"exact_layers": wanted})
