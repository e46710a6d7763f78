"""The job: what a measuring process gets, typed, and as the JSON that crosses from parent to child.

Standard library only: the workflow makes jobs while it is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Workload:
    """One call: ``batch`` sequences of ``prompt_tokens`` tokens, each followed by ``new_tokens``."""

    batch: int
    prompt_tokens: int
    new_tokens: int


class Configuration(NamedTuple):
    """One way to run a model."""

    precision: str
    attention: str
    runtime: str


@dataclass(frozen=True, order=True)
class Identity:
    """The identity of a record: study and kind, then model, configuration and number of the process.

    The configuration of a panel, which holds many, is the one that every other is called beside.
    """

    study: str
    kind: str
    model: str
    precision: str
    attention: str
    runtime: str
    repeat: int = 0
    weights: str = "real"  # or ``synthetic``

    @property
    def configuration(self) -> Configuration:
        """Return the configuration that was measured."""
        return Configuration(self.precision, self.attention, self.runtime)

    @property
    def name(self) -> str:
        """Return the file name of the record without its ending. A colon is no character for files: not on every disk,
        and ``scp`` and ``tar`` take what stands before it for a host."""
        return f"{self.precision.replace(':', '--')}.{self.attention}.{self.runtime}.r{self.repeat}"

    @property
    def path(self) -> str:
        """Return the path of the record, relative to the repository."""
        return f"results/{self.study}/records/{self.kind}/{self.model}/{self.name}.json"


@dataclass(frozen=True)
class Limits:
    """The limits of a job."""

    seconds: float  # of measuring
    oom_attempts: int = 1  # the submission whose lack of memory becomes the record; earlier ones are tried again
    host_memory_mb: int | None = None  # None: no limit


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that the numbers of a measurement depend on, and its limits."""

    identity: Identity
    module: str  # the measuring module below ``llmstudy``, for instance ``measure.panel``
    cases: str  # the key of the results whose entries have a status each; empty if the whole record has one
    device: str  # ``auto``, ``cpu`` or ``cuda``
    threads: int | None = None  # CPU threads; None takes what SLURM granted, else every core
    model_folder: str  # the fetched model, with its manifest
    checkpoints: dict[str, str] | None = None  # name of a published checkpoint that the job loads → its folder
    corpora: dict[str, str]  # name of a corpus → folder of its text
    prompt_corpus: str  # the corpus that prompts and calibration text come from
    reference_folder: str  # the reference's log-probabilities; empty for kinds that do not use them
    settings: dict  # what to measure; each measuring module reads them as its dataclass ``Settings``
    allocator: str | None = None  # settings of PyTorch's CUDA allocator
    limits: Limits | None = None  # known when the job starts

    @property
    def configurations(self) -> list[Configuration]:
        """Return what the job loads: the configurations of a panel, the reference first, else its own."""
        named = self.settings.get("configurations")
        return [Configuration(*one) for one in named] if named else [self.identity.configuration]

    def to_dict(self) -> dict:
        """Return the job as plain values for JSON and for Snakemake's parameters."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, plain: dict) -> Job:
        """Return the job that ``to_dict`` described."""
        limits = Limits(**plain["limits"]) if "limits" in plain else None
        return cls(**plain | {"identity": Identity(**plain["identity"]), "limits": limits})


# New tokens of the shorter generation of a profile: a prefill and one decode step.
PROFILE_TOKENS = 2


def sequences(settings: dict) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield (key of the settings, the token counts that add up to one sequence) for all that a model must have the
    context for."""
    for workload in settings.get("workloads", []):
        yield "workloads", {name: workload[name] for name in ("prompt_tokens", "new_tokens")}
    for protocol in [*settings.get("protocols", []), *([settings["protocol"]] if "protocol" in settings else [])]:
        yield "protocols", {"window": protocol["window"]}
    if (decode := settings.get("decode", {})).get("batches"):
        yield "decode", {name: decode[name] for name in ("prompt_tokens", "new_tokens")}
    if "steps" in settings:
        yield "steps", {name: settings[name] for name in ("prompt_tokens", "steps")} | {"first tokens": PROFILE_TOKENS}
    elif "prompt_tokens" in settings:
        yield "prompt_tokens", {"prompt_tokens": settings["prompt_tokens"]}
    elif "new_tokens" in settings:
        yield "new_tokens", {"new_tokens": settings["new_tokens"]}
