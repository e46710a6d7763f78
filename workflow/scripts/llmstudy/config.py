"""The config: defaults filled in from the schema, and every mistake told in one line before any job starts."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

from llmstudy import attention, precisions, runtimes
from llmstudy.errors import StudyError
from llmstudy.sources.synthetic import SHAPES

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "config.schema.yaml"


def complete(config: dict) -> dict:
    """The config with the schema's defaults filled in; raises StudyError with one line for the first mistake."""
    import yaml

    schema = yaml.safe_load(SCHEMA.read_text())
    full = copy.deepcopy(config)
    _check_schema(full, schema)
    _fill(full, schema, schema)
    _check_names(full)
    _check_numbers(full)
    return full


def _check_schema(config: dict, schema: dict) -> None:
    from jsonschema import Draft202012Validator

    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.path)))
    if errors:
        raise StudyError(_one_line(errors[0]))


def _one_line(error) -> str:
    """Key, value and what is allowed."""
    if error.context:  # oneOf: speak of the alternative that the value most likely meant
        return _one_line(_meant(error))
    key = ".".join(map(str, error.absolute_path)) or "config"
    if error.validator == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema["properties"]))
        return f"{key}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(error.schema['properties']))}"
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{key}: key {missing[0]!r} is missing; required: {', '.join(error.validator_value)}"
    if error.validator in ("enum", "const"):
        allowed = error.validator_value if error.validator == "enum" else [error.validator_value]
        return f"{key}: {error.instance!r} is not allowed; allowed: {', '.join(map(str, allowed))}"
    hint = error.schema.get("description", f"{error.validator} {error.validator_value}")
    return f"{key}: {_short(error.instance)} is not allowed ({error.validator} {error.validator_value}); {hint}"


def _meant(error):
    """Of the errors under a oneOf, one of the branch whose ``type`` fits, else of the branch with the fewest."""
    branches: dict[int, list] = {}
    for child in error.context:
        branches.setdefault(child.schema_path[0], []).append(child)
    fits = [errors for errors in branches.values() if not any(list(child.path)[-1:] == ["type"] for child in errors)]
    if isinstance(error.instance, dict) and "type" in error.instance and not fits:
        wrong_type = [child for child in error.context if list(child.path)[-1:] == ["type"]]
        wrong_type[0].validator = "enum"
        wrong_type[0].validator_value = [child.validator_value for child in wrong_type]
        return wrong_type[0]
    return min(fits or branches.values(), key=len)[0]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _fill(value: Any, schema: dict, root: dict) -> None:
    """Fill defaults in place, through $ref, items and the branch of a oneOf that fits."""
    from jsonschema import Draft202012Validator

    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    for branch in schema.get("oneOf", []):
        if Draft202012Validator(branch | {"$defs": root["$defs"]}).is_valid(value):
            _fill(value, branch, root)
    if isinstance(value, dict):
        for name, part in schema.get("properties", {}).items():
            if name not in value and "default" in part:
                value[name] = copy.deepcopy(part["default"])
            if name in value:
                _fill(value[name], part, root)
    elif isinstance(value, list) and "items" in schema:
        for item in value:
            _fill(item, schema["items"], root)


def _check_names(config: dict) -> None:
    """Names must be known, and be one thing only."""
    for key in ("models", "corpora"):
        counts = Counter(entry["name"] for entry in config[key])
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise StudyError(f"{key}: the name {twice[0]!r} is used twice; each needs a name of its own")
    used = [("precisions", config["precisions"]), ("quality.rulers", config["quality"]["rulers"])]
    used += [(f"models.{model['name']}.precisions", model["precisions"] or []) for model in config["models"]]
    for key, names in used:
        _check_known(key, names, precisions.MODULES)
        _check_device(key, names, config["device"])
    _check_known("attention", config["attention"], attention.CHOICES)
    _check_known("runtimes", config["runtimes"], runtimes.MODULES)
    for model in config["models"]:
        _check_known(f"models.{model['name']}.runtimes", model["runtimes"] or [], runtimes.MODULES)
    _check_known("quality.attention", [config["quality"]["attention"] or "sdpa"], attention.CHOICES)
    corpora = {corpus["name"]: None for corpus in config["corpora"]}
    _check_known("quality.corpora", config["quality"]["corpora"] or [], corpora)
    if config["reference"] not in config["precisions"]:
        raise StudyError(
            f"reference: {config['reference']!r} is not measured; allowed: {', '.join(config['precisions'])}"
        )
    for model in config["models"]:
        # Random weights have no quality to compare, so a shape too large for the reference may leave it out.
        if model["source"]["type"] != "synthetic" and config["reference"] not in (
            model["precisions"] or config["precisions"]
        ):
            raise StudyError(
                f"models.{model['name']}.precisions: the reference {config['reference']!r} is missing; quality is "
                "compared with it"
            )


def _check_known(key: str, names: list[str], allowed) -> None:
    for name in names:
        if name not in allowed:
            raise StudyError(f"{key}: {name!r} is not known; allowed: {', '.join(allowed)}")


def _check_device(key: str, names: list[str], device: str) -> None:
    """``auto`` is settled where a job runs, and a precision that cannot run there becomes its record's status."""
    for name in names:
        devices = precisions.get(name).devices
        if device != "auto" and device not in devices:
            raise StudyError(f"{key}: {name!r} does not run on device {device!r}; allowed: {', '.join(devices)}, auto")


def _check_numbers(config: dict) -> None:
    """Numbers must fit each other: context, windows, warm-up, and where a precision runs."""
    warmup = config["latency"]["warmup"]
    if warmup["minimum"] > warmup["maximum"]:
        raise StudyError(
            f"latency.warmup.minimum: {warmup['minimum']} is more than latency.warmup.maximum {warmup['maximum']}"
        )
    for protocol in config["quality"]["protocols"]:
        if protocol["stride"] > protocol["window"]:
            raise StudyError(
                f"quality.protocols: stride {protocol['stride']} is more than window {protocol['window']}; "
                "tokens between windows would never be scored"
            )
    for model in config["models"]:
        context = model["context"] or shape_context(model)
        if not context:
            continue
        for workload in model["workloads"] or config["latency"]["workloads"] + (config["memory"]["workloads"] or []):
            tokens = workload["prompt_tokens"] + workload["new_tokens"]
            if tokens > context:
                raise StudyError(
                    f"workloads: prompt_tokens {workload['prompt_tokens']} + new_tokens {workload['new_tokens']} = "
                    f"{tokens} tokens, but model {model['name']!r} has a context of {context}"
                )
        if model["source"]["type"] != "synthetic":
            for protocol in config["quality"]["protocols"]:
                if protocol["window"] > context:
                    raise StudyError(
                        f"quality.protocols: window {protocol['window']} is longer than the context {context} of "
                        f"model {model['name']!r}"
                    )


def shape_context(model: dict) -> int | None:
    """The context of a synthetic shape; None for other sources, whose config is not here yet."""
    shape = model["source"].get("shape")
    if isinstance(shape, str):
        return SHAPES[shape]["max_position_embeddings"]
    return (shape or {}).get("max_position_embeddings")
