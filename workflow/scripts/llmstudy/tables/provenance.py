"""provenance.json: where the numbers of a study come from, so that the report needs tables alone.

``study``, ``config``, ``config_sha256``: what was configured, with the defaults filled in. ``headline``: per measured
model the reference precision, workload, corpus and protocol of its rows in summary.csv. ``models``: per measured model
whether its weights are real, parameters, source, architecture and ``summary``, what its checkpoint is in a line.
``environments``: one entry for each combination of commit, versions and hardware, with its number of records and their
first and last start. ``records``, ``wall_s``: number of measuring processes, and their time in all without waiting for
a GPU. ``missing``: number of records of the study that were not measured yet, by kind and model.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from llmstudy.files import write_json
from llmstudy.tables.records import read_records

# What differs from record to record without making another environment.
PER_RECORD = ("started", "wall_s", "waited_s", "weights", "gpus", "split")
FROM_MANIFEST = ("real", "parameters", "source", "fetched_note", "architecture", "summary")


def write(
    paths: list[str], missing: list[str], manifests: list[str], config: dict, headline: dict, output: Path
) -> None:
    """Write provenance.json of the records at ``paths``, of those ``missing``, of each manifest.json of its models that
    exists (of other models ``output`` keeps what it had) and of the completed config."""
    records = read_records(paths)
    provenances = [record["provenance"] for record in records]
    measured = {record["identity"]["model"]: record["identity"]["weights"] for record in records}
    unseen = {"architecture": {}, "parameters": None, "fetched_note": None}
    models = {
        model["name"]: unseen | {"real": measured.get(model["name"]) == "real", "source": model["source"]}
        for model in config["models"]
    }
    if output.exists():
        models |= json.loads(output.read_text(encoding="utf-8"))["models"]
    models |= dict(map(model_of, map(Path, manifests)))
    content = {
        "study": config["study"],
        "config": config,
        "config_sha256": config_hash(config),
        "headline": {name: entry for name, entry in headline.items() if name in measured},
        "models": {name: model for name, model in models.items() if name in measured},
        "environments": environments(provenances),
        "records": len(records),
        "missing": dict(Counter(f"{path.parts[-3]} of {path.parts[-2]}" for path in map(Path, missing))),
        "statuses": dict(Counter(record["status"] for record in records)),
        "wall_s": round(sum(where.get("wall_s", 0) - where.get("waited_s", 0) for where in provenances), 1),
    }
    write_json(output, content)


def config_hash(config: dict) -> str:
    """Return the SHA-256 of the completed config, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def model_of(manifest: Path) -> tuple[str, dict]:
    """Return a model's name, and what its manifest says of it."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    return content["name"], {key: content.get(key) for key in FROM_MANIFEST}


def environments(provenances: list[dict]) -> list[dict]:
    """Return the distinct environments, the one with the most records first."""
    groups: dict[str, dict] = {}
    for provenance in provenances:
        same = {key: value for key, value in provenance.items() if key not in PER_RECORD}
        group = groups.setdefault(json.dumps(same, sort_keys=True), same | {"records": 0, "started": []})
        group["records"] += 1
        if "started" in provenance:
            group["started"].append(provenance["started"])
    for group in groups.values():
        starts = group.pop("started")
        group |= {"first_started": min(starts, default=None), "last_started": max(starts, default=None)}
    return sorted(groups.values(), key=lambda group: -group["records"])
