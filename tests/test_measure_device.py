"""Rates of the device, its NVML readings, and what is flagged as a disturbance."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from llmstudy.measure import conditions, device, probe
from llmstudy.runner import pool


def disturbed(seconds=10.0, others=0.0, before=None, after=None, cores=2) -> list[str]:
    """What disturbs a span in which this process works all the time and others work as many seconds of all cores."""
    states = [
        {"time_s": 50.0, "own_s": 7.0, "busy_s": 100.0},
        {"time_s": 50.0 + seconds, "own_s": 7.0 + seconds, "busy_s": 100.0 + seconds + others},
    ]
    return conditions.disturbances(*(one | ({"gpu": gpu} if gpu else {}) for one, gpu in zip(states, (before, after))))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"others": 3.9}, []),  # of 2 cores × 10 s
        ({"others": 4.2}, ["other work took 21 % of the cores"]),
        ({"others": 0.15, "seconds": 0.15}, []),  # too short for the kernel's clock
        ({"after": {"foreign_processes": 2}}, ["2 other GPU processes"]),
        ({"before": {"foreign_processes": 1}, "after": {"foreign_processes": 0}}, ["1 other GPU process"]),
        ({"before": {"throttle_reasons": 0x7}}, []),  # idle, set clocks and the power limit disturb nothing
        ({"before": {"throttle_reasons": 0x4}, "after": {"throttle_reasons": 0x44, "foreign_processes": None}},
         ["throttled: hardware thermal slowdown"]),
        ({"others": 20.0, "after": {"foreign_processes": 1, "throttle_reasons": 0x88}},
         ["other work took 100 % of the cores", "1 other GPU process", "throttled: hardware slowdown",
          "throttled: power brake"]),
    ],
)  # fmt: skip
def test_disturbances_are_flagged(monkeypatch, changes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert disturbed(**changes) == expected


def test_work_is_that_on_the_cores_of_this_process_without_idling(monkeypatch):
    lines = ["cpu  9 9 9 9 9 9 9 9 0 0", "cpu0 1 2 4 800 700 8 16 32 1 2", "cpu1 100 0 0 800 700 0 0 0 0 0", "intr 5"]
    monkeypatch.setattr(conditions.Path, "read_text", lambda path, encoding: "\n".join(lines))
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert conditions.busy_seconds() == pytest.approx(0.63)  # user, nice, system, interrupts, stolen; hundredths
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert conditions.busy_seconds() == pytest.approx(1.63)
    monkeypatch.undo()
    monkeypatch.setattr(conditions, "busy_seconds", lambda: None)  # another system than Linux
    assert conditions.disturbances(conditions.snapshot(), conditions.snapshot()) == []


def test_bandwidth_is_that_of_the_fastest_copy_and_of_the_fastest_read(monkeypatch):
    seconds = [0.7, 0.9, 0.5, 0.6, 0.8, 3.0, 0.7, 0.9, 0.6] + [0.4, 0.3, 0.2, 0.6, 0.8, 3.0, 0.7, 0.9, 0.6]
    clock = iter(stamp for begin, took in enumerate(seconds) for stamp in (10 * begin, 10 * begin + took))
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    monkeypatch.setitem(device.COPY_BYTES, "cpu", 2**20)
    found = device.bandwidth_gb_s("cpu", lambda: None)
    assert found["copy"] == pytest.approx(2 * 2**20 / 0.5 / 1e9)  # it reads and writes
    assert found["read"] == pytest.approx(2**20 / 0.2 / 1e9)


# --------------------------------------------------------------------------------------- a GPU that PyTorch cannot use


@pytest.fixture
def signs(monkeypatch, tmp_path):
    """A machine with a GPU of NVIDIA's, as far as its files say; torch is that of this environment."""
    monkeypatch.setattr(pool, "SIGNS", (str(tmp_path / "none"), str(tmp_path)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_gpu_that_pytorch_cannot_use_is_named(signs, library, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device.unused_gpu() == f"H100: PyTorch {torch.__version__} is a build without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert device.unused_gpu() == "H100: The NVIDIA driver on your system is too old (found version 11040)."
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "CUDA 13.0 of PyTorch" in device.unused_gpu()
    monkeypatch.setitem(sys.modules, "pynvml", None)  # the driver was replaced while it ran
    assert device.unused_gpu().startswith("a GPU that NVML does not show: ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.unused_gpu() is None


@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_a_gpu_that_is_hidden_or_absent_is_no_news(signs, monkeypatch, hidden):
    assert device.unused_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert device.unused_gpu() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(pool, "SIGNS", ())
    assert device.unused_gpu() is None


def test_a_study_on_the_cpu_beside_a_gpu_says_so(signs, measuring, capsys):
    for asked, said in (("auto", True), ("cpu", False)):
        session = measuring("probe", device=asked)
        assert ("unused_gpu" in session.provenance) is said
        assert ("warning: measures on the CPU although there is" in capsys.readouterr().out) is said


# --------------------------------------------------------------------------------------------------------------- NVML


class FakeNvml:
    """Three GPUs as the NVML library shows them; one reading is not available on this board."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    class NVMLError(Exception):
        pass

    def __init__(self):
        self.open = 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetCount(self):
        return 3

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMigMode(self, gpu):
        raise self.NVMLError

    def nvmlDeviceGetUUID(self, gpu):
        return f"GPU-{gpu}"

    def nvmlDeviceGetName(self, gpu):
        return "H100"

    def nvmlDeviceGetMemoryInfo(self, gpu):
        return SimpleNamespace(total=2**36)

    def nvmlSystemGetDriverVersion(self):
        return "555.1"

    def nvmlDeviceGetClockInfo(self, gpu, clock):
        return 1000 * clock

    def nvmlDeviceGetTemperature(self, gpu, sensor):
        raise self.NVMLError

    def nvmlDeviceGetPowerUsage(self, gpu):
        return 250_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return 4

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        return [SimpleNamespace(pid=os.getpid(), usedGpuMemory=2**31), SimpleNamespace(pid=-8, usedGpuMemory=None)]


@pytest.fixture
def library(monkeypatch):
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    yield library
    assert library.open == 0  # every handle was closed


def test_the_library_has_what_is_read_from_it():
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert len(names) > 9 and [name for name in names if not hasattr(pynvml, name)] == []


def test_nvml_readings_come_in_units_and_a_missing_one_is_left_out(library, monkeypatch):
    assert conditions.snapshot()["gpu"] == {
        "sm_clock_mhz": 1000,
        "power_w": 250.0,
        "throttle_reasons": 4,
        "foreign_processes": 1,
    }
    assert device.read_nvml(probe.process_bytes) == [2**31]
    assert device.read_nvml(lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, 0)) == []
    monkeypatch.setattr(library, "nvmlDeviceGetComputeRunningProcesses", lambda gpu: [])
    assert device.read_nvml(probe.process_bytes) == [None]  # a container's processes have other numbers outside
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device.read_nvml(probe.process_bytes) == [] and "gpu" not in conditions.snapshot()


def test_what_several_gpus_take_is_added_up(library, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert device.read_nvml(lambda nvml, gpu: gpu) == [2, 0]
    peak = probe.PeakProbe("cpu")
    peak.device = "cuda"
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda index: 10 + index)
    reading = peak.reading()
    assert (reading["driver_bytes"], reading["peak_reserved_bytes"]) == (2 * 2**31, 21)
    monkeypatch.setattr(library, "nvmlDeviceGetComputeRunningProcesses", lambda gpu: [])
    assert peak.reading()["driver_bytes"] is None
    monkeypatch.setattr(library, "nvmlDeviceGetClockInfo", lambda gpu, clock: 1000 + gpu)
    monkeypatch.setattr(library, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda gpu: 0x20 + gpu)
    assert conditions.snapshot()["gpu"] == {
        "sm_clock_mhz": 1000,
        "power_w": 500.0,
        "throttle_reasons": 0x22,
        "foreign_processes": 0,
    }
