"""The hub's real clients against a loopback hub, each in a process of its own as in a job."""

import io
import json
import os
import re
import subprocess
import sys

import pytest
import tiny
from fetch_toolkit import entry, manifest, write_model_gguf
from hub_server import REVISION, running_hub

TOKEN = "hf_a-token-that-must-not-be-seen"
FETCH = """
import json, sys, time
from pathlib import Path
time.sleep = lambda seconds: None  # the clients wait up to half a minute between tries
from llmstudy.errors import StudyError
from llmstudy.fetch.corpora import fetch_corpus
from llmstudy.fetch.models import fetch_weights
entry, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
fetch = fetch_weights if "context" in entry else fetch_corpus
try:
    fetch(entry, folder, folder.parent / "downloads")
except StudyError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def model_files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    tiny.save_model(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(model_files):
    with running_hub({"models/someone/tiny": dict(model_files)}) as hub:
        yield hub


def fetch(hub_url, tmp_path, repository, wanted: dict, **environment) -> tuple[str, str]:
    """Run a fetch in a process with an empty home; return what it printed and its standard error."""
    settings = {"HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "home"), "HOME": str(tmp_path / "home"),
                "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "3",
                "PYTHONPATH": str(repository / "workflow/scripts"), "OMP_NUM_THREADS": "1"}  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps(wanted), str(tmp_path / "fetched")],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


def model(**changes) -> dict:
    return entry({"type": "hub", "repo": "someone/tiny", "revision": REVISION} | changes)


def test_fetches_only_safetensors_tokenizer_and_config(hub, tmp_path, repository, model_files):
    hub.repositories["models/someone/tiny"] |= {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the same weights again",
        "original/model.safetensors": b"and again",
        "modeling_tiny.py": b"code",
    }
    printed, log = fetch(hub.url, tmp_path, repository, model())
    assert printed == ""
    assert re.search(r"^Fetching 5 files: 5/5 ", log, re.M) and "\r" not in log
    found = manifest(tmp_path / "fetched")
    assert set(found["files"]) == set(model_files)
    visible = {path.name for path in (tmp_path / "fetched").iterdir() if path.is_file()}
    assert visible == set(model_files) | {"manifest.json"}
    for name, content in model_files.items():
        assert (tmp_path / "fetched" / name).read_bytes() == content
    assert found["source"]["revision"] == REVISION and found["context"] == 256


def test_token_is_sent_but_never_written(hub, tmp_path, repository):
    printed, log = fetch(hub.url, tmp_path, repository, model(), HF_TOKEN=TOKEN)
    assert {authorisation for _, _, authorisation in hub.requests} == {f"Bearer {TOKEN}"}
    assert TOKEN not in printed + log
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_stored_login_is_not_used(hub, tmp_path, repository):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text(TOKEN)
    fetch(hub.url, tmp_path, repository, model())
    assert {authorisation for _, _, authorisation in hub.requests} == {None}


def test_pickled_weights_alone_are_refused_before_any_download(hub, tmp_path, repository, model_files):
    files = {name: data for name, data in model_files.items() if not name.endswith(".safetensors")}
    hub.repositories["models/someone/tiny"] = files | {"pytorch_model.bin": b"pickle"}
    printed, _ = fetch(hub.url, tmp_path, repository, model())
    assert "pickled weights only (pytorch_model.bin)" in printed
    assert not any("/resolve/" in path for _, path, _ in hub.requests)


def test_gguf_of_a_repository(hub, tmp_path, repository, model_files):
    """Beside safetensors it is taken if the source names it."""
    part, original = "Q4 [x]/tiny-00002-of-00002.gguf", tiny.save_model(tmp_path / "original")
    ggufs = write_model_gguf(tmp_path / "tiny.gguf", original, {"rope.scaling.factor": 2.0}, split=2)
    files = {f"Q4 [x]/{path.name}": path.read_bytes() for path in ggufs} | {"mmproj-f16.gguf": b"GGUF"}
    hub.repositories["models/someone/tiny"] |= files
    assert fetch(hub.url, tmp_path, repository, model(file=part))[0] == ""
    assert "published as GGUF (21 F32)" in manifest(tmp_path / "fetched")["fetched_note"]
    config = json.loads((tmp_path / "fetched/config.json").read_text())
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    hub.repositories["models/someone/tiny"] = files | {"other.gguf": b"GGUF"}
    printed, _ = fetch(hub.url, tmp_path, repository, model())
    assert (
        "holds 2 GGUF models; choose one with the source's key file: Q4 [x]/tiny-00001-of-00002.gguf, other" in printed
    )


@pytest.mark.parametrize(
    ("fault", "changes", "expected"),
    [
        ({"/resolve/": "gated"}, {}, "gated: accept the licence on the repository's page and set HF_TOKEN"),
        ({"/api/": "gated"}, {}, "gated: accept the licence on the repository's page and set HF_TOKEN"),
        ({"/resolve/": 401}, {}, "set HF_TOKEN"),
        ({"/resolve/": 403}, {}, "set HF_TOKEN"),
        ({}, {"repo": "someone/else"}, "no such repository, or a private one"),
        ({}, {"revision": "f" * 40}, "no such revision"),
        ({"/api/": 503}, {}, "out of service or overloaded (HTTP 503)"),
        ({"/resolve/": 503}, {}, "out of service or overloaded (HTTP 503)"),
        ({"safetensors": "truncate"}, {}, "cut short"),
    ],
)
def test_one_line_for_each_fault(hub, tmp_path, repository, fault, changes, expected):
    hub.faults = fault
    printed, log = fetch(hub.url, tmp_path, repository, model(**changes), HF_TOKEN=TOKEN)
    passes = expected == "cut short" or "503" in expected  # what the fetching script tries again
    assert printed.startswith("NetworkTrouble someone/" if passes else "StudyError someone/")
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert TOKEN not in printed + log
    assert not (tmp_path / "fetched/manifest.json").exists()


def test_no_network_and_offline(tmp_path, repository):
    printed, _ = fetch("http://127.0.0.1:9", tmp_path, repository, model())
    assert printed.startswith("NetworkTrouble") and "no network" in printed
    printed, _ = fetch("http://127.0.0.1:9", tmp_path, repository, model(), HF_HUB_OFFLINE="1")
    assert printed.startswith("StudyError") and "HF_HUB_OFFLINE" in printed


def test_second_fetch_downloads_only_what_was_cut_short(hub, tmp_path, repository, model_files):
    hub.faults = {"safetensors": "truncate"}
    fetch(hub.url, tmp_path, repository, model())
    hub.faults, hub.requests = {}, []
    printed, _ = fetch(hub.url, tmp_path, repository, model())
    assert printed == ""
    assert (tmp_path / "fetched/model.safetensors").read_bytes() == model_files["model.safetensors"]
    downloaded = {
        path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path
    }
    assert "config.json" not in downloaded


def test_hub_that_fails_in_the_middle_leaves_no_manifest(hub, tmp_path, repository):
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched/config.json").write_text("{}")
    hub.faults, hub.sound_requests = {"/": 503}, 1
    printed, _ = fetch(hub.url, tmp_path, repository, model())
    assert printed.startswith("NetworkTrouble someone/tiny@01234567: the hub ")
    assert not (tmp_path / "fetched/manifest.json").exists()


WIKITEXT = [
    "",
    " = Once = \n",
    "",
    " Upon a time . \n",
    " = = Section = = \n",
    " x = 3 \n",
    "",
    " = Twice = \n",
    " End . \n",
]


@pytest.fixture
def dataset_hub():
    import pyarrow
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": WIKITEXT}), buffer)
    card = b"""---
configs:
- config_name: wikitext-2-raw-v1
  data_files:
  - split: test
    path: wikitext-2-raw-v1/test-*
---
"""
    files = {"README.md": card, "wikitext-2-raw-v1/test-00000-of-00001.parquet": buffer.getvalue()}
    with running_hub({"datasets/someone/wikitext": files}) as hub:
        yield hub


def wikitext(documents=None, **changes) -> dict:
    source = {"type": "hub", "repo": "someone/wikitext", "subset": "wikitext-2-raw-v1", "split": "test",
              "revision": REVISION, "column": "text"} | changes  # fmt: skip
    return {"name": "wikitext-2", "license": "CC BY-SA", "documents": documents, "source": source}


def test_wikitext_rows_become_articles(dataset_hub, tmp_path, repository):
    printed, _ = fetch(dataset_hub.url, tmp_path, repository, wikitext())
    assert printed == ""
    rows = [json.loads(line) for line in (tmp_path / "fetched/text.jsonl").read_text().splitlines()]
    assert [row["title"] for row in rows] == ["Once", "Twice"]
    # joined by blank lines, the articles give the text that published perplexities of WikiText are computed on
    assert "\n\n".join(row["text"] for row in rows) == "\n\n".join(WIKITEXT)
    assert manifest(tmp_path / "fetched")["documents"] == 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"repo": "someone/else"}, "no such repository, or a private one"),
        ({"subset": "wikitext-3"}, "wikitext-2-raw-v1"),
        ({"split": "tset"}, "tset"),
        ({"column": "txet"}, "no column 'txet'; it has text"),
        ({"revision": "f" * 40}, "no such revision"),
    ],
)
def test_dataset_faults(dataset_hub, tmp_path, repository, changes, expected):
    printed, _ = fetch(dataset_hub.url, tmp_path, repository, wikitext(**changes))
    assert printed.startswith("StudyError someone/")
    assert expected in printed
    assert len(printed.splitlines()) == 1
    assert not (tmp_path / "fetched/text.jsonl").exists()


@pytest.mark.parametrize(
    ("path", "fault", "expected"),
    [
        (".parquet", 503, "HTTP 503"),
        (".parquet", "gated", "gated"),
        (".parquet", "truncate", "cut short"),
        ("/api/", 503, "HTTP 503"),
        ("/", "gated", "gated"),
        ("/", 401, "set HF_TOKEN"),
    ],
)
def test_dataset_hub_faults(dataset_hub, tmp_path, repository, path, fault, expected):
    dataset_hub.faults = {path: fault}
    printed, _ = fetch(dataset_hub.url, tmp_path, repository, wikitext())
    assert expected in printed
    assert len(printed.splitlines()) == 1


def test_dataset_without_network(tmp_path, repository):
    assert "no network" in fetch("http://127.0.0.1:9", tmp_path, repository, wikitext())[0]


def test_a_home_of_the_hub_that_cannot_be_used_is_named(dataset_hub, tmp_path, repository):
    printed, _ = fetch(dataset_hub.url, tmp_path, repository, wikitext(), HF_HOME="/dev/null/home")
    assert "HF_HOME: '/dev/null/home' cannot be used (Not a directory); name a folder" in printed
    assert len(printed.splitlines()) == 1
