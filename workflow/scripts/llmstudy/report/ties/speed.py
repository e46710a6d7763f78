"""Sentences from processes.csv and the optional profile and attention tables."""

import pandas as pd

from llmstudy.report.ties.rows import (
    PLACE,
    UNQUANTISED,
    Tables,
    fastest_attention,
    good_rows,
    leading,
    link,
    of_kind,
    over_repeats,
    paired,
    place,
    processes,
    workload,
)
from llmstudy.stats import processes as statistics
from llmstudy.tables.columns import WORKLOAD
from llmstudy.tables.phrases import number


def prefill_against_decode(tables: Tables) -> str | None:
    """TTFT per prompt token against TPOT of the same unquantised run, and their ratio."""
    frame = fastest_attention(over_repeats(tables, "processes", "ttft_ms", "tpot_ms"), "tpot_ms")
    row = leading(of_kind(frame, UNQUANTISED), "batch", "-tpot_ms", "-prompt_tokens")
    if row is None:
        return None
    prefill, decode = row.ttft_ms / (row.batch * row.prompt_tokens), row.tpot_ms / row.batch
    return (
        f"Measured ({place(row)}, `{row.precision}`, `{row.runtime}` runtime, {workload(row)}, "
        f"{processes(row.repeats)}): prefill spends {number(prefill)} ms on each prompt token, decode {number(decode)} "
        f"ms on each new one, {number(decode / prefill)} times as much ({link(row, 'latency')})."
    )


def decode_bandwidth(tables: Tables) -> str | None:
    """TPOT, MBU and copy bandwidth of the best-launched unquantised decode."""
    frame = fastest_attention(over_repeats(tables, "processes", "tpot_ms", "mbu", "bandwidth_gb_s"), "tpot_ms")
    row = leading(of_kind(frame, UNQUANTISED), "batch", "-tpot_ms", "prompt_tokens")
    if row is None:
        return None
    return (
        f"Measured ({place(row)}, {workload(row)}, {processes(row.repeats)}): a `{row.precision}` token takes "
        f"{number(row.tpot_ms)} ms in the `{row.runtime}` runtime, an MBU of {row.mbu:.0%} of the "
        f"{number(row.bandwidth_gb_s)} GB/s that the same job copies at ({link(row, 'latency')})."
    )


def batching(tables: Tables) -> str | None:
    """How much longer a step gets from the smallest to the largest batch of one unquantised precision."""
    frame = fastest_attention(over_repeats(tables, "processes", "tpot_ms"), "tpot_ms").sort_values("batch")
    keys = [*PLACE, "prompt_tokens", "new_tokens", "precision", "runtime", "accelerator"]
    large = frame.drop_duplicates(keys, keep="last")[[*keys, "batch", "tpot_ms"]]
    both = frame.drop_duplicates(keys).merge(large, on=keys, suffixes=("", "_large"))
    row = leading(of_kind(both[both["batch_large"] > both["batch"]], UNQUANTISED), "-tpot_ms", "prompt_tokens")
    if row is None:
        return None
    return (
        f"Measured ({place(row)}, `{row.precision}`, `{row.runtime}` runtime, {int(row.prompt_tokens)} prompt tokens): "
        f"from batch {int(row.batch)} to {int(row.batch_large)} a step goes from {number(row.tpot_ms)} ms to "
        f"{number(row.tpot_ms_large)} ms and yields {number(row.batch_large / row.batch)} times the tokens "
        f"({link(row, 'latency')})."
    )


def bitsandbytes_slow(tables: Tables) -> str | None:
    """TPOT and MBU of LLM.int8() against the unquantised precision, both launched eagerly."""
    return _tpot_pair(tables, [("llm-int8", "generate"), ("llm-int8-t0", "generate")], _unquantised("generate"))


def threshold_zero(tables: Tables) -> str | None:
    """TPOT of LLM.int8() with the outlier path against the same without it."""
    return _tpot_pair(tables, [("llm-int8", "generate")], [("llm-int8-t0", "generate")])


def int8_fused_fast(tables: Tables) -> str | None:
    """TPOT and MBU of unquantised weights against the fused int8 kernel, both under the same runtime.

    Then the factor and MBU of every other model of that study.
    """
    for runtime in ("graph", "generate"):
        slow, quick = _unquantised(runtime), [("int8-fused", runtime)]
        told = _tpot_pair(tables, slow, quick)
        if told:
            return " ".join(filter(None, [told, _other_models(tables, slow, quick)]))
    return None


def _other_models(tables: Tables, slow: list[tuple[str, str]], quick: list[tuple[str, str]]) -> str:
    pairs = _tpot_pairs(tables, slow, quick)
    first = _first_pair(pairs)
    same = (pairs["study"] == first["study"]) & (pairs["model"] != first["model"])
    parts = []
    for model, rows in pairs[same].groupby("model", sort=False):
        row = _first_pair(rows)
        share = f", MBU {row['mbu']:.0%} against {row['mbu_other']:.0%}" if pd.notna(row["mbu_other"]) else ""
        parts.append(f"`{model}` {number(row.tpot_ms / row.tpot_ms_other)} times ({workload(row)}{share})")
    return f"The same factor of other models: {'; '.join(parts)}." if parts else ""


def int8_activations(tables: Tables) -> str | None:
    """TTFT of W8A8 against unquantised weights under the same runtime, at the largest prefill that both ran."""
    frame = fastest_attention(over_repeats(tables, "processes", "ttft_ms"), "ttft_ms")
    frame = frame.assign(rows=frame["batch"] * frame["prompt_tokens"])
    pairs = [
        paired(frame, [*PLACE, *WORKLOAD, "accelerator", "rows"], [(precision, runtime)], _unquantised(runtime))
        for runtime in ("graph", "generate")
        for precision in ("llm-int8-t0", "int8-w8a8")
    ]
    row = leading(pd.concat(pairs), "-rows", "-ttft_ms") if any(map(len, pairs)) else None
    if row is None:
        return None
    return (
        f"Measured ({place(row)}, `{row.runtime}` runtime, {workload(row)}): a first token takes `{row.precision}` "
        f"{number(row.ttft_ms)} ms and `{row.precision_other}` {number(row.ttft_ms_other)} ms ({link(row, 'latency')})."
    )


def launches(tables: Tables) -> str | None:
    """Launches and host synchronisations per token, the device's busy share and the host's time per operator."""
    frame = good_rows(tables, "profile", "launches_per_token", "syncs_per_token", "device_busy_share")
    best = leading(frame, "-launches_per_token")
    if best is None:
        return None
    rows = frame[(frame[PLACE] == best[PLACE]).all(axis=1)].sort_values("launches_per_token", ascending=False)
    parts = [
        f"`{row.precision}` in `{row.runtime}` {_step(row)}, device busy {row.device_busy_share:.0%}{_host(row)}"
        for row in rows.drop_duplicates(["precision", "runtime"]).itertuples()
    ]
    return f"Profiled per token ({place(best)}): {'; '.join(parts)} ({link(best, 'profile')})."


def _step(row) -> str:
    """Launches and synchronisations of a step."""
    launches, waits = row.launches_per_token, row.syncs_per_token
    return (
        f"{number(launches)} {'launch' if launches == 1 else 'launches'} and "
        f"{number(waits)} {'synchronisation' if waits == 1 else 'synchronisations'}"
    )


def _host(row) -> str:
    """Time per operator that the host issues in a step; nothing where it issues none (a captured graph)."""
    if not getattr(row, "operators_per_token", 0) > 0:
        return ""
    each_us = 1e3 * row.tpot_ms / row.operators_per_token
    return f", {number(row.operators_per_token)} operators of {number(each_us)} µs each"


def attention_growth(tables: Tables) -> str | None:
    """Time of each attention kernel alone, from the shortest to the longest prompt that several of them ran."""
    frame = good_rows(tables, "attention", "prompt_tokens", "time_ms")
    shared = frame[frame.groupby([*PLACE, "prompt_tokens"])["attention"].transform("nunique") > 1]
    best = leading(shared, "-prompt_tokens")
    if best is None:
        return None
    own = shared[(shared[PLACE] == best[PLACE]).all(axis=1)]
    short = own["prompt_tokens"].min()
    ends = own[own["prompt_tokens"].isin([short, best.prompt_tokens])]
    times = ends.pivot_table(index="attention", columns="prompt_tokens", values="time_ms", aggfunc="median").dropna()
    if short == best.prompt_tokens or times.empty:
        return None
    parts = [
        f"`{name}` from {number(row[short])} to {number(row[best.prompt_tokens])} ms"
        for name, row in times.sort_values(best.prompt_tokens).iterrows()
    ]
    return (
        f"Measured ({place(best)}), the attention of one layer at a prefill, from {int(short)} to "
        f"{int(best.prompt_tokens)} tokens: {', '.join(parts)} ({link(best, 'attention')})."
    )


def attention_decode(tables: Tables) -> str | None:
    """Time of one decode step's attention in one layer, and the rate at which it reads the cache, kernel by kernel."""
    frame = good_rows(tables, "attention", "context", "phase", "time_ms", "gb_s")
    frame = frame[frame["phase"] == "decode"]
    best = leading(frame[frame.groupby([*PLACE, "context"])["attention"].transform("nunique") > 1], "-context")
    if best is None:
        return None
    keys = [*PLACE, "context"]
    rows = frame[(frame[keys] == best[keys]).all(axis=1)].sort_values("time_ms").drop_duplicates("attention")
    parts = [f"`{row.attention}` {number(1e3 * row.time_ms)} µs ({number(row.gb_s)} GB/s)" for row in rows.itertuples()]
    return (
        f"Measured ({place(best)}), the attention of one layer over {int(best.context)} tokens for one new one: "
        f"{', '.join(parts)} ({link(best, 'attention')})."
    )


def attention_time(tables: Tables) -> str | None:
    """Time and TFLOP/s of each attention kernel alone at the longest context that two or more ran."""
    frame = good_rows(tables, "attention", "prompt_tokens", "time_ms", "tflops")
    keys = [*PLACE, "prompt_tokens"]
    best = leading(frame[frame.groupby(keys)["attention"].transform("nunique") > 1], "-prompt_tokens")
    if best is None:
        return None
    rows = frame[(frame[keys] == best[keys]).all(axis=1)].sort_values("time_ms").drop_duplicates("attention")
    parts = [f"`{row.attention}` {number(row.time_ms)} ms ({number(row.tflops)} TFLOP/s)" for row in rows.itertuples()]
    listed = ", ".join(parts)
    return f"Measured ({place(best)}) for {int(best.prompt_tokens)} tokens: {listed} ({link(best, 'attention')})."


def same_against_same(tables: Tables) -> str | None:
    """Per study and device, TPOT of the same configuration and workload in two processes: how far apart over all pairs.

    The typical pair, the 95th percentile where the sample supports it, and the worst pair with its configuration.
    """
    frame = good_rows(tables, "processes", *WORKLOAD, "tpot_ms").astype({"tpot_ms": float})
    keys = [*PLACE, *WORKLOAD, "precision", "attention", "runtime"]
    sentences = []
    for _, rows in frame.groupby(["study", "device"], sort=False):
        repeats = rows.groupby(keys, dropna=False)["tpot_ms"]
        found = statistics.same_against_same(repeats.agg(list))
        if found is None:
            continue
        worst = pd.Series(dict(zip(keys, (repeats.max() / repeats.min()).idxmax())))
        unusual = "" if pd.isna(found.p95) else f", by at most {found.p95:.1%} in 95 of 100 pairs"
        sentences.append(
            f"Measured over {found.pairs} {'pair' if found.pairs == 1 else 'pairs'} of processes: the same "
            f"configuration differed in TPOT by {found.median:.1%} in the median{unusual} and by {found.largest:.1%} "
            f"at most ({place(worst)}, `{worst.precision}`, `{worst.runtime}` runtime, {workload(worst)}). Smaller "
            f"differences between single processes are not to be believed ({link(worst, 'latency')})."
        )
    return " ".join(sentences) or None


def bandwidth_spread(tables: Tables) -> str | None:
    """Per study the lowest and the highest copy bandwidth that its processes measured."""
    frame = good_rows(tables, "processes", "bandwidth_gb_s")
    parts = []
    for study, rows in frame.groupby("study", sort=False):
        low, high = rows["bandwidth_gb_s"].min(), rows["bandwidth_gb_s"].max()
        parts.append(f"{number(low)} to {number(high)} GB/s ({link(pd.Series({'study': study}), 'latency')})")
    return f"Measured copy bandwidth, process by process: {'; '.join(parts)}." if parts else None


def failed_cells(tables: Tables) -> str | None:
    """How many latency rows ended in each status other than ok."""
    frame = tables.get("processes")
    if frame is None or frame.empty:
        return None
    counts = frame["status"].value_counts().drop("ok", errors="ignore")
    failed = ", ".join(f"{count} ended as `{status}`" for status, count in counts.items()) or "all are `ok`"
    studies = ", ".join(link(pd.Series({"study": study}), "processes") for study in sorted(frame["study"].unique()))
    return f"Of {len(frame)} latency rows, {failed} ({studies})."


def _unquantised(runtime: str) -> list[tuple[str, str]]:
    return [kind for kind in UNQUANTISED if kind[1] == runtime]


def _tpot_pairs(tables: Tables, slow: list[tuple[str, str]], quick: list[tuple[str, str]]) -> pd.DataFrame:
    frame = fastest_attention(over_repeats(tables, "processes", "tpot_ms", optional=("mbu",)), "tpot_ms")
    return paired(frame, [*PLACE, *WORKLOAD, "accelerator"], slow, quick)


def _first_pair(pairs: pd.DataFrame) -> pd.Series | None:
    return leading(pairs, "batch", "-tpot_ms", "prompt_tokens")


def _tpot_pair(tables: Tables, slow: list[tuple[str, str]], quick: list[tuple[str, str]]) -> str | None:
    row = _first_pair(_tpot_pairs(tables, slow, quick))
    if row is None:
        return None
    first, second = _tpot(row, ""), _tpot(row, "_other")
    return (
        f"Measured ({place(row)}, {workload(row)}, {processes(min(row.repeats, row.repeats_other))}): {first} against "
        f"{second}, {number(row.tpot_ms / row.tpot_ms_other)} times as long ({link(row, 'latency')})."
    )


def _tpot(row: pd.Series, side: str) -> str:
    mbu = row[f"mbu{side}"]
    share = f", MBU {mbu:.1%}" if pd.notna(mbu) else ""
    runtime, milliseconds = row[f"runtime{side}"], number(row[f"tpot_ms{side}"])
    return f"`{row[f'precision{side}']}` {milliseconds} ms per token (`{runtime}` runtime{share})"
