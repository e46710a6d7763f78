"""On two GPUs of one host: jobs beside each other, each on its own, and a model that is split over both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure import probe, scoring
from llmstudy.measure.session import Session
from llmstudy.measure.text import TokenStream
from llmstudy.runner import pool
from llmstudy.runner.job import Configuration, Workload
from llmstudy.runner.parent import LIBRARY
from llmstudy.runtimes.generate import GenerateRuntime
from llmstudy.runtimes.graph import GraphRuntime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
LAYERS = 16

RUN = """
import json, sys
from pathlib import Path
import tiny
from llmstudy.runner import pool
from llmstudy.runner.parent import run_child
model, corpus, locks, folder, weights = map(Path, sys.argv[1:])
pool.FOLDERS = (str(locks),)
pool.weight_bytes = lambda *job: float(str(weights))
folder.mkdir()
outcome = run_child(tiny.job("probe", model, corpus, device="cuda"), folder / "log", folder)
print(json.dumps([outcome.status, outcome.reason, outcome.result]))
"""


def test_the_pool_knows_the_gpus_as_pytorch_does():
    gpus = {gpu.uuid.partition("-")[2]: gpu for gpu in pool.usable()}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpu = gpus[str(properties.uuid)]
        assert gpu.name == properties.name and gpu.memory == pytest.approx(properties.total_memory, rel=0.05)


def start(model: Path, corpus: Path, folder: Path, name: str, weights: float = 0) -> subprocess.Popen:
    """Start a job of the tiny model in a process of its own, with locks in the test's folder."""
    path = os.pathsep.join([str(LIBRARY), *sys.path])
    arguments = [str(one) for one in (model, corpus, folder, folder / name, weights)]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}
    )


def outcome_of(process: subprocess.Popen) -> dict:
    """Return what the child of a job reported."""
    status, reason, result = json.loads(process.communicate(timeout=300)[0].splitlines()[-1])
    assert (status, result["device"]) == ("ok", "cuda"), reason
    return result


def test_two_jobs_run_at_once_on_two_gpus(tiny_weights, tiny_corpus, tmp_path):
    one, other = (start(tiny_weights, tiny_corpus, tmp_path, name) for name in ("one", "other"))
    gpus = [result["provenance"]["gpus"] for result in map(outcome_of, (one, other))]
    assert sorted(map(len, gpus)) == [1, 1] and gpus[0] != gpus[1]
    assert "waiting for" not in "".join((tmp_path / name / "log").read_text() for name in ("one", "other"))


def test_three_jobs_on_two_gpus_take_turns(tiny_weights, tiny_corpus, tmp_path):
    processes = [start(tiny_weights, tiny_corpus, tmp_path, f"{number}") for number in range(3)]
    for process in processes:
        assert outcome_of(process)["provenance"]["gpu"]["count"] == 1


def test_a_job_that_has_two_gpus_splits_no_model_that_fits_one(tiny_weights, tiny_corpus, tmp_path):
    """Another configuration of its panel may be the one that needs both."""
    memory = max(gpu.memory for gpu in pool.usable())
    result = outcome_of(start(tiny_weights, tiny_corpus, tmp_path, "both", weights=memory))
    assert len(result["provenance"]["gpus"]) == result["provenance"]["gpu"]["count"] == 2
    assert "split" not in result["provenance"]
    assert [entry["status"] for entry in result["results"]["workloads"]] == ["ok"]


# -------------------------------------------------------------------------------------------------- a model over both


@pytest.fixture(scope="module")
def deep_weights(tmp_path_factory) -> Path:
    """A fetched tiny model of so many layers that the library splits it."""
    folder = tmp_path_factory.mktemp("deep")
    tiny.save_model(folder / "source", num_hidden_layers=LAYERS)
    return tiny.fetch({"type": "path", "folder": str(folder / "source")}, folder / "model")


@pytest.fixture
def session(deep_weights, tiny_corpus, tmp_path):
    job = tiny.job("probe", deep_weights, tiny_corpus, device="cuda")
    return Session(job=job, device="cuda", artifacts=tmp_path, save=lambda results: None)


def load(session, monkeypatch, split: bool, precision: str = "fp32"):
    monkeypatch.setattr(Session, "split", lambda session, configuration: split)
    return session.load_model(Configuration(precision, "sdpa", "generate"))[0]


def losses(session, model) -> torch.Tensor:
    """Return the log-probabilities of the true tokens of a text, through the scoring of quality."""
    ids = torch.arange(3, 150).numpy()
    stream = TokenStream(ids=ids, document=0 * ids, words=1, utf8_bytes=1)
    protocol = scoring.Protocol(window=64, stride=32)
    scored = scoring.score(session, model, stream, protocol, bos=False)
    return torch.cat([scoring.true_token(values, targets) for _, values, targets in scored]).cpu()


@pytest.mark.parametrize("precision", ["fp32", "llm-int8", "nf4"])
def test_a_model_over_two_gpus_computes_what_it_does_on_one(session, monkeypatch, precision):
    if precision != "fp32":
        pytest.importorskip("bitsandbytes")
    whole, both = (load(session, monkeypatch, split, precision) for split in (False, True))
    assert {parameter.device.index for parameter in whole.parameters()} == {0}
    assert {parameter.device.index for parameter in both.parameters()} == {0, 1}
    on_each = session.provenance["split"][precision]
    assert len(on_each) == 2 and sum(on_each) == LAYERS
    torch.testing.assert_close(losses(session, both), losses(session, whole), rtol=1e-4, atol=1e-4)
    ids = torch.arange(3, 23, device="cuda")[None]
    tokens = [GenerateRuntime(model, 1, 20, 12).generate(ids).tokens for model in (whole, both)]
    assert torch.equal(*tokens)


def test_memory_is_that_of_both(session, monkeypatch):
    reading = probe.PeakProbe("cuda")
    reading.reset()
    before = reading.reading()["peak_allocated_bytes"]
    model = load(session, monkeypatch, split=True)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    assert reading.reading()["peak_allocated_bytes"] - before >= weights
    assert torch.cuda.memory_allocated(0) > 0 and torch.cuda.memory_allocated(1) > 0


def test_a_whole_probe_of_a_split_model(session, monkeypatch):
    monkeypatch.setattr(Session, "split", lambda session, configuration: True)
    results = probe.measure(session)
    assert [(entry["status"], entry["reason"]) for entry in results["workloads"]] == [("ok", "")]
    assert results["workloads"][0]["kv_cache_measured_prefill_bytes"] > 0


def test_what_is_for_one_gpu_says_so(session, monkeypatch):
    with pytest.raises(Unsupported, match="does not fit one GPU of .* GB; this precision cannot be split"):
        load(session, monkeypatch, split=True, precision="int8-fused")
    model = load(session, monkeypatch, split=True, precision="bf16")
    with pytest.raises(Unsupported, match="on one device, not on 2"):
        GraphRuntime(model, *vars(Workload(1, 8, 4)).values()).prepare()
