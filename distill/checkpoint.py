"""The hand-off: student/ with all that another machine needs to run it, and where it came from."""

import json
import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .companions import name_companions
from .config import Config
from .data import Corpus
from .errors import UserError
from .flexformer.configuration import FlexformerConfig
from .flexformer.model import Flexformer
from .mixer import told
from .parity import Apart, parity
from .rundir import RunDirectory
from .stages.fit import device_of
from .task import TASKS
from .teacher import Teacher
from .weights import readable, save_weights
from .whole import whole

#: Whose versions a result depends on.
PACKAGES = ("distill", "torch", "transformers", "datasets", "lightning", "hydra-core", "peft")

FlexformerConfig.register_for_auto_class()
for each in TASKS.values():
    each.student.register_for_auto_class(each.auto.__name__)


def export(student: Flexformer, teacher: Teacher, corpus: Corpus, config: Config, run: RunDirectory) -> Path:
    """Writes student/: configuration, weights, the flexformer files, tokenizer, model card, provenance.

    Written under another name and renamed when whole and found to say the same in every way, so that a student/ that
    exists is complete and can be served. UserError where it does not; what was written then stays under the other name.
    """
    with whole(run.student) as unfinished:
        save_weights(student, unfinished, config.student)
        name_companions(unfinished)
        teacher.tokenizer.save_pretrained(unfinished)
        teacher.task.save_beside(student, unfinished, config.data.context)
        try:
            with run.timed("measure"):
                agreed = parity(student, unfinished, corpus, teacher.task, device_of(config))
        except Apart as apart:
            raise UserError(f"{unfinished} is not fit to be served: {apart}") from apart
        source = provenance(teacher, corpus, config) | {"parity": agreed}
        (unfinished / "provenance.json").write_text(json.dumps(source, indent=1), encoding="utf-8")
        (unfinished / "README.md").write_text(student_card(config, run), encoding="utf-8")
        readable(unfinished, like="README.md")
    return run.student


def provenance(teacher: Teacher, corpus: Corpus, config: Config) -> dict[str, Any]:
    """Where a student comes from; with the run's config.yaml, enough to make it again."""
    return {
        "teacher": {
            "name": teacher.name,
            "model_type": teacher.model.config.model_type,
            "parameters": teacher.model.num_parameters(),
            "weights_sha256": teacher.weights_hash(),
            "weights_dtype": config.teacher.dtype,
            "quantization": config.teacher.quantization,
        },
        "student": asdict(config.student),
        "recipe": config.recipe,
        "task": config.task,
        "seed": config.seed,
        "data": {
            "domains": {name: asdict(domain) for name, domain in corpus.domains.items()},
            "context": config.data.context,
        },
        "mixer": config.mixer,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}},
        "git_commit": git_commit(),
    }


def installed(package: str) -> str | None:
    """Its version; None for a distill that runs from a checkout without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout that distill runs from, marked + where it has changes; None outside one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # An installed package may lie below a repository that is not its own.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


#: By task, how a student is used once it is loaded, and what it costs.
USAGE = {
    "causal_lm": """inputs = tokenizer("def ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))""",
    "masked_lm": """inputs = tokenizer(f"import {tokenizer.mask_token} as np", return_tensors="pt")
at = inputs.input_ids[0] == tokenizer.mask_token_id
print(tokenizer.decode(model(**inputs).logits[0, at].argmax(-1)))""",
    "sequence_classification": """inputs = tokenizer("It is so.", return_tensors="pt")  # a pair: tokenizer(one, other)
print(model.config.id2label[model(**inputs).logits.argmax(-1).item()])""",
    "embedding": """inputs = tokenizer(["It is so.", "So it is."], padding=True, return_tensors="pt")
print(model(**inputs).pooler_output)  # or SentenceTransformer("student", trust_remote_code=True).encode(…)""",
}
BOTH_WAYS = "It sees both directions, and its time and memory grow linearly with the length of the text."
COST = {
    "causal_lm": "It decodes with a state of {state:.2f} MiB per sequence at any length.",
    "masked_lm": BOTH_WAYS,
    "sequence_classification": BOTH_WAYS,
    "embedding": f"{BOTH_WAYS} A text's partner is sought among {{partners}}, by cosine.",
}

FEWER_BITS = " Its teacher was measured with quantised weights; it started from the whole ones."

STUDENT_CARD = """---
library_name: transformers
tags: [flexformer, linear-attention, distillation]
---
# {name}

A linear-attention student of `{teacher}`, made by `distill` with recipe `{recipe}` (mixer `{mixer}`).
{cost}

| text | teacher perplexity | student perplexity | ratio | same {predicted} |
|---|---|---|---|---|
{rows}
{scores}
Perplexity is exp of the mean cross-entropy of the {predicted}s of held-out text, {tokens:,} of them in all, at context
{context}; the text is named in `provenance.json`.

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{name}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
{usage}
```

The code that runs it lies beside the weights; `distill` is not needed. Trained and measured on the text above alone:
perplexity on it says little about recall over long distances.
"""


def among(partners: dict[str, int] | None) -> str:
    """How many texts a partner is sought among, where texts have any."""
    return " or ".join(map(str, sorted({*(partners or {}).values()})))


def kept_exact(headline: dict[str, Any]) -> str:
    """What layers that stay softmax cost beside the state."""
    grows = headline["student_cache_bytes_per_token"]
    return f" Layers that stay softmax keep {grows / 2**10:.1f} KiB more for each token." if grows else ""


def score_table(scores: dict[str, Any] | None) -> str:
    """Of a classifier, how often it is right and how much that is of its teacher's."""
    if not scores:
        return ""
    rows = [
        f"| {domain} | {name} | {each['teacher']:.1%} | {each['student']:.1%} | "
        + ("–" if each["recovery"] is None else f"{each['recovery']:.1%}")
        + " |"
        for domain, found in scores.items()
        for name, each in found.items()
    ]
    return "\n".join(["", "| text | score | teacher | student | recovery |", "|---|---|---|---|---|", *rows, ""])


def student_card(config: Config, run: RunDirectory) -> str:
    """The student's README.md, from measurements/headline.json."""
    headline = json.loads((run.path / "measurements" / "headline.json").read_text(encoding="utf-8"))
    rows = [
        f"| {domain} | {headline['teacher_ppl'][domain]:.2f} | {headline['student_ppl'][domain]:.2f} "
        f"| {headline['ratio'][domain]:.3f} | {headline['agreement'][domain]:.1%} |"
        for domain in headline["ratio"]
    ]
    return STUDENT_CARD.format(
        name="student",
        teacher=config.teacher.path,
        recipe=config.recipe,
        mixer=told(config.mixer),
        cost=COST[config.task].format(
            state=(headline["state_bytes"] or 0) / 2**20, partners=among(headline["partners"])
        )
        + kept_exact(headline)
        + (FEWER_BITS if config.teacher.quantization else ""),
        predicted=TASKS[config.task].predicted,
        auto=TASKS[config.task].auto.__name__,
        usage=USAGE[config.task],
        rows="\n".join(rows),
        scores=score_table(headline["scores"]),
        tokens=sum(headline["evaluation_tokens"].values()),
        context=config.data.context,
    )
