"""provenance.json: where numbers come from, each environment once, and what is missing."""

import json

import hand_made
from llmstudy.tables import provenance


def record(path, kind="speed", commit="a", started="2026-01-01T00:00:00", status="ok", model="m"):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": 1,
        "identity": {"kind": kind, "model": model, "weights": "real"},
        "status": status,
        "provenance": {"git_commit": commit, "packages": {"torch": "1"}, "started": started, "wall_s": 30.0},
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_provenance_counts_each_environment_once(tmp_path):
    paths = [
        record(tmp_path / "1.json", started="2026-01-02T00:00:00"),
        record(tmp_path / "2.json"),
        record(tmp_path / "3.json", commit="b", status="oom"),
    ]
    manifest = tmp_path / "model/manifest.json"
    manifest.parent.mkdir()
    manifest.write_text(json.dumps({"name": "m", "real": True, "weights_folder": ".", "source": {"type": "path"}}))
    (manifest.parent / "config.json").write_text(json.dumps(hand_made.ARCHITECTURES["llama-2-7b"]))
    unseen = {"name": "n", "source": {"type": "hub", "repo": "a/b"}}
    config = {"study": "s", "models": [{"name": "m", "source": {"type": "path"}}, unseen]}
    missing = [f"results/s/records/latency/{name}/{number}.json" for name in "mn" for number in range(2)]
    manifests, headline = [str(manifest)], {"m": {}, "n": {}}
    provenance.write(paths, missing, manifests, config, headline, tmp_path / "provenance.json")
    found = json.loads((tmp_path / "provenance.json").read_text())
    assert [one["records"] for one in found["environments"]] == [2, 1]
    assert found["environments"][0]["first_started"] == "2026-01-01T00:00:00"
    assert found["missing"] == {"latency of m": 2, "latency of n": 2}
    assert found["headline"] == {"m": {}}  # of n there is nothing to say yet
    assert found["statuses"] == {"ok": 2, "oom": 1} and found["wall_s"] == 90
    assert found["models"]["m"]["architecture"]["hidden_size"] == 4096
    assert found["config_sha256"] == provenance.config_hash(dict(reversed(config.items())))


def test_provenance_keeps_what_it_knew_of_a_model_whose_weights_are_not_here(tmp_path):
    paths = [record(tmp_path / "1.json", model="m"), record(tmp_path / "2.json", model="n")]
    models = [{"name": name, "source": {"type": "hub", "repo": "a/b"}} for name in "mn"]
    output = tmp_path / "provenance.json"
    output.write_text(json.dumps({"models": {"m": {"parameters": 5}}}))
    provenance.write(paths, [], [], {"study": "s", "models": models}, {"m": {}, "n": {}}, output)
    found = json.loads(output.read_text())["models"]
    assert found["m"] == {"parameters": 5}
    assert found["n"]["real"] and found["n"]["architecture"] == {} and found["n"]["source"]["repo"] == "a/b"


def test_waiting_for_a_turn_is_no_time_of_measuring():
    assert provenance.own_seconds({"provenance": {"wall_s": 30.0, "waited_s": 12.5}}) == 17.5
    assert provenance.own_seconds({"provenance": {"wall_s": 30.0}}) == 30.0
