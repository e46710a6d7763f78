"""Tasks of lm-eval of a test's own: files in a folder, no hub."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

QUESTIONS = [
    {"question": f"The {animal} lived near the", "answers": ["river.", "marsh.", "old oak."], "right": number % 3}
    for number, animal in enumerate(["otter", "heron", "badger", "sparrow", "lynx", "carp", "mole", "newt"])
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{answers}}",
    "doc_to_target": "{{right}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TASKS = {
    "tiny_choice": CHOICE,
    "tiny_cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answers[right]}}",
        "metric_list": [{"metric": "acc"}],
    },
    "tiny_writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answers[right]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "tiny_perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "tiny_absent": CHOICE | {"dataset_path": "nobody/nothing", "dataset_kwargs": {}},
}


def save(folder: Path) -> Path:
    """A folder for ``diagnostics.tasks.include_path``: QUESTIONS, TASKS, and ``tiny_group`` of two of them."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | source | task))
    (folder / "tiny_group.yaml").write_text("group: tiny_group\ntask: [tiny_choice, tiny_cloze]\n")
    return folder
