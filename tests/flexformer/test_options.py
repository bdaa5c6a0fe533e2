"""A wrong option is answered with one line that names its key."""

import pytest

from distill.flexformer.mixer import Mixer

from .examples import CASES, SHAPE, Case

GOOD = {"map": "exponential", "key_weight": "none", "features": 4, "frequency_scale": 1.0}


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


def test_too_few_features(case: Case):
    assert "mixer.features=0" in refusal(case.options | {"features": 0})


def test_features_are_an_upper_bound(case: Case):
    assert 0 < case.mixer().map.feature_dim <= case.options["features"]


def test_too_low_order():
    products = next(case.options for case in CASES if case.options.get("positive"))
    assert "mixer.order=0" in refusal(products | {"order": 0})
