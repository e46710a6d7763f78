"""Latency: what is stamped, how often, and what a record keeps apart. No assertion on absolute times."""

import statistics
import sys

import pytest
import tiny
import torch
from llmstudy.errors import Unsupported
from llmstudy.measure import bandwidth, conditions, energy, gpu, measure, prompts
from llmstudy.measure import speed as latency
from llmstudy.runtimes.base import PrepareInfo, Timeline

WORKLOAD = {"batch": 2, "prompt_tokens": 9, "new_tokens": 4}


@pytest.fixture(autouse=True)
def small_copies(monkeypatch):
    monkeypatch.setitem(bandwidth.COPY_BYTES, "cpu", 2**20)


@pytest.fixture
def session(tiny_weights, tiny_corpus, tmp_path):
    def session(**changes):
        saved = []
        one = tiny.session(
            tiny.job("speed", tiny_weights, changes.pop("corpus", tiny_corpus), **changes),
            tmp_path / "artifacts",
            lambda samples: saved.append(len(samples["workloads"])),
        )
        one.saved = saved
        return one

    return session


class Clockwork:
    """A runtime that answers at once with the stamps that it is told."""

    stamps = [0.010, 0.012, 0.015, 0.019]

    def __init__(self, model, batch, prompt_tokens, new_tokens):
        self.shape = (batch, new_tokens)
        self.closed = False

    def prepare(self):
        return PrepareInfo(compile_s=1.25)

    def generate(self, input_ids):
        return Timeline(tokens=torch.zeros(self.shape, dtype=torch.int64), token_s=self.stamps[: self.shape[1]])

    def close(self):
        self.closed = True


def test_a_record_keeps_load_cold_call_and_steady_state_apart(session):
    samples = measure(session(workloads=[WORKLOAD, WORKLOAD | {"batch": 1, "new_tokens": 2}], minimum_runs=4))
    assert samples["load_s"] > 0 and samples["bandwidth_gb_s"] > 0
    for entry, workload in zip(samples["workloads"], (4, 2)):
        assert entry["status"] == "ok"
        assert entry["cold_ms"] > 0 and entry["compile_s"] == 0
        assert 2 <= len(entry["warmup_e2e_ms"]) <= 3
        assert len(entry["runs"]) == 4
        for run in entry["runs"]:
            assert len(run["itl_ms"]) == workload - 1  # a time for every token after the first
            assert 0 < run["ttft_ms"] < run["e2e_ms"]
            assert run["ttft_ms"] + sum(run["itl_ms"]) <= run["e2e_ms"]
    assert samples["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # K and V · layers · KV heads · head size · fp32


def test_step_bytes_leave_the_embedding_table_out(session):
    samples = measure(session())
    embedding = tiny.VOCABULARY * 64 * 4
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64  # q, k, v, o; gate, up, down; two norms
    assert samples["step_weight_bytes"] == 4 * (2 * layer + 64) + embedding  # the head, as large as the embedding


def test_ttft_and_tpot_come_from_the_stamps_of_one_call():
    run = latency.run_once(Clockwork(None, **WORKLOAD), None, WORKLOAD)
    assert run["ttft_ms"] == 10.0
    assert run["itl_ms"] == [2.0, 3.0, 4.0]
    assert statistics.fmean(run["itl_ms"]) == pytest.approx(1e3 * (0.019 - 0.010) / 3)  # (t_last − t_first)/(n − 1)


@pytest.mark.parametrize("new_tokens", [3, 5])
def test_a_call_with_another_number_of_tokens_is_an_error(new_tokens):
    with pytest.raises(RuntimeError, match="instead of"):
        latency.run_once(Clockwork(None, **(WORKLOAD | {"new_tokens": new_tokens})), None, WORKLOAD)


def test_compile_time_is_kept(session, monkeypatch):
    monkeypatch.setattr(latency.runtimes, "get", lambda name: Clockwork)
    monkeypatch.setattr(latency, "prove_attention", lambda *_: ["sdpa"])
    entry = measure(session())["workloads"][0]
    assert entry["compile_s"] == 1.25 and entry["runs"][0]["ttft_ms"] == 10.0


def test_one_workload_that_does_not_fit_costs_no_other(session, monkeypatch):
    runtimes = []

    class Full(Clockwork):
        def prepare(self):
            runtimes.append(self)
            if self.shape[0] == 7:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().prepare()

    monkeypatch.setattr(latency.runtimes, "get", lambda name: Full)
    monkeypatch.setattr(latency, "prove_attention", lambda *_: ["sdpa"])
    monkeypatch.setattr(latency, "prompt_batch", lambda session, batch, tokens: torch.zeros(batch, tokens))
    one = session(workloads=[WORKLOAD, WORKLOAD | {"batch": 7}, WORKLOAD | {"batch": 1}])
    entries = measure(one)["workloads"]
    assert [entry["status"] for entry in entries] == ["ok", "oom", "ok"]
    assert entries[1]["reason"] == "CUDA out of memory" and "runs" not in entries[1]
    assert one.saved == [0, 1, 2, 3]  # after loading and after every workload
    assert all(runtime.closed for runtime in runtimes)  # the one that failed too


def test_attention_that_did_not_run_makes_the_workload_unsupported(session, monkeypatch):
    def refuse(*_):
        raise Unsupported("attention 'sdpa-flash': math ran instead")

    monkeypatch.setattr(latency, "prove_attention", refuse)
    entry = measure(session())["workloads"][0]
    assert entry["status"] == "unsupported" and "math" in entry["reason"]


def test_warm_up_stops_when_the_last_calls_agree():
    times = iter([100.0, 50.0, 10.0, 10.1, 10.2, 99.0])
    settings = {"minimum": 3, "tolerance": 0.05, "maximum": 10}
    assert latency.warm_up(lambda: {"e2e_ms": next(times)}, settings) == ([100.0, 50.0, 10.0, 10.1, 10.2], True)


def test_warm_up_gives_up_at_its_maximum():
    times = iter([1.0, 2.0, 1.0, 2.0, 1.0, 2.0])
    settings = {"minimum": 2, "tolerance": 0.05, "maximum": 4}
    assert latency.warm_up(lambda: {"e2e_ms": next(times)}, settings) == ([1.0, 2.0, 1.0, 2.0], False)


def test_runs_go_on_until_a_count_and_a_duration_are_reached(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run():
        now[0] += 1.0
        return {"e2e_ms": 1000.0}

    for seconds, expected in [(0, 3), (2.5, 3), (10, 10), (10.5, 11)]:
        assert len(latency.timed_runs(run, {"minimum_runs": 3, "minimum_seconds": seconds})) == expected


def test_a_run_that_is_not_steady_is_flagged(session):
    one = session(warmup={"minimum": 2, "maximum": 2, "tolerance": 1e-9})
    assert "not steady" in measure(one)["workloads"][0]["flags"]


QUIET = {"load_average": 0.5, "cores": 8}


@pytest.mark.parametrize(
    ("before", "after", "steady", "told"),
    [
        ({}, {}, True, []),
        ({}, {}, False, ["not steady"]),
        ({}, {"foreign_processes": 2}, True, ["2 other GPU processes"]),
        ({"foreign_processes": 1}, {"foreign_processes": 0}, True, ["1 other GPU process"]),
        ({}, {"throttle_reasons": 0x1}, True, []),  # idle is no disturbance
        ({"throttle_reasons": 0x4}, {"throttle_reasons": 0x40}, True,
         ["throttled: power cap", "throttled: hardware thermal slowdown"]),
        ({"sm_clock_mhz": 1980}, {"sm_clock_mhz": 1800}, True, []),
        ({"sm_clock_mhz": 1980}, {"sm_clock_mhz": 1700}, True, ["SM clock fell from 1980 to 1700 MHz"]),
    ],
)  # fmt: skip
def test_disturbances_are_flagged(before, after, steady, told):
    assert conditions.flags(QUIET | {"gpu": before}, QUIET | {"gpu": after}, steady) == told
    if not before | after:
        assert conditions.flags(QUIET, QUIET, steady) == told  # no GPU


def test_more_load_than_our_own_threads_is_somebody_else_s():
    assert conditions.busy({"load_average": 4.9, "cores": 8}, threads=4) == []
    assert conditions.busy({"load_average": 5.1, "cores": 8}, threads=4) == ["load average 5.1 on 8 cores"]


def test_bandwidth_counts_bytes_read_and_written_in_the_fastest_copy(monkeypatch):
    seconds = [0.7, 0.9, 0.5, 0.6, 0.8, 3.0, 0.7, 0.9, 0.6]
    clock = iter(stamp for begin, took in enumerate(seconds) for stamp in (10 * begin, 10 * begin + took))
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(clock))
    assert bandwidth.copy_bandwidth_gb_s("cpu", lambda: None) == pytest.approx(2 * 2**20 / 0.5 / 1e9)


def test_energy_is_what_the_work_added_to_idle(monkeypatch):
    now = {"s": 0.0, "j": 0.0}

    def work(seconds: float, watts: float):
        now["s"] += seconds
        now["j"] += seconds * watts

    monkeypatch.setattr(energy.time, "perf_counter", lambda: now["s"])
    monkeypatch.setattr(energy, "_rapl_counter", lambda: energy.Counter("test", lambda: [now["j"]], [None]))
    meter = energy.EnergyMeter("cpu", sleep=lambda seconds: work(seconds, 20.0))
    meter.start()
    work(3.0, 120.0)
    assert meter.joules() == pytest.approx(300.0)
    meter.start()
    work(3.0, 5.0)
    assert meter.joules() is None  # no more than idling: lost in the noise, and certainly not 0 J


def test_without_a_counter_there_is_no_energy(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    meter = energy.EnergyMeter("cpu")
    meter.start()
    assert meter.joules() is None and meter.source is None


@pytest.fixture
def rapl(monkeypatch, tmp_path):
    """Set a counter of a fake powercap folder, microjoules; ``most`` is where it begins again."""
    monkeypatch.setattr(energy, "RAPL", tmp_path)

    def write(name, value, most=None):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "energy_uj").write_text(f"{value}\n")
        if most is not None:
            (tmp_path / name / "max_energy_range_uj").write_text(f"{most}\n")

    return write


def test_rapl_counts_packages_alone(rapl):
    for name, value in {"intel-rapl:0": 5_000_000, "intel-rapl:1": 2_000_000, "intel-rapl:0:0": 999_000_000}.items():
        rapl(name, value)
    counter = energy._rapl_counter()
    assert counter.read() == [5.0, 2.0] and counter.source == "rapl"


def test_a_rapl_counter_that_begins_again_is_counted_on(rapl):
    """Package 0 goes from 260 J over its range of 262 J to 8 J: 10 J; package 1 from 2 J to 5 J: 3 J."""
    rapl("intel-rapl:0", 260_000_000, most=262_000_000)
    rapl("intel-rapl:1", 2_000_000, most=262_000_000)
    meter = energy.EnergyMeter("cpu", sleep=lambda seconds: None)
    meter.start()
    rapl("intel-rapl:0", 8_000_000)
    rapl("intel-rapl:1", 5_000_000)
    assert meter.idle_w == 0 and meter.joules() == pytest.approx(13.0)


def test_a_rapl_counter_that_begins_again_while_idle_is_measured(rapl):
    rapl("intel-rapl:0", 261_000_000, most=262_000_000)
    meter = energy.EnergyMeter("cpu", sleep=lambda seconds: rapl("intel-rapl:0", 1_000_000))
    assert meter.idle_w > 0
    assert energy.Counter("rapl", lambda: [1.0], [262.0]).since([261.0]) == pytest.approx(2.0)


def test_without_its_range_a_counter_that_begins_again_is_no_energy(rapl):
    rapl("intel-rapl:0", 260_000_000)
    meter = energy.EnergyMeter("cpu", sleep=lambda seconds: None)
    meter.start()
    rapl("intel-rapl:0", 261_000_000)
    assert meter.joules() == pytest.approx(1.0)
    rapl("intel-rapl:0", 8_000_000)
    assert meter.joules() is None
    rapl("intel-rapl:0", 260_000_000)
    meter = energy.EnergyMeter("cpu", sleep=lambda seconds: rapl("intel-rapl:0", 1))
    meter.start()
    assert meter.joules() is None  # idle power is not known


class FakeNvml:
    """Two GPUs as the NVML library shows them; one reading is not available on this board."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid):
        if uuid not in (known := {"GPU-a": 0, "GPU-b": 1, "MIG-c": 2}):
            raise self.NVMLError
        return known[uuid]

    def nvmlSystemGetDriverVersion(self):
        return "555.1"

    def nvmlDeviceGetTotalEnergyConsumption(self, device):
        return 1500 + device

    def nvmlDeviceGetClockInfo(self, device, clock):
        return 1000 * clock

    def nvmlDeviceGetTemperature(self, device, sensor):
        raise self.NVMLError

    def nvmlDeviceGetPowerUsage(self, device):
        return 250_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device):
        return 4

    def nvmlDeviceGetComputeRunningProcesses(self, device):
        return [type("P", (), {"pid": pid, "usedGpuMemory": size}) for pid, size in ((7, 2**31), (8, None))]


def test_the_library_has_what_is_read_from_it():
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert len(names) > 10 and [name for name in names if not hasattr(pynvml, name)] == []


def test_nvml_readings_come_in_units_and_a_missing_one_is_left_out(monkeypatch):
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with gpu.handle() as nvml:
        assert nvml.driver == "555.1"
        assert nvml.energy_j() == pytest.approx(1.501)  # the first visible one, millijoules
        assert nvml.process_memory_gib(7) == 2.0 and nvml.process_memory_gib(8) is None
        state = nvml.state(7)
    assert state == {
        "sm_clock_mhz": 1000,
        "memory_clock_mhz": 2000,
        "power_w": 250.0,
        "throttle_reasons": 4,
        "foreign_processes": 1,
    }
    assert library.open == 0
    assert conditions.snapshot()["gpu"]["foreign_processes"] == 2


def test_the_gpu_is_the_one_that_cuda_shows(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())

    def read(visible):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with gpu.handle() as nvml:
            return nvml.device

    assert [read("1,0"), read("GPU-b"), read("MIG-c"), read(""), read("GPU-unknown")] == [1, 1, 2, 0, 0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("P", (), {"uuid": "b"}))
    assert read("0") == 1  # CUDA's first is NVML's second
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("P", (), {"uuid": "c"}))
    assert read("0") == 2


# ----------------------------------------------------------------------------------------------------------- prompts


def test_every_row_of_a_batch_begins_with_another_document(session, tiny_weights):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_weights.parent / "source")
    ids = prompts.prompt_batch(session(), 3, 20)
    assert ids.shape == (3, 20) and ids.dtype == torch.int64
    for row, text in zip(ids.tolist(), tiny.DOCUMENTS):
        assert row == tokenizer(text)["input_ids"][:20]


def test_a_short_document_goes_on_with_the_next(session, tmp_path, tiny_weights):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_weights.parent / "source")
    one = session(corpus=tiny.save_corpus(tmp_path / "corpus", ["ab", "cd", "ef"]))
    ids = [tokenizer(text)["input_ids"] for text in ("ab", "cd", "ef")]
    total = sum(map(len, ids))
    found = prompts.prompt_batch(one, 2, total).tolist()
    assert found == [ids[0] + ids[1] + ids[2], ids[1] + ids[2] + ids[0]]


def test_a_corpus_too_small_for_the_batch_or_the_prompt_is_told(session, tmp_path):
    one = session(corpus=tiny.save_corpus(tmp_path / "corpus", ["ab", "cd"]))
    entries = measure(session(corpus=tmp_path / "corpus", workloads=[WORKLOAD | {"batch": 3}, WORKLOAD]))["workloads"]
    assert entries[0]["reason"] == "corpus 'tiny-text': 2 documents for batch 3; every row needs its own"
    assert "tokens for a prompt of 9" in entries[1]["reason"]
    assert one.device == "cpu"


def test_a_missing_corpus_says_how_to_fetch_it(session, tmp_path):
    entry = measure(session(corpus=tmp_path / "nowhere"))["workloads"][0]
    assert entry["status"] == "error" and "snakemake --cores 1" in entry["reason"] and "text.jsonl" in entry["reason"]


def test_threads_are_the_configured_else_the_granted_else_all(monkeypatch):
    from llmstudy.measure.session import thread_count

    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    assert thread_count(3) == 3 and thread_count(None) == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert thread_count(3) == 3 and thread_count(None) == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert thread_count(None) == 8


def test_devices():
    from llmstudy.measure.session import resolve_device

    assert resolve_device("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto") == "cpu"
        with pytest.raises(Unsupported, match="'cuda'"):
            resolve_device("cuda")


def test_a_precision_that_does_not_run_on_the_device_is_unsupported(session, monkeypatch):
    import dataclasses

    one = session()
    monkeypatch.setitem(one.__dict__, "precision", dataclasses.replace(one.precision, devices=("cuda",)))
    with pytest.raises(Unsupported, match="'fp32': not available on cpu; allowed: cuda"):
        one.load_model()


def test_a_missing_package_is_unsupported(session):
    with pytest.raises(Unsupported, match="[Ff]lash"):
        session(attention="flash_attention_2").load_model()


def test_an_unknown_kind_is_told(session):
    from llmstudy.errors import StudyError

    one = session()
    one.job["identity"]["kind"] = "speed"
    with pytest.raises(StudyError, match="'speed'.*latency, memory"):
        measure(one)
