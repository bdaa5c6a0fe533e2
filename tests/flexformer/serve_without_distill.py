"""Run by test_export in a process of its own: load exported students where `distill` cannot be imported.

Arguments: a file of prompts, a file for the answers, and the folders of the students.
"""

import sys


class NoDistill:
    """Refuses the import even where `distill` happens to be installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "distill":
            raise ModuleNotFoundError(f"{name} must not be needed by an exported student")


sys.meta_path.insert(0, NoDistill())

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def answer(model, ids):
    with torch.no_grad():
        return {"logits": model(ids).logits, "greedy": model.generate(ids, max_new_tokens=12, do_sample=False)}


if __name__ == "__main__":
    prompts, answers, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    ids = torch.load(prompts)
    models, alone = [], []
    for folder in folders:
        models.append(AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto"))
        alone.append(answer(models[-1], ids))
    torch.save({"alone": alone, "together": [answer(model, ids) for model in models]}, answers)
