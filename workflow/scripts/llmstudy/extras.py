"""The optional measurements of a study (config key ``extras``): which records they need and what each job is told.

outliers     LLM.int8()'s outlier ledger, from the reference model's activations
sweep        LLM.int8() at several thresholds, one process each
sensitivity  loss when one part of the reference model is rounded to int8
invariance   whether a prompt's logits depend on its neighbours in the batch
tasks        accuracy in tasks of lm-eval, and which answers change
profile      why a decode step takes as long as it does
attention    every attention kernel alone, over context lengths
capacity     the batches just below and just above the predicted frontier of memory, run

Pure functions over a completed config, like ``plan``; nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from llmstudy import plan
from llmstudy.errors import StudyError
from llmstudy.models import attention
from llmstudy.plan import Measurement

# What needs real weights: random ones have no outliers like a trained model's, and no loss worth comparing.
REAL_ONLY = ("outliers", "sweep", "sensitivity", "invariance", "tasks")
KINDS = (*REAL_ONLY, "profile", "attention", "capacity")
SWEPT = "llm-int8"


def enabled(config: dict) -> list[str]:
    """The extras that the study asks for, tables made of other tables (``crossover``, ``capacity``) included."""
    return [name for name, settings in config["extras"].items() if settings["enabled"]]


def measurements(config: dict, kind: str) -> list[Measurement]:
    """All records of a kind that the study needs; of a sweep one per model, to be measured at every threshold."""
    asked = _measured_part(config, kind)
    if not asked["enabled"]:
        return []
    models = [model for model in config["models"] if kind not in REAL_ONLY or plan.is_real(model)]
    some = asked.get("models") or [model["name"] for model in models]
    return [
        Measurement(kind, model["name"], *one)
        for model in models
        if model["name"] in some
        for one in _configurations(config, model, kind)
    ]


def _measured_part(config: dict, kind: str) -> dict:
    """The settings that records of a kind come from: of ``capacity`` the table needs none, its verification does."""
    settings = config["extras"][kind]
    return settings["verify"] if kind == "capacity" else settings


def _configurations(config: dict, model: dict, kind: str) -> list[tuple[str, str, str]]:
    precisions = model["precisions"] or config["precisions"]
    kernel = plan.quality_attention(config)
    if kind == "profile":  # another attention kernel changes a decode step by little
        return [one for one in plan.configurations(config, model) if one[1] == kernel or one[2] != "generate"]
    if kind == "attention":  # kernels alone, in 16 bit: no weights are loaded
        return [("bf16", name, "generate") for name in config["extras"]["attention"]["kernels"] or config["attention"]]
    if kind == "capacity":
        return plan.configurations(config, model)
    if kind in ("invariance", "tasks"):
        return [(precision, kernel, "generate") for precision in precisions]
    if kind == "sweep":
        return [(SWEPT, kernel, "generate")]
    return [(plan.headline(config)[model["name"]]["reference"], kernel, "generate")]


def thresholds(config: dict) -> list[str]:
    """The sweep's thresholds as they stand in paths: ``6``, ``2.5``, ``inf``, and never with an exponent."""
    asked = map(str, config["extras"]["sweep"]["thresholds"])
    return list(dict.fromkeys(one if one == "inf" else f"{Decimal(one).normalize():f}" for one in asked))


def sweep_path(config: dict, measurement: Measurement, threshold: str) -> str:
    """Where the record of one threshold lies."""
    return measurement.path(config["study"]).removesuffix(f"r{measurement.repeat}.json") + f"t{threshold}.json"


def record_paths(config: dict, kind: str) -> list[str]:
    """Where all records of a kind lie that the study needs, one per threshold of a sweep."""
    found = measurements(config, kind)
    if kind == "sweep":
        return [sweep_path(config, one, threshold) for one in found for threshold in thresholds(config)]
    return [one.path(config["study"]) for one in found]


def job(config: dict, measurement: Measurement) -> dict:
    """What a measuring process of an extra is told."""
    corpora = plan.corpus_folders(config, [corpus(config, measurement.kind)])
    return plan.job(config, measurement) | {"corpora": corpora, "settings": settings(config, measurement)}


def sweep_job(config: dict, measurement: Measurement, threshold: str) -> dict:
    """What the process of one threshold is told."""
    told = job(config, measurement)
    return told | {"settings": told["settings"] | {"threshold": threshold}}


def settings(config: dict, measurement: Measurement) -> dict:
    """What an extra measures: its own keys, and the text where it needs any."""
    kind, quality = measurement.kind, config["quality"]
    own = {key: value for key, value in config["extras"][kind].items() if key not in ("enabled", "kernels", "models")}
    shared = {"protocol": quality["protocols"][0], "bos": quality["bos"], "corpus": corpus(config, kind)}
    if kind == "sweep":
        # The text is where quality begins, so that the reference's log-probabilities of it are the ones already kept.
        del own["thresholds"]
        text = {key: quality[key] for key in ("documents", "tokens_per_document")}
        limits = [limit for limit in (own.pop("tokens"), quality["max_tokens"]) if limit]
        return own | shared | text | {"max_tokens": min(limits), "reference": config["reference"]}
    if kind in ("outliers", "sensitivity"):
        window = quality["protocols"][0]["window"]  # disjoint: what is compared here is not the protocol's own figure
        return own | shared | {"protocol": {"window": window, "stride": window}, "max_tokens": None}
    if kind == "capacity":
        context = own["verify"]["context"]
        memory = replace(measurement, kind="memory").path(config["study"])
        contexts = [context] if context else own["contexts"]
        # The model predicts what is allocated. By default the allocator splits blocks and cannot give the parts back,
        # up to a fifth of an H200 after a long prefill, so that no model of the workload alone says what fits.
        settings = {"contexts": contexts, "device_gib": own["device_gib"], "memory_record": memory}
        return settings | {"allocator": "expandable_segments:True"}
    return own


def corpus(config: dict, kind: str) -> str:
    """The text that an extra reads: that of the quality it is compared with, else that of the prompts."""
    return plan.quality_corpora(config)[0] if kind in ("sweep", "sensitivity") else plan.prompt_corpus(config)


def check(config: dict) -> None:
    """Raise StudyError for a kernel, model, context or folder that is not there, or no task."""
    for name in config["extras"]["attention"]["kernels"] or []:
        if name not in attention.CHOICES:
            allowed = ", ".join(attention.CHOICES)
            raise StudyError(f"extras.attention.kernels: {name!r} is not known; allowed: {allowed}")
    for kind in KINDS:
        _check_models(config, kind)
    _check_verification(config)
    _check_tasks(config["extras"]["tasks"])


def _check_tasks(tasks: dict) -> None:
    if tasks["enabled"] and not tasks["tasks"]:
        raise StudyError(
            "extras.tasks.tasks: [] names nothing to measure; allowed: names of tasks, for instance [arc_easy]"
        )
    if tasks["include_path"] and not Path(tasks["include_path"]).is_dir():
        raise StudyError(
            f"extras.tasks.include_path: {tasks['include_path']!r} is not there; allowed: a folder with task files"
        )


def _check_verification(config: dict) -> None:
    capacity = config["extras"]["capacity"]
    verify = capacity["verify"]
    if verify["enabled"] and not capacity["enabled"]:
        raise StudyError(
            "extras.capacity.verify.enabled: true without extras.capacity.enabled; allowed: both or neither"
        )
    if verify["context"] not in (None, *capacity["contexts"]):
        allowed = ", ".join(map(str, capacity["contexts"]))
        raise StudyError(f"extras.capacity.verify.context: {verify['context']} is not predicted; allowed: {allowed}")


def _check_models(config: dict, kind: str) -> None:
    names = [model["name"] for model in config["models"]]
    key = "extras.capacity.verify.models" if kind == "capacity" else f"extras.{kind}.models"
    for name in _measured_part(config, kind).get("models") or []:
        if name not in names:
            raise StudyError(f"{key}: {name!r} is not known; allowed: {', '.join(names)}")
