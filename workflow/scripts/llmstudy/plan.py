"""From a config to the measuring jobs: which there are, what each is told, what each asks of the scheduler.

Pure functions over a completed config; nothing here imports torch, so that a dry run stays fast.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from llmstudy import code as dependencies
from llmstudy import runtimes
from llmstudy.fetch.synthetic import SHAPES
from llmstudy.measure import MODULES
from llmstudy.measure.stream import protocol_name
from llmstudy.models import precisions

GIB = 2**30
# What every study measures; ``extras`` has the others.
KINDS = ("speed", "memory", "quality", "generations")


@dataclass(frozen=True, order=True)
class Measurement:
    """What identifies one record within a study."""

    kind: str
    model: str
    precision: str
    attention: str
    runtime: str
    repeat: int = 0

    def path(self, study: str) -> str:
        """Where its record lies."""
        return (
            f"results/{study}/records/{self.kind}/{self.model}/"
            f"{self.precision}.{self.attention}.{self.runtime}.r{self.repeat}.json"
        )


def model_entry(config: dict, name: str) -> dict:
    """The config's entry of a model."""
    return next(model for model in config["models"] if model["name"] == name)


def is_real(model: dict) -> bool:
    """Whether the weights are real; quality and samples of random weights mean nothing and are not measured."""
    return model["source"]["type"] != "synthetic"


def configurations(config: dict, model: dict) -> list[tuple[str, str, str]]:
    """(precision, attention, runtime) of a model. The graph runtime has one attention of its own, labelled sdpa."""
    kernels = {
        runtime: config["attention"] if runtime == "generate" else ["sdpa"]
        for runtime in model["runtimes"] or config["runtimes"]
    }
    return [
        (precision, attention, runtime)
        for precision in model["precisions"] or config["precisions"]
        for runtime, attentions in kernels.items()
        for attention in attentions
    ]


def measurements(config: dict, kind: str) -> list[Measurement]:
    """All records of a kind that the study needs."""
    find = {
        "speed": _latency,
        "memory": _memory,
        "quality": _quality,
        "generations": _samples,
    }[kind]
    return [measurement for model in config["models"] for measurement in find(config, model)]


def _latency(config: dict, model: dict) -> list[Measurement]:
    return [
        Measurement("speed", model["name"], *configuration, repeat)
        for configuration in configurations(config, model)
        for repeat in range(model["repeats"] or config["speed"]["repeats"])
    ]


def _memory(config: dict, model: dict) -> list[Measurement]:
    return [Measurement("memory", model["name"], *configuration) for configuration in configurations(config, model)]


def _quality(config: dict, model: dict) -> list[Measurement]:
    if not is_real(model):
        return []
    names = dict.fromkeys((model["precisions"] or config["precisions"]) + config["quality"]["rulers"])
    return [Measurement("quality", model["name"], name, quality_attention(config), "generate") for name in names]


def _samples(config: dict, model: dict) -> list[Measurement]:
    if not is_real(model) or not config["generations"]["prompts"]:
        return []
    names = model["precisions"] or config["precisions"]
    return [Measurement("generations", model["name"], name, quality_attention(config), "generate") for name in names]


def quality_attention(config: dict) -> str:
    """The attention kernel that quality and samples run under."""
    return config["quality"]["attention"] or config["attention"][-1]


def quality_corpora(config: dict) -> list[str]:
    """The corpora that quality is measured on."""
    return config["quality"]["corpora"] or [prompt_corpus(config)]


def job(config: dict, measurement: Measurement) -> dict:
    """What a measuring process is told. Everything that its numbers depend on, and nothing else: it is the rule's
    parameter, so a change reruns exactly the jobs that it concerns. What it may take is a resource of the rule."""
    model = model_entry(config, measurement.model)
    texts = quality_corpora(config) if measurement.kind in ("quality", "reference") else []
    return {
        "identity": {
            "study": config["study"],
            "weights": "real" if is_real(model) else "synthetic",
            **asdict(measurement),
        },
        "device": config["device"],
        "threads": config["threads"],
        "model_folder": f"resources/models/{measurement.model}",
        "corpora": corpus_folders(config, texts),
        "prompt_corpus": prompt_corpus(config),
        "reference_folder": reference_folder(config, measurement.model),
        "settings": _settings(config, model, measurement.kind),
    }


def prompt_corpus(config: dict) -> str:
    """The corpus that prompts and the text for calibration are taken from."""
    return config["corpora"][0]["name"]


def corpus_folders(config: dict, texts: list[str]) -> dict[str, str]:
    """Where the texts of a job lie, that of its prompts included."""
    return {name: f"resources/corpora/{name}" for name in dict.fromkeys([*texts, prompt_corpus(config)])}


def reference_folder(config: dict, model: str) -> str:
    """Where the reference's log-probabilities lie while the study runs."""
    return f"resources/reference/{config['study']}/{model}"


def _settings(config: dict, model: dict, kind: str) -> dict:
    latency = config["speed"]
    workloads = model["workloads"] or latency["workloads"]
    if kind == "speed":
        keys = ("warmup", "minimum_runs", "minimum_seconds")
        return {"workloads": workloads} | {key: latency[key] for key in keys}
    if kind == "memory":
        return {"workloads": model["workloads"] or config["memory"]["workloads"] or workloads}
    if kind in ("quality", "reference"):
        keys = ("protocols", "bos", "documents", "tokens_per_document", "max_tokens", "kl_tokens")
        shared = {"corpora": quality_corpora(config), "reference": config["reference"]}
        settings = shared | {key: config["quality"][key] for key in keys}
        if kind == "reference":  # the first protocol alone is compared token by token
            settings["protocols"] = settings["protocols"][:1]
        return settings
    return dict(config["generations"])


def library_files(measurement: Measurement) -> list[str]:
    """The library files that a measurement runs through."""
    return dependencies.files(
        "runner.script",
        "runner.child",
        f"measure.{MODULES[measurement.kind]}",
        f"models.precisions.{precisions.MODULES[measurement.precision]}",
        f"runtimes.{runtimes.MODULES[measurement.runtime][0]}",
    )


def start_order(config: dict, measurement: Measurement) -> int:
    """A priority that depends on the seed and the record alone: jobs start in a random but repeatable order, so that
    a machine that warms up or slows down does not favour one precision."""
    text = json.dumps([config["speed"]["order_seed"], asdict(measurement)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:3], "big")


def parameters(model: dict) -> float:
    """Parameters of a model: from its shape if it is synthetic, else as configured; 1e9 if nothing says."""
    if model["source"]["type"] == "synthetic":
        return shape_parameters(model["source"]["shape"])
    return 1e6 * (model["parameters_millions"] or 1000)


def shape_parameters(shape: str | dict) -> float:
    """Parameters of a LLaMA shape: embedding and head, and per layer q, k, v, o, gate, up, down and two norms."""
    shape = SHAPES[shape] if isinstance(shape, str) else shape
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head_dim = shape.get("head_dim") or hidden // heads
    kv_heads = shape.get("num_key_value_heads") or heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    embeddings = shape["vocab_size"] * hidden * (1 if shape.get("tie_word_embeddings") else 2)
    return shape["num_hidden_layers"] * layer + embeddings + hidden


def weight_gib(config: dict, model: str, precision: str) -> float:
    """GiB that the weights take in a precision."""
    return parameters(model_entry(config, model)) * precisions.get(precision).weight_bits / 8 / GIB


def gpus(config: dict, measurement: Measurement) -> int:
    """GPUs that a measurement asks for: none on a CPU; else as many as hold 1.2 × the weights."""
    if config["device"] != "cuda":
        return 0
    size = weight_gib(config, measurement.model, measurement.precision)
    return max(1, math.ceil(1.2 * size / config["jobs"]["gpu_memory_gib"]))


def memory_mb(config: dict, measurement: Measurement, attempt: int = 1) -> int:
    """Host memory to ask for: 2.5 GB for the libraries, and on a CPU the weights in the precision beside a 16-bit and
    a file copy; on a GPU one shard at a time passes through. Grows with the attempt."""
    stored = weight_gib(config, measurement.model, measurement.precision)
    sixteen_bit = weight_gib(config, measurement.model, "bf16")
    if config["device"] == "cuda":
        needed = 6000 + 1024 * min(10.0, sixteen_bit)
    else:
        needed = 2500 + 1024 * (stored + 2 * sixteen_bit)
    return int(needed * attempt)


def limit_seconds(config: dict) -> int:
    """Seconds after which a measurement is a timeout."""
    return math.ceil(60 * config["jobs"]["minutes"])


def runtime_minutes(config: dict, attempt: int = 1) -> int:
    """Wall time to ask for: the limit that makes a timeout record, and five minutes to write it."""
    return math.ceil((config["jobs"]["minutes"] + 5) * attempt)


def headline(config: dict) -> dict[str, dict]:
    """Per model what its one row in summary.csv speaks of: the first workload, corpus and protocol; the reference.

    A model that leaves the study's reference out is compared with the first of its own precisions.
    """
    return {model["name"]: _headline_of(config, model) for model in config["models"]}


def _headline_of(config: dict, model: dict) -> dict:
    own = model["precisions"] or config["precisions"]
    return (model["workloads"] or config["speed"]["workloads"])[0] | {
        "reference": config["reference"] if config["reference"] in own else own[0],
        "corpus": quality_corpora(config)[0],
        "protocol": protocol_name(config["quality"]["protocols"][0], config["quality"]["bos"]),
    }
