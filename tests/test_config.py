"""The config: defaults and overrides, and one line for every mistake: the key, the value and what is allowed."""

import copy
from dataclasses import replace

import pytest
import tiny
import yaml
from jsonschema import Draft202012Validator
from llmstudy import config as study_config
from llmstudy import kinds
from llmstudy.errors import StudyError
from llmstudy.models import precisions
from tiny import put

SHA256 = "0123456789abcdef" * 4
REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB = {"type": "hub", "repo": "owner/name", "revision": REVISION}
PYPI = {"type": "pypi", "package": "data==1.0", "member": "data/model.gguf", "sha256": SHA256}
SYNTHETIC = {"type": "synthetic", "shape": "llama-2-7b"}
CALL = {"batch": 1, "prompt_tokens": 8, "new_tokens": 2}
SHAPE = {"intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 99}


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


def mistake(config: dict) -> str:
    with pytest.raises(StudyError) as caught:
        study_config.complete(config)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        # unknown keys, at every depth
        ("precision", ["fp32"], "config 'precision' precisions"),
        ("speed.panel", 3, "speed 'panel' panels"),
        ("speed.panels.minimun", 3, "speed.panels 'minimun' minimum"),
        ("models.0.revision", "main", "models.0 'revision' source"),
        ("models.0.source.branch", "main", "models.0.source 'branch' revision"),
        ("quality.protocols", [{"window": 8, "stride": 8, "step": 1}], "quality.protocols.0 'step' stride"),
        # names that must be known
        ("precisions", ["fp32", "int7"], "precisions 'int7' llm-int8 nf4"),
        ("models.0.precisions", ["int7"], "models.one.precisions 'int7' llm-int8"),
        ("quality_only", ["int2"], "quality_only 'int2' fp4"),
        ("attention", ["flash"], "attention 'flash' sdpa-flash"),
        ("quality.attention", "flash", "quality.attention 'flash' sdpa-flash"),
        ("runtimes", ["vllm"], "runtimes 'vllm' generate graph"),
        ("runtimes", ["generate", "torch-compile"], "runtimes 'torch-compile' generate graph"),
        ("quality.corpora", ["texts"], "quality.corpora 'texts' text"),
        ("precisions", ["fp32", "llm-int8-t6.0"], "precisions llm-int8"),
        ("diagnostics.attention.kernels", ["flash"], "diagnostics.attention.kernels 'flash' eager, sdpa"),
        ("diagnostics", {"profile": {"stpes": 3}}, "diagnostics.profile 'stpes' steps"),
        ("diagnostics", {"sweep_thresholds": {}}, "diagnostics 'sweep_thresholds' outliers"),
        ("device", "tpu", "device 'tpu' auto cpu cuda"),
        ("reference", "nf4", "reference 'nf4' fp32 bf16"),
        ("models.0.precisions", ["bf16"], "models.one.precisions 'fp32' missing"),
        # one name for one thing
        ("models.1", {"name": "one", "source": SYNTHETIC}, "models 'one' twice"),
        (
            "corpora.1",
            {"name": "text", "source": {"type": "path", "file": "b.txt", "format": "txt"}},
            "corpora 'text' twice",
        ),
        ("models.0.name", "../one", "models.0.name '../one' Letters"),
        ("study", "a study", "study 'a study'"),
        # sources that are not pinned, or not there
        ("models.0.source.revision", "main", "models.0.source.revision 'main' 40 hexadecimal"),
        ("models.0.source.revision", REVISION[:12], "models.0.source.revision 40 hexadecimal"),
        ("models.0.source", PYPI | {"package": "data>=1"}, "models.0.source.package 'data>=1' name==version"),
        ("models.0.source", PYPI | {"sha256": "abc"}, "models.0.source.sha256 'abc' 64 hexadecimal"),
        ("models.0.source", {"type": "s3"}, "models.0.source.type 's3' hub pypi path synthetic"),
        ("models.0.source", {"type": "hub", "repo": "a/b"}, "models.0.source 'revision' missing"),
        ("models.0.source", {"type": "synthetic", "shape": "llama-9"}, "shape 'llama-9' llama-2-7b"),
        ("corpora.0.source", {"type": "ftp"}, "corpora.0.source.type 'ftp' hub pypi path"),
        (
            "corpora.0.source",
            {"type": "path", "file": "a.csv", "format": "csv"},
            "corpora.0.source.format 'csv' parquet",
        ),
        # types and ranges
        ("speed.panels.rounds", 0, "speed.panels.rounds 0 minimum 1"),
        ("speed.warmup", {"minimum": 3}, "speed.warmup integer"),
        ("models.0.panels", {"maximum": 3}, "models.0.panels 'minimum' missing"),
        ("precisions", [], "precisions"),
        ("precisions", ["fp32", "fp32"], "precisions 'fp32' stands there twice unique"),
        ("speed.workloads", [{"batch": 1, "prompt_tokens": 8, "new_tokens": 1}], "new_tokens 1 at least 2"),
        ("probe.workloads", [{"batch": 0, "prompt_tokens": 8, "new_tokens": 2}], "probe.workloads.0.batch minimum 1"),
        ("probe.workloads", [{"batch": 1, "prompt_token": 8}], "probe.workloads.0 'prompt_token' new_tokens"),
        ("probe.workloads", "many", "probe.workloads 'many' null array"),
        ("models.0.workloads", [], "models.0.workloads [] minItems 1"),
        ("models.0.source", {}, "models.0.source 'type' is missing hub, pypi, path, synthetic"),
        ("runtimes", 1, "runtimes 1 is not allowed (type array)"),
        ("precisions", [1], "precisions.0 1 is not allowed (type string)"),
        # a thing twice, or none of it
        ("speed.workloads", 2 * [CALL], "speed.workloads twice"),
        ("generations.prompts", ["a", "a"], "generations.prompts 'a' stands there twice"),
        ("models.0.precisions", [], "models.0.precisions minItems 1"),
        ("quality.corpora", [], "quality.corpora minItems 1"),
        ("quality.attention", "", "quality.attention minLength 1"),
        ("models.0.source", {"type": "path", "folder": ""}, "models.0.source.folder '' minLength 1"),
        # shapes of one's own
        ("models.0.source", SYNTHETIC | {"shape": {"hidden_size": 64}}, "models.one.source.shape 'intermediate_size'"),
        ("models.0.source", SYNTHETIC | {"shape": SHAPE | {"hidden_size": "64"}}, "shape.hidden_size '64' whole"),
        # what nothing could be compared with
        ("runtimes", ["graph"], "runtimes 'graph' 'generate'"),
        ("models.0.runtimes", ["graph"], "models.one.runtimes 'graph' 'generate'"),
        # numbers that must fit each other
        ("speed.panels", {"minimum": 5, "maximum": 4}, "speed.panels.minimum 5 4"),
        ("models.0.panels", {"minimum": 5, "maximum": 4}, "models.one.panels.minimum 5 4"),
        ("quality.protocols", [{"window": 64, "stride": 65}], "quality.protocols 65 64"),
    ],
)
def test_mistakes_stop_with_one_line(study, path, value, words):
    message = mistake(put(study, path, value))
    assert [word for word in words.split() if word not in message] == [], message


@pytest.mark.parametrize("key", ["study", "models", "corpora", "precisions", "reference"])
def test_a_missing_key_is_named(study, key):
    del study[key]
    assert f"'{key}' is missing" in mistake(study)


@pytest.mark.parametrize(("old", "new"), study_config.RENAMED.items())
def test_a_key_of_version_1_names_the_key_of_today(study, old, new):
    assert mistake(put(study, old, ["x"])) == f"{old}: a key of version 1; use {new} instead"


@pytest.mark.parametrize("path", ["runtimes", "models.0.runtimes"])
def test_a_runtime_of_version_1_names_the_runtime_of_today(study, path):
    message = mistake(put(study, path, ["eager", "graph"]))
    assert message == f"{path}: 'eager' is a name of version 1; use 'generate' instead"


def test_the_graph_runtime_needs_sdpa_to_be_compared_with(study):
    study_config.complete(study | {"runtimes": ["generate", "graph"], "attention": ["eager", "sdpa"]})
    assert "'sdpa' is missing" in mistake(study | {"runtimes": ["generate", "graph"], "attention": ["eager"]})


def test_equal_studies_are_equal_texts_however_they_are_written(study):
    put(study, "speed", {"workloads": [CALL], "panels": {"seconds": 1}})
    other = dict(reversed(copy.deepcopy(study).items()))
    workload = {"new_tokens": 2.0, "prompt_tokens": 8, "batch": 1}
    other["speed"] = {"panels": {"seconds": 1.0, "minimum": 3.0}, "workloads": [workload]}
    assert str(study_config.complete(other).config) == str(study_config.complete(study).config)


def test_a_missing_local_source_is_a_mistake_only_where_it_is_fetched(study, tmp_path):
    put(study, "models.0.source", {"type": "path", "folder": str(tmp_path / "gone")})
    full = study_config.complete(study)
    study_config.check_paths(full, {"resources/corpora/other/text.jsonl"})
    with pytest.raises(StudyError, match=r"models.one.source.folder: '.*gone' does not exist"):
        study_config.check_paths(full, {"resources/models/one/manifest.json"})
    with pytest.raises(StudyError, match="corpora.text.source.file: 'text.jsonl' does not exist"):
        study_config.check_paths(full, {"resources/corpora/text/text.jsonl"})


def test_a_precision_must_run_on_the_configured_device(study, monkeypatch):
    get = precisions.get
    gpu_only = replace(get("bf16"), name="gpu-only", devices=("cuda",))
    monkeypatch.setattr(precisions, "get", lambda name: gpu_only if name == "gpu-only" else get(name))
    study |= {"precisions": ["fp32", "gpu-only"], "device": "cpu"}
    message = mistake(study)
    assert all(word in message for word in ("precisions", "'gpu-only'", "'cpu'", "cuda"))
    for device in ("auto", "cuda"):
        study_config.complete(study | {"device": device})


def test_defaults_are_filled_and_the_given_config_stays_as_it_was(study):
    put(study, "speed.panels.maximum", 7)
    given = copy.deepcopy(study)
    full = study_config.complete(study).config
    assert study == given
    assert full["speed"]["panels"] == {"minimum": 3, "maximum": 7, "minutes": 15, "rounds": 6, "seconds": 1}
    assert full["attention"] == ["sdpa"] and full["runtimes"] == ["generate"] and full["device"] == "auto"
    assert full["quality"]["protocols"] == [{"window": 1024, "stride": 512}]
    assert full["models"][0]["context"] is None and full["models"][0]["precisions"] is None
    assert full["corpora"][0]["source"]["column"] == "text"  # a default in the branch of a oneOf
    assert full["generations"]["prompts"] == ["Once upon a time"]
    assert study_config.complete(full).config == full
    full["speed"]["workloads"][0]["batch"] = 99
    assert study_config.complete(study).speed["workloads"][0]["batch"] == 1  # defaults are not shared


def test_a_model_takes_from_the_study_what_it_does_not_say(study):
    other = {"batch": 4, "prompt_tokens": 64, "new_tokens": 16}
    study |= {"runtimes": ["generate", "graph"], "speed": {"workloads": [CALL], "panels": {"maximum": 4}}}
    put(study, "models.1", {"name": "two", "source": SYNTHETIC, "precisions": ["bf16"], "workloads": [other]})
    put(study, "models.1.panels", {"minimum": 1, "maximum": 2})
    one, two = study_config.complete(study).models
    assert (one.precisions, two.precisions) == (("fp32", "bf16"), ("bf16",))
    assert (one.reference, two.reference) == ("fp32", "bf16")  # random weights may leave the study's out
    assert one.panels == {"minimum": 3, "maximum": 4} and two.panels == {"minimum": 1, "maximum": 2}
    assert one.runtimes == two.runtimes == ("generate", "graph")
    assert (one.workloads, two.workloads, two.probe_workloads) == ((CALL,), (other,), (other,))
    assert (one.real, two.real) == (True, False) and (one.context, two.context) == (None, 4096)
    put(study, "probe.workloads", [other, CALL])
    one, two = study_config.complete(study).models
    assert (one.probe_workloads, two.probe_workloads) == ((other, CALL), (other,))


def test_quality_is_measured_under_the_configured_attention_or_the_last(study):
    study["attention"] = ["sdpa", "eager"]
    assert study_config.complete(study).quality_attention == "eager"
    assert study_config.complete(put(study, "quality.attention", "sdpa-math")).quality_attention == "sdpa-math"


def test_the_headline_of_a_model_is_its_first_workload_and_the_first_of_quality(study):
    put(study, "models.1", {"name": "two", "source": SYNTHETIC, "precisions": ["bf16"]})
    headline = study_config.complete(study).headline
    workload = {"batch": 1, "prompt_tokens": 128, "new_tokens": 32}
    first = {"reference": "fp32", "corpus": "text", "protocol": "w1024-s512"}
    assert headline["one"] == workload | first | {"decode": ""}
    assert headline["two"]["reference"] == "bf16"
    for batches, name in (([8, 1], "decode-b1-p64-n80"), ([8, 4], "decode-b8-p64-n80")):
        headline = study_config.complete(put(study, "quality.decode.batches", batches)).headline
        assert headline["one"]["decode"] == name


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("study: on", "study True YAML reads this as a truth value: quote it"),
        ("study: 2024-01-01", "study 2024-01-01 YAML reads this as a date: quote it"),
        ("study: 1.0e+3", "study 1000.0 YAML reads this as a number: quote it"),
        ("models: [{name: 3, source: x}]", "models.0.name 3 YAML reads this as a number: quote it"),
        (f"models: [{{name: a, source: {{type: hub, repo: a/b, revision: {'1' * 40}}}}}]", "revision 1111 quote it"),
        ("precisions: [fp32, no]", "precisions.1 False quote it"),
        ("on: 3", "config unknown key True YAML reads this as a truth value: quote it"),
        ("jobs: {minutes: 5e-2}", "jobs.minutes '5e-2' YAML reads this as text: write 0.05"),
        ("jobs: {minutes: 1.5e1}", "jobs.minutes '1.5e1' write 15"),
        ("quality: {max_tokens: 1e4}", "quality.max_tokens '1e4' YAML reads this as text: write 10000"),
        ("jobs: {minutes: soon}", "jobs.minutes 'soon' is not allowed (type number)"),
    ],
)
def test_what_yaml_reads_as_something_else_is_told(study, line, words):
    message = mistake(study | yaml.safe_load(line))
    assert [word for word in words.split() if word not in message] == []


@pytest.mark.parametrize("name", ["1e3", "llama-3.1-8b", "Qwen2.5-1.5B_v1.0"])
def test_names_may_have_dots_and_look_like_text(study, name):
    given = yaml.safe_load(
        f"{{models: [{{name: {name}, source: {{type: synthetic, shape: llama-2-7b}}}}], study: {name}}}"
    )
    assert study_config.complete(study | given).model(name).name == name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("study: a\nspeed:\n  warmup: 1\nstudy: b\n", "key 'study' stands twice, in lines 1 and 4; keep one"),
        ("models:\n  - name: a\n    source: {type: hub}\n    name: b\n", "key 'name' stands twice, in lines 2 and 4"),
        ("speed: {warmup: 1, warmup: 2}\n", "key 'warmup' stands twice, in lines 1 and 1"),
        ('{"study": "a",\n"study": "b"}', "key 'study' stands twice, in lines 1 and 2"),
    ],
)
def test_a_key_that_a_file_has_twice_is_refused_with_its_lines(study, tmp_path, text, found):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError) as caught:
        study_config.complete(study, [tmp_path / "study.yaml"])
    assert f"study.yaml: {found}" in str(caught.value)
    (tmp_path / "study.yaml").write_text("models: [{name: a}, {name: b}]")
    assert study_config.complete(study, [tmp_path / "study.yaml"])


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


def test_every_key_of_the_schema_has_a_description_and_a_valid_default(schema):
    Draft202012Validator.check_schema(schema)
    keys = list(keys_of(schema, schema))
    assert len(keys) > 60  # the walk sees the nested ones
    assert [path for path, part, _ in keys if "description" not in part and not path.endswith(("source", "type"))] == []
    # Three that few sources have are not filled in: a value for absence would change the params of every other source.
    absent = ["models.source.file", "models.source.parts", "models.source.file"]
    assert [path for path, part, required in keys if not required and "default" not in part] == absent
    for path, part, _ in keys:
        if "default" in part:
            validator = Draft202012Validator(part | {"$defs": schema["$defs"]})
            assert not list(validator.iter_errors(part["default"])), path


def test_every_object_of_the_schema_refuses_unknown_keys(schema):
    def objects(part):
        if isinstance(part, dict) and "properties" in part:
            yield part
        for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            yield from objects(value)

    assert all(found.get("additionalProperties") is False for found in objects(schema))


def test_shipped_configs_are_right(repository, tmp_path):
    shipped = sorted((repository / "config").glob("*.yaml"))
    studies = [study_config.complete(yaml.safe_load(path.read_text())) for path in shipped]
    for study in studies:
        kinds.check(study)
    assert len(studies) >= 2 and len({study.name for study in studies}) == len(studies)  # one result folder each
    (tmp_path / "model").mkdir()
    assert study_config.complete(tiny.study(tmp_path)).reference == "fp32"


def test_a_comment_says_why_above_every_part_of_the_default_study(repository):
    parts = (repository / "config" / "config.yaml").read_text().strip().split("\n\n")
    assert [part for part in parts if not part.startswith("#")] == []
