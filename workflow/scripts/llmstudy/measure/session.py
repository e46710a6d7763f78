"""What every measurement shares: the job, the device, the model, and where finished pieces go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path

from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch.weights import open_weights
from llmstudy.measure.prompts import calibration_ids
from llmstudy.models import attention, precisions
from llmstudy.runner import provenance
from llmstudy.runner.failures import attempted

SEED = 20230227  # torch's generators start from here in every measuring process


def resolve_device(asked: str) -> str:
    """``auto`` becomes ``cuda`` where there is a GPU; asking for a GPU that is not there is Unsupported."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise Unsupported("device 'cuda': no CUDA device is visible here; set device to 'auto' or 'cpu'")
    return asked


def thread_count(asked: int | None) -> int:
    """Threads for the CPU: as configured, else what SLURM granted, else every core this process may run on.

    Snakemake's ``--cores`` says how many jobs may run beside each other; a measurement is alone on its machine.
    """
    granted = os.environ.get("SLURM_CPUS_PER_TASK")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or (min(int(granted), available) if granted else available)


@dataclass
class Session:
    """One measuring process.

    job     identity, settings, model, corpora and prompt corpus (``plan.job``), limits (``steps.measure``)
    device  ``cpu`` or ``cuda``, resolved
    artifacts  folder for files that a measurement leaves beside its record
    save    call with the results so far after each finished piece
    """

    job: dict
    device: str
    artifacts: Path
    save: Callable[[dict], None]
    provenance: dict = field(init=False)

    def __post_init__(self):
        import torch

        torch.manual_seed(SEED)
        torch.set_num_threads(thread_count(self.job["threads"]))
        self.provenance = provenance.of_process(self.device)

    @property
    def settings(self) -> dict:
        return self.job["settings"]

    @cached_property
    def weights(self):
        return open_weights(Path(self.job["model_folder"]))

    @cached_property
    def precision(self):
        return precisions.get(self.job["identity"]["precision"])

    def import_libraries(self) -> None:
        """Import what loading needs: it is no part of the load time, nor of the model's memory (some 160 MB).

        Only what this precision needs: bitsandbytes takes over a second, in every process of a study.
        """
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            AutoModelForCausalLM.from_config(self.weights.config())
        for package in ("accelerate", *self.precision.packages):
            with suppress(ImportError):
                import_module(package)

    @property
    def attention(self) -> str:
        return self.job["identity"]["attention"]

    def load_model(self):
        """(model, seconds): the model in its precision on its device."""
        import torch

        if self.device not in self.precision.devices:
            raise Unsupported(
                f"precision {self.precision.name!r}: not available on {self.device}; "
                f"allowed: {', '.join(self.precision.devices)}"
            )
        request = precisions.LoadRequest(
            weights=self.weights,
            device=self.device,
            attention=attention.get(self.attention).implementation,
            calibration_ids=calibration_ids(self) if self.precision.calibrated else None,
            device_map="auto" if self.device == "cuda" and torch.cuda.device_count() > 1 else None,
        )
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # it redraws one line, which makes a log unreadable
        log(f"loading {self.weights.name} in {self.precision.name} on {self.device}")
        start = time.perf_counter()
        try:
            model = self.precision.load(request)
        except ImportError as error:  # an attention or quantisation package that is not installed
            raise Unsupported(" ".join(str(error).split())) from error
        self.synchronize()
        return model, time.perf_counter() - start

    @contextmanager
    def attention_forced(self):
        """Only the configured attention kernel may run within."""
        with attention.forced(self.attention):
            yield

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def free(self) -> None:
        """Give cached memory back to the device."""
        import gc

        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.empty_cache()

    def piece(self, results: dict, name: str, about: dict, run: Callable[[], dict]) -> None:
        """Measure one of the pieces ``results[name]``; ``about`` says which.

        One that fails keeps its status and reason, and costs none of the others.
        """
        log(f"{name} {len(results[name]) + 1}: {about}")
        entry = about | attempted(run)
        log(f"  {entry['status']} {entry['reason']}")
        results[name].append(entry)
        self.save(results)  # first: after an error that CUDA does not recover from, freeing raises too
        self.free()

    def corpus_documents(self, name: str) -> list[str]:
        """The documents of a fetched corpus, in order."""
        import json

        path = Path(self.job["corpora"][name]) / "text.jsonl"
        if not path.exists():
            raise StudyError(f"{path}: missing; fetch it where there is a network: snakemake --cores 1 {path}")
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line)["text"] for line in lines]


def log(message: str) -> None:
    """One line in the job's log."""
    print(f"{time.strftime('%H:%M:%S')} {message}", flush=True)
