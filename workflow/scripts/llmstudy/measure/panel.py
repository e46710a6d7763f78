"""Panel: one process holds all configurations of a model that fit together and calls them in turn, round after round.

A machine that slows down or warms up meets all of them alike, so the ratio of two times of one round is far steadier
than either time. Configurations that do not fit together are measured in groups, one after the other, the first one
(the reference) in each. The reference is called twice in a round, the second time as ``again``: what differs between
the two is the noise of the measurement.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmstudy import runtimes
from llmstudy.measure import conditions, footprint
from llmstudy.measure.calls import timed_call
from llmstudy.measure.device import bandwidth_gb_s, proc_bytes
from llmstudy.measure.session import Session, log
from llmstudy.measure.text import prompt_batch
from llmstudy.models import attention
from llmstudy.runner import record as records
from llmstudy.runner.failures import classify
from llmstudy.runner.job import Configuration, Workload

ROOM = 0.9  # share of the free memory that a group may take by the peaks of its probes


@dataclass(frozen=True)
class Settings:
    """Settings of a panel.

    Attributes:
        configurations: what is called; the first one is the reference.
        probes: the record of each configuration's probe.
        workloads: what is called, one after the other.
        warmup: calls before the first round, of each configuration at each workload.
        rounds: rounds at least.
        seconds: seconds of rounds at least, for each entry of the group.
        order_seed: seed of the order within the rounds, together with the number of the process.
        until: what ``tables.settled`` asks of the panels before, for one that runs only if they did not settle the
            verdicts; the parent reads it.
    """

    configurations: tuple[Configuration, ...]
    probes: tuple[str, ...]
    workloads: tuple[Workload, ...]
    warmup: int
    rounds: int
    seconds: float
    order_seed: int
    until: dict | None

    def labels(self, configuration: Configuration) -> list[bool]:
        """Return the values of ``again`` under which a configuration is called: both for the reference."""
        return [False, True] if configuration == self.configurations[0] else [False]


@dataclass(eq=False)
class Member:
    """One entry of a group: a configuration, or the reference again, with its model and what became of it."""

    configuration: Configuration
    again: bool
    model: Any
    runtime: runtimes.Runtime | None = None
    warmup_e2e_ms: list[float] = field(default_factory=list)
    calls: list[dict] = field(default_factory=list)
    error: tuple[str, str] | None = None

    def call(self, input_ids: torch.Tensor, workload: Workload) -> dict | None:
        """Return the times of one call under the configured attention kernel alone; None if it fails, now or before."""
        if self.error is None:
            try:
                with attention.forced(self.configuration.attention):
                    return timed_call(self.runtime, input_ids, workload)
            except Exception as error:
                self.error = classify(error)
        return None


def measure(session: Session) -> dict:
    """Return ``{"bandwidth_gb_s": {"copy", "read"}, "rounds": [{"group", "workload", "round", "flags", "gpu"}],
    "entries": [{"precision", "attention", "runtime", "again", "workload", "status", "reason", "group",
    "step_weight_bytes", "step_kv_bytes", "warmup_e2e_ms", "calls": [{"round", "ttft_ms", "itl_ms",
    "e2e_ms"}]}]}``.

    Every configuration has an entry for each workload, the reference one more with ``again``, in each group that it is
    in. One whose probe failed has the status of its probe.
    """
    settings = session.settings_as(Settings)
    results: dict = {
        "bandwidth_gb_s": bandwidth_gb_s(session.device, session.synchronize),
        "rounds": [],
        "entries": [],
    }
    session.free()
    probed = [records.read(Path(path)) for path in settings.probes]
    able = {one: probe for one, probe in zip(settings.configurations, probed) if probe["status"] == "ok"}
    for one, probe in zip(settings.configurations, probed):
        if one not in able:
            results["entries"] += all_failed(settings, one, probe["status"], f"probe: {probe['reason']}")
    session.save(results)
    needs = {one: need_of(probe, session.device) for one, probe in able.items()}
    for number, group in enumerate(groups(needs, settings.configurations[0], ROOM * free_bytes(session))):
        log(f"group {number}: {', '.join(map('.'.join, group))}")
        measure_group(session, settings, number, group, able, results)
        session.free()
    return results


def entry(configuration: Configuration, again: bool, workload: Workload, status: str = "ok", reason: str = "") -> dict:
    """Return the entry of a configuration, without times."""
    about = configuration._asdict() | {"again": again, "workload": asdict(workload)}
    return about | {"status": status, "reason": reason}


def all_failed(settings: Settings, configuration: Configuration, status: str, reason: str) -> list[dict]:
    """Return the entries of a configuration that cannot be called."""
    labels = settings.labels(configuration)
    return [entry(configuration, again, one, status, reason) for one in settings.workloads for again in labels]


class Need(NamedTuple):
    """Bytes that a configuration takes: while it is called, and beyond these while it is loaded."""

    held: int
    loading: int


def need_of(probe: dict, device: str) -> Need:
    """Return what a configuration took at most in its probe: reserved by CUDA's allocator, or of the host."""
    key = "peak_reserved_bytes" if device == "cuda" else "peak_rss_growth_bytes"
    results = probe["results"]
    phases = [tried[phase] for tried in results["workloads"] for phase in ("prefill", "decode") if phase in tried]
    held = max(reading[key] for reading in phases)
    return Need(held, max(0, results["load"][key] - held))


def free_bytes(session: Session) -> float:
    """Return the memory that models may take: free on the GPUs, or on the host and within the job's limit."""
    if session.device == "cuda":
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    left = proc_bytes("meminfo", "MemAvailable") or float("inf")
    if session.job.limits and (limit := session.job.limits.host_memory_mb):
        left = min(left, limit * 2**20 - (proc_bytes("self/status", "VmData") or 0))
    return left


def groups(needs: dict[Configuration, Need], reference: Configuration, room: float) -> Iterator[list[Configuration]]:
    """Yield the configurations in groups that fit into ``room`` bytes together, the reference first in each.

    What does not fit beside the reference is a group of its own, whose times compare with no other. Needs are those of
    single processes, so a group in which configurations share weights takes less.
    """

    def fit(*members: Configuration) -> bool:
        return sum(needs[one].held for one in members) + max(needs[one].loading for one in members) <= room

    base = [reference] if reference in needs else []
    others = [one for one in needs if one not in base]
    alone = [one for one in others if base and not fit(*base, one)]
    group = list(base)
    for one in others:
        if one not in alone:
            if len(group) > len(base) and not fit(*group, one):
                yield group
                group = list(base)
            group.append(one)
    if group:
        yield group
    yield from ([one] for one in alone)


def measure_group(
    session: Session, settings: Settings, number: int, group: list[Configuration], probes: dict, results: dict
) -> None:
    """Load a group, measure every workload, and add its entries and rounds to ``results``."""
    models: dict[tuple, Any] = {}  # configurations that differ in the runtime alone share one
    loaded = []
    for one in group:
        key = (one.precision, attention.get(one.attention).implementation)
        try:
            if key not in models:
                models[key] = session.load_model(one)[0]
                session.free()
        except Exception as error:
            results["entries"] += all_failed(settings, one, *classify(error))
            continue
        loaded.append((one, models[key]))
    for workload in settings.workloads:
        present = []
        for one, model in loaded:
            status, reason = probed_status(probes[one], workload)
            if status == "ok":
                present += [Member(one, again, model) for again in settings.labels(one)]
            else:
                reason = f"probe: {reason}"
                results["entries"] += [entry(one, again, workload, status, reason) for again in settings.labels(one)]
        results["rounds"] += measure_workload(session, settings, number, workload, present)
        results["entries"] += [entry_of(member, number, workload) for member in present]
        session.save(results)


def probed_status(probe: dict, workload: Workload) -> tuple[str, str]:
    """Return status and reason of a workload in a probe; ``ok`` for one that the probe was not asked for."""
    for tried in probe["results"]["workloads"]:
        if tried["workload"] == asdict(workload):
            return tried["status"], tried["reason"]
    return "ok", ""


def measure_workload(
    session: Session, settings: Settings, number: int, workload: Workload, members: Sequence[Member]
) -> list[dict]:
    """Prepare and warm up the members, call each once a round in random order, and return the rounds.

    A disturbed round is repeated once; both stay. Without text for the prompts all members fail.
    """
    try:
        input_ids = prompt_batch(session, workload.batch, workload.prompt_tokens)
    except Exception as error:
        for member in members:
            member.error = classify(error)
        return []
    order = random.Random(f"{settings.order_seed} {session.job.identity.repeat} {number} {workload}")
    rounds: list[dict] = []
    with ExitStack() as stack:
        for member in members:
            prepare(stack, member, members, workload)
        for member in members:
            for _ in range(settings.warmup):
                if call := member.call(input_ids, workload):
                    member.warmup_e2e_ms.append(call["e2e_ms"])

        def one_round() -> bool:
            alive = [member for member in members if member.error is None]
            about = {"group": number, "workload": asdict(workload), "round": len(rounds)}
            rounds.append(about | run_round(len(rounds), order.sample(alive, len(alive)), input_ids, workload))
            return bool(rounds[-1]["flags"])

        start, planned = time.perf_counter(), 0
        while any(member.error is None for member in members) and (
            planned < settings.rounds or time.perf_counter() - start < settings.seconds * len(members)
        ):
            planned += 1
            if one_round():
                one_round()
    log(f"  {asdict(workload)}: {len(rounds)} rounds of {len(members)} in {time.perf_counter() - start:.1f} s")
    return rounds


def prepare(stack: ExitStack, member: Member, members: Sequence[Member], workload: Workload) -> None:
    """Give a member its runtime, prepared; ``again`` shares that of the reference."""
    if member.again:
        first = next(one for one in members if one.configuration == member.configuration)
        member.runtime, member.error = first.runtime, first.error
        return
    try:
        with attention.forced(member.configuration.attention):
            member.runtime = runtimes.get(member.configuration.runtime)(member.model, **asdict(workload))
            stack.callback(member.runtime.close)
            member.runtime.prepare()
    except Exception as error:
        member.error = classify(error)


def run_round(number: int, members: Sequence[Member], input_ids: torch.Tensor, workload: Workload) -> dict:
    """Call each member once, in this order, and return what disturbed the round, and the GPU after it."""
    before = conditions.snapshot()
    for member in members:
        if call := member.call(input_ids, workload):
            member.calls.append({"round": number} | call)
    after = conditions.snapshot()
    return {"flags": conditions.disturbances(before, after)} | {key: after[key] for key in ("gpu",) if key in after}


def entry_of(member: Member, group: int, workload: Workload) -> dict:
    """Return the entry of a member; one that failed in some round keeps no time: its rounds are not those of others."""
    if member.error:
        return entry(member.configuration, member.again, workload, *member.error)
    # The cache that a step reads grows from step to step: its mean.
    context = workload.prompt_tokens + workload.new_tokens / 2
    return entry(member.configuration, member.again, workload) | {
        "group": group,
        "step_weight_bytes": footprint.step_weight_bytes(member.model),
        "step_kv_bytes": int(workload.batch * footprint.kv_bytes(member.model, context)),
        "warmup_e2e_ms": member.warmup_e2e_ms,
        "calls": member.calls,
    }
