"""lm_eval takes an exported student as it takes any model of transformers, without distill."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

QUESTIONS = [
    {"question": "import", "choices": [" os", " quite something else"], "answer": 0},
    {"question": "def read(self,", "choices": [" size):", "((("], "answer": 0},
    {"question": "for each in", "choices": [" while", " range(10):"], "answer": 1},
]
CHOICE = {
    "task": "which",
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
}
WRITING = {
    "task": "writing",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


def test_it_reads_and_writes_as_the_student_does(checkpoint: Path, student: Any, tokenizer: Any, tmp_path: Path):
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    for task in (CHOICE, WRITING):
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}}}
        file = tmp_path / "tasks" / f"{task['task']}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(task | data | {"test_split": "test", "doc_to_text": "{{question}}"}))
    command = [
        *(sys.executable, "-m", "lm_eval"),
        *("--model", "hf", "--model_args", f"pretrained={checkpoint},trust_remote_code=True,dtype=float32"),
        *("--tasks", "which,writing", "--include_path", str(tmp_path / "tasks"), "--device", "cpu"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | alone, check=False)
    assert done.returncode == 0, done.stderr
    assert "|which" in done.stdout and "|writing" in done.stdout

    chosen, written = (samples(tmp_path / "out", name) for name in ("which", "writing"))
    for question, sample in zip(QUESTIONS, chosen, strict=True):
        for choice, found in zip(question["choices"], sample["resps"], strict=True):
            expected = likelihood(student, tokenizer, question["question"], choice)
            assert float(found[0][0]) == pytest.approx(expected, abs=1e-3)
    for question, sample in zip(QUESTIONS, written, strict=True):
        ids = tokenizer(question["question"], return_tensors="pt").input_ids
        with torch.no_grad():
            said = student.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        assert sample["resps"][0][0] == tokenizer.decode(said, skip_special_tokens=True).split("\n\n")[0]


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


@torch.no_grad()
def likelihood(student: Any, tokenizer: Any, question: str, choice: str) -> float:
    before, whole = (tokenizer(text, return_tensors="pt").input_ids for text in (question, question + choice))
    log_p = student(whole, use_cache=False).logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0]
    return log_p[before.shape[1] - 1 :].sum().item()
