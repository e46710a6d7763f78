"""Rates of the device, its NVML readings, energy, and what is flagged as a disturbance."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from llmstudy.measure import conditions, device, energy, memory

QUIET = {"load_average": 0.5, "cores": 8}


@pytest.mark.parametrize(
    ("before", "after", "steady", "expected"),
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
def test_disturbances_are_flagged(before, after, steady, expected):
    assert conditions.flags(QUIET | {"gpu": before}, QUIET | {"gpu": after}, steady) == expected
    if not before | after:
        assert conditions.flags(QUIET, QUIET, steady) == expected  # no GPU


def test_bandwidth_counts_bytes_read_and_written_in_the_fastest_copy(monkeypatch):
    seconds = [0.7, 0.9, 0.5, 0.6, 0.8, 3.0, 0.7, 0.9, 0.6]
    clock = iter(stamp for begin, took in enumerate(seconds) for stamp in (10 * begin, 10 * begin + took))
    monkeypatch.setattr(device.time, "perf_counter", lambda: next(clock))
    monkeypatch.setitem(device.COPY_BYTES, "cpu", 2**20)
    assert device.copy_bandwidth_gb_s("cpu", lambda: None) == pytest.approx(2 * 2**20 / 0.5 / 1e9)


# ------------------------------------------------------------------------------------------------------------- energy


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


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_without_a_counter_there_is_no_energy(rapl, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = energy.EnergyMeter(kind)
    meter.start()
    assert meter.joules() is None and meter.source is None


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


# --------------------------------------------------------------------------------------------------------------- NVML


class FakeNvml:
    """Three GPUs as the NVML library shows them; one reading is not available on this board."""

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

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        return 1500 + gpu

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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    yield library
    assert library.open == 0  # every handle was closed


def test_the_library_has_what_is_read_from_it():
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(FakeNvml) if name.startswith(("nvml", "NVML"))]
    assert len(names) > 10 and [name for name in names if not hasattr(pynvml, name)] == []


def test_nvml_readings_come_in_units_and_a_missing_one_is_left_out(library, monkeypatch):
    assert conditions.snapshot()["gpu"] == {
        "sm_clock_mhz": 1000,
        "memory_clock_mhz": 2000,
        "power_w": 250.0,
        "throttle_reasons": 4,
        "foreign_processes": 1,
    }
    assert device.read_nvml(memory.process_bytes) == 2**31
    assert energy._nvml_counter().read() == pytest.approx([1.501])  # of the first visible GPU, millijoules
    assert device.read_nvml(lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, 0)) is None
    monkeypatch.setattr(library, "nvmlDeviceGetComputeRunningProcesses", lambda gpu: [])
    assert device.read_nvml(memory.process_bytes) is None  # a container's processes have other numbers outside


def test_the_gpu_is_the_one_that_cuda_shows(library, monkeypatch):
    def read(visible):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return device.read_nvml(lambda nvml, gpu: gpu)

    assert [read("1,0"), read("GPU-b"), read("MIG-c"), read(""), read("GPU-unknown")] == [1, 1, 2, 0, 0]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for uuid, expected in (("b", 1), ("c", 2)):  # CUDA's first may be any of NVML's
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index, uuid=uuid: SimpleNamespace(uuid=uuid))
        assert read("0") == expected
