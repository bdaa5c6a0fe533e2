"""A mixer survives being saved, copied and sent to another process."""

import copy
import io
import pickle

import pytest
import torch

from distill.flexformer.mixer import Mixer

from .examples import SHAPE, Case, draw


def through_state_dict(mixer: Mixer, case: Case) -> Mixer:
    """Into a mixer of another draw: what is not in the state dict would differ."""
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = Mixer(SHAPE, case.options).double()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


ROADS = {
    "state_dict": through_state_dict,
    "deepcopy": lambda mixer, case: copy.deepcopy(mixer),
    "pickle": lambda mixer, case: pickle.loads(pickle.dumps(mixer)),
}


@pytest.mark.parametrize("road", ROADS.values(), ids=ROADS)
def test_round_trip(case: Case, road):
    mixer, inputs = case.mixer(seed=17), draw(17, 9)
    other = road(mixer, case)
    out, again = (m(*inputs[:3], 0.5, inputs.padding)[0] for m in (mixer, other))
    # Not to the bit: where the copies lie in memory decides how a product is summed up.
    torch.testing.assert_close(out, again, rtol=1e-12, atol=1e-12)
    assert not {p.data_ptr() for p in mixer.parameters()} & {p.data_ptr() for p in other.parameters()}


def test_state_dict_does_not_depend_on_use(case: Case):
    mixer = case.mixer()
    before = list(mixer.state_dict())
    mixer(*draw(0, 5)[:3], 0.5)
    assert list(mixer.state_dict()) == before
