"""Which extras a study measures, and what their jobs are told."""

import extra_jobs
import pytest
import tiny
from llmstudy import config, extras
from llmstudy.errors import StudyError
from llmstudy.measure import MODULES


def completed(folder, **parts):
    study = tiny.study(folder) | {"extras": {name: {"enabled": True} | part for name, part in parts.items()}}
    return config.complete(study)


def test_everything_is_off_by_default(tmp_path):
    study = config.complete(tiny.study(tmp_path))
    assert extras.enabled(study) == []
    assert all(extras.measurements(study, kind) == [] for kind in extras.KINDS)
    assert set(extras.KINDS) <= set(MODULES)


def test_every_extra_has_its_records(tmp_path):
    study = completed(tmp_path, **{kind: {} for kind in extras.KINDS}) | {"attention": ["eager", "sdpa"]}
    paths = {kind: [one.path("tiny") for one in extras.measurements(study, kind)] for kind in extras.KINDS}
    root = "results/tiny/records"
    assert paths["outliers"] == [f"{root}/outliers/tiny-llama/fp32.sdpa.generate.r0.json"]
    assert paths["sensitivity"] == [f"{root}/sensitivity/tiny-llama/fp32.sdpa.generate.r0.json"]
    assert paths["invariance"] == [
        f"{root}/invariance/tiny-llama/{name}.sdpa.generate.r0.json" for name in ("fp32", "bf16")
    ]
    assert paths["tasks"] == [f"{root}/tasks/tiny-llama/{name}.sdpa.generate.r0.json" for name in ("fp32", "bf16")]
    assert len(paths["profile"]) == 2  # precisions; another attention kernel is not profiled again
    assert paths["attention"] == [
        f"{root}/attention/tiny-llama/bf16.{name}.generate.r0.json" for name in ("eager", "sdpa")
    ]
    (sweep,) = extras.measurements(study, "sweep")
    assert extras.thresholds(study) == ["0", "2", "4", "6", "8", "inf"]
    assert extras.sweep_path(study, sweep, "2.5") == f"{root}/sweep/tiny-llama/llm-int8.sdpa.eager.t2.5.json"


def test_random_weights_have_a_profile_and_attention_alone(tmp_path):
    study = completed(tmp_path, **{kind: {} for kind in extras.KINDS})
    study["models"][0]["source"] = tiny.synthetic()
    measured = [kind for kind in extras.KINDS if extras.measurements(study, kind)]
    assert measured == ["profile", "attention"]


def test_a_sweep_scores_the_beginning_of_the_quality_text(tmp_path):
    study = completed(tmp_path, sweep={"tokens": 50})
    (sweep,) = extras.measurements(study, "sweep")
    settings = extras.sweep_job(study, sweep, "inf")["settings"]
    assert (settings["max_tokens"], settings["tokens_per_document"], settings["threshold"]) == (50, 60, "inf")
    study["quality"]["max_tokens"] = 40
    assert extras.settings(study, sweep)["max_tokens"] == 40


def test_a_job_names_only_what_its_numbers_depend_on(tmp_path):
    study = extra_jobs.config_of(tmp_path, "profile", steps=3)
    (first, *_) = extras.measurements(study, "profile")
    assert extras.job(study, first)["settings"] == {"batch": 1, "prompt_tokens": 32, "steps": 3}


@pytest.mark.parametrize("kind", ["profile", "attention"])
def test_an_expensive_extra_can_be_kept_to_some_models(tmp_path, kind):
    def measured(models):
        study = completed(tmp_path, **{kind: {"models": models}})
        second = study["models"][0] | {"name": "second"}
        return {one.model for one in extras.measurements(study | {"models": [*study["models"], second]}, kind)}

    first = completed(tmp_path)["models"][0]["name"]
    assert measured(None) == {first, "second"}
    assert measured(["second"]) == {"second"}


def test_a_task_job_is_told_how_to_ask(tmp_path):
    study = extra_jobs.config_of(tmp_path, "tasks", tasks=["quiz"], limit=9)
    job = extras.job(study, extras.measurements(study, "tasks")[1])
    assert job["identity"]["precision"] == "bf16"
    told = {"tasks": ["quiz"], "include_path": None, "limit": 9, "num_fewshot": 0, "batch_size": 8}
    assert job["settings"] == told


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"attention": {"kernels": ["flash"]}}, "extras.attention.kernels: 'flash' is not known; allowed: eager, sdpa"),
        ({"profile": {"models": ["llama"]}}, "extras.profile.models: 'llama' is not known; allowed: tiny-llama"),
        ({"tasks": {}}, "extras.tasks.tasks: [] names nothing to measure"),
        (
            {"tasks": {"tasks": ["quiz"], "include_path": "nowhere"}},
            "extras.tasks.include_path: 'nowhere' is not there",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, parts, message):
    with pytest.raises(StudyError, match=message.replace("[", r"\[")):
        extras.check(completed(tmp_path, **parts))


@pytest.mark.parametrize("part", [{"profile": {"stpes": 3}}, {"sweep": {"thresholds": ["six"]}}, {"sweeps": {}}])
def test_the_schema_refuses_what_it_does_not_know(tmp_path, part):
    with pytest.raises(StudyError, match="extras"):
        completed(tmp_path, **part)


def test_thresholds_stand_in_paths_without_an_exponent(tmp_path):
    study = completed(tmp_path, sweep={"thresholds": [1e-7, 1e16, 10.0, 2.5, 0, "inf", float("inf")]})
    assert extras.thresholds(study) == ["0.0000001", "10000000000000000", "10", "2.5", "0", "inf"]
