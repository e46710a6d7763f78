"""From a config to measuring jobs: which there are, what each is told, what each asks of the scheduler."""

import copy

import pytest
import tiny
import yaml
from llmstudy import config as study_config
from llmstudy import plan
from llmstudy.plan import Measurement

KINDS = ("speed", "memory", "quality", "generations")


@pytest.fixture
def study():
    """A completed config: one real and one synthetic model, two attention kernels, two runtimes."""
    return study_config.complete(
        {
            "study": "tiny",
            "device": "cpu",
            "models": [
                {"name": "real", "parameters_millions": 2000, "source": {"type": "path", "folder": "weights"}},
                {
                    "name": "random",
                    "source": {"type": "synthetic", "shape": "llama-2-7b"},
                    "precisions": ["bf16", "nf4"],
                },
            ],
            "corpora": [
                {"name": "first", "source": {"type": "path", "file": "a.txt", "format": "txt"}},
                {"name": "second", "source": {"type": "path", "file": "b.txt", "format": "txt"}},
            ],
            "precisions": ["fp32", "bf16", "llm-int8"],
            "reference": "fp32",
            "attention": ["eager", "sdpa"],
            "runtimes": ["generate", "graph"],
            "speed": {"repeats": 2},
            "quality": {"rulers": ["fp4", "bf16"]},
        }
    )


def test_latency_is_measured_for_every_configuration_and_repeat(study):
    found = plan.measurements(study, "speed")
    # (attention eager, sdpa under the eager runtime; sdpa under graph) × repeats × (3 + 2 precisions)
    assert len(found) == 3 * 2 * 5 == len(set(found))
    assert {one.attention for one in found if one.runtime == "graph"} == {"sdpa"}
    assert {one.precision for one in found if one.model == "random"} == {"bf16", "nf4"}
    assert {one.repeat for one in found} == {0, 1}


def test_memory_is_measured_once_for_every_configuration(study):
    assert len(plan.measurements(study, "memory")) == 3 * 5


def test_quality_and_samples_are_measured_for_real_weights_alone(study):
    quality = plan.measurements(study, "quality")
    assert {one.model for one in quality} == {"real"}
    assert [one.precision for one in quality] == [
        "fp32",
        "bf16",
        "llm-int8",
        "fp4",
    ]  # a ruler once, and for quality alone
    assert {(one.attention, one.runtime) for one in quality} == {("sdpa", "generate")}
    assert [one.precision for one in plan.measurements(study, "generations")] == ["fp32", "bf16", "llm-int8"]
    study["generations"]["prompts"] = []
    assert plan.measurements(study, "generations") == []


def test_quality_attention_is_the_configured_one_or_the_last(study):
    study["attention"] = ["sdpa", "generate"]
    assert plan.quality_attention(study) == "eager"
    study["quality"]["attention"] = "sdpa-math"
    assert plan.quality_attention(study) == "sdpa-math"


def test_record_paths_are_unique_and_say_what_they_are(study):
    paths = [one.path("tiny") for kind in KINDS for one in plan.measurements(study, kind)]
    assert len(paths) == len(set(paths))
    one = Measurement("speed", "real", "llm-int8", "sdpa-math", "generate", 3)
    assert one.path("tiny") == "results/tiny/records/latency/real/llm-int8.sdpa-math.generate.r3.json"


def test_a_job_is_told_who_it_is(study):
    told = plan.job(study, Measurement("quality", "real", "bf16", "sdpa", "generate"))
    assert told["identity"] == {
        "study": "tiny",
        "kind": "quality",
        "model": "real",
        "weights": "real",
        "precision": "bf16",
        "attention": "sdpa",
        "runtime": "generate",
        "repeat": 0,
    }
    assert told["corpora"] == {"first": "resources/corpora/first"} and told["prompt_corpus"] == "first"
    study["quality"]["corpora"] = ["second"]
    folders = plan.job(study, Measurement("quality", "real", "bf16", "sdpa", "generate"))["corpora"]
    assert folders == {name: f"resources/corpora/{name}" for name in ("second", "first")}
    study["quality"]["corpora"] = None
    assert told["settings"]["corpora"] == ["first"]
    assert (
        plan.job(study, Measurement("speed", "random", "bf16", "sdpa", "generate"))["identity"]["weights"]
        == "synthetic"
    )
    assert "limits" not in told and plan.limit_seconds(study) == 30 * 60


def all_jobs(config: dict) -> dict:
    """What every measuring job is told, by its measurement; the reference's job has one name whatever it measures."""
    jobs = {one: plan.job(config, one) for kind in KINDS for one in plan.measurements(config, kind)}
    reference = Measurement("reference", "real", config["reference"], plan.quality_attention(config), "eager")
    return jobs | {Measurement("reference", "real", "", "", ""): plan.job(config, reference)}


@pytest.mark.parametrize(
    ("path", "value", "concerned"),
    [
        ("latency.minimum_runs", 99, {"speed"}),
        ("latency.warmup.maximum", 99, {"speed"}),
        ("latency.workloads", [{"batch": 3, "prompt_tokens": 5, "new_tokens": 7}], {"speed", "memory"}),
        ("memory.workloads", [{"batch": 3, "prompt_tokens": 5, "new_tokens": 7}], {"memory"}),
        ("quality.bos", True, {"quality", "reference"}),
        ("quality.kl_tokens", 5, {"quality", "reference"}),
        ("quality.documents", 5, {"quality", "reference"}),
        ("quality.protocols", [{"window": 8, "stride": 8}], {"quality", "reference"}),
        ("quality.corpora", ["second"], {"quality", "reference"}),
        # the distances of all precisions are to the reference
        ("reference", "bf16", {"quality", "reference"}),
        ("generations.new_tokens", 5, {"generations"}),
        ("generations.prompts", ["Twice"], {"generations"}),
        ("threads", 3, {"speed", "memory", "quality", "generations", "reference"}),
        # what is judged or drawn later, and what else is measured, is no measuring job's business
        ("precisions", ["fp32", "bf16", "llm-int8", "nf4"], set()),
        ("attention", ["eager", "sdpa-math", "sdpa"], set()),
        ("latency.repeats", 9, set()),
        ("latency.order_seed", 9, set()),
        ("limits.memory_gib", 9, set()),
        # what a measurement may take changes no number of it
        ("jobs.minutes", 3, set()),
        ("jobs.oom_attempts", 3, set()),
        # a protocol that is not compared token by token
        ("quality.protocols", [{"window": 1024, "stride": 512}, {"window": 8, "stride": 8}], {"quality"}),
        ("verdict.smallest_effect_percent.tpot", 9, set()),
        ("jobs.gpu_memory_gib", 9, set()),
        ("models.0.note", "a note", set()),
        ("models.0.parameters_millions", 5, set()),
    ],
)
def test_a_change_concerns_only_what_depends_on_it(study, path, value, concerned):
    before = all_jobs(study)
    changed = copy.deepcopy(study)
    place = changed
    *above, last = path.split(".")
    for part in above:
        place = place[int(part) if part.isdigit() else part]
    assert place[last] != value
    place[last] = value
    after = all_jobs(changed)
    assert {one.kind for one in before if one in after and before[one] != after[one]} == concerned


def test_a_models_own_workloads_replace_the_studys(study):
    own = [{"batch": 3, "prompt_tokens": 5, "new_tokens": 7}]
    study["models"][1]["workloads"] = own
    for kind in ("speed", "memory"):
        assert plan.job(study, Measurement(kind, "random", "bf16", "sdpa", "generate"))["settings"]["workloads"] == own
        assert plan.job(study, Measurement(kind, "real", "bf16", "sdpa", "generate"))["settings"]["workloads"] != own


def test_a_measurement_depends_on_its_own_precision_and_runtime_alone(study):
    def names(*identity):
        return {path.split("llmstudy/")[1] for path in plan.library_files(Measurement(*identity))}

    int8 = names("speed", "real", "llm-int8", "sdpa", "generate")
    assert {
        "precisions/llm_int8.py",
        "measure/latency.py",
        "runtimes/eager.py",
        "steps.py",
        "child.py",
        "worker.py",
    } <= int8
    assert not {"precisions/four_bit.py", "measure/quality.py", "runtimes/graph.py", "plan.py", "config.py"} & int8
    assert not {name for name in int8 if name.startswith("tables/")}
    assert "runtimes/graph_engine/step.py" in names("speed", "real", "bf16", "sdpa", "graph")
    assert "precisions/four_bit.py" in names("quality", "real", "nf4", "sdpa", "generate")
    assert "measure/generation.py" in names("generations", "real", "nf4", "sdpa", "generate")


def test_jobs_start_in_a_random_but_repeatable_order(study):
    found = plan.measurements(study, "speed")
    order = [plan.start_order(study, one) for one in found]
    assert order == [plan.start_order(copy.deepcopy(study), one) for one in found]
    assert len(set(order)) == len(order) and order != sorted(order)
    study["speed"]["order_seed"] += 1
    assert [plan.start_order(study, one) for one in found] != order


@pytest.mark.parametrize("shape", ["llama-2-7b", "llama-2-13b", "llama-2-70b"])
def test_counted_parameters_are_those_of_the_architecture(shape):
    from llmstudy.fetch.synthetic import llama_config, parameter_shapes

    counted = sum(_product(sizes) for sizes in parameter_shapes(llama_config(shape)).values())
    assert plan.shape_parameters(shape) == counted


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4, "head_dim": 32}])
def test_counted_parameters_know_tied_heads_and_odd_head_sizes(changes):
    from llmstudy.fetch.synthetic import llama_config, parameter_shapes

    shape = tiny.SHAPE | changes
    assert plan.shape_parameters(shape) == sum(map(_product, parameter_shapes(llama_config(shape)).values()))


def _product(sizes):
    total = 1
    for size in sizes:
        total *= size
    return total


def gpu_study(study, shape: str, gib: float) -> dict:
    study["device"] = "cuda"
    study["models"][1]["source"]["shape"] = shape
    study["jobs"]["gpu_memory_gib"] = gib
    return study


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
def test_a_model_asks_for_as_many_gpus_as_hold_it(study, shape, precision, gib, expected):
    config = gpu_study(study, shape, gib)
    assert plan.gpus(config, Measurement("speed", "random", precision, "sdpa", "generate")) == expected


def test_a_cpu_study_asks_for_no_gpu(study):
    assert plan.gpus(study, Measurement("speed", "random", "bf16", "sdpa", "generate")) == 0


def test_host_memory_holds_the_weights_and_grows_with_the_attempt(study):
    bf16, fp32 = (Measurement("speed", "real", name, "sdpa", "generate") for name in ("bf16", "fp32"))
    weights_mb = 2e9 * 2 / 2**20  # 2 000 million parameters in bf16
    assert plan.memory_mb(study, bf16) > 2 * weights_mb
    assert plan.memory_mb(study, fp32) > plan.memory_mb(study, bf16)
    assert plan.memory_mb(study, bf16, attempt=3) == pytest.approx(3 * plan.memory_mb(study, bf16), abs=3)
    study["models"][0]["parameters_millions"] = None
    assert plan.memory_mb(study, bf16) > 2500  # nothing says how large it is: still a request
    study["device"] = "cuda"
    assert plan.memory_mb(study, bf16) < 20_000  # one shard at a time passes through


def test_the_default_study_asks_for_what_a_small_machine_has(repository):
    config = study_config.complete(yaml.safe_load((repository / "config" / "config.yaml").read_text()))
    asked = [plan.memory_mb(config, one) for kind in KINDS for one in plan.measurements(config, kind)]
    assert max(asked) < 4096


def test_wall_time_leaves_room_to_write_the_timeout_record(study):
    assert plan.runtime_minutes(study) > study["jobs"]["minutes"]


def test_the_focus_of_the_summary_is_the_first_of_everything(study):
    assert plan.headline(study)["real"] == {
        "batch": 1,
        "prompt_tokens": 128,
        "new_tokens": 32,
        "reference": "fp32",
        "corpus": "first",
        "protocol": "w1024-s512",
    }
    # a model that leaves the study's reference out
    assert plan.headline(study)["random"]["reference"] == "bf16"
