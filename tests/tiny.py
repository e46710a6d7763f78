"""A study small enough for a test: a tiny LLaMA with a tokenizer that has no unknown words, a corpus, a job, a config.

Nothing here imports torch or transformers until a model is made.
"""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path
from typing import Any

VOCABULARY = 320
# bitsandbytes needs multiples of 64; two query heads share a key-value head.
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
DOCUMENTS = [
    f"The {animal} lived near the {place}. Each morning it looked for {food}, and in the evening it slept. "
    f"Nobody knew how many {food} the {animal} had found, but {number} is what the neighbours say; "
    f"in {year} the naïve {animal} moved away from the {place} – for good."
    for animal, place, food, number, year in [
        ("otter", "river", "mussels", "seven", 1951),
        ("heron", "marsh", "frogs", "eleven", 1962),
        ("badger", "old oak", "worms", "forty", 1973),
        ("sparrow", "railway station", "crumbs", "a hundred", 1984),
        ("lynx", "northern ridge", "hares", "two", 1995),
        ("carp", "village pond", "larvae", "sixty", 2006),
    ]
]


def save_tokenizer(folder: Path) -> None:
    """A byte-level BPE trained on DOCUMENTS: any text becomes tokens and comes back unchanged."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(DOCUMENTS, vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


def save_model(folder: Path, seed: int = 0, shard: str = "5GB", **changes):
    """Save a tiny LLaMA (fp32 safetensors) with its tokenizer, what a ``path`` source takes; returns the model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | changes))).eval()
    model.save_pretrained(folder, max_shard_size=shard)
    save_tokenizer(folder)
    return model


def fetch(source: dict[str, Any], folder: Path, name: str = "tiny") -> Path:
    """Fetch a source as the rule does, so that ``folder`` has its manifest.json; returns ``folder``."""
    from llmstudy.fetch.models import fetch_weights

    fetch_weights({"name": name, "source": source, "context": None, "license": None}, folder, folder / "downloads")
    return folder


def synthetic(seed: int = 0, **changes) -> dict[str, Any]:
    """A synthetic source of the tiny shape."""
    return {"type": "synthetic", "shape": SHAPE | changes, "seed": seed, "write": False}


def save_corpus(folder: Path, documents: list[str] | None = None) -> Path:
    """``folder/text.jsonl`` as ``fetch_corpus`` leaves it; returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        json.dumps({"id": str(number), "title": f"text {number}", "text": text}, ensure_ascii=False)
        for number, text in enumerate(DOCUMENTS if documents is None else documents)
    ]
    (folder / "text.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


WORKLOAD = {"batch": 2, "prompt_tokens": 9, "new_tokens": 4}
TEXT = {"corpus": "tiny-text", "bos": False, "documents": 8, "tokens_per_document": 256, "max_tokens": None}
TEXT |= {"protocol": {"window": 64, "stride": 64}}
QUALITY = {
    "corpora": ["tiny-text"],
    "reference": "fp32",
    "protocols": [{"window": 32, "stride": 16}],
    "decode": {"batches": [], "prompts": 4, "prompt_tokens": 10, "new_tokens": 8},
    "bos": False,
    "documents": 4,
    "tokens_per_document": 40,
    "max_tokens": None,
    "kl_tokens": 64,
}
SETTINGS = {
    "probe": {"workloads": [WORKLOAD]},
    "panel": {
        "configurations": [["fp32", "sdpa", "generate"]],
        "probes": [],
        "workloads": [WORKLOAD],
        "warmup": 1,
        "rounds": 2,
        "seconds": 0,
        "order_seed": 0,
        "until": None,
    },
    "quality": QUALITY,
    "reference": QUALITY,
    "generations": {"prompts": ["Once upon a time"], "new_tokens": 6},
    "outliers": TEXT | {"thresholds": [2, 4, 6, 8]},
    "sensitivity": TEXT | {"single_linears": False},
    "invariance": {"prompt_tokens": 20, "batches": [2, 3], "neighbour_sets": 2},
    "profile": {"batch": 1, "prompt_tokens": 9, "steps": 3},
    "attention": {"contexts": [16, 48], "repeats": 2},
    "tasks": {"tasks": [], "include_path": None, "limit": None, "num_fewshot": 0, "batch_size": 8},
    "capacity": {"contexts": [64], "device_gib": None, "probe": "none.json"},
}
CASES = {
    "probe": "workloads",
    "panel": "entries",
    "quality": "protocols",
    "invariance": "batches",
    "attention": "points",
    "tasks": "tasks",
}


def job(kind: str, model: Path, corpus: Path | None = None, **changes):
    """A job; ``changes`` go to its identity (``precision=``), its settings or itself, whichever has the key."""
    from llmstudy.runner.job import Identity, Job, Limits

    settings = copy.deepcopy(SETTINGS[kind])
    identity = {
        "study": "tiny",
        "kind": kind,
        "model": "tiny",
        "precision": "fp32",
        "attention": "sdpa",
        "runtime": "generate",
        "repeat": 0,
    }
    main = ("probe", "panel", "quality", "reference", "generations")
    parts = {
        "module": f"measure.{kind}" if kind in main else f"measure.diagnostics.{kind}",
        "cases": CASES.get(kind, ""),
        "device": "cpu",
        "threads": 1,
        "model_folder": str(model),
        "checkpoints": None,
        "corpora": {"tiny-text": str(corpus)},
        "prompt_corpus": "tiny-text",
        "reference_folder": str(model.parent / "reference"),
        "limits": Limits(seconds=120),
    }
    for key, value in changes.items():
        next(part for part in (identity, settings, parts) if key in part)[key] = value
    return Job(identity=Identity(**identity), settings=settings, **parts)


def session(job, artifacts: Path, save=None):
    """A session in this process; ``save`` defaults to doing nothing."""
    from llmstudy.measure.session import Session

    artifacts.mkdir(parents=True, exist_ok=True)
    return Session(job=job, device="cpu", artifacts=artifacts, save=save or (lambda results: None))


def study(folder: Path, **changes) -> dict[str, Any]:
    """A config of a tiny study on the CPU; its model and text are written to ``folder`` unless they are there."""
    if not (folder / "model").exists():
        save_model(folder / "model")
        (folder / "text.jsonl").write_text(
            "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in DOCUMENTS), encoding="utf-8"
        )
    return {
        "study": "tiny",
        "device": "cpu",
        "threads": 1,
        "models": [
            {
                "name": "tiny-llama",
                "parameters_millions": 0.1,
                "context": SHAPE["max_position_embeddings"],
                "source": {"type": "path", "folder": str(folder / "model")},
            }
        ],
        "corpora": [
            {
                "name": "tiny-text",
                "license": "CC0-1.0",
                "source": {"type": "path", "file": str(folder / "text.jsonl"), "format": "jsonl"},
            }
        ],
        "precisions": ["fp32", "bf16"],
        "reference": "fp32",
        "attention": ["sdpa"],
        "runtimes": ["generate"],
        "speed": {
            "workloads": [{"batch": 1, "prompt_tokens": 16, "new_tokens": 6}],
            "panels": {"minimum": 1, "maximum": 1, "rounds": 3, "seconds": 0},
            "warmup": 1,
        },
        "quality": {"protocols": [{"window": 64, "stride": 32}], "kl_tokens": 200, "tokens_per_document": 60},
        "generations": {"prompts": ["Once upon a time"], "new_tokens": 8},
        "jobs": {"minutes": 3},
    } | changes


def put(config: dict[str, Any], path: str, value) -> dict[str, Any]:
    """Set a value at a dotted path of a config; numbers are places in lists, the one behind the last appends."""
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    part: Any = config
    for key in above:
        part = part.setdefault(key, {}) if isinstance(part, dict) else part[key]
    if isinstance(part, list) and last == len(part):
        part.append(value)
    else:
        part[last] = value
    return config


def change_comments(library: Path) -> None:
    """Change every docstring, and add a comment at both ends of every module."""
    for path in library.rglob("*.py"):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                number = node.body[0].lineno - 1
                lines[number] = lines[number].replace('"""', '"""Changed: ', 1)
        path.write_text("\n".join(["# Changed.", "", *lines, "# Changed.", ""]))
