"""provenance.json: where a study's numbers come from, so that the report needs tables only.

study, config, config_sha256   what was asked for, with the defaults filled in
headline                          per measured model: reference precision, workload, corpus and protocol of its row in
                               summary.csv
models                         per measured model: real or synthetic, parameters, source, architecture
environments                   one entry for each combination of commit, versions and hardware that measured, with the
                               number of records and their first and last start
records, wall_s                how many measuring processes there were, and their time in all, without waiting for
                               their turns
missing                        how many records the study asks for that were not measured yet, by kind and model
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from llmstudy.files import write_json
from llmstudy.tables.common import read_records

# What differs from record to record without making another environment.
PER_RECORD = ("started", "wall_s", "waited_s")
ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
)


def write(
    paths: list[str], missing: list[str], manifests: list[str], config: dict, headline: dict, output: Path
) -> None:
    """Aggregate the provenance of records.

    missing   paths of records that the study asks for and that were not measured yet
    manifests  the models' manifest.json, where they are at hand; of others ``output`` keeps what it said before
    config    the completed config
    """
    found = read_records(paths)
    measured = {record["identity"]["model"]: record["identity"]["weights"] for record in found}
    models = {model["name"]: unseen(model, measured.get(model["name"])) for model in config["models"]}
    if output.exists():
        models |= json.loads(output.read_text(encoding="utf-8"))["models"]
    models |= dict(map(model_of, map(Path, manifests)))
    content = {
        "study": config["study"],
        "config": config,
        "config_sha256": config_hash(config),
        "headline": {name: spoken for name, spoken in headline.items() if name in measured},
        "models": {name: model for name, model in models.items() if name in measured},
        "environments": environments(found),
        "records": len(found),
        "missing": dict(Counter(f"{path.parts[-3]} of {path.parts[-2]}" for path in map(Path, missing))),
        "statuses": dict(Counter(record["status"] for record in found)),
        "wall_s": round(sum(map(own_seconds, found)), 1),
    }
    write_json(output, content)


def own_seconds(record: dict) -> float:
    """How long a measuring process lived, without the time in which it waited for its turn on a GPU."""
    return record["provenance"].get("wall_s", 0) - record["provenance"].get("waited_s", 0)


def config_hash(config: dict) -> str:
    """SHA-256 of the completed config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def model_of(manifest: Path) -> tuple[str, dict]:
    """A model's name, and what its manifest and its config.json say of it."""
    source = json.loads(manifest.read_text(encoding="utf-8"))
    shape = json.loads((manifest.parent / source["weights_folder"] / "config.json").read_text(encoding="utf-8"))
    keys = ("real", "parameters", "source", "fetched_note")
    return source["name"], {key: source.get(key) for key in keys} | {
        "architecture": {key: shape[key] for key in ARCHITECTURE if shape.get(key) is not None}
    }


def unseen(model: dict, weights: str | None) -> dict:
    """What the config alone says of a model whose manifest is not at hand."""
    return {"real": weights == "real", "parameters": None, "source": model["source"], "fetched_note": None} | {
        "architecture": {}
    }


def environments(found: list[dict]) -> list[dict]:
    """The distinct environments, the one with the most records first."""
    groups: dict[str, dict] = {}
    for record in found:
        provenance = record["provenance"]
        same = {key: value for key, value in provenance.items() if key not in PER_RECORD}
        group = groups.setdefault(json.dumps(same, sort_keys=True), same | {"records": 0, "started": []})
        group["records"] += 1
        if "started" in provenance:
            group["started"].append(provenance["started"])
    for group in groups.values():
        starts = group.pop("started")
        group |= {"first_started": min(starts, default=None), "last_started": max(starts, default=None)}
    return sorted(groups.values(), key=lambda group: -group["records"])
