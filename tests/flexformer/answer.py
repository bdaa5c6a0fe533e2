"""Run by tests in a process of its own: loads exported students and says what they say.

Arguments: a file of prompts, a file for the answers, and the folders of the students.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
import transformers


def load(folder):
    """As its configuration says that it is to be loaded."""
    named = json.loads((Path(folder) / "config.json").read_text())["auto_map"]
    (auto,) = named.keys() - {"AutoConfig"}
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True, dtype="auto")


def answer(model, ids):
    with torch.no_grad():
        said = {"logits": model(ids).logits}
        if model.can_generate():
            said["greedy"] = model.generate(ids, max_new_tokens=12, do_sample=False)
        return said


if __name__ == "__main__":
    prompts, answers, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    ids = torch.load(prompts)
    models, alone = [], []
    for folder in folders:
        models.append(load(folder))
        alone.append(answer(models[-1], ids))
    found = {"alone": alone, "together": [answer(model, ids) for model in models]}
    distill = importlib.util.find_spec("distill") is not None
    torch.save(found | {"transformers": transformers.__version__, "distill": distill}, answers)
