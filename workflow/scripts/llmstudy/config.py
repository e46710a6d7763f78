"""The config: defaults filled in from the schema, and every mistake told in one line before any job starts."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmstudy import runtimes
from llmstudy.errors import StudyError
from llmstudy.fetch.synthetic import SHAPES
from llmstudy.models import attention, precisions

COMPARISONS = "comparisons"
CONTEXT = "max_position_embeddings"
SHAPE_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "config.schema.yaml"


def complete(config: dict) -> dict:
    """The config with the schema's defaults filled in; raises StudyError with one line for the first mistake."""
    import yaml

    schema = yaml.safe_load(SCHEMA.read_text())
    full = copy.deepcopy(config)
    _check_schema(full, schema)
    full = _filled(full, schema, schema)
    _check_names(full)
    _check_numbers(full)
    _check_comparison(full)
    return full


def _check_schema(config: dict, schema: dict) -> None:
    from jsonschema import Draft202012Validator

    errors = sorted(Draft202012Validator(schema).iter_errors(config), key=lambda error: list(map(str, error.path)))
    if errors:
        raise StudyError(_one_line(errors[0]))


def _one_line(error) -> str:
    """Key, value and what is allowed."""
    key = ".".join(map(str, error.absolute_path)) or "config"
    if error.context:  # oneOf: speak of the alternative that the value most likely meant
        kinds = [branch.get("properties", {}).get("type", {}).get("const") for branch in error.validator_value]
        if all(kinds) and isinstance(error.instance, dict) and "type" not in error.instance:
            return f"{key}: key 'type' is missing; allowed: {', '.join(kinds)}"
        if all(_is_of_another_kind(child) or child.validator in ("const", "enum") for child in error.context):
            allowed = ", ".join(dict.fromkeys(_asked(child) for child in error.context))
            return f"{key}: {_short(error.instance)} is not allowed; allowed: {allowed}"
        return _one_line(_meant(error))
    if error.validator == "additionalProperties":
        unknown = sorted(set(error.instance) - set(error.schema["properties"]))
        return f"{key}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(error.schema['properties']))}"
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"{key}: key {missing[0]!r} is missing; required: {', '.join(error.validator_value)}"
    if error.validator in ("enum", "const"):
        allowed = error.validator_value if error.validator == "enum" else [error.validator_value]
        return f"{key}: {error.instance!r} is not allowed; allowed: {', '.join(map(str, allowed))}"
    if error.validator == "uniqueItems":
        twice = next(one for place, one in enumerate(error.instance) if one in error.instance[:place])
        return f"{key}: {_short(twice)} stands there twice; each may stand there once (uniqueItems)"
    hint = f"; {error.schema['description']}" if "description" in error.schema else ""
    return f"{key}: {_short(error.instance)} is not allowed ({error.validator} {error.validator_value}){hint}"


def _asked(error) -> str:
    """What stands in place of a value that is not allowed: a kind of value, or the values themselves."""
    values = error.validator_value
    return ", ".join(map(str, values)) if isinstance(values, list) else str(values)


def _is_of_another_kind(error) -> bool:
    """Whether a value is no list, mapping, text or null where one is asked for."""
    return error.validator == "type" and not error.path


def _meant(error):
    """Of the errors under a oneOf, one of the branch whose ``type`` fits, else of the branch with the fewest.

    Branches that want another kind of value altogether (null beside a list) were not meant.
    """
    branches: dict[int, list] = {}
    for child in error.context:
        branches.setdefault(child.schema_path[0], []).append(child)
    branches = {place: errors for place, errors in branches.items() if not any(map(_is_of_another_kind, errors))}
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


def _filled(value: Any, schema: dict, root: dict) -> Any:
    """A value with defaults filled in, through $ref, items and the branch of a oneOf that fits.

    Equal studies become equal texts, however they are written: keys are sorted, and 1 and 1.0 are the same number.
    Snakemake compares the text of a job's parameters, and would measure again what is only spelt differently.
    """
    from jsonschema import Draft202012Validator

    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    for branch in schema.get("oneOf", []) + schema.get("anyOf", []):
        if Draft202012Validator(branch | {"$defs": root["$defs"]}).is_valid(value):
            value = _filled(value, branch, root)
    if isinstance(value, dict):
        parts = schema.get("properties", {})
        defaults = {name: copy.deepcopy(part["default"]) for name, part in parts.items() if "default" in part}
        full = defaults | value
        return {name: _filled(full[name], parts.get(name, {}), root) for name in sorted(full)}
    if isinstance(value, list):
        return [_filled(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, float | int) and not isinstance(value, bool):
        return _plain(value, schema.get("type", ""))
    return value


def _plain(number: float, kind: str | list[str]) -> float:
    """A whole number as int where the schema wants one, any other as float."""
    if "integer" in kind:
        return int(number)
    return float(number) if "number" in kind else number


def _check_names(config: dict) -> None:
    """Names must be known, and be one thing only."""
    if config["study"] == COMPARISONS:
        raise StudyError(f"study: {COMPARISONS!r} is where comparisons of studies lie; allowed: another name")
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
        key = f"models.{model['name']}.runtimes" if model["runtimes"] else "runtimes"
        _check_baseline(key, model["runtimes"] or config["runtimes"], config["attention"])


def _check_baseline(key: str, names: list[str], kernels: list[str]) -> None:
    """The graph runtime, measured under sdpa, is compared with the reference under eager and the same attention."""
    if "graph" in names and "generate" not in names:
        raise StudyError(f"{key}: 'graph' is compared with the reference under 'eager'; allowed: [eager, graph]")
    if "graph" in names and "sdpa" not in kernels:
        raise StudyError(f"attention: 'sdpa' is missing; runtime 'graph' ({key}) is measured and compared under it")


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
    warmup = config["speed"]["warmup"]
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
        _check_shape(model)
        context = model["context"] or known_context(model)
        for key, tokens in asked_tokens(config, model) if context else ():
            if sum(tokens.values()) > context:
                told = " + ".join(f"{name} {number}" for name, number in tokens.items())
                total = f" = {sum(tokens.values())} tokens" if len(tokens) > 1 else ""
                raise StudyError(f"{key}: {told}{total}, but model {model['name']!r} has a context of {context} tokens")


def asked_tokens(config: dict, model: dict) -> Iterator[tuple[str, dict[str, int]]]:
    """(key, the numbers of tokens that make up one sequence) for everything that a model must have the context for."""
    calls = [(f"models.{model['name']}.workloads", model["workloads"])]
    if not model["workloads"]:
        calls = [(f"{kind}.workloads", config[kind]["workloads"] or []) for kind in ("speed", "memory")]
    extras = {name: settings for name, settings in config["extras"].items() if settings["enabled"]}
    real = model["source"]["type"] != "synthetic"
    if real and "sweep" in extras:
        calls.append(("extras.sweep.workload", [extras["sweep"]["workload"]]))
    for key, workloads in calls:
        for workload in workloads:
            yield key, {name: workload[name] for name in ("prompt_tokens", "new_tokens")}
    if "profile" in extras and model["name"] in (extras["profile"]["models"] or [model["name"]]):
        yield "extras.profile", {"prompt_tokens": extras["profile"]["prompt_tokens"]}
    if real:
        if "invariance" in extras:
            yield "extras.invariance", {"prompt_tokens": extras["invariance"]["prompt_tokens"]}
        if config["generations"]["prompts"]:
            yield "generations", {"new_tokens": config["generations"]["new_tokens"]}
        for protocol in config["quality"]["protocols"]:
            yield "quality.protocols", {"window": protocol["window"]}


def known_context(model: dict) -> int | None:
    """The context of a synthetic shape or of a local folder; None for other sources, whose config is not here yet."""
    source = model["source"]
    if source["type"] == "path":
        try:
            return json.loads((Path(source["folder"]).expanduser() / "config.json").read_text())[CONTEXT]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a GGUF file, or a mistake that fetching tells
    shape = source.get("shape")
    return SHAPES[shape][CONTEXT] if isinstance(shape, str) else (shape or {}).get(CONTEXT)


def _check_shape(model: dict) -> None:
    """A shape of one's own must say what memory and GPUs are asked for by; LlamaConfig checks the rest."""
    shape = model["source"].get("shape")
    if not isinstance(shape, dict):
        return
    key = f"models.{model['name']}.source.shape"
    for name in SHAPE_SIZES:
        if name not in shape:
            raise StudyError(f"{key}: key {name!r} is missing; required: {', '.join(SHAPE_SIZES)}")
        if not isinstance(shape[name], int) or shape[name] < 1:
            raise StudyError(f"{key}.{name}: {shape[name]!r} is not allowed; allowed: a whole number, at least 1")


def check_paths(config: dict, wanted: set[str]) -> None:
    """Raise StudyError for a local source that is not there and that one of the ``wanted`` outputs is fetched from."""
    for kind, key, manifest in (("models", "folder", "manifest.json"), ("corpora", "file", "text.jsonl")):
        for entry in config[kind]:
            path = entry["source"].get(key) if f"resources/{kind}/{entry['name']}/{manifest}" in wanted else None
            if path is not None and not Path(path).expanduser().exists():
                raise StudyError(
                    f"{kind}.{entry['name']}.source.{key}: {path!r} does not exist; allowed: a path on this machine"
                )


def _check_comparison(config: dict) -> None:
    """Two studies are compared, or none."""
    pair = [config["baseline"], config["candidate"]]
    if pair[0] is not None and pair[0] == pair[1]:
        raise StudyError(f"candidate: {pair[1]!r} is the baseline too; allowed: another study")
    if None in pair and pair != [None, None]:
        missing = "baseline" if pair[0] is None else "candidate"
        raise StudyError(f"{missing}: missing; allowed: --config baseline=<study> candidate=<study>")
