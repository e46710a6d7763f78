"""Complete the config: fill in the schema's defaults, resolve overrides, report a mistake in one line before any job.

Standard library, yaml and jsonschema only: Snakemake parses the workflow with nothing else installed.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

from llmstudy import runtimes
from llmstudy.errors import StudyError
from llmstudy.fetch import layout, published
from llmstudy.fetch.shapes import SHAPES
from llmstudy.files import shared_file
from llmstudy.llama import Shape, protocol_name
from llmstudy.models import attention, precisions

PUBLISHED = ("as-published",)  # the precisions of a model whose weights are already quantized
SHAPE_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
SCHEMA = shared_file("schemas/config.schema.yaml")
# Keys of version 1, and what to write today.
_THRESHOLDS = "llm-int8-t<threshold> among precisions or quality_only"
_COMPARE = "the command llmstudy compare BEFORE AFTER"
RENAMED = {
    "latency": "speed",
    "memory": "probe",
    "report": "no key (REPORT.md is that of the study that runs)",
    "speed.repeats": "speed.panels.minimum",
    "speed.minimum_runs": "speed.panels.rounds",
    "speed.minimum_seconds": "speed.panels.seconds",
    "verdict.smallest_effect_percent": "verdict.margin_percent, with speed, memory and perplexity",
    "samples": "generations",
    "extras.sweep": _THRESHOLDS,
    "extras": "diagnostics",
    "quality.rulers": "quality_only, beside precisions",
    "diagnostics.sweep": _THRESHOLDS,
    "baseline": _COMPARE,
    "candidate": _COMPARE,
    "compare": f"options of {_COMPARE}",
}


@dataclass(frozen=True)
class Model:
    """One model of a study, with the study's values where the model has none."""

    name: str
    real: bool  # whether the weights are trained; random ones have no quality
    precisions: tuple[str, ...]  # those of its published checkpoints at the end
    runtimes: tuple[str, ...]
    reference: str  # the study's reference precision, or the model's first where it lacks that
    panels: dict  # ``minimum`` and ``maximum`` processes that time all configurations
    workloads: tuple[dict, ...]
    probe_workloads: tuple[dict, ...]
    context: int | None  # longest sequence in tokens; None where only fetching can tell
    parameters: float  # for memory and GPU requests


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
    def headline(self) -> dict[str, dict]:
        """Return what each model's rows of summary.csv are about: workload, corpus, protocol and reference, and the
        protocol of decoded tokens at the batch size of the workload, else at the first; empty where there is none."""
        bos = bool(self.quality["bos"])
        protocol = protocol_name(self.quality["protocols"][0], bos)
        shared = {"corpus": self.quality_corpora[0], "protocol": protocol}
        found = {model.name: model.workloads[0] | {"reference": model.reference} | shared for model in self.models}
        decode = self.quality["decode"]
        for line in found.values():
            batch = line["batch"] if line["batch"] in decode["batches"] else next(iter(decode["batches"]), None)
            line["decode"] = protocol_name(decode | {"batch": batch}, bos) if batch else ""
        return found

    def for_tables(self) -> dict:
        """Return what tables need to know of the study."""
        return {
            "study": self.name,
            "reference": self.reference,
            "headline": self.headline,
            "limits": self.limits,
            "margin_percent": self.verdict["margin_percent"],
            "attention": self.attention,
            "runtime": runtimes.BASE,
            "dense": [name for name in self._measured() if precisions.get(name).family == "dense"],
            "kernels": self.diagnostics["attention"]["kernels"] or self.attention,
            "capacity": {key: self.diagnostics["capacity"][key] for key in ("contexts", "device_gib")},
            "workloads": {model.name: list(model.workloads) for model in self.models},
        }

    def _measured(self) -> list[str]:
        return list(dict.fromkeys(name for model in self.models for name in model.precisions))

    def _model(self, entry: dict) -> Model:
        source, names = entry["source"], entry["precisions"] or self.precisions
        names = tuple(dict.fromkeys([*names, *(f"{PUBLISHED[0]}:{name}" for name in entry["checkpoints"])]))
        workloads = entry["workloads"] or self.speed["workloads"]
        shape = source.get("shape", {})
        shape = SHAPES[shape] if isinstance(shape, str) else shape
        context = layout.contexts(shape)[0] if source["type"] != "path" else _context_of_folder(source["folder"])
        return Model(
            name=entry["name"],
            real=source["type"] != "synthetic",
            precisions=names,
            runtimes=tuple(entry["runtimes"] or self.runtimes),
            reference=self.reference if self.reference in names else names[0],
            panels=entry["panels"] or {key: self.speed["panels"][key] for key in ("minimum", "maximum")},
            workloads=tuple(workloads),
            probe_workloads=tuple(entry["workloads"] or self.probe["workloads"] or workloads),
            context=entry["context"] or context,
            parameters=Shape.of(shape).parameters if shape else _parameters(entry),
        )


def fetched_manifest(entry: dict) -> dict | None:
    """Return the manifest of a model of the config, None before it is fetched from the source of the config."""
    with suppress(OSError, ValueError):
        manifest = json.loads(Path(f"resources/models/{entry['name']}/manifest.json").read_text(encoding="utf-8"))
        # Without a summary it is of an older version, and will be fetched again.
        return manifest if manifest["source"] == entry["source"] and "summary" in manifest else None


def _parameters(entry: dict) -> float:
    """Return the parameters of a model: those of its manifest once it is fetched, else of the headers in its folder,
    else as configured."""
    if manifest := fetched_manifest(entry):
        return manifest["parameters"]
    with suppress(StudyError, OSError):
        if entry["source"]["type"] == "path":
            return layout.count_parameters(Path(entry["source"]["folder"]).expanduser())
    return 1e6 * (entry["parameters_millions"] or 1000)


def _context_of_folder(folder: str) -> int | None:
    try:
        return layout.contexts(json.loads((Path(folder).expanduser() / "config.json").read_text(encoding="utf-8")))[0]
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # a GGUF file, or a mistake that fetching reports


def complete(config: dict, files: Iterable[Path] = ()) -> Study:
    """Return the study of a config, read from ``files`` if any, with the schema's defaults filled in.

    Raises:
        StudyError: one line for the first mistake: the key, the value, and what is allowed.
    """
    import yaml

    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    _check_doubled(files)
    _check_renamed(config)
    _check_schema(config, schema)
    study = Study(_filled(copy.deepcopy(config), schema, schema))
    for entry in study.config["models"]:
        _check_shape(entry)
    _check_names(study)
    _check_numbers(study)
    return study


def _check_doubled(files: Iterable[Path]) -> None:
    """Raise StudyError for a key that a mapping in a YAML file has twice, of which YAML would take the last."""
    import yaml

    for file in files:
        try:
            waiting = [yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
        except yaml.YAMLError:
            continue  # JSON with tabs, which Snakemake reads
        while waiting:
            node, seen = waiting.pop(), {}
            if isinstance(node, yaml.MappingNode):
                for key, value in node.value:
                    name, line = str(key.value), key.start_mark.line + 1
                    if name in seen:
                        raise StudyError(
                            f"{file}: key {name!r} stands twice, in lines {seen[name]} and {line}; keep one"
                        )
                    seen[name] = line
                    waiting.append(value)
            elif isinstance(node, yaml.SequenceNode):
                waiting += node.value


def _check_renamed(config: dict) -> None:
    """Raise StudyError for a key of version 1; its line names today's key."""
    for old, new in RENAMED.items():
        part: Any = config
        for key in old.split("."):
            part = part.get(key) if isinstance(part, dict) else None
        if part is not None:
            raise StudyError(f"{old}: a key of version 1; use {new} instead")


def _check_schema(config: dict, schema: dict) -> None:
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(schema).iter_errors(config)
    if error := min(errors, key=lambda error: list(map(str, error.path)), default=None):
        raise StudyError(_one_line(error))


def _one_line(error) -> str:
    """Return a jsonschema error in one line: the key, the value and what is allowed."""
    key, value, wanted = _key(error), error.instance, error.validator_value
    if error.validator == "oneOf":
        return _of_alternatives(error)
    if error.validator == "additionalProperties":
        allowed = sorted(error.schema["properties"])
        unknown = min(set(value) - set(allowed), key=str)
        return f"{key}: unknown key {_short(unknown)}{_as_read(unknown, ['string'])}; allowed: {', '.join(allowed)}"
    if error.validator == "required":
        missing = next(name for name in wanted if name not in value)
        return f"{key}: key {missing!r} is missing; required: {', '.join(wanted)}"
    if error.validator == "enum":
        return f"{key}: {value!r} is not allowed; allowed: {', '.join(wanted)}"
    if error.validator == "uniqueItems":
        twice = next(item for index, item in enumerate(value) if item in value[:index])
        return f"{key}: {_short(twice)} stands there twice; each may stand there once (uniqueItems)"
    hint = f"; {error.schema['description']}" if "description" in error.schema else ""
    if error.validator == "type":
        hint = _as_read(value, [wanted] if isinstance(wanted, str) else wanted) + hint
    return f"{key}: {_short(value)} is not allowed ({error.validator} {wanted}){hint}"


def _as_read(value: Any, wanted: list[str]) -> str:
    """Return what to write where YAML 1.1 reads a name as something else (``on``, a date), or a number as text
    (``5e-2``); "" where that is not the mistake."""
    if "string" in wanted and isinstance(value, bool | int | float | datetime.date):
        kind = {bool: "a truth value", int: "a number", float: "a number"}.get(type(value), "a date")
        return f"; YAML reads this as {kind}: quote it"
    if isinstance(value, str) and {"number", "integer"} & {*wanted}:
        with suppress(ArithmeticError):
            return f"; YAML reads this as text: write {Decimal(value):f}"
    return ""


def _of_alternatives(error) -> str:
    """Return the line of a failed oneOf: the first error in the alternative that was meant, else what is allowed.

    An alternative that wants another kind of value (null beside a list), or another ``type`` of source, was not meant.
    """
    types = [branch.get("properties", {}).get("type", {}).get("const") for branch in error.validator_value]
    if all(types) and isinstance(error.instance, dict) and "type" not in error.instance:
        return f"{_key(error)}: key 'type' is missing; allowed: {', '.join(types)}"
    refusals = [
        child
        for child in error.context
        if child.validator in ("type", "const", "enum") and list(child.path) in ([], ["type"])
    ]
    not_meant = {child.schema_path[0] for child in refusals}
    for child in error.context:
        if child.schema_path[0] not in not_meant:
            return _one_line(child)
    wanted = (child.validator_value for child in refusals)
    allowed = dict.fromkeys(", ".join(values) if isinstance(values, list) else values for values in wanted)
    return f"{_key(refusals[0])}: {_short(refusals[0].instance)} is not allowed; allowed: {', '.join(allowed)}"


def _key(error) -> str:
    return ".".join(map(str, error.absolute_path)) or "config"


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, datetime.date) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _filled(value: Any, schema: dict, root: dict) -> Any:
    """Return a value with defaults filled in, through $ref, items and the branch of a oneOf that fits.

    Equal studies become equal texts, however they are written: keys are sorted, and 1 and 1.0 are the same number.
    Snakemake compares the text of a job's parameters, and would measure again what is only spelt differently.
    """
    from jsonschema import Draft202012Validator

    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    for branch in schema.get("oneOf", []):
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
        kind = schema.get("type", "")
        return int(value) if "integer" in kind else float(value) if "number" in kind else value
    return value


def _check_names(study: Study) -> None:
    """Raise StudyError for a name that is not known, or that two things share."""
    models, corpora = study.config["models"], study.config["corpora"]
    for key, entries in (("models", models), ("corpora", corpora)):
        name, count = Counter(entry["name"] for entry in entries).most_common(1)[0]
        if count > 1:
            raise StudyError(f"{key}: the name {name!r} is used twice; each needs a name of its own")
    used = [("precisions", study.precisions), ("quality_only", study.quality_only)]
    for key, names in used + [(f"models.{model.name}.precisions", model.precisions) for model in study.models]:
        for name in names:
            _check_precision(key, name, study.device)
    run = [(f"models.{index}.runtimes", model.runtimes) for index, model in enumerate(study.models)]
    for key, names in [("runtimes", study.runtimes), *run]:
        if "eager" in names:
            raise StudyError(f"{key}: 'eager' is a name of version 1; use 'generate' instead")
    for key, names, allowed in (
        ("attention", study.attention, attention.CHOICES),
        ("runtimes", study.runtimes, runtimes.MODULES),
        *((f"models.{model.name}.runtimes", model.runtimes, runtimes.MODULES) for model in study.models),
        ("quality.attention", [study.quality_attention], attention.CHOICES),
        ("diagnostics.attention.kernels", study.diagnostics["attention"]["kernels"] or [], attention.CHOICES),
        ("quality.corpora", study.quality_corpora, [corpus["name"] for corpus in corpora]),
    ):
        check_known(key, names, allowed)
    if study.reference not in study.precisions:
        raise StudyError(f"reference: {study.reference!r} is not measured; allowed: {', '.join(study.precisions)}")
    for model, entry in zip(study.models, models, strict=True):
        _check_published(model, entry, study.quality_only)
        # Random weights have no quality to compare, so a shape too large for the reference may leave it out.
        if model.real and study.reference not in model.precisions and model.reference not in PUBLISHED:
            raise StudyError(
                f"models.{model.name}.precisions: the reference {study.reference!r} is missing; quality is compared "
                "with it"
            )
        _check_base(f"models.{model.name}.runtimes" if entry["runtimes"] else "runtimes", model.runtimes, study)


def _check_published(model: Model, entry: dict, quality_only: list[str]) -> None:
    """Raise StudyError for a checkpoint that a precision names and the model has not, for random weights as published,
    and for weights in a local folder that are already quantized under another precision."""
    key = f"models.{model.name}"
    for name in (*model.precisions, *(quality_only if model.real else ())):
        checkpoint = precisions.get(name).checkpoint
        if checkpoint and checkpoint not in entry["checkpoints"]:
            allowed = ", ".join(f"{PUBLISHED[0]}:{known}" for known in entry["checkpoints"]) or "none, it has none"
            raise StudyError(
                f"{key}.checkpoints: {checkpoint!r} is missing, which precision {name!r} needs; allowed: {allowed}"
            )
        if not model.real and (checkpoint or name in PUBLISHED):
            raise StudyError(f"{key}.precisions: {name!r}: random weights were never published; allowed: bf16, …")
    for name, source in entry["checkpoints"].items():
        if source["type"] == "synthetic":
            raise StudyError(f"{key}.checkpoints.{name}: random weights were never published; allowed: hub, pypi, path")
    if entry["source"]["type"] == "path" and model.precisions != PUBLISHED:
        published.refuse_quantized(model.name, published.method(Path(entry["source"]["folder"]).expanduser()))


def _check_base(key: str, names: tuple[str, ...], study: Study) -> None:
    """Raise StudyError where a runtime has no result of the base runtime, under its attention kernel, beside it."""
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
    """Raise StudyError for a precision that is not known or does not run on the device.

    ``auto`` is resolved where a job runs; there, such a precision becomes the record's status.
    """
    try:
        devices = precisions.get(name).devices
    except StudyError as error:
        raise StudyError(f"{key}: {error}") from None
    if device != "auto" and device not in devices:
        raise StudyError(f"{key}: {name!r} does not run on device {device!r}; allowed: {', '.join(devices)}, auto")


def _check_numbers(study: Study) -> None:
    """Raise StudyError for numbers that contradict each other; ``kinds.check`` compares sequences with contexts."""
    overrides = [(f"models.{model.name}.panels", model.panels) for model in study.models]
    for key, panels in [("speed.panels", study.speed["panels"]), *overrides]:
        if panels["minimum"] > panels["maximum"]:
            raise StudyError(f"{key}.minimum: {panels['minimum']} is more than {key}.maximum {panels['maximum']}")
    for protocol in study.quality["protocols"]:
        stride, window = protocol["stride"], protocol["window"]
        if stride > window:
            raise StudyError(
                f"quality.protocols: stride {stride} is more than window {window}; tokens between windows would never "
                "be scored"
            )
    batches, prompts = (study.quality["decode"][key] for key in ("batches", "prompts"))
    if uneven := [batch for batch in batches if prompts % batch]:
        raise StudyError(f"quality.decode.batches: {uneven[0]} does not divide quality.decode.prompts, {prompts}")


def _check_shape(entry: dict) -> None:
    """Raise StudyError for a shape without the sizes that memory and GPU requests need; LlamaConfig checks the rest."""
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
            sources = {f"resources/{kind}/{entry['name']}/{made}": ("source", entry["source"])}
            for name, source in entry.get("checkpoints", {}).items():
                sources[f"resources/checkpoints/{entry['name']}/{name}/{made}"] = (f"checkpoints.{name}", source)
            for output, (part, source) in sources.items():
                path = source.get(key) if output in wanted else None
                if path is not None and not Path(path).expanduser().exists():
                    raise StudyError(
                        f"{kind}.{entry['name']}.{part}.{key}: {path!r} does not exist; allowed: a path on this machine"
                    )
