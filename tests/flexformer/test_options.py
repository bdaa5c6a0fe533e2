"""A wrong option is answered with one line that names its key."""

import pytest

from distill.flexformer.mixer import Mixer
from distill.flexformer.options import EVERY

from .examples import CASES, PLAIN, SHAPE, Case

GOOD = PLAIN | {"map": "exponential", "features": 4, "frequency_scale": 1.0}


def refusal(options: dict) -> str:
    with pytest.raises(ValueError, match=r"^mixer\.[^\n]*$") as raised:
        Mixer(SHAPE, options)
    return str(raised.value)


def test_unknown_map_lists_the_known():
    message = refusal(GOOD | {"map": "softmax"})
    assert "mixer.map=softmax" in message and "spectral" in message
    assert "mixer.map" in refusal({name: value for name, value in GOOD.items() if name != "map"})


def test_unknown_key_weight_lists_the_known():
    message = refusal(GOOD | {"key_weight": "cubic"})
    assert "mixer.key_weight=cubic" in message and "quadratic" in message


def test_unknown_argument(case: Case):
    assert "mixer.colour" in refusal(case.options | {"colour": "red"})


@pytest.mark.parametrize("name", sorted({name for case in CASES for name in case.options}))
def test_missing_argument(name: str):
    options = next(case.options for case in CASES if name in case.options)
    assert f"mixer.{name}" in refusal({key: value for key, value in options.items() if key != name})


#: Some maps have as many features as the head has dimensions, or one.
SIZED = pytest.mark.parametrize("case", [case for case in CASES if "features" in case.options], ids=lambda c: c.name)


@SIZED
def test_too_few_features(case: Case):
    assert "mixer.features=0" in refusal(case.options | {"features": 0})


@SIZED
def test_features_are_an_upper_bound(case: Case):
    assert 0 < case.mixer().map.feature_dim <= case.options["features"]


def test_too_low_order():
    products = next(case.options for case in CASES if case.options.get("positive"))
    assert "mixer.order=0" in refusal(products | {"order": 0})


def test_too_near_a_horizon():
    assert "mixer.horizon=0" in refusal(PLAIN | {"map": "cosformer", "horizon": 0})


def test_negative_redraw():
    options = PLAIN | {"map": "favor", "features": 4}
    assert "mixer.redraw_every=-1" in refusal(options | {"redraw_every": -1})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decay": "slow"}, ["mixer.decay=slow", "gated", "selective"]),
        ({"normaliser": "softmax"}, ["mixer.normaliser=softmax", "norm"]),
        ({"decay_groups": 2}, ["mixer.decay_groups=2", "learned"]),
        ({"decay": "fixed", "decay_groups": 2}, ["mixer.decay_groups=2", "gated"]),
        ({"decay": "selective", "decay_groups": 2}, ["mixer.decay_groups=2", "gated"]),
        ({"decay": "gated", "decay_groups": 0}, ["mixer.decay_groups=0"]),
        ({"decay": "learned", "decay_groups": 3}, ["mixer.decay_groups=3", "divide", "4 atoms"]),
        ({"window": -1}, ["mixer.window=-1", "0 or more"]),
    ],
)
def test_parts_that_do_not_fit(change: dict, named: list[str]):
    message = refusal(GOOD | change)
    assert all(each in message for each in named), message


@pytest.mark.parametrize("key", [*PLAIN, "features", "frequency_scale", "map"])
def test_a_value_of_the_wrong_type(key: str):
    """What YAML makes of a slip: text for a number, a number for a switch."""
    for wrong in (None, [1], "many" if key != "map" and not isinstance(GOOD[key], str) else 7):
        assert f"mixer.{key}=" in refusal(GOOD | {key: wrong})


def test_a_switch_is_no_number_and_a_number_no_switch():
    assert "mixer.window=True" in refusal(GOOD | {"window": True})
    assert "mixer.frozen=1" in refusal(GOOD | {"frozen": 1})
    Mixer(SHAPE, GOOD | {"frequency_scale": 1})


def test_every_mixer_has_the_keys_of_the_examples():
    assert {key: type(value) for key, value in PLAIN.items()} == EVERY
