"""Panel: who is called, how often and in which order, what a failure costs, and what is stamped. No absolute times."""

import json
from functools import partial

import pytest
import tiny
import torch
from llmstudy import runtimes
from llmstudy.errors import StudyError, Unsupported
from llmstudy.measure import calls, conditions, device, measure, panel
from llmstudy.measure.text import prompt_batch
from llmstudy.runner.job import Configuration, Limits, Workload
from llmstudy.runner.record import SCHEMA
from llmstudy.runtimes import PrepareInfo, Timeline

MIB = 2**20
ONE, TWO = tiny.WORKLOAD, tiny.WORKLOAD | {"batch": 1, "new_tokens": 2}


def named(names: str, precision: str = "fp32") -> list[Configuration]:
    """Configurations that differ in their runtime: a letter each."""
    return [Configuration(precision, "sdpa", name) for name in names]


def probed(mib: int = 1, *others: dict) -> dict:
    """What a probe's record has of calls that took so many MiB, as did loading; ``others`` are other workloads."""
    reading = {"peak_rss_growth_bytes": mib * MIB}
    done = {"workload": ONE, "status": "ok", "reason": "", "prefill": reading, "decode": reading}
    return {"schema": SCHEMA, "status": "ok", "results": {"load": reading, "workloads": [*others, done]}}


@pytest.fixture
def prepared(measuring, tmp_path, monkeypatch):
    """``prepared(configurations, probes, **settings)`` is a session of a panel, whose probes went well unless their
    records are given; ``session.loaded`` lists the precisions that were loaded."""
    monkeypatch.setitem(device.COPY_BYTES, "cpu", MIB)

    def prepare(configurations, probes=None, **settings):
        paths = [tmp_path / f"{'.'.join(one)}.json" for one in configurations]
        for one, path in zip(configurations, paths):
            path.write_text(json.dumps((probes or {}).get(one, probed())))
        settings |= {"configurations": list(map(list, configurations)), "probes": list(map(str, paths))}
        session = measuring("panel", **settings)
        load, session.loaded = session.load_model, []
        monkeypatch.setattr(session, "load_model", lambda one: (session.loaded.append(one.precision), load(one))[1])
        return session

    return prepare


class Clockwork:
    """A runtime that answers at once with fixed stamps. Of all: the names ``called`` and ``closed``, and what ``stops``
    a name when it is prepared (0) or called for the nth time."""

    called, closed, stops = [], [], {}

    def __init__(self, name, model, batch, prompt_tokens, new_tokens):
        self.name, self.shape, self.close = name, (batch, new_tokens), lambda: self.closed.append(name)

    def prepare(self):
        if error := self.stops.get((self.name, 0)):
            raise error
        return PrepareInfo()

    def generate(self, input_ids):
        self.called.append(self.name)
        if error := self.stops.get((self.name, self.called.count(self.name))):
            raise error
        return Timeline(torch.zeros(self.shape, dtype=torch.int64), [0.010, 0.012, 0.015, 0.019][: self.shape[1]])


@pytest.fixture
def clockwork(monkeypatch):
    """Take a made-up runtime for every name; nothing disturbs it."""
    for name, value in {"called": [], "closed": [], "stops": {}}.items():
        monkeypatch.setattr(Clockwork, name, value)
    monkeypatch.setattr(runtimes, "get", lambda name: partial(Clockwork, name))
    monkeypatch.setattr(conditions, "disturbances", lambda before, after: [])
    monkeypatch.setattr(panel, "bandwidth_gb_s", lambda *_: {"copy": 1.0, "read": 2.0})
    return Clockwork


def by_label(results: dict) -> dict[str, dict]:
    """The entries of one workload and group by runtime, that of the second call as ``again``."""
    found = {"again" if entry["again"] else entry["runtime"]: entry for entry in results["entries"]}
    assert len(found) == len(results["entries"])
    return found


def rounds_of(entry: dict) -> list[int]:
    return [call["round"] for call in entry["calls"]]


def test_a_round_calls_each_once_and_the_reference_twice_in_a_random_but_repeatable_order(prepared, clockwork):
    def called(**settings) -> list[str]:
        clockwork.called.clear()
        entries = by_label(measure(prepared(named("abcd"), rounds=6, **settings)))
        assert list(entries) == ["a", "again", "b", "c", "d"]
        assert all(rounds_of(entry) == list(range(6)) for entry in entries.values())
        order = "".join(clockwork.called)
        assert order[:5] == "aabcd"  # each is warmed up once
        return [order[start : start + 5] for start in range(5, len(order), 5)]

    first = called()
    assert len(first) == 6 and len(set(first)) > 1 and {"".join(sorted(one)) for one in first} == {"aabcd"}
    assert called() == first
    assert called(repeat=1) != first  # another process
    assert called(order_seed=1) != first


def test_a_disturbed_round_is_repeated_once_and_both_stay(prepared, clockwork, monkeypatch):
    found = [["x"], ["y"], [], ["z"], []]
    remaining = iter(found)
    monkeypatch.setattr(conditions, "disturbances", lambda before, after: next(remaining))
    monkeypatch.setattr(conditions, "read_nvml", lambda read: [{"sm_clock_mhz": 1980}])
    results = measure(prepared(named("ab"), rounds=3))
    expected = {"group": 0, "workload": ONE, "gpu": {"sm_clock_mhz": 1980}}
    assert results["rounds"] == [expected | {"round": number, "flags": one} for number, one in enumerate(found)]
    assert rounds_of(by_label(results)["b"]) == list(range(5))


@pytest.mark.parametrize(("rounds", "seconds", "expected"), [(3, 0, 3), (3, 2.5, 3), (1, 2, 2), (1, 2.1, 3)])
def test_rounds_go_on_until_a_count_and_seconds_for_each_entry_are_reached(
    prepared, clockwork, monkeypatch, rounds, seconds, expected
):
    """Each call takes a second, so that a round of the reference, the reference again and another takes three."""
    monkeypatch.setattr(panel.time, "perf_counter", lambda: float(len(clockwork.called)))
    results = measure(prepared(named("ab"), rounds=rounds, seconds=seconds))
    assert len(results["rounds"]) == expected


# ----------------------------------------------------------------------------------------------------------- failures


def test_what_fails_is_an_entry_with_its_status_and_costs_the_others_no_round(prepared, clockwork, monkeypatch):
    clockwork.stops[("b", 0)] = torch.cuda.OutOfMemoryError("CUDA out of memory")
    clockwork.stops[("d", 3)] = ValueError("in the second round")  # its first call warms up
    session = prepared([*named("ab"), *named("c", "bf16"), *named("de")], rounds=4)
    load = session.load_model

    def refuse(one):
        if one.precision == "bf16":
            raise Unsupported("no such kernel")
        return load(one)

    monkeypatch.setattr(session, "load_model", refuse)
    entries = by_label(measure(session))
    assert {label: (entry["status"], entry["reason"]) for label, entry in entries.items() if entry["reason"]} == {
        "b": ("oom", "CUDA out of memory"),
        "c": ("unsupported", "no such kernel"),
        "d": ("error", "ValueError: in the second round"),
    }
    assert [rounds_of(entries[label]) for label in ("a", "again", "e")] == 3 * [[0, 1, 2, 3]]
    assert "calls" not in entries["d"] and clockwork.called.count("d") == 3
    assert "b" not in clockwork.called and sorted(clockwork.closed) == ["a", "b", "d", "e"]


@pytest.mark.parametrize("probe", [probed(), {"schema": SCHEMA, "status": "oom", "reason": "full", "results": {}}])
def test_a_reference_that_fails_leaves_no_label_without_an_entry(prepared, clockwork, probe):
    clockwork.stops[("a", 0)] = MemoryError("full")
    entries = by_label(measure(prepared(named("ab"), {named("a")[0]: probe})))
    assert {label: entry["status"] for label, entry in entries.items()} == {"a": "oom", "again": "oom", "b": "ok"}


def test_what_does_not_run_by_its_probe_is_not_loaded_and_a_workload_of_it_not_called(prepared, clockwork):
    (_, other), (lost,) = named("ab"), named("c", "bf16")
    full = probed(1, {"workload": TWO, "status": "oom", "reason": "full"})
    late = {"schema": SCHEMA, "status": "timeout", "reason": "late", "results": {}}
    session = prepared([*named("ab"), lost], {other: full, lost: late}, workloads=[ONE, TWO])
    entries = measure(session)["entries"]
    assert session.loaded == ["fp32"]
    assert {(one["runtime"], one["workload"]["batch"]): one["status"] + one["reason"] for one in entries} == {
        **{("a", 2): "ok", ("a", 1): "ok", ("b", 2): "ok", ("b", 1): "oomprobe: full"},
        **{("c", 2): "timeoutprobe: late", ("c", 1): "timeoutprobe: late"},
    }


def test_a_workload_without_prompts_costs_no_other(prepared, clockwork, monkeypatch):
    def prompts(session, batch, prompt_tokens):
        if batch == 7:
            raise StudyError("corpus 'tiny-text': too little text")
        return prompt_batch(session, batch, prompt_tokens)

    monkeypatch.setattr(panel, "prompt_batch", prompts)
    entries = measure(prepared(named("ab"), workloads=[ONE | {"batch": 7}, ONE]))["entries"]
    assert [entry["status"] for entry in entries] == 3 * ["error"] + 3 * ["ok"]
    assert "too little text" in entries[0]["reason"]


# ------------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("needs", "room", "expected"),
    [
        ("a3 b3 c3", 9, ["abc"]),
        ("a3 b3 c3 d3", 9, ["abc", "ad"]),
        ("a3 b5 c4 d1", 8, ["ab", "acd"]),
        ("a3 b7 c1", 8, ["ac", "b"]),  # beside the reference there is no room for b
        ("a9 b1", 8, ["a", "b"]),
        ("b3 c3 d3", 6, ["bc", "d"]),  # the reference's probe failed
        ("", 8, []),
        ("a3+2 b3+4 c3", 13, ["abc"]),  # one is loaded after the other
        ("a3+2 b3+4 c3", 12, ["ab", "ac"]),
    ],
)
def test_what_does_not_fit_is_split_with_the_reference_in_each_group(needs, room, expected):
    sizes = {one[0]: panel.Need(*map(int, f"{one[1:]}+0".split("+")[:2])) for one in needs.split()}
    assert ["".join(group) for group in panel.groups(sizes, "a", room)] == expected


@pytest.mark.parametrize(
    ("free", "loaded", "entries"),
    [
        # what is alone has no reference, and no second call in its place
        (9, ["fp32", "bf16", "llm-int8"], "0a 0a+ 0b 1c"),
        (12, ["fp32", "bf16", "fp32", "llm-int8"], "0a 0a+ 0b 1a 1a+ 1c"),
    ],
)
def test_groups_are_loaded_one_after_the_other(prepared, clockwork, monkeypatch, free, loaded, entries):
    configurations = [*named("a"), *named("b", "bf16"), *named("c", "llm-int8")]
    monkeypatch.setattr(panel, "free_bytes", lambda session: free * MIB)
    session = prepared(configurations, {one: probed(size) for one, size in zip(configurations, (3, 3, 7))})
    found = measure(session)["entries"]
    assert session.loaded == loaded
    assert [f"{one['group']}{one['runtime']}{'+' * one['again']}" for one in found] == entries.split()


def test_a_group_may_take_what_is_free_within_the_jobs_limit(measuring, monkeypatch):
    kernel = {"MemAvailable": 8000 * MIB, "VmData": 1000 * MIB}
    monkeypatch.setattr(panel, "proc_bytes", lambda file, field: kernel.get(field))
    for limit, free in ((None, 8000), (4000, 3000), (20_000, 8000)):
        session = measuring("panel", limits=Limits(60, host_memory_mb=limit))
        assert panel.free_bytes(session) == free * MIB
    kernel.clear()  # another system than Linux
    assert panel.free_bytes(session) == 20_000 * MIB
    session.device = "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ((70, 60)[index] * MIB, 80 * MIB))
    assert panel.free_bytes(session) == 130 * MIB


def test_a_configuration_needs_the_highest_peak_of_its_calls_and_what_loading_takes_more():
    readings = [{"peak_rss_growth_bytes": 10 * n, "peak_reserved_bytes": 9 - n} for n in range(4)]
    workloads = [{"prefill": readings[1], "decode": readings[3]}, {"status": "oom"}, {"prefill": readings[2]}]
    probe = {"results": {"load": readings[0], "workloads": workloads}}
    assert (panel.need_of(probe, "cpu"), panel.need_of(probe, "cuda")) == ((30, 0), (8, 1))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "llm-int8", "nf4", "int8-fused"])
def test_runtimes_share_one_model_and_generate_what_they_generate_alone(prepared, measuring, monkeypatch, precision):
    tokens, real, workload = {}, panel.timed_call, ONE | {"new_tokens": 12}

    def timed_call(runtime, input_ids, workload):
        made = runtime.generate(input_ids).tokens.tolist()
        assert tokens.setdefault(type(runtime), made) == made
        return real(runtime, input_ids, workload)

    monkeypatch.setattr(panel, "timed_call", timed_call)
    session = prepared([Configuration(precision, "sdpa", name) for name in ("graph", "generate")], workloads=[workload])
    assert {entry["status"] for entry in measure(session)["entries"]} == {"ok"} and session.loaded == [precision]
    for name in ("graph", "generate"):
        alone = measuring("probe", precision=precision, runtime=name)
        with alone.runtime(alone.load_model()[0], Workload(**workload)) as runtime:
            runtime.prepare()
            assert tokens[type(runtime)] == runtime.generate(panel.prompt_batch(alone, 2, 9)).tokens.tolist()


def test_another_attention_is_another_model_and_each_is_called_under_its_own_kernel(prepared, clockwork, monkeypatch):
    running, forced = [], panel.attention.forced
    monkeypatch.setattr(panel.attention, "forced", lambda name: (running.append(name), forced(name))[1])
    session = prepared([Configuration("fp32", name, name) for name in ("sdpa", "eager", "sdpa-math")])
    measure(session)
    assert session.loaded == ["fp32", "fp32"]  # sdpa and sdpa-math are one implementation
    assert running == ["sdpa", "eager", "sdpa-math", *clockwork.called]  # prepared, then called


# ------------------------------------------------------------------------------------------------------------ one call


def test_a_record_keeps_every_time_and_what_a_step_reads(prepared):
    session = prepared([Configuration("fp32", "sdpa", "generate")], workloads=[ONE, TWO], rounds=3, warmup=2)
    results = measure(session)
    assert set(results["bandwidth_gb_s"]) == {"copy", "read"} and min(results["bandwidth_gb_s"].values()) > 0
    for entry in results["entries"]:
        assert entry["status"] == "ok" and len(entry["warmup_e2e_ms"]) == 2 and len(entry["calls"]) >= 3
        for call in entry["calls"]:
            assert len(call["itl_ms"]) == entry["workload"]["new_tokens"] - 1  # a time for every token after the first
            assert 0 < call["ttft_ms"] < call["ttft_ms"] + sum(call["itl_ms"]) <= call["e2e_ms"]
        per_token = 2 * 2 * 2 * 16 * 4  # K and V · layers · KV heads · head width · fp32
        batch, prompt, new = entry["workload"].values()
        assert entry["step_kv_bytes"] == per_token * batch * (prompt + new / 2)
        embedding = tiny.VOCABULARY * 64 * 4
        layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64  # q, k, v, o; gate, up, down; two norms
        assert entry["step_weight_bytes"] == 4 * (2 * layer + 64) + embedding  # the head, as large as the embedding
    assert [len(saved["entries"]) for saved in session.saved] == [0, 2, 4]  # a killed process keeps its workloads


def test_times_come_from_the_stamps_of_one_call_with_all_its_tokens():
    call = calls.timed_call(Clockwork("a", None, 2, 9, 4), None, Workload(**ONE))
    assert call["ttft_ms"] == 10.0 and call["itl_ms"] == [2.0, 3.0, 4.0]
    for new_tokens in (3, 5):
        with pytest.raises(RuntimeError, match="instead of"):
            calls.timed_call(Clockwork("a", None, 2, 9, new_tokens), None, Workload(**ONE))
