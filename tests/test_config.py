"""The config: defaults, and every mistake told in one line that names the key, the value and what is allowed."""

import copy

import pytest
import tiny
import yaml
from llmstudy import config as study_config
from llmstudy.errors import StudyError
from llmstudy.models import precisions
from llmstudy.models.precisions.base import Precision

SHA256 = "0123456789abcdef" * 4
REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB = {"type": "hub", "repo": "owner/name", "revision": REVISION}
PYPI = {"type": "pypi", "package": "data==1.0", "member": "data/model.gguf", "sha256": SHA256}
SYNTHETIC = {"type": "synthetic", "shape": "llama-2-7b"}
CALL = {"batch": 1, "prompt_tokens": 8, "new_tokens": 2}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 99,
}


@pytest.fixture
def study():
    """A config that is right: what is changed in it is the only mistake."""
    return {
        "study": "tiny",
        "models": [{"name": "one", "source": copy.deepcopy(HUB)}],
        "corpora": [{"name": "text", "source": {"type": "path", "file": "text.jsonl", "format": "jsonl"}}],
        "precisions": ["fp32", "bf16"],
        "reference": "fp32",
    }


def put(config: dict, path: str, value) -> dict:
    """Set a value at a dotted path, numbers being places in lists."""
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = config
    for part in above:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
    if isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return config


def mistake(config: dict) -> str:
    with pytest.raises(StudyError) as caught:
        study_config.complete(config)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        # unknown keys, at every depth
        ("precision", ["fp32"], ["config", "'precision'", "precisions"]),
        ("latency.repeat", 3, ["speed", "'repeat'", "repeats"]),
        ("latency.warmup.minimun", 3, ["latency.warmup", "'minimun'", "minimum"]),
        ("models.0.revision", "main", ["models.0", "'revision'", "source"]),
        ("models.0.source.branch", "main", ["models.0.source", "'branch'", "revision"]),
        ("quality.protocols", [{"window": 8, "stride": 8, "step": 1}], ["quality.protocols.0", "'step'", "stride"]),
        # names that must be known
        ("precisions", ["fp32", "int7"], ["precisions", "'int7'", "llm-int8", "nf4"]),
        ("models.0.precisions", ["int7"], ["models.one.precisions", "'int7'", "llm-int8"]),
        ("quality.rulers", ["int2"], ["quality.rulers", "'int2'", "fp4"]),
        ("attention", ["flash"], ["attention", "'flash'", "sdpa-flash"]),
        ("quality.attention", "flash", ["quality.attention", "'flash'", "sdpa-flash"]),
        ("runtimes", ["vllm"], ["runtimes", "'vllm'", "eager", "graph"]),
        ("quality.corpora", ["texts"], ["quality.corpora", "'texts'", "text"]),
        ("device", "tpu", ["device", "'tpu'", "auto", "cpu", "cuda"]),
        ("reference", "nf4", ["reference", "'nf4'", "fp32", "bf16"]),
        ("models.0.precisions", ["bf16"], ["models.one.precisions", "'fp32'", "missing"]),
        # one name for one thing
        ("models.1", {"name": "one", "source": SYNTHETIC}, ["models", "'one'", "twice"]),
        (
            "corpora.1",
            {"name": "text", "source": {"type": "path", "file": "b.txt", "format": "txt"}},
            ["corpora", "'text'", "twice"],
        ),
        ("models.0.name", "../one", ["models.0.name", "'../one'", "Letters"]),
        ("study", "a study", ["study", "'a study'"]),
        # sources that are not pinned, or not there
        ("models.0.source.revision", "main", ["models.0.source.revision", "'main'", "40 hexadecimal"]),
        ("models.0.source.revision", REVISION[:12], ["models.0.source.revision", "40 hexadecimal"]),
        ("models.0.source", PYPI | {"package": "data>=1"}, ["models.0.source.package", "'data>=1'", "name==version"]),
        ("models.0.source", PYPI | {"sha256": "abc"}, ["models.0.source.sha256", "'abc'", "64 hexadecimal"]),
        ("models.0.source", {"type": "s3"}, ["models.0.source.type", "'s3'", "hub", "pypi", "path", "synthetic"]),
        ("models.0.source", {"type": "hub", "repo": "a/b"}, ["models.0.source", "'revision'", "missing"]),
        ("models.0.source", {"type": "synthetic", "shape": "llama-9"}, ["shape", "'llama-9'", "llama-2-7b"]),
        ("corpora.0.source", {"type": "ftp"}, ["corpora.0.source.type", "'ftp'", "hub", "pypi", "path"]),
        (
            "corpora.0.source",
            {"type": "path", "file": "a.csv", "format": "csv"},
            ["corpora.0.source.format", "'csv'", "parquet"],
        ),
        # types and ranges
        ("latency.repeats", 0, ["latency.repeats", "0", "minimum 1"]),
        ("latency.repeats", "three", ["latency.repeats", "'three'", "integer"]),
        ("precisions", [], ["precisions"]),
        ("precisions", ["fp32", "fp32"], ["precisions", "'fp32' stands there twice", "unique"]),
        ("latency.workloads", [{"batch": 1, "prompt_tokens": 8, "new_tokens": 1}], ["new_tokens", "1", "at least 2"]),
        (
            "memory.workloads",
            [{"batch": 0, "prompt_tokens": 8, "new_tokens": 2}],
            ["memory.workloads.0.batch", "minimum 1"],
        ),
        ("memory.workloads", [{"batch": 1, "prompt_token": 8}], ["memory.workloads.0", "'prompt_token'", "new_tokens"]),
        ("memory.workloads", "many", ["memory.workloads", "'many'", "null", "array"]),
        ("models.0.workloads", [], ["models.0.workloads", "[]", "minItems 1"]),
        ("models.0.source", {}, ["models.0.source", "'type' is missing", "hub, pypi, path, synthetic"]),
        ("precisions", [1], ["precisions.0", "1 is not allowed (type string)"]),
        # a thing twice, or none of it
        ("latency.workloads", 2 * [CALL], ["latency.workloads", "twice"]),
        ("generations.prompts", ["a", "a"], ["generations.prompts", "'a' stands there twice"]),
        ("models.0.precisions", [], ["models.0.precisions", "minItems 1"]),
        ("quality.corpora", [], ["quality.corpora", "minItems 1"]),
        ("quality.attention", "", ["quality.attention", "minLength 1"]),
        ("models.0.source", {"type": "path", "folder": ""}, ["models.0.source.folder", "''", "minLength 1"]),
        # shapes of one's own
        (
            "models.0.source",
            SYNTHETIC | {"shape": {"hidden_size": 64}},
            ["models.one.source.shape", "'intermediate_size'"],
        ),
        (
            "models.0.source",
            SYNTHETIC | {"shape": SHAPE | {"hidden_size": "64"}},
            ["shape.hidden_size", "'64'", "whole"],
        ),
        # what nothing could be compared with
        ("runtimes", ["graph"], ["runtimes", "'graph'", "eager"]),
        ("models.0.runtimes", ["graph"], ["models.one.runtimes", "'graph'", "eager"]),
        ("baseline", "../before", ["baseline", "'../before'", "Letters"]),
        ("candidate", "after", ["baseline: missing", "candidate=<study>"]),
        ("study", "comparisons", ["study", "'comparisons'"]),
        ("extras.sweep.thresholds", ["six"], ["extras.sweep.thresholds.0", "'six'", "number", "inf"]),
        # numbers that must fit each other
        ("latency.warmup", {"minimum": 5, "maximum": 4}, ["latency.warmup.minimum", "5", "4"]),
        ("quality.protocols", [{"window": 64, "stride": 65}], ["quality.protocols", "65", "64"]),
    ],
)
def test_mistakes_stop_with_one_line(study, path, value, told):
    message = mistake(put(study, path, value))
    assert [part for part in told if part not in message] == [], message


@pytest.mark.parametrize("key", ["study", "models", "corpora", "precisions", "reference"])
def test_a_missing_key_is_named(study, key):
    del study[key]
    assert f"'{key}' is missing" in mistake(study)


@pytest.mark.parametrize("kind", ["speed", "memory"])
def test_a_workload_longer_than_the_context_is_refused(study, kind):
    put(study, "models.0.context", 100)
    workload = {"batch": 1, "prompt_tokens": 80, "new_tokens": 20}
    study["quality"] = {"protocols": [{"window": 64, "stride": 64}]}
    study["speed"] = {"workloads": [{"batch": 1, "prompt_tokens": 8, "new_tokens": 2}]}
    study[kind] = {"workloads": [workload]}
    study_config.complete(study)  # exactly the context is allowed
    workload["new_tokens"] = 21
    message = mistake(study)
    assert all(word in message for word in ("80", "21", "101", "'one'", "100"))


def test_a_model_of_its_own_workloads_is_held_to_them_alone(study):
    put(study, "models.0.context", 100)
    study["quality"] = {"protocols": [{"window": 64, "stride": 64}]}
    put(study, "models.0.workloads", [{"batch": 1, "prompt_tokens": 50, "new_tokens": 50}])
    study_config.complete(study)  # the study's own 128 + 32 tokens do not concern it
    put(study, "models.0.workloads.0.new_tokens", 51)
    assert "101" in mistake(study)


def test_a_synthetic_shape_knows_its_context(study):
    put(study, "models.0.source", SYNTHETIC)
    study["speed"] = {"workloads": [{"batch": 1, "prompt_tokens": 4096, "new_tokens": 2}]}
    assert "4096" in mistake(study) and "4098" in mistake(study)


def test_a_window_longer_than_the_context_is_refused(study):
    put(study, "models.0.context", 512)
    study["quality"] = {"protocols": [{"window": 513, "stride": 512}]}
    message = mistake(study)
    assert "513" in message and "512" in message and "'one'" in message


def test_a_local_folder_knows_its_context(study, tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 128}')
    put(study, "models.0.source", {"type": "path", "folder": str(tmp_path)})
    put(study, "latency.workloads", [{"batch": 1, "prompt_tokens": 8, "new_tokens": 2}])
    assert "window 1024" in mistake(study) and "128" in mistake(study)
    (tmp_path / "config.json").write_text("{}")
    study_config.complete(study)  # fetching tells


@pytest.mark.parametrize(
    ("extra", "settings", "told"),
    [
        ("sweep", {"workload": {"batch": 1, "prompt_tokens": 200, "new_tokens": 8}}, "extras.sweep.workload"),
        ("profile", {"prompt_tokens": 300}, "extras.profile: prompt_tokens 300"),
        ("invariance", {"prompt_tokens": 300}, "extras.invariance: prompt_tokens 300"),
    ],
)
def test_extras_are_held_to_the_context_where_they_are_measured(study, extra, settings, told):
    put(study, "models.0.context", 200)
    study["quality"] = {"protocols": [{"window": 64, "stride": 64}]}
    put(study, f"extras.{extra}", settings | {"enabled": False})
    study_config.complete(study)
    put(study, f"extras.{extra}.enabled", True)
    assert told in mistake(study) and "200 tokens" in mistake(study)


def test_a_model_that_is_not_profiled_needs_no_context_for_it(study):
    put(study, "models.0.context", 200)
    study["quality"] = {"protocols": [{"window": 64, "stride": 64}]}
    put(study, "models.1", {"name": "two", "source": SYNTHETIC})
    study["extras"] = {"profile": {"enabled": True, "prompt_tokens": 300, "models": ["two"]}}
    study_config.complete(study)
    study["extras"]["profile"]["models"] = None
    assert "extras.profile" in mistake(study)


def test_the_graph_runtime_needs_sdpa_to_be_compared_with(study):
    study_config.complete(study | {"runtimes": ["generate", "graph"], "attention": ["eager", "sdpa"]})
    assert "'sdpa' is missing" in mistake(study | {"runtimes": ["generate", "graph"], "attention": ["eager"]})


def test_a_study_is_not_compared_with_itself(study):
    assert "'a' is the baseline too" in mistake(study | {"baseline": "a", "candidate": "a"})
    study_config.complete(study | {"baseline": "a", "candidate": "b"})


def test_equal_studies_are_equal_texts_however_they_are_written(study):
    put(study, "latency.workloads", [{"batch": 1, "prompt_tokens": 8, "new_tokens": 2}])
    put(study, "latency.minimum_seconds", 1)
    other = dict(reversed(copy.deepcopy(study).items()))
    other["speed"] = {
        "minimum_seconds": 1.0,
        "repeats": 3.0,
        "workloads": [{"new_tokens": 2.0, "prompt_tokens": 8, "batch": 1}],
    }
    assert str(study_config.complete(other)) == str(study_config.complete(study))


def test_a_local_source_is_looked_for_only_where_it_is_fetched(study, tmp_path):
    put(study, "models.0.source", {"type": "path", "folder": str(tmp_path / "gone")})
    full = study_config.complete(study)
    study_config.check_paths(full, {"resources/corpora/other/text.jsonl"})
    with pytest.raises(StudyError, match=r"models.one.source.folder: '.*gone' does not exist"):
        study_config.check_paths(full, {"resources/models/one/manifest.json"})
    with pytest.raises(StudyError, match="corpora.text.source.file: 'text.jsonl' does not exist"):
        study_config.check_paths(full, {"resources/corpora/text/text.jsonl"})


def test_a_precision_is_held_to_the_configured_device(study, monkeypatch):
    gpu_only = Precision("gpu-only", "for a GPU", 8, "bfloat16", load=None, devices=("cuda",))
    get = precisions.get
    monkeypatch.setitem(precisions.MODULES, "gpu-only", "dense")
    monkeypatch.setattr(precisions, "get", lambda name: gpu_only if name == "gpu-only" else get(name))
    study |= {"precisions": ["fp32", "gpu-only"], "device": "cpu"}
    message = mistake(study)
    assert all(word in message for word in ("precisions", "'gpu-only'", "'cpu'", "cuda"))
    for device in ("auto", "cuda"):
        study_config.complete(study | {"device": device})


def test_defaults_are_filled_and_the_given_config_stays_as_it_was(study):
    put(study, "latency.repeats", 7)
    given = copy.deepcopy(study)
    full = study_config.complete(study)
    assert study == given
    assert full["speed"]["repeats"] == 7
    assert full["speed"]["warmup"] == {"minimum": 3, "maximum": 10, "tolerance": 0.05}
    assert full["attention"] == ["sdpa"] and full["runtimes"] == ["eager"] and full["device"] == "auto"
    assert full["quality"]["protocols"] == [{"window": 1024, "stride": 512}]
    assert full["models"][0]["context"] is None and full["models"][0]["precisions"] is None
    assert full["corpora"][0]["source"]["column"] == "text"  # a default in the branch of a oneOf
    assert full["generations"]["prompts"] == ["Once upon a time"]
    assert study_config.complete(full) == full


def test_defaults_of_one_study_are_not_shared_with_another(study):
    first, second = study_config.complete(study), study_config.complete(study)
    first["speed"]["workloads"][0]["batch"] = 99
    assert second["speed"]["workloads"][0]["batch"] == 1
    assert study_config.complete(study)["speed"]["workloads"][0]["batch"] == 1


def keys_of(schema: dict, root: dict, path: str = ""):
    """(path, its schema, whether it must be given) of every key, through references, items and alternatives."""
    while "$ref" in schema:
        schema = {k: v for k, v in schema.items() if k != "$ref"} | root["$defs"][schema["$ref"].rsplit("/", 1)[-1]]
    for branch in schema.get("oneOf", []):
        yield from keys_of(branch, root, path)
    for name, part in schema.get("properties", {}).items():
        described = {**part, **root["$defs"][part["$ref"].rsplit("/", 1)[-1]], **part} if "$ref" in part else part
        yield f"{path}{name}", described, name in schema.get("required", [])
        yield from keys_of(part, root, f"{path}{name}.")
    if "items" in schema:
        yield from keys_of(schema["items"], root, path)


@pytest.fixture(scope="module")
def schema():
    return yaml.safe_load(study_config.SCHEMA.read_text())


def test_every_key_of_the_schema_has_a_description_and_a_default(schema):
    keys = list(keys_of(schema, schema))
    assert len(keys) > 60  # the walk sees the nested ones
    silent = [path for path, part, _ in keys if "description" not in part and not path.endswith(("source", "type"))]
    open_ended = [path for path, part, required in keys if not required and "default" not in part]
    assert silent == [] and open_ended == []


def test_every_object_of_the_schema_refuses_unknown_keys(schema):
    def objects(part):
        if isinstance(part, dict):
            if "properties" in part:
                yield part
            for value in part.values():
                yield from objects(value)
        elif isinstance(part, list):
            for value in part:
                yield from objects(value)

    assert all(found.get("additionalProperties") is False for found in objects(schema))


def test_every_default_of_the_schema_is_valid(schema):
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    for path, part, _ in keys_of(schema, schema):
        if "default" in part:
            errors = list(Draft202012Validator(part | {"$defs": schema["$defs"]}).iter_errors(part["default"]))
            assert not errors, (path, errors)


def test_shipped_configs_are_right(repository):
    shipped = sorted((repository / "config").glob("*.yaml"))
    names = [study_config.complete(yaml.safe_load(path.read_text()))["study"] for path in shipped]
    assert len(names) >= 2 and len(set(names)) == len(names)  # one result folder each


def test_a_comment_says_why_above_every_part_of_the_default_study(repository):
    parts = (repository / "config" / "config.yaml").read_text().strip().split("\n\n")
    assert [part for part in parts if not part.startswith("#")] == []


def test_the_tiny_study_is_a_right_config(tmp_path):
    (tmp_path / "model").mkdir()
    assert study_config.complete(tiny.study(tmp_path))["reference"] == "fp32"
