"""provenance.json: where numbers come from, each environment once, and what is missing."""

import json

import hand_made
from llmstudy.tables import provenance
from table_kit import write_record


def record(folder, repeat, commit="a", started="2026-01-01T00:00:00", **changes):
    where = {"git_commit": commit, "packages": {"torch": "1"}, "started": started, "wall_s": 30.0, "waited_s": 12.5}
    return write_record(folder, "probe", {}, provenance=where, repeat=repeat, **changes)


def write_model(folder, architecture):
    """Write a fetched model's manifest, and return its path."""
    folder.mkdir()
    manifest = {"name": "m", "real": True, "source": {"type": "path"}, "architecture": architecture}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder / "manifest.json"


def test_provenance_counts_each_environment_once(tmp_path):
    paths = [
        record(tmp_path, 1, started="2026-01-02T00:00:00"),
        record(tmp_path, 2),
        record(tmp_path, 3, commit="b", status="oom"),
    ]
    manifest = write_model(tmp_path / "model", hand_made.ARCHITECTURES["llama-2-7b"])
    unseen = {"name": "n", "source": {"type": "hub", "repo": "a/b"}}
    config = {"study": "s", "models": [{"name": "m", "source": {"type": "path"}}, unseen]}
    missing = [f"results/s/records/probe/{name}/{number}.json" for name in "mn" for number in range(2)]
    provenance.write(paths, missing, [str(manifest)], config, {"m": {}, "n": {}}, tmp_path / "provenance.json")
    content = json.loads((tmp_path / "provenance.json").read_text())
    assert [environment["records"] for environment in content["environments"]] == [2, 1]
    assert content["environments"][0]["first_started"] == "2026-01-01T00:00:00"
    assert content["missing"] == {"probe of m": 2, "probe of n": 2}
    assert content["headline"] == {"m": {}}  # of n nothing was measured yet
    assert content["statuses"] == {"ok": 2, "oom": 1} and content["wall_s"] == 90 - 3 * 12.5  # without waiting
    assert content["models"]["m"]["architecture"]["hidden_size"] == 4096
    assert content["config_sha256"] == provenance.config_hash(dict(reversed(config.items())))


def test_provenance_keeps_what_it_knew_of_a_model_whose_weights_are_not_here(tmp_path):
    paths = [record(tmp_path, 1), record(tmp_path, 1, model="n")]
    models = [{"name": name, "source": {"type": "hub", "repo": "a/b"}} for name in "mn"]
    output = tmp_path / "provenance.json"
    output.write_text(json.dumps({"models": {"m": {"parameters": 5}}}))
    provenance.write(paths, [], [], {"study": "s", "models": models}, {"m": {}, "n": {}}, output)
    content = json.loads(output.read_text())["models"]
    assert content["m"] == {"parameters": 5}
    assert content["n"]["real"] and content["n"]["architecture"] == {} and content["n"]["source"]["repo"] == "a/b"
