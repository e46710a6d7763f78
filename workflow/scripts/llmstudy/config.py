"""The config: the schema's defaults filled in, overrides resolved, every mistake in one line before any job starts.

Standard library, yaml and jsonschema only: Snakemake parses the workflow with nothing else installed.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llmstudy import runtimes
from llmstudy.errors import StudyError
from llmstudy.fetch.shapes import SHAPES
from llmstudy.files import shared_file
from llmstudy.llama import Shape, protocol_name
from llmstudy.models import attention, precisions

CONTEXT = "max_position_embeddings"
SHAPE_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
SCHEMA = shared_file("schemas/config.schema.yaml")
# Keys of version 1, and what to write today.
RENAMED = {
    "latency": "speed",
    "samples": "generations",
    "extras.sweep": "llm-int8-t<threshold> among precisions or quality_only",
    "extras": "diagnostics",
    "quality.rulers": "quality_only, beside precisions",
    "diagnostics.sweep": "llm-int8-t<threshold> among precisions or quality_only",
    "baseline": "the command llmstudy compare BEFORE AFTER",
    "candidate": "the command llmstudy compare BEFORE AFTER",
    "compare": "options of the command llmstudy compare BEFORE AFTER",
}


@dataclass(frozen=True)
class Model:
    """One model of a study, with what the study says wherever the model says nothing.

    Attributes:
        real: whether the weights are trained; random ones have no quality.
        reference: the precision that the others are compared with: the study's, or the first of the model's where it
            leaves that out.
        context: longest sequence in tokens; None where only fetching can tell.
        parameters: number of parameters, for memory and GPU requests.
        shape: sizes of a synthetic model, else empty.
    """

    name: str
    source: dict
    real: bool
    precisions: tuple[str, ...]
    runtimes: tuple[str, ...]
    reference: str
    repeats: int
    workloads: tuple[dict, ...]
    memory_workloads: tuple[dict, ...]
    context: int | None
    parameters: float
    shape: dict


@dataclass(frozen=True)
class Study:
    """A completed config (``config``, as provenance.json shows it) with every override resolved."""

    config: dict

    def __getattr__(self, key: str) -> Any:
        """Return a top-level key of the config."""
        try:
            return self.config[key]
        except KeyError:
            raise AttributeError(key) from None

    @property
    def name(self) -> str:
        """Return the name of the study."""
        return self.config["study"]

    @property
    def results(self) -> str:
        """Return the folder of the study's results."""
        return f"results/{self.name}"

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """Return the models in the order of the config."""
        return tuple(map(self._model, self.config["models"]))

    def model(self, name: str) -> Model:
        """Return the model called ``name``."""
        return next(model for model in self.models if model.name == name)

    def corpus(self, name: str) -> dict:
        """Return the config of a corpus."""
        return next(corpus for corpus in self.config["corpora"] if corpus["name"] == name)

    @property
    def prompt_corpus(self) -> str:
        """Return the corpus that prompts and calibration text come from."""
        return self.config["corpora"][0]["name"]

    @property
    def quality_corpora(self) -> list[str]:
        """Return the corpora that quality is measured on."""
        return self.quality["corpora"] or [self.prompt_corpus]

    @property
    def quality_attention(self) -> str:
        """Return the attention kernel that quality and generations run under."""
        return self.quality["attention"] or self.attention[-1]

    @property
    def protocol(self) -> str:
        """Return the name of the first protocol, the one that is compared token by token."""
        return protocol_name(self.quality["protocols"][0], self.quality["bos"])

    @property
    def headline(self) -> dict[str, dict]:
        """Return what each model's rows of summary.csv are about: workload, corpus, protocol and reference."""
        return {
            model.name: model.workloads[0]
            | {"reference": model.reference, "corpus": self.quality_corpora[0], "protocol": self.protocol}
            for model in self.models
        }

    def for_tables(self) -> dict:
        """Return what tables need to know of the study."""
        return {
            "study": self.name,
            "reference": self.reference,
            "headline": self.headline,
            "limits": self.limits,
            "smallest_effect_percent": self.verdict["smallest_effect_percent"],
            "attention": self.attention,
            "kernels": self.diagnostics["attention"]["kernels"] or self.attention,
            "capacity": {key: self.diagnostics["capacity"][key] for key in ("contexts", "device_gib")},
        }

    def _model(self, entry: dict) -> Model:
        names = tuple(entry["precisions"] or self.precisions)
        workloads = entry["workloads"] or self.speed["workloads"]
        shape = known_shape(entry["source"])
        return Model(
            name=entry["name"],
            source=entry["source"],
            real=entry["source"]["type"] != "synthetic",
            precisions=names,
            runtimes=tuple(entry["runtimes"] or self.runtimes),
            reference=self.reference if self.reference in names else names[0],
            repeats=entry["repeats"] or self.speed["repeats"],
            workloads=tuple(workloads),
            memory_workloads=tuple(entry["workloads"] or self.memory["workloads"] or workloads),
            context=entry["context"] or known_context(entry["source"], shape),
            parameters=Shape.of(shape).parameters if shape else 1e6 * (entry["parameters_millions"] or 1000),
            shape=shape,
        )


def complete(config: dict) -> Study:
    """Return the study of a config with the schema's defaults filled in.

    Raises:
        StudyError: one line for the first mistake: the key, the value, and what is allowed.
    """
    import yaml

    schema = yaml.safe_load(SCHEMA.read_text())
    full = copy.deepcopy(config)
    _check_renamed(full)
    _check_schema(full, schema)
    study = Study(_filled(full, schema, schema))
    for entry in study.config["models"]:
        _check_shape(entry)
    _check_names(study)
    _check_numbers(study)
    return study


def known_shape(source: dict) -> dict:
    """Return the sizes of a synthetic source; empty for others."""
    shape = source.get("shape", {})
    return SHAPES[shape] if isinstance(shape, str) else shape


def known_context(source: dict, shape: dict) -> int | None:
    """Return the context of a synthetic shape or of a local folder; None for other sources, whose config.json is not
    here yet."""
    if source["type"] == "path":
        try:
            return json.loads((Path(source["folder"]).expanduser() / "config.json").read_text())[CONTEXT]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a GGUF file, or a mistake that fetching reports
    return shape.get(CONTEXT)


def _check_renamed(config: dict) -> None:
    """Name today's key for a key of version 1."""
    for old, new in RENAMED.items():
        part: Any = config
        for key in old.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        if part is not None:
            raise StudyError(f"{old}: a key of version 1; use {new} instead")
    for key, names in [("runtimes", config)] + [(f"models.{i}.runtimes", m) for i, m in _models(config)]:
        if "eager" in (names.get("runtimes") or []):
            raise StudyError(f"{key}: 'eager' is a name of version 1; use 'generate' instead")


def _models(config: dict) -> list[tuple[int, dict]]:
    models = config.get("models")
    return [(i, model) for i, model in enumerate(models if isinstance(models, list) else []) if isinstance(model, dict)]


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


def _check_names(study: Study) -> None:
    """Names must be known, and belong to one thing only."""
    config = study.config
    for key in ("models", "corpora"):
        counts = Counter(entry["name"] for entry in config[key])
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise StudyError(f"{key}: the name {twice[0]!r} is used twice; each needs a name of its own")
    used = [("precisions", study.precisions), ("quality_only", study.quality_only)]
    used += [(f"models.{entry['name']}.precisions", entry["precisions"] or []) for entry in config["models"]]
    for key, names in used:
        for name in names:
            _check_precision(key, name, study.device)
    known = [("attention", study.attention, attention.CHOICES), ("runtimes", study.runtimes, runtimes.MODULES)]
    known += [(f"models.{model.name}.runtimes", model.runtimes, runtimes.MODULES) for model in study.models]
    known += [("quality.attention", [study.quality_attention], attention.CHOICES)]
    known += [("diagnostics.attention.kernels", study.diagnostics["attention"]["kernels"] or [], attention.CHOICES)]
    known += [("quality.corpora", study.quality_corpora, [corpus["name"] for corpus in config["corpora"]])]
    for key, names, allowed in known:
        check_known(key, names, allowed)
    if study.reference not in study.precisions:
        raise StudyError(f"reference: {study.reference!r} is not measured; allowed: {', '.join(study.precisions)}")
    for model, entry in zip(study.models, config["models"], strict=True):
        # Random weights have no quality to compare, so a shape too large for the reference may leave it out.
        if model.real and study.reference not in model.precisions:
            raise StudyError(
                f"models.{model.name}.precisions: the reference {study.reference!r} is missing; quality is compared "
                "with it"
            )
        _check_base(f"models.{model.name}.runtimes" if entry["runtimes"] else "runtimes", model.runtimes, study)


def _check_base(key: str, names: tuple[str, ...], study: Study) -> None:
    """Every runtime is compared with the reference under the base runtime and the same attention kernel."""
    if runtimes.BASE not in names:
        raise StudyError(
            f"{key}: {', '.join(map(repr, names))} without {runtimes.BASE!r}, which the others are compared with; "
            f"allowed: [{runtimes.BASE}, …]"
        )
    for name in names:
        if not runtimes.kernels_of(name, study.attention):
            needed = ", ".join(runtimes.facts(name).attention)
            raise StudyError(
                f"attention: {needed!r} is missing; runtime {name!r} ({key}) is measured and compared under it"
            )


def check_known(key: str, names, allowed) -> None:
    """Raise StudyError for the first of ``names`` that is not among ``allowed``."""
    for name in names:
        if name not in allowed:
            raise StudyError(f"{key}: {name!r} is not known; allowed: {', '.join(map(str, allowed))}")


def _check_precision(key: str, name: str, device: str) -> None:
    """``auto`` is resolved where a job runs, and a precision that cannot run there becomes its record's status."""
    try:
        devices = precisions.get(name).devices
    except StudyError as error:
        raise StudyError(f"{key}: {error}") from None
    if device != "auto" and device not in devices:
        raise StudyError(f"{key}: {name!r} does not run on device {device!r}; allowed: {', '.join(devices)}, auto")


def _check_numbers(study: Study) -> None:
    """Numbers must fit each other; whether sequences fit a model's context is checked with the kinds."""
    warmup = study.speed["warmup"]
    if warmup["minimum"] > warmup["maximum"]:
        raise StudyError(
            f"speed.warmup.minimum: {warmup['minimum']} is more than speed.warmup.maximum {warmup['maximum']}"
        )
    for protocol in study.quality["protocols"]:
        if protocol["stride"] > protocol["window"]:
            raise StudyError(
                f"quality.protocols: stride {protocol['stride']} is more than window {protocol['window']}; "
                "tokens between windows would never be scored"
            )


def _check_shape(entry: dict) -> None:
    """A shape given by its sizes must hold those that memory and GPU requests need; LlamaConfig checks the rest."""
    shape = entry["source"].get("shape")
    if not isinstance(shape, dict):
        return
    key = f"models.{entry['name']}.source.shape"
    for name in SHAPE_SIZES:
        if name not in shape:
            raise StudyError(f"{key}: key {name!r} is missing; required: {', '.join(SHAPE_SIZES)}")
        if not isinstance(shape[name], int) or shape[name] < 1:
            raise StudyError(f"{key}.{name}: {shape[name]!r} is not allowed; allowed: a whole number, at least 1")


def check_paths(study: Study, wanted: set[str]) -> None:
    """Raise StudyError for a missing local source that one of the ``wanted`` outputs is fetched from."""
    for kind, key, made in (("models", "folder", "manifest.json"), ("corpora", "file", "text.jsonl")):
        for entry in study.config[kind]:
            path = entry["source"].get(key) if f"resources/{kind}/{entry['name']}/{made}" in wanted else None
            if path is not None and not Path(path).expanduser().exists():
                raise StudyError(
                    f"{kind}.{entry['name']}.source.{key}: {path!r} does not exist; allowed: a path on this machine"
                )
