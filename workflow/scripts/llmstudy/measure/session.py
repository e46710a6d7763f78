"""The session of a measuring process: its job and settings, device, model, and the results so far."""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch

from llmstudy import runtimes
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.inspection import PACKAGES
from llmstudy.fetch.weights import Weights, open_weights
from llmstudy.llama import gpus_needed
from llmstudy.measure import footprint
from llmstudy.measure.device import read_nvml, unused_gpu
from llmstudy.measure.text import calibration_ids
from llmstudy.models import attention, precisions
from llmstudy.runner import pool, provenance
from llmstudy.runner.failures import classify, require_finite, traceback_tail
from llmstudy.runner.job import Configuration, Job, Workload

Settings = TypeVar("Settings")

SEED = 20230227  # of torch's generators, in every measuring process


@dataclass
class Session:
    """One measuring process.

    Attributes:
        job: what is measured, and where model and text are.
        device: ``cpu`` or ``cuda``.
        artifacts: folder for files that are published beside the record.
        save: writes the results so far.
        arrays: what ``arrays.npz`` holds so far, by key.
        provenance: versions and hardware.
    """

    job: Job
    device: str
    artifacts: Path
    save: Callable[[dict], None]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    provenance: dict = field(init=False)

    def __post_init__(self):
        torch.manual_seed(SEED)
        torch.set_num_threads(thread_count(self.job.threads))
        self.provenance = provenance.of_process(self.device)
        if self.job.device == "auto" and self.device == "cpu" and (unused := unused_gpu()):
            self.provenance["unused_gpu"] = unused
            log(f"warning: measures on the CPU although there is {unused}")
        if "gpu" in self.provenance:
            drivers = read_nvml(lambda nvml, _: nvml.nvmlSystemGetDriverVersion())
            self.provenance["gpus"] = [gpu.number for gpu in pool.usable()]
            self.provenance["gpu"]["driver"] = drivers[0] if drivers else None

    def settings_as(self, kind: type[Settings]) -> Settings:
        """Return the job's settings as a dataclass, nested dataclasses and tuples of them included. Raise StudyError if
        a key is missing or unknown."""
        return build(kind, self.job.settings, f"settings of {self.job.identity.kind}")

    @cached_property
    def weights(self) -> Weights:
        """The fetched weights of the job's model."""
        weights = open_weights(Path(self.job.model_folder))
        self.provenance["weights"] = weights.digest
        return weights

    def weights_of(self, precision: precisions.Precision) -> Weights:
        """Return the weights that a precision loads: the model's, or those of a published checkpoint of it. Raise
        Unsupported if they are quantized and the precision is another."""
        if precision.checkpoint:
            return open_weights(Path(self.job.checkpoints[precision.checkpoint]))
        if self.weights.quantization and precision.compute_dtype != "auto":
            raise Unsupported(
                f"precision {precision.name!r}: the weights are already quantized ({self.weights.quantization}); "
                "allowed: as-published"
            )
        return self.weights

    def import_libraries(self) -> None:
        """Import what loading needs, so that it counts neither as load time nor as memory of the model (some 160 MB).

        Only what these precisions need: bitsandbytes takes over a second, in every process of a study.
        """
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            AutoModelForCausalLM.from_config(self.weights.config())
        loaded = [precisions.get(one.precision) for one in self.job.configurations]
        own = {package for one in loaded for package in one.packages}
        published = [self.weights_of(one).quantization for one in loaded if one.compute_dtype == "auto"]
        own |= {PACKAGES.get(method, method).replace("-", "_") for method in published if method}
        for package in ("accelerate", *sorted(own)):
            with suppress(ImportError):
                import_module(package)

    def load_model(self, configuration: Configuration | None = None) -> tuple[Any, float]:
        """Return the model in the precision of a configuration, by default the job's, on its device, and the seconds
        that loading took. Raise Unsupported if the precision does not run on this device, a package is not installed,
        the model's class has no such attention, or no weight was replaced by what the precision promises."""
        from transformers.utils import logging as transformers_logging

        configuration = configuration or self.job.identity.configuration
        precision = precisions.get(configuration.precision)
        if self.device not in precision.devices:
            raise Unsupported(
                f"precision {precision.name!r}: not available on {self.device}; allowed: {', '.join(precision.devices)}"
            )
        weights = self.weights_of(precision)
        request = precisions.LoadRequest(
            weights=weights,
            device=self.device,
            attention=attention.get(configuration.attention).implementation,
            calibration_ids=calibration_ids(self) if precision.calibrated else None,
            device_map="auto" if self.split(configuration) else None,
        )
        transformers_logging.disable_progress_bar()  # it redraws one line, which makes a log unreadable
        log(f"loading {self.weights.name} in {precision.name} on {self.device}")
        start = time.perf_counter()
        try:
            model = precision.load(request)
        except ImportError as error:  # a package of the attention kernel or of the quantization
            raise Unsupported(" ".join(str(error).split())) from error
        self.synchronize()
        seconds = time.perf_counter() - start
        self.note_split(configuration, model)
        if not footprint.quantized_share(model):
            kind, published = model.config.model_type, weights.quantization
            if published:
                raise Unsupported(f"{published}: transformers loads it dequantized on {self.device}, not as published")
            if precision.family not in ("dense", "published"):
                raise Unsupported(f"precision {precision.name!r}: it replaces no layer of model type {kind!r}")
        return model, seconds

    def split(self, configuration: Configuration) -> bool:
        """Return whether a configuration's model is split over several GPUs: never one that fits the first.

        What is loaded layer by layer cannot be split, and is tried on the first as long as its weights may fit.
        """
        if self.device != "cuda" or torch.cuda.device_count() == 1:
            return False
        size = pool.weight_bytes(self.job, configuration)
        memory = torch.cuda.get_device_properties(0).total_memory
        whole = precisions.get(configuration.precision).own or not self.weights.real
        return size > memory if whole else gpus_needed(size, memory) > 1

    def note_split(self, configuration: Configuration, model) -> None:
        """Add to the provenance how many decoder layers of a split model each GPU got. Raise MemoryError if some of it
        is on none: the library would fetch that from the host in every step."""
        places = getattr(model, "hf_device_map", None) or {}
        if len(set(places.values())) < 2:
            return
        if elsewhere := [name for name, place in places.items() if place in ("cpu", "disk")]:
            raise MemoryError(
                f"does not fit the {torch.cuda.device_count()} GPUs of this job: no room for {elsewhere[0]}"
            )
        layers = Counter(place for name, place in places.items() if name.rpartition(".")[2].isdigit())
        self.provenance.setdefault("split", {})[configuration.precision] = [layers[gpu] for gpu in sorted(set(layers))]

    def attention_forced(self) -> AbstractContextManager[None]:
        """Return a context in which PyTorch may run the job's attention kernel alone."""
        return attention.forced(self.job.identity.attention)

    @contextmanager
    def runtime(self, model, workload: Workload) -> Iterator[runtimes.Runtime]:
        """Yield the job's runtime for a workload, under the configured attention kernel alone; close it afterwards."""
        runtime = runtimes.get(self.job.identity.runtime)(model, **asdict(workload))
        with closing(runtime), self.attention_forced():
            yield runtime

    def synchronize(self) -> None:
        """Wait until the device has finished all work."""
        for index in range(torch.cuda.device_count() if self.device == "cuda" else 0):
            torch.cuda.synchronize(index)

    def free(self) -> None:
        """Return unused memory to the device, and to the host: its allocator keeps what loading freed (glibc), up to
        0.3 GiB of a model of 0.15, and more or less of it by chance."""
        import gc

        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
        trim_heap()

    @contextmanager
    def case(self, results: dict, key: str, **about: Any) -> Iterator[dict]:
        """Measure one case in the body of a ``with`` and save it: a workload, a protocol, a task.

        The body fills the yielded entry. ``about`` identifies the case and is in its entry whatever happens; a failure
        of the body becomes status and reason of the entry, so that the other cases are still measured.

        Args:
            results: the results so far.
            key: the list in ``results`` that the entry is appended to.
            about: what identifies the case.
        """
        log(f"{key} {len(results[key]) + 1}: {about}")
        self.free()  # what the case before left; a failed one let go of it only when its exception was gone
        entry: dict = {}
        status, reason = "ok", ""
        try:
            yield entry
            require_finite(entry, key)
        except Exception as error:
            status, reason = classify(error)
            if status == "error":
                print("\n".join(traceback_tail(error, 60)), file=sys.stderr)
            entry = {}
        log(f"  {status} {reason}")
        results[key].append(about | {"status": status, "reason": reason} | entry)
        self.save(results)

    def keep_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Add arrays to ``arrays.npz``, by replacing the file in one step: this process may be killed at any moment."""
        path = self.artifacts / "arrays.npz"
        partial = path.with_name(f"partial-{path.name}")
        np.savez_compressed(partial, **(self.arrays | arrays))
        partial.replace(path)
        self.arrays |= arrays


def build(kind: type[Settings], values: dict, name: str) -> Settings:
    """Return a dataclass from plain values, as they come out of JSON; ``name`` is for the error. Raise StudyError if a
    key is missing or unknown."""
    kinds = get_type_hints(kind)
    if wrong := sorted(kinds.keys() ^ values.keys()):
        raise StudyError(f"{name}: {wrong[0]!r} is missing or unknown; needed: {', '.join(kinds)}")
    return kind(**{key: _converted(kinds[key], value, f"{name}: {key}") for key, value in values.items()})


def _converted(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind):
        return build(kind, value, name)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a named tuple, a list in JSON
        return kind(*value)
    if get_origin(kind) is tuple:
        return tuple(_converted(get_args(kind)[0], one, name) for one in value)
    return value


def resolve_device(device: str) -> str:
    """Return ``cpu`` or ``cuda``: ``auto`` is ``cuda`` where there is a GPU. Raise Unsupported if ``cuda`` without a
    GPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise Unsupported("device 'cuda': no CUDA device is visible here; set device to 'auto' or 'cpu'")
    return device


def thread_count(configured: int | None) -> int:
    """Return the CPU threads: as configured, else one for every core this process may use, of a quota the whole ones,
    but no more than SLURM granted.

    Snakemake's ``--cores`` says how many jobs may run beside each other; a measurement is alone on its machine.
    """
    available = min(provenance.cores(), provenance.cpu_quota() or math.inf)
    return configured or max(1, int(min(available, int(os.environ.get("SLURM_CPUS_PER_TASK") or available))))


def trim_heap() -> None:
    """Return freed memory of the host to the system, where the C library can (glibc).

    Large temporaries lie in the heap between small allocations that last, such as the kernels that oneDNN keeps for
    each shape that it met. What is freed there fits nothing later: the heap grew to 2 GiB for a model of 0.15 whose
    linear layers met other shapes in every call (LLM.int8() with its outliers).
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def log(message: str) -> None:
    """Print one line with the time to the job's log."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)
