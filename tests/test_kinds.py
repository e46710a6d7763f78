"""From a config to measuring jobs: which there are, what each gets, what each requests of the scheduler."""

import copy
import json
from dataclasses import replace

import pytest
import tiny
import yaml
from llmstudy import config as study_config
from llmstudy import kinds, runtimes
from llmstudy.errors import StudyError
from llmstudy.kinds import KINDS
from llmstudy.models import attention
from llmstudy.runner.job import Identity, Job

CALL = {"batch": 3, "prompt_tokens": 5, "new_tokens": 7}
DIAGNOSTICS = ("outliers", "sensitivity", "invariance", "profile", "attention", "tasks")


@pytest.fixture
def config():
    """A config of one real and one synthetic model, two attention kernels and two runtimes."""
    return {
        "study": "tiny",
        "device": "cpu",
        "models": [
            {"name": "real", "parameters_millions": 2000, "source": {"type": "path", "folder": "weights"}},
            {"name": "random", "source": {"type": "synthetic", "shape": "llama-2-7b"}, "precisions": ["bf16", "nf4"]},
        ],
        "corpora": [
            {"name": name, "source": {"type": "path", "file": f"{name}.txt", "format": "txt"}}
            for name in ("first", "second")
        ],
        "precisions": ["fp32", "bf16", "llm-int8"],
        "quality_only": ["fp4", "bf16"],
        "reference": "fp32",
        "attention": ["eager", "sdpa"],
        "runtimes": ["generate", "graph"],
        "speed": {"panels": {"minimum": 2, "maximum": 4}},
    }


@pytest.fixture
def everything(config):
    """The same with all diagnostics."""
    diagnostics = {name: {"enabled": True} for name in DIAGNOSTICS}
    diagnostics["tasks"]["tasks"] = ["quiz"]
    return config | {"diagnostics": diagnostics | {"capacity": {"enabled": True, "verify": {"enabled": True}}}}


def records(config: dict, *names: str) -> list[Identity]:
    return kinds.records(study_config.complete(config), *names)


def of(kind: str, precision: str = "bf16", model: str = "random", attention: str = "sdpa", runtime: str = "generate"):
    """The identity of a job of the study above."""
    weights = "real" if model == "real" else "synthetic"
    return Identity("tiny", kind, model, precision, attention, runtime, weights=weights)


def job(config: dict, kind: str, precision: str = "bf16", model: str = "real") -> Job:
    return kinds.job(study_config.complete(config), of(kind, precision, model))


# ------------------------------------------------------------------------------------------------------- which jobs


def test_every_configuration_is_probed_and_every_panel_holds_all(config):
    found = records(config, "probe")
    # (attention eager and sdpa under generate, sdpa under graph) × (3 + 2 precisions)
    assert len(found) == 3 * 5 == len(set(found)) and {one.repeat for one in found} == {0}
    assert {one.attention for one in found if one.runtime == "graph"} == {"sdpa"}
    assert {one.precision for one in found if one.model == "random"} == {"bf16", "nf4"}
    assert {one.weights for one in found if one.model == "random"} == {"synthetic"}
    tiny.put(config, "models.1.panels", {"minimum": 1, "maximum": 2})
    panels = records(config, "panel")
    # named after the reference, under the runtime with the least noise
    assert [one.name for one in panels if one.model == "real"] == [f"fp32.sdpa.graph.r{number}" for number in range(4)]
    assert [one.name for one in panels if one.model == "random"] == ["bf16.sdpa.graph.r0", "bf16.sdpa.graph.r1"]
    settings = kinds.job(study_config.complete(config), panels[0]).settings
    assert settings["configurations"][0] == ["fp32", "sdpa", "graph"]
    probed = {(one.precision, one.attention, one.runtime): one.path for one in found if one.model == "real"}
    assert settings["probes"] == [probed[tuple(one)] for one in settings["configurations"]] and len(probed) == 9
    tiny.put(config, "quality.attention", "eager")  # graph has no other kernel than its own
    assert {one.attention for one in records(config, "panel")} == {"sdpa"}
    assert {one.attention for one in records(config | {"runtimes": ["generate"]}, "panel")} == {"eager"}


def test_a_panel_beyond_the_minimum_waits_for_those_before_and_may_not_be_needed(config):
    tiny.put(config, "speed.panels.minutes", 7)
    study = study_config.complete(config)
    panels = kinds.records(study, "panel")[:4]
    until = {"margin_percent": 10, "minutes": 7, "minimum": 2, "dense": ["fp32", "bf16"]}
    assert [kinds.job(study, one).settings["until"] for one in panels] == [None, None, until, until]
    paths = [one.path for one in panels]
    assert [kinds.inputs(study, one).get("panels") for one in panels] == [None, None, paths[:2], paths[:3]]
    assert all(kinds.inputs(study, one)["probes"] == kinds.job(study, one).settings["probes"] for one in panels)


def test_quality_and_text_need_real_weights_and_are_measured_under_one_kernel(config):
    quality = records(config, "quality")
    # one that is measured for quality alone, and one named twice once
    assert [one.precision for one in quality] == ["fp32", "bf16", "llm-int8", "fp4"]
    assert {(one.model, one.attention, one.runtime) for one in quality} == {("real", "sdpa", "generate")}
    assert [one.precision for one in records(config, "generations")] == ["fp32", "bf16", "llm-int8"]
    assert records(config | {"generations": {"prompts": []}}, "generations") == []
    assert [one.name for one in records(config, "reference")] == ["fp32.sdpa.generate.r0"]


def test_diagnostics_are_measured_where_they_are_enabled(config, everything):
    assert records(config, *DIAGNOSTICS, "capacity") == []
    names = {kind: [one.name for one in records(everything, kind) if one.model == "real"] for kind in DIAGNOSTICS}
    precisions = [f"{name}.sdpa.generate.r0" for name in ("fp32", "bf16", "llm-int8")]
    assert names["outliers"] == names["sensitivity"] == precisions[:1]
    assert names["invariance"] == names["tasks"] == precisions
    # another attention kernel is not profiled again
    assert set(names["profile"]) == {*precisions, *(name.replace("generate", "graph") for name in precisions)}
    assert names["attention"] == ["bf16.eager.generate.r0", "bf16.sdpa.generate.r0"]
    assert {one.kind for one in records(everything, *DIAGNOSTICS) if one.model == "random"} == {"profile", "attention"}
    assert len(records(everything, "capacity")) == len(records(everything, "probe"))


@pytest.mark.parametrize("kind", ["profile", "attention", "capacity.verify"])
def test_an_expensive_diagnostic_can_be_kept_to_some_models(everything, kind):
    tiny.put(everything, f"diagnostics.{kind}.models", ["random"])
    assert {one.model for one in records(everything, kind.split(".")[0])} == {"random"}


def test_a_profile_takes_a_kernel_that_is_measured(config):
    """Quality may run under one that no configuration has."""
    config |= {"attention": ["sdpa-flash"], "runtimes": ["generate"], "quality": {"attention": "sdpa"}}
    config["diagnostics"] = {"profile": {"enabled": True}}
    found = records(config, "profile")
    assert len(found) == 5 and {one.attention for one in found} == {"sdpa-flash"}


def test_record_paths_are_unique_and_name_what_was_measured(everything):
    found = records(everything)
    assert {one.kind for one in found} == set(KINDS)
    assert len({one.path for one in found}) == len(found)
    one = Identity("tiny", "panel", "real", "llm-int8-t2.5", "sdpa-math", "generate", 3)
    assert one.path == "results/tiny/records/panel/real/llm-int8-t2.5.sdpa-math.generate.r3.json"


# ---------------------------------------------------------------------------------------------------- what a job gets


def test_a_job_is_all_that_its_numbers_depend_on(config):
    found = job(config, "quality")
    assert found.identity == of("quality", model="real") and found.limits is None
    assert (found.corpora, found.prompt_corpus) == ({"first": "resources/corpora/first"}, "first")
    assert found.settings["corpora"] == ["first"] and found.settings["reference"] == "fp32"
    assert found.model_folder == "resources/models/real"
    assert found.reference_folder == "resources/reference/tiny/real/fp32.sdpa.generate.r0"
    assert Job.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    tiny.put(config, "quality.corpora", ["second"])
    assert list(job(config, "quality").corpora) == ["second", "first"]  # prompts come from the first of the study


def test_diagnostics_get_their_keys_of_the_config(everything):
    tiny.put(everything, "diagnostics.profile.steps", 3)
    assert job(everything, "profile").settings == {"batch": 1, "prompt_tokens": 32, "steps": 3}
    asked = {"tasks": ["quiz"], "include_path": None, "limit": None, "num_fewshot": 0, "batch_size": 8}
    assert job(everything, "tasks").settings == asked
    tiny.put(everything, "quality", {"protocols": [{"window": 512, "stride": 64}], "corpora": ["second"]})
    for kind, corpus in (("outliers", "first"), ("sensitivity", "second")):
        settings = job(everything, kind).settings
        assert (settings["corpus"], settings["protocol"]) == (corpus, {"window": 512, "stride": 512})
    assert job(everything, "capacity").settings["probe"] == of("probe", model="real").path
    assert job(everything, "capacity").settings["contexts"] == [2048, 8192]
    tiny.put(everything, "diagnostics.capacity.verify.context", 2048)
    assert job(everything, "capacity").settings["contexts"] == [2048]


def test_a_models_workloads_replace_the_studys(config):
    config["models"][1]["workloads"] = [CALL]
    for kind in ("probe", "panel"):
        assert job(config, kind, model="random").settings["workloads"] == [CALL]
        assert job(config, kind).settings["workloads"] != [CALL]


TEXT = {"quality", "reference"}
EVERY_TEXT = TEXT | {"outliers", "sensitivity"}


@pytest.mark.parametrize(
    ("path", "value", "concerned"),
    [
        ("speed.panels.rounds", 99, {"panel"}),
        ("speed.warmup", 99, {"panel"}),
        ("speed.order_seed", 9, {"panel"}),
        ("speed.workloads", [CALL], {"panel", "probe"}),
        ("probe.workloads", [CALL], {"probe"}),
        # what decides whether one more panel is needed
        ("speed.panels.minimum", 3, {"panel"}),
        ("speed.panels.minutes", 3, {"panel"}),
        ("verdict.margin_percent.speed", 9, {"panel"}),
        # a panel holds all configurations
        ("precisions", ["fp32", "bf16", "llm-int8", "nf4"], {"panel"}),
        ("attention", ["eager", "sdpa-math", "sdpa"], {"panel"}),
        ("quality.bos", True, EVERY_TEXT),
        ("quality.kl_tokens", 5, TEXT),
        ("quality.documents", 5, TEXT),
        ("quality.protocols", [{"window": 8, "stride": 8}], EVERY_TEXT),
        ("quality.protocols", [{"window": 1024, "stride": 512}, {"window": 8, "stride": 8}], {"quality"}),
        ("quality.corpora", ["second"], TEXT | {"sensitivity"}),
        ("reference", "bf16", TEXT | {"panel"}),  # the distances of all precisions are to the reference
        ("generations.new_tokens", 5, {"generations"}),
        ("generations.prompts", ["Twice"], {"generations"}),
        ("diagnostics.profile.steps", 3, {"profile"}),
        ("diagnostics.capacity.device_gib", 24, {"capacity"}),
        ("threads", 3, set(KINDS)),
        # what is judged or drawn later, what else is measured, and what a measurement may take changes no number
        ("quality_only", ["fp4"], set()),
        ("speed.panels.maximum", 9, set()),
        ("limits.memory_gib", 9, set()),
        ("jobs", {"minutes": 3, "oom_attempts": 3, "gpu_memory_gib": 9}, set()),
        ("verdict.margin_percent.perplexity", 9, set()),
        ("models.0.note", "a note", set()),
        ("models.0.parameters_millions", 5, set()),
    ],
)
def test_a_change_concerns_only_what_depends_on_it(everything, path, value, concerned):
    def jobs(config: dict) -> dict[tuple, dict]:
        """Every job by what it measures; those that are named after the reference without its name."""
        study = study_config.complete(config)
        return {
            replace(one, precision="") if one.kind in ("reference", "panel") else one: kinds.job(study, one).to_dict()
            for one in kinds.records(study)
        }

    before, after = jobs(everything), jobs(tiny.put(copy.deepcopy(everything), path, value))
    changed = [one for one in before if one in after and before[one] != after[one]]
    assert {one.kind for one in changed} == concerned


def test_inputs_are_what_a_job_reads(everything, tmp_path):
    (tmp_path / "quiz.yaml").touch()
    tiny.put(everything, "diagnostics.tasks.include_path", str(tmp_path))
    study = study_config.complete(everything)
    read = {kind: kinds.inputs(study, of(kind, model="real")) for kind in KINDS}
    for kind, files in read.items():
        assert files["manifest"] == "resources/models/real/manifest.json", kind
        assert files["text"] == ["resources/corpora/first/text.jsonl"], kind
    assert read["quality"]["reference"] == job(everything, "quality").reference_folder
    assert read["capacity"]["probe"] == of("probe", model="real").path
    assert read["tasks"]["tasks"] == "resources/tasks/tiny.json"
    assert read["tasks"]["files"] == [str(tmp_path / "quiz.yaml")]


def test_a_job_runs_through_its_kind_precision_and_runtime_and_a_panel_through_all(config, monkeypatch):
    study = study_config.complete(config)
    modules = kinds.modules(study, of("profile", "nf4", runtime="graph"))
    assert modules == ["runner.child", "measure.diagnostics.profile", "models.precisions.four_bit", "runtimes.graph"]
    assert "models.precisions.llm_int8" in kinds.modules(study, of("quality", "llm-int8-t2.5"))
    panel = kinds.records(study, "panel")[0]
    own = ["models.precisions.dense", "runtimes.generate", "runtimes.graph", "models.precisions.llm_int8"]
    assert kinds.modules(study, panel) == ["runner.child", "measure.panel", *own]
    codes = [kinds.code_of(study, panel)]  # facts of a runtime and of a kernel that are not those of its name
    for registry, name, field in ((runtimes.MODULES, "generate", "own_cache"), (attention.CHOICES, "eager", "backend")):
        monkeypatch.setitem(registry, name, replace(registry[name], **{field: "another"}))
        codes.append(kinds.code_of(study, panel))
    assert len(set(codes)) == 3


def test_jobs_start_in_a_random_but_repeatable_order_after_the_probes_and_the_first_panel(everything):
    def order(config: dict) -> list[Identity]:
        study = study_config.complete(config)
        return sorted(kinds.records(study), key=lambda one: -kinds.start_order(study, one))

    first = order(everything)
    assert first == order(copy.deepcopy(everything))
    assert [one.kind for one in first[:17]] == 15 * ["probe"] + 2 * ["panel"]  # of two models
    assert {one.repeat for one in first[15:17]} == {0}
    rest = [one.kind for one in first[17:]]
    assert rest != sorted(rest) and len(set(rest[:10])) > 2
    assert order(tiny.put(everything, "speed.order_seed", 1)) != first


# ------------------------------------------------------------------------------------------------- what a job requests


@pytest.mark.parametrize(
    ("shape", "precision", "gib", "expected"),
    [
        ("llama-2-7b", "bf16", 80, 1),  # 12.6 GiB of weights
        ("llama-2-70b", "bf16", 80, 2),  # 128.5 GiB
        ("llama-2-70b", "bf16", 40, 4),
        ("llama-2-70b", "nf4", 80, 1),  # 36 GiB
        ("llama-2-70b", "llm-int8", 80, 1),  # 64 GiB
        ("llama-2-70b", "fp32", 80, 4),  # 257 GiB
    ],
)
def test_a_model_requests_as_many_gpus_as_hold_it(config, shape, precision, gib, expected):
    config |= {"device": "cuda", "jobs": {"gpu_memory_gib": gib}}
    study = study_config.complete(tiny.put(config, "models.1.source.shape", shape))
    assert kinds.gpus(study, of("probe", precision)) == expected
    assert kinds.gpus(study, of("panel", "nf4")) == kinds.gpus(study, of("probe"))  # beside bf16
    assert kinds.gpus(study_config.complete(config | {"device": "cpu"}), of("probe", precision)) == 0


def test_host_memory_holds_the_weights_and_grows_with_the_attempt(config):
    def requested(precision: str = "bf16", attempt: int = 1, kind: str = "probe") -> int:
        return kinds.memory_mb(study_config.complete(config), of(kind, precision, "real"), attempt)

    assert requested() > 2 * 2e9 * 2 / 2**20  # 2 000 million parameters in bf16, twice
    assert requested("fp32") > requested()
    assert requested(attempt=3) == pytest.approx(3 * requested(), abs=3)
    weights = 2e9 * (4 + 2 + 1) / 2**20  # of fp32, bf16 and llm-int8; a panel holds them for eager and for sdpa
    assert requested(kind="panel") == pytest.approx(2500 + 2 * weights + 2 * 2e9 * 2 / 2**20, rel=0.01)
    config["models"][0]["parameters_millions"] = None
    assert requested() > 2500  # nothing says how large it is: still a request
    config["device"] = "cuda"
    assert requested() < 20_000  # one shard at a time passes through


def test_the_default_study_requests_what_a_small_machine_has(repository):
    study = study_config.complete(yaml.safe_load((repository / "config" / "config.yaml").read_text()))
    assert 1e6 * max(kinds.memory_mb(study, one) for one in kinds.records(study)) < 4 * 2**30
    # room to write the record of a timeout
    assert kinds.limit_seconds(study) == 60 * study.jobs["minutes"]
    assert kinds.runtime_minutes(study) > study.jobs["minutes"]
    study.jobs["minutes"] = 0.4  # on a partition for short jobs
    assert kinds.runtime_minutes(study) == 1


# ------------------------------------------------------------------------------------------------------------ mistakes


def fits(config: dict) -> None:
    kinds.check(study_config.complete(config))


def mistake(config: dict) -> str:
    with pytest.raises(StudyError) as caught:
        fits(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("profile.models", ["llama"], "diagnostics.profile.models: 'llama' is not known; allowed: real, random"),
        ("tasks.tasks", [], "diagnostics.tasks.tasks: [] names nothing to measure"),
        ("tasks.include_path", "nowhere", "diagnostics.tasks.include_path: 'nowhere' does not exist"),
        ("capacity.enabled", False, "diagnostics.capacity.verify.enabled: true without diagnostics.capacity.enabled"),
        ("capacity.verify.context", 99, "diagnostics.capacity.verify.context: 99 is not predicted; allowed: 2048, "),
        ("capacity.verify.models", ["other"], "diagnostics.capacity.verify.models: 'other' is not known"),
    ],
)
def test_mistakes_in_diagnostics_are_one_line(everything, path, value, message):
    fits(everything)
    assert message in mistake(tiny.put(everything, f"diagnostics.{path}", value))


@pytest.mark.parametrize(
    ("path", "longest", "message"),
    [
        ("speed.workloads.0.new_tokens", 120, "speed.workloads: prompt_tokens 80 + new_tokens 121 = 201 tokens"),
        ("probe.workloads.0.new_tokens", 120, "probe.workloads: prompt_tokens 80 + new_tokens 121 = 201 tokens"),
        ("quality.protocols.0.window", 200, "quality.protocols: window 201"),
        ("generations.new_tokens", 200, "generations.new_tokens: new_tokens 201"),
        ("diagnostics.invariance.prompt_tokens", 200, "diagnostics.invariance.prompt_tokens: prompt_tokens 201"),
        # two tokens, the prefill's and one more, come before the steps that are profiled
        ("diagnostics.profile.steps", 134, "diagnostics.profile.steps: prompt_tokens 64 + steps 135 + first tokens 2"),
    ],
)
def test_what_is_longer_than_the_context_is_refused(config, path, longest, message):
    workloads = [{"batch": 1, "prompt_tokens": 80, "new_tokens": 8}]
    config |= {"speed": {"workloads": workloads}, "probe": {"workloads": copy.deepcopy(workloads)}}
    config["quality"] = {"protocols": [{"window": 64, "stride": 64}]}
    config["diagnostics"] = {name: {"enabled": True, "prompt_tokens": 64} for name in ("profile", "invariance")}
    fits(tiny.put(tiny.put(config, "models.0.context", 200), path, longest))
    found = mistake(tiny.put(config, path, longest + 1))
    assert message in found and "model 'real' has a context of 200 tokens" in found


def test_each_model_must_hold_what_is_measured_on_it_alone(config):
    config["quality"] = {"protocols": [{"window": 64, "stride": 64}]}
    config["models"][0] |= {"context": 100, "workloads": [{"batch": 1, "prompt_tokens": 50, "new_tokens": 50}]}
    profile = {"enabled": True, "prompt_tokens": 300}
    config["diagnostics"] = {"profile": profile | {"enabled": False}}
    fits(config)  # the study's 128 + 32 tokens do not concern it, nor what is off
    config["diagnostics"] = {"profile": profile | {"models": ["random"]}}
    fits(config)
    assert "diagnostics.profile" in mistake(config | {"diagnostics": {"profile": profile}})
    assert "101 tokens, but model 'real'" in mistake(tiny.put(config, "models.0.workloads.0.new_tokens", 51))


def test_a_shape_and_a_local_folder_know_their_context(config, tmp_path):
    workload = [{"batch": 1, "prompt_tokens": 4096, "new_tokens": 2}]
    assert "4098 tokens, but model 'random'" in mistake(config | {"speed": {"workloads": workload}})
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 512}')
    tiny.put(config, "models.0.source.folder", str(tmp_path))
    assert "window 1024, but model 'real' has a context of 512" in mistake(config)
    (tmp_path / "config.json").write_text("{}")
    fits(config)  # fetching will know


@pytest.mark.parametrize(
    ("device", "cores", "at_once", "expected"),
    [
        ("cpu", 8, 4, 8),
        ("cuda", 8, 1, 8),
        ("cuda", 8, 2, 4),
        ("auto", 8, 2, 4),
        ("cuda", 1, 4, 1),
        ("cuda", None, 0, 4),
    ],
)
def test_jobs_on_several_gpus_share_the_cores(config, device, cores, at_once, expected):
    config |= {"device": device, "runtimes": ["generate"]}
    assert kinds.threads(study_config.complete(config), cores, at_once) == expected
    assert kinds.threads(study_config.complete(config | {"threads": 3}), cores, at_once) == 3
