"""Jobs of the extras over the tiny study: what ``llmstudy.extras`` tells them, with paths into a test's folder."""

import copy
from pathlib import Path

import tiny
from llmstudy import config, extras


def config_of(folder: Path, kind: str, **settings) -> dict:
    """A completed config of the tiny study with one extra switched on."""
    study = tiny.study(folder / "study") | {"extras": {kind: {"enabled": True} | settings}}
    return config.complete(study)


def session(folder: Path, kind: str, number: int = 0, threshold: str | None = None, changes=None, **settings):
    """A session of the ``number``-th job of ``kind``; ``settings`` go to the extra's part of the config, ``changes``
    to the job's identity."""
    study = config_of(folder, kind, **settings)
    measurement = extras.measurements(study, kind)[number]
    job = extras.sweep_job(study, measurement, threshold) if threshold else extras.job(study, measurement)
    job = copy.deepcopy(job)
    model = folder / "fetched"
    if not model.exists():
        tiny.fetch({"type": "path", "folder": str(folder / "study" / "model")}, model)
    corpus = folder / "corpus"
    if not corpus.exists():
        tiny.save_corpus(corpus)
    job |= {"model_folder": str(model), "corpora": {"tiny-text": str(corpus)}, "reference_folder": str(folder / "none")}
    job["limits"] = {"seconds": 60, "oom_attempts": 1}
    job["identity"] |= changes or {}
    return tiny.session(job, folder / "artifacts")


def record(kind: str, samples: dict, settings: dict | None = None, **changes) -> dict:
    """A record as a measuring job leaves it; ``changes`` go to its identity, ``status`` and ``reason`` to itself."""
    identity = {
        "study": "tiny",
        "kind": kind,
        "model": "tiny-llama",
        "weights": "real",
        "precision": "fp32",
        "attention": "sdpa",
        "runtime": "generate",
        "repeat": 0,
        "device": "cpu",
    }
    told = {"status": "ok", "reason": "", "settings": settings or {}, "provenance": {}}
    for key, value in changes.items():
        (told if key in told else identity)[key] = value
    return told | {"schema": 1, "identity": identity, "results": samples}
