"""The pool of GPUs: who takes which, who waits for whom, and what the child sees of it."""

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import faults
import pytest
from llmstudy.errors import StudyError
from llmstudy.llama import gpus_needed
from llmstudy.runner import parent, pool
from llmstudy.runner.job import Configuration
from llmstudy.runner.parent import LIBRARY, run_child

GB = 10**9
H100, A30 = ("H100", 80 * GB), ("A30", 24 * GB)


class Nvml:
    """NVML of a host: a name and a memory for each GPU, or a list of them for one in slices."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus):
        self.gpus = gpus

    def nvmlInit(self):
        pass

    nvmlShutdown = nvmlInit

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index, None

    def nvmlDeviceGetMigMode(self, handle):
        if self.gpus[handle[0]] is A30:
            raise self.NVMLError("not supported")
        return [int(isinstance(self.gpus[handle[0]], list)), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, number):
        if number >= len(self.gpus[handle[0]]):
            raise self.NVMLError("no such slice")
        return handle[0], number

    def _facts(self, handle):
        return self.gpus[handle[0]] if handle[1] is None else self.gpus[handle[0]][handle[1]]

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{'abcdef'[handle[0]]}0" if handle[1] is None else f"MIG-{'abcdef'[handle[0]]}{handle[1]}"

    def nvmlDeviceGetName(self, handle):
        return self._facts(handle)[0]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=self._facts(handle)[1])


@pytest.fixture
def host(monkeypatch, tmp_path):
    """Make a host of some GPUs, with locks of its own."""

    def make(*gpus, visible=None) -> list[str]:
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(*gpus))
        monkeypatch.setattr(pool, "FOLDERS", (str(tmp_path),))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return [gpu.number for gpu in pool.usable()]

    return make


def test_the_library_has_what_is_read_from_it():
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in vars(Nvml) if name.startswith(("nvml", "NVML"))]
    assert len(names) > 9 and [name for name in names if not hasattr(pynvml, name)] == []


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, "012"),
        ("2,0", "20"),
        (" 1 ", "1"),
        ("GPU-c0,GPU-a", "20"),  # a beginning is enough
        ("1,1", "1"),
        ("1,9,0", "1"),  # as in CUDA, what is not there ends the list
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
    ],
)
def test_the_gpus_are_those_that_cuda_shows(host, visible, expected):
    assert "".join(host(H100, H100, H100, visible=visible)) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["1:0", "1:1"]), ("1", ["1:0", "1:1"]), ("MIG-b1", ["1:1"]), ("MIG-b2", ["1:2"]), ("0", ["0"])],
)
def test_a_gpu_in_slices_is_its_slices(host, visible, expected):
    assert host(A30, [("3g", 40 * GB), ("3g", 40 * GB), ("1g", 10 * GB)], visible=visible) == expected


def test_unlike_gpus_are_not_one_device(host):
    assert host(A30, H100, A30, H100) == ["1", "3"]
    assert host(A30, H100, A30, H100, visible="0,2") == ["0", "2"]


def test_without_nvml_there_is_no_pool(host, monkeypatch):
    assert host() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert pool.usable() == []
    with pool.seat([], 0) as seat:
        seat.take_turn(sys.stdout)
        assert seat.gpus == []


def test_weights_are_those_of_the_manifest_in_the_largest_precision(tmp_path):
    """As published, of the model or of a checkpoint beside it, they are the bytes of the files."""
    for name, size in (("model", 140 * GB), ("awq", 36 * GB)):
        (tmp_path / name).mkdir()
        files = {"model.safetensors": {"bytes": size}, "tokenizer.json": {"bytes": GB}}
        (tmp_path / name / "manifest.json").write_text(json.dumps({"parameters": 70 * GB, "files": files}))
    job = SimpleNamespace(model_folder=str(tmp_path / "model"), checkpoints={"awq": str(tmp_path / "awq")})

    def size(*names: str) -> float:
        return pool.weight_bytes(job, *(Configuration(name, "", "") for name in names))

    assert size("nf4", "bf16") == size("as-published") == 140 * GB
    assert size("as-published:awq") == 36 * GB and size("nf4", "as-published:awq") == 70 * GB * 4.5 / 8


@pytest.mark.parametrize(
    ("weights", "memory", "count"), [(0, 80, 1), (66, 80, 1), (67, 80, 2), (140, 80, 3), (1, 24, 1)]
)
def test_only_a_model_that_does_not_fit_one_gpu_takes_several(weights, memory, count):
    assert gpus_needed(weights * GB, memory * GB) == count


def test_a_gpu_that_is_asked_for_must_be_there(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pool, "SIGNS", (str(tmp_path / "nvidia"),))
    monkeypatch.setattr(pool, "AMD", str(tmp_path / "amd"))
    for device in ("cpu", "auto"):
        pool.check_present(device, ["measure"])
    pool.check_present("cuda", ["fetch_weights"])
    with pytest.raises(
        StudyError, match="^device: 'cuda', but this machine has no NVIDIA GPU; allowed here: auto, cpu; "
    ):
        pool.check_present("cuda", ["fetch_weights", "measure_time"])
    for sign in ("amd", "nvidia"):
        (tmp_path / sign).touch()
        pool.check_present("cuda", ["fetch_weights", "measure_time"])
        (tmp_path / sign).rename(tmp_path / "nvidia")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(StudyError, match="CUDA_VISIBLE_DEVICES=-1 hides every GPU"):
        pool.check_present("cuda", ["fetch_weights", "measure_time"])


# -------------------------------------------------------------------------------------------------- seats and turns


def seats(stack: ExitStack, *weights: float) -> list[str]:
    """Take seats of models of so many GB, one after the other; return the numbers of the GPUs of each."""
    taken = [stack.enter_context(pool.seat(pool.usable(), size * GB)) for size in weights]
    return ["".join(gpu.number for gpu in seat.gpus) for seat in taken]


def test_jobs_sit_beside_each_other_on_different_gpus(host):
    host(H100, H100)
    with ExitStack() as stack:
        assert seats(stack, 1, 1, 1, 1) == ["0", "1", "0", "1"]
    with ExitStack() as later, ExitStack() as earlier:
        assert seats(earlier, 1) == ["0"] and seats(later, 1) == ["1"]
        earlier.close()
        assert seats(later, 1) == ["0"]  # the one that became free


def test_a_large_model_takes_several_gpus_and_no_more_than_there_are(host):
    host(H100, H100, H100)
    with ExitStack() as stack:
        assert seats(stack, 1, 100, 400) == ["0", "12", "012"]


def test_turns_are_taken_in_one_order(host, monkeypatch):
    """Or of two jobs that need the same GPUs each could wait for the other."""
    host(H100, H100, visible="1,0")
    order = []
    with pool.seat(pool.usable(), 100 * GB) as seat:
        monkeypatch.setattr(pool, "_lock", lambda locks, gpu, name, wait=False: order.append(gpu.number) or True)
        seat.take_turn(sys.stdout)
    assert [gpu.number for gpu in seat.gpus] == ["1", "0"] and order == ["0", "1"]


def test_a_process_takes_one_slice(host):
    host([("1g", 10 * GB), ("1g", 10 * GB)])
    with ExitStack() as stack:
        assert seats(stack, 100) == ["0:0"]


def test_any_user_of_the_host_may_lock(host, tmp_path):
    """Whatever the umask of who came first; and the folder does not follow TMPDIR."""
    host(H100)
    before = os.umask(0o077)
    try:
        with pool.seat(pool.usable(), 0) as seat:
            seat.take_turn(sys.stdout)
    finally:
        os.umask(before)
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and all(path.stat().st_mode & 0o777 == 0o666 for path in files)
    path = next(path for path in files if path.suffix == ".turn")
    path.chmod(0o444)
    os.utime(path, (1, 1))
    with pool.seat(pool.usable(), 0) as seat:
        seat.take_turn(sys.stdout)
    assert path.stat().st_mtime > 1  # a file in use does not look old


def test_the_folder_of_locks_is_the_same_for_all(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert pool.FOLDERS == ("/tmp", "/dev/shm")


MEASURE = """
import sys
from contextlib import ExitStack, contextmanager
from llmstudy.runner import pool
pool.FOLDERS = (sys.argv[1],)
with pool.seat([pool.Gpu(name, name, "H100", 80) for name in sys.argv[3:]], 67 * (len(sys.argv) - 4)) as seat:
    print("sits", flush=True)
    seat.take_turn(sys.stdout)
    print("has " + sys.argv[2], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def measuring(tmp_path):
    """Start a process that waits for its turn on all of some GPUs, and measures there until it is killed."""
    started = []

    def start(name: str, *gpus: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", MEASURE, str(tmp_path), name, *gpus],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # or ``select`` would not see a line that was read with the one before
            env={"PYTHONPATH": str(LIBRARY)},
        )
        started.append(process)
        assert process.stdout.readline() == b"sits\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def says(process: subprocess.Popen, seconds: float = 30) -> str:
    """Return the next line of a process; empty if there is none within ``seconds``."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return process.stdout.readline().decode().strip() if ready else ""


def test_who_waits_says_so_once_and_comes_in_the_order_of_asking(measuring):
    first = measuring("first", "a")
    assert says(first) == "has first"
    others = []
    for number in range(3):
        others.append(measuring(str(number), "a"))
        assert "waiting for GPU a (H100): another job measures on it" in says(others[-1])
        time.sleep(0.2)  # from that line to the system's queue
    first.send_signal(signal.SIGKILL)  # the kernel releases the locks of a process that ends, however it ends
    for number, process in enumerate(others):
        assert says(process) == f"has {number}"
        assert not any(says(other, 0.1) for other in others[number + 1 :])
        process.kill()


def test_two_that_need_the_same_gpus_never_wait_for_each_other(measuring):
    for left, right in itertools.pairwise([["a", "b"], ["b", "a"], ["a", "b"]]):
        one, other = measuring("one", *left), measuring("other", *right)
        assert "has" in says(one) or "has" in says(one)
        assert "waiting" in says(other) and not says(other, 0.2)
        one.kill()
        assert says(other) == "has other" or says(other) == "has other"
        other.kill()
        other.wait()


# ---------------------------------------------------------------------------------------------- the child's side of it


@pytest.fixture
def run(monkeypatch, tmp_path, host):
    """Run a measurement on a host of GPUs in a real child process."""

    def run(body: str, *gpus, **limits):
        host(*gpus)
        monkeypatch.setattr(parent.pool, "weight_bytes", lambda *job: 1.0)
        faults.install(monkeypatch, tmp_path / "stand-in", body)
        return run_child(faults.job(device="cuda", **limits), tmp_path / "job.log", tmp_path)

    return run


VISIBLE = "import os; return {'visible': os.environ.get('CUDA_VISIBLE_DEVICES')}"


def test_a_child_sees_its_gpu_alone(run):
    assert run(VISIBLE, H100, H100).result["results"] == {"visible": "GPU-a0"}
    with pool.seat(pool.usable(), 0):
        assert run(VISIBLE, H100, H100).result["results"] == {"visible": "GPU-b0"}
    assert run(VISIBLE).result["results"] == {"visible": None}
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_waiting_is_not_counted_as_the_jobs_time(run, monkeypatch):
    """Whoever was before measures for longer than the limit of this job, which measures for less than it."""
    take_turn = pool.Seat.take_turn

    def late(seat, log):
        time.sleep(2.5)
        take_turn(seat, log)

    monkeypatch.setattr(pool.Seat, "take_turn", late)
    outcome = run("import time; time.sleep(0.5); return {'a': 1}", H100, seconds=2)
    assert outcome.status == "ok", outcome.reason
    assert outcome.wall_s >= 2.5 and outcome.result["provenance"]["waited_s"] > 1


def test_the_gpu_is_released_when_the_child_is_gone_and_not_before(run, monkeypatch, tmp_path):
    """However the child ends: its memory on the GPU is its own until then."""
    seat, file, there = pool.seat, tmp_path / "pid", []

    @contextmanager
    def watched(*arguments):
        with seat(*arguments) as taken:
            yield taken
            there.append(Path(f"/proc/{file.read_text()}").exists())

    monkeypatch.setattr(pool, "seat", watched)
    for end in ("return {}", "os.kill(os.getpid(), 9)"):
        run(f"import os; Path({str(file)!r}).write_text(str(os.getpid())); {end}", H100)
    assert there == [False, False]


def test_a_parent_that_is_ended_while_it_waits_leaves_no_child(run, monkeypatch, tmp_path):
    file = tmp_path / "pid"

    def ended(seat, log):
        deadline = time.monotonic() + 30
        while not (file.exists() and file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise SystemExit(143)

    monkeypatch.setattr(pool.Seat, "take_turn", ended)
    begin = f"import os\nopen({str(file)!r}, 'w').write(str(os.getpid()))\n"
    monkeypatch.setattr(faults, "STAND_IN", begin + faults.STAND_IN)
    with pytest.raises(SystemExit):
        run("return {}", H100)
    assert not Path(f"/proc/{file.read_text()}").exists()  # not even as a zombie, which may still hold its GPU
