"""A mixer survives being saved, copied and sent to another process."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from distill.flexformer.mixer import Mixer
from distill.flexformer.model import FlexformerForCausalLM

from .examples import SHAPE, Case, draw
from .tiny import student


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


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path):
    """transformers would leave it as memory is found, and warn."""
    student("delta").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("reading.louder"))
    save_file({each: weight for each, weight in weights.items() if each != name}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"has no {name}: .*trust_remote_code=True"):
        FlexformerForCausalLM.from_pretrained(tmp_path)


def test_a_checkpoint_loads_from_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which transformers makes names of modules of: they are all there at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("a b", "x,y=1", "é@+", "v1.2"):
        student("llama").save_pretrained(tmp_path / name)
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=True)
        assert type(again).__module__.startswith("transformers_modules")


@pytest.mark.parametrize("asked", ["auto", torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_all_weights_have_the_precision_that_is_asked_for(stored: torch.dtype, asked, tmp_path: Path):
    """Whatever the teacher's configuration says of its own."""
    made = student("llama").to(stored)
    made.config.base["dtype"] = "float32"
    made.save_pretrained(tmp_path)
    again = FlexformerForCausalLM.from_pretrained(tmp_path, dtype=asked)
    assert {each.dtype for each in again.parameters()} == {stored if asked == "auto" else asked}
