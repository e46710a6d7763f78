"""The session: typed settings, cases that fail alone, arrays, threads and devices."""

import dataclasses
import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from llmstudy import config, kinds
from llmstudy.errors import StudyError, Unsupported
from llmstudy.measure import measure, panel, quality
from llmstudy.measure.session import resolve_device, thread_count
from llmstudy.models import precisions
from llmstudy.runner import provenance
from llmstudy.runner.job import Configuration, Job, Workload


def test_settings_are_typed_through_and_through(measuring):
    settings = measuring("panel").settings_as(panel.Settings)
    assert settings.workloads == (Workload(2, 9, 4),) and settings.configurations[0].runtime == "generate"
    assert measuring("quality").settings_as(quality.Settings).protocols[0].name(True) == "w32-s16-bos"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda settings: settings.pop("bos"), "settings of quality: 'bos' is missing or unknown; needed: "),
        (lambda settings: settings.update(extra=1), "settings of quality: 'extra' is missing or unknown; needed: "),
        (
            lambda settings: settings["protocols"][0].pop("stride"),
            "settings of quality: protocols: 'stride' is",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(measuring, change, expected):
    session = measuring("quality")
    change(session.job.settings)
    with pytest.raises(StudyError) as error:
        session.settings_as(quality.Settings)
    assert str(error.value).startswith(expected) and "\n" not in str(error.value)


def test_a_case_that_fails_keeps_status_and_reason_and_costs_no_other(measuring, capsys):
    session = measuring("probe")
    results = {"points": []}
    for number, error in enumerate([None, MemoryError("full"), Unsupported("no kernel"), ValueError("wrong")]):
        with session.case(results, "points", number=number) as entry:
            entry["time_ms"] = 1.0
            if error:
                raise error
    assert (
        results["points"]
        == session.saved[-1]["points"]
        == [
            {"number": 0, "status": "ok", "reason": "", "time_ms": 1.0},
            {"number": 1, "status": "oom", "reason": "full"},
            {"number": 2, "status": "unsupported", "reason": "no kernel"},
            {"number": 3, "status": "error", "reason": "ValueError: wrong"},
        ]
    )
    assert [len(saved["points"]) for saved in session.saved] == [1, 2, 3, 4]
    assert capsys.readouterr().err.count("Traceback") == 1  # of the one that nobody expects


def test_what_a_failed_case_held_is_free_before_the_next(measuring, monkeypatch):
    """A tensor that a traceback keeps alive would stay in the memory that the next case measures."""
    session, alive, held = measuring("probe"), [], {"points": []}

    class Tensor:
        def __del__(self):
            alive.remove(self.__class__)

    def allocate():
        tensor = Tensor()
        alive.append(Tensor)
        raise torch.OutOfMemoryError(f"out of memory beside {type(tensor)}")

    with session.case(held, "points"):
        allocate()
    at_free = []
    monkeypatch.setattr(session, "free", lambda: at_free.append(len(alive)))
    with session.case(held, "points"):
        pass
    assert at_free == [0]


def test_arrays_are_replaced_in_one_step_and_a_failed_write_leaves_none(measuring, monkeypatch):
    session, write = measuring("quality"), np.savez_compressed
    session.keep_arrays({"a": np.arange(3)})

    def full(path, **arrays):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        session.keep_arrays({"b": np.arange(9)})
    monkeypatch.setattr(np, "savez_compressed", write)
    session.keep_arrays({"c": np.arange(2)})
    with np.load(session.artifacts / "arrays.npz") as stored:
        assert {key: stored[key].tolist() for key in stored} == {"a": [0, 1, 2], "c": [0, 1]}


@pytest.mark.parametrize(
    ("cores", "quota", "granted", "threads"),
    [(8, None, None, 8), (8, None, "4", 4), (8, None, "64", 8), (2, 1.0, None, 1), (8, 2.9, "4", 2), (8, 0.5, "", 1)],
)
def test_threads_are_the_configured_else_what_every_limit_leaves(monkeypatch, cores, quota, granted, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores))
    monkeypatch.setattr(provenance, "cpu_quota", lambda: quota)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if granted is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert thread_count(None) == threads and thread_count(3) == 3


def test_devices():
    assert resolve_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto") == "cpu"
        with pytest.raises(Unsupported, match="'cuda'"):
            resolve_device("cuda")


def test_only_a_model_that_does_not_fit_one_gpu_is_split(measuring, monkeypatch):
    session = measuring("probe")
    bf16, nf4, ours = (Configuration(name, "sdpa", "generate") for name in ("bf16", "nf4", "int8-fused"))
    assert not session.split(bf16)
    session.device = "cuda"
    parameters = json.loads(Path(session.job.model_folder, "manifest.json").read_text())["parameters"]
    for count, memory, expected in [
        (2, 2.4, [False, False, False]),
        (2, 2.3, [True, False, False]),
        (2, 1.1, [True, False, False]),  # ours is tried where its weights may fit
        (2, 0.9, [True, False, True]),
        (2, 0.5, [True, True, True]),
        (1, 0.5, [False, False, False]),
    ]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        properties = SimpleNamespace(total_memory=memory * parameters)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, properties=properties: properties)
        assert [session.split(one) for one in (bf16, nf4, ours)] == expected


def test_the_record_says_how_a_model_was_split(measuring, monkeypatch):
    session = measuring("probe")
    configuration = session.job.identity.configuration
    session.note_split(configuration, SimpleNamespace())
    session.note_split(configuration, SimpleNamespace(hf_device_map={"": 0}))
    assert "split" not in session.provenance
    places = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1, "model.layers.2": 1, "lm_head": 1}
    session.note_split(configuration, SimpleNamespace(hf_device_map=places))
    assert session.provenance["split"] == {"fp32": [1, 2]}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for elsewhere in ("cpu", "disk"):
        with pytest.raises(MemoryError, match="does not fit the 2 GPUs of this job: no room for lm_head"):
            session.note_split(configuration, SimpleNamespace(hf_device_map=places | {"lm_head": elsewhere}))


def test_a_precision_that_does_not_run_on_the_device_is_unsupported(measuring, monkeypatch):
    get = precisions.get
    monkeypatch.setattr(precisions, "get", lambda name: dataclasses.replace(get(name), devices=("cuda",)))
    with pytest.raises(Unsupported, match="'fp32': not available on cpu; allowed: cuda"):
        measuring("probe").load_model()


def test_a_missing_package_is_unsupported(measuring):
    with pytest.raises(Unsupported, match="[Ff]lash"):
        measuring("probe", attention="flash_attention_2").load_model()


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("panel", {"workloads": [{"batch": 1, "prompt_tokens": 250, "new_tokens": 7}]}, "workloads: 257"),
        ("quality", {"protocols": [{"window": 257, "stride": 1}]}, "protocols: 257"),
        ("invariance", {"prompt_tokens": 257}, "prompt_tokens: 257"),
        ("profile", {"prompt_tokens": 200, "steps": 55}, "steps: 257"),  # its shorter generation has two tokens more
    ],
)
def test_a_sequence_longer_than_the_context_is_refused(measuring, kind, settings, expected):
    with pytest.raises(StudyError, match=f"{expected} tokens are more than the context of model 'tiny', 256"):
        measure(measuring(kind, **settings))


@pytest.mark.parametrize("name", kinds.KINDS)
def test_every_kind_gives_its_module_the_settings_that_it_reads(measuring, tmp_path, name):
    diagnostics = {key: {"enabled": True} for key in ("outliers", "sensitivity", "invariance", "profile", "attention")}
    diagnostics |= {"capacity": {"enabled": True, "verify": {"enabled": True}}}
    diagnostics["tasks"] = {"enabled": True, "tasks": ["quiz"]}
    study = config.complete(tiny.study(tmp_path) | {"diagnostics": diagnostics})
    job = kinds.job(study, kinds.records(study, name)[0])
    session = measuring("probe")
    session.job = Job.from_dict(json.loads(json.dumps(job.to_dict())))
    settings = session.settings_as(import_module(f"llmstudy.{job.module}").Settings)
    assert dataclasses.is_dataclass(settings)
