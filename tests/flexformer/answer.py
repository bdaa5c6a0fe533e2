"""Run by test_export in a process of its own: loads exported students and says what they say.

Arguments: a file of prompts, a file for the answers, and the folders of the students.
"""

import importlib.util
import sys

import torch
import transformers


def answer(model, ids):
    with torch.no_grad():
        return {"logits": model(ids).logits, "greedy": model.generate(ids, max_new_tokens=12, do_sample=False)}


if __name__ == "__main__":
    prompts, answers, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    ids = torch.load(prompts)
    models, alone = [], []
    for folder in folders:
        loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
        models.append(loaded)
        alone.append(answer(loaded, ids))
    found = {"alone": alone, "together": [answer(model, ids) for model in models]}
    distill = importlib.util.find_spec("distill") is not None
    torch.save(found | {"transformers": transformers.__version__, "distill": distill}, answers)
