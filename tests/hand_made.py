"""Hand-made tables of a finished study: plausible numbers that nobody measured, with every kind of gap in them.

Two real precisions are made to fail, two models have synthetic weights, several workloads, attentions and runtimes are
there. Means, ratios and advice follow from the processes by rules that are simpler than the workflow's: what is tested
with these tables is how the report shows them.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from llmstudy import tables
from llmstudy.models import precisions
from llmstudy.tables.columns import CONFIGURATION, IDENTITY, WORKLOAD, read_table, write_table

OOM = "CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 139.80 GiB"
PROTOCOL = "w1024-s512"
# protocol → its perplexity over that of the first
PROTOCOLS = {PROTOCOL: 1.0, "w512-s512": 1.12, "w1024-s1024": 1.06, "w2048-s2048": 1.01}
WORKLOADS = [(1, 512, 64), (8, 512, 64), (32, 512, 64), (1, 4096, 64)]
BITS = {"bf16": 16, "fp16": 16, "llm-int8": 8, "llm-int8-t0": 8, "nf4": 4.5, "int8-fused": 8, "int8-fused-outlier": 8.1}
# milliseconds of launching one token step under runtime generate
LAUNCH_MS = {"bf16": 20, "fp16": 20.2, "llm-int8": 104, "llm-int8-t0": 62, "nf4": 27, "int8-fused": 22}
PPL = {
    "bf16": 20.99,
    "fp16": 20.985,
    "llm-int8": 21.38,
    "llm-int8-t0": 21.67,
    "int8-fused": 21.1,
    "nf4": 26.9,
    "fp4": 31.6,
}
KL = {"bf16": 3e-7, "fp16": 2e-4, "llm-int8": 0.018, "llm-int8-t0": 0.03, "int8-fused": 0.005, "nf4": 0.28, "fp4": 0.51}
ARCHITECTURES = {
    "smollm2-135m": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                     "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
                     "tie_word_embeddings": True},
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                   "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096,
                   "tie_word_embeddings": False},
    "llama-2-70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
                    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096,
                    "tie_word_embeddings": False},
}  # fmt: skip
PARAMETERS = {"smollm2-135m": 134.5e6, "llama-2-7b": 6.74e9, "llama-2-70b": 68.98e9}


def write_study(
    folder: Path, models: tuple[str, ...] = tuple(ARCHITECTURES), bandwidth: float = 4280.0, **changes
) -> Path:
    """Write a whole study to ``folder``, named like it; ``changes`` go to the provenance. Returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0)
    cells = [
        (model, precision, attention, runtime)
        for model in models
        for precision in (["llm-int8", "nf4", "int8-fused", "bf16"] if model.endswith("70b") else LAUNCH_MS)
        for attention, runtime in [("eager", "generate"), ("sdpa", "generate"), ("sdpa", "graph")]
    ]
    identities = [identity(folder.name, *cell) for cell in cells]
    real = "smollm2-135m" in models
    rows = {
        "processes": [row for one in identities for row in process_rows(one, bandwidth, noise)],
        "probes": [row for one in identities for row in probe_rows(one)],
        "quality": quality_rows(folder.name) if real else [],
        "generations": samples_rows(folder.name) if real else [],
    } | diagnostics(folder.name, models)
    for name in rows:
        write(folder, name, rows[name])
    provenance = provenance_of(folder.name, models) | changes
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1))
    derive(folder, provenance["headline"])
    return folder


def write(folder: Path, name: str, rows: list[dict]) -> None:
    """Write a table, with no column that it does not have."""
    declared = {column.name for column in tables.columns_of(name)}
    assert not set().union(*rows) - declared, set().union(*rows) - declared
    write_table(rows, tables.columns_of(name), folder / f"{name}.csv")


def derive(folder: Path, headlines: dict) -> None:
    """Make the tables that are made of other tables."""
    own = {name: read_table(folder / f"{name}.csv") for name in ("processes", "probes", "quality", "generations")}
    own["speed"] = pd.DataFrame(speed_rows(own["processes"], headlines))
    own["summary"] = pd.DataFrame(summary_rows(own["speed"], own["probes"], own["quality"], headlines))
    made = {"speed": own["speed"].to_dict("records"), "summary": own["summary"].to_dict("records")}
    made |= {"advice": advice_rows(own["speed"], own["summary"], headlines), "capacity": capacity_rows(own["probes"])}
    for name, records in (("text", []), ("power", []), ("crossover", attention_records(folder.name, headlines))):
        study = {"headline": headlines, "attention": ["eager"], "kernels": ["eager"], "dense": ["bf16", "fp16"]}
        make = getattr(import_module(f"llmstudy.{tables.TABLES[name].module}"), name)
        made[name] = make(tables.Sources(records, own, study))
    for name, rows in made.items():
        write(folder, name, rows)


def name_of(row) -> str:
    return f"{row['precision']} ({row['attention']}, {row['runtime']})"


def speed_rows(processes: pd.DataFrame, headlines: dict) -> list[dict]:
    """Geometric means and ranges over processes; ratios to the fastest dense configuration, with made-up intervals."""
    rows = []
    for (model, *_), group in processes.groupby(["model", *WORKLOAD], sort=False):
        own = [one_speed_row(same) for _, same in group.groupby([*CONFIGURATION, "again"], sort=False)]
        measured = [row for row in own if row["status"] == "ok" and row["again"] == "no"]
        dense = [row for row in measured if precisions.get(row["precision"]).family == "dense"]
        base = min(dense, key=lambda row: row["tpot_ms"], default=None)
        library = {"precision": headlines[model]["reference"], "runtime": "generate"}
        for row in own:
            rows.append(row)
            if row["status"] != "ok" or base is None:
                continue
            other = next(one for one in measured if name_of(one) == name_of(row)) if row["again"] == "yes" else base
            row["against"] = name_of(other)
            for name in ("tpot", "ttft", "e2e"):
                row |= gain(row, other, name, f"{name}_speedup")
                words = ("faster", "slower", "same", "not enough data")
                low, high = row[f"{name}_speedup_low"], row[f"{name}_speedup_high"]
                found = [low > 1, high < 1, low > 0.9 and high < 1.1, True].index(True)
                row[f"{name}_verdict"] = "base" if row is other else words[found]
            for one in measured:
                if {key: one[key] for key in library} == library and one["attention"] == row["attention"]:
                    row |= gain(row, one, "tpot", "generate_speedup")
    return rows


def one_speed_row(same: pd.DataFrame) -> dict:
    first, ok = same.iloc[0], same[same["status"] == "ok"]
    row = first[[*IDENTITY, *WORKLOAD, "status", "reason", "again"]].to_dict() | {"processes": len(ok), "flags": ""}
    if len(ok):
        row |= {"status": "ok", "reason": "", "flags": "; ".join(sorted(set(ok["flags"]) - {""}))}
        for name in ("ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s"):
            row |= {name: np.exp(np.log(ok[name]).mean()), f"{name}_min": ok[name].min(), f"{name}_max": ok[name].max()}
        bandwidth = ok[["copy_gb_s", "read_gb_s"]].max().max()
        row |= {"bandwidth_gb_s": bandwidth, "step_bytes": first["step_bytes"], "itl_p50_ms": first["itl_p50_ms"]}
        row["floor_ms"] = row["step_bytes"] / bandwidth / 1e6
        row["mbu"] = row["floor_ms"] / row["tpot_ms"]
    return row


def gain(row: dict, base: dict, name: str, column: str) -> dict:
    ratio, half = base[f"{name}_ms"] / row[f"{name}_ms"], 1.15 if row["runtime"] == "generate" else 1.02
    ends = (np.nan, np.nan) if row is base or row["processes"] < 2 else (ratio / half, ratio * half)
    return {column: ratio, f"{column}_low": ends[0], f"{column}_high": ends[1]}


def summary_rows(speed: pd.DataFrame, probes: pd.DataFrame, quality: pd.DataFrame, headlines: dict) -> list[dict]:
    """A row for each configuration at the headline, with memory and quality beside its speed."""
    rows, taken = [], [column.name for column in tables.columns_of("summary")]
    for _, row in speed[speed["again"] == "no"].iterrows():
        headline = headlines[row["model"]]
        if any(row[key] != headline[key] for key in WORKLOAD):
            continue
        row = {key: value for key, value in row.items() if key in taken}
        alone = probes[(probes[CONFIGURATION] == pd.Series(row)[CONFIGURATION]).all(axis=1)].iloc[0]
        row |= alone[["memory_gib", "weights_gib", "peak_load_gib"]].to_dict()
        graded = quality[(quality["precision"] == row["precision"]) & (quality["protocol"] == headline["protocol"])]
        if row["weights"] == "real" and len(graded) and row["status"] == "ok":
            row |= {key: value for key, value in graded.iloc[0].items() if key in taken and key not in row}
            row["quality_from"] = "sdpa, generate"
            row["ppl_verdict"] = "same" if abs(row["ppl_ratio"] - 1) < 0.01 else "higher"
            if row["precision"] == headline["reference"]:
                row |= {"ppl_ratio": 1.0, "ppl_ratio_low": np.nan, "ppl_ratio_high": np.nan, "ppl_verdict": "reference"}
        rows.append(row)
    for row in rows:
        same = [one for one in rows if one["model"] == row["model"] and name_of(one) == row.get("against")]
        base = same[0] if same else None
        if row["status"] == "ok" and base:
            row["memory_ratio"] = row["memory_gib"] / base["memory_gib"]
            row["memory_verdict"] = ["same", "less", "more"][
                (row["memory_ratio"] < 0.9) + 2 * (row["memory_ratio"] > 1.1)
            ]
        row["pareto"] = "yes" if row["precision"] in ("int8-fused", "nf4") else "no"
    return rows


def advice_rows(speed: pd.DataFrame, summary: pd.DataFrame, headlines: dict) -> list[dict]:
    """The fastest of each use, whatever it loses; the smallest; the reference. Serving is said to be too noisy."""
    rows = []
    for model, headline in headlines.items():
        uses = {"one user": WORKLOADS[0], "long context": WORKLOADS[3], "batch serving": WORKLOADS[2]}
        for use in (*uses, "smallest memory", "closest to the original"):
            workload = dict(zip(WORKLOAD, uses.get(use, [headline[key] for key in WORKLOAD])))
            own = speed[(speed["model"] == model) & (speed["again"] == "no") & (speed["status"] == "ok")]
            own = own[(own[WORKLOAD] == pd.Series(workload)).all(axis=1)].sort_values("tpot_ms", kind="stable")
            whole = own.merge(summary, on=CONFIGURATION, suffixes=("", "_there"))
            if whole.empty:
                first = speed[speed["model"] == model].iloc[0][[*IDENTITY, "status", "reason"]].to_dict()
                rows.append(first | workload | {"use": use, "verdict": "not measured", "sentence": "Not measured."})
                continue
            key = {"smallest memory": "memory_gib", "closest to the original": "kl_nats"}.get(use, "tpot_ms")
            if key not in whole or whole[key].isna().all():
                first = whole.iloc[0][[*IDENTITY, "status", "reason"]].to_dict()
                rows.append(first | workload | {"use": use, "verdict": "not measured", "sentence": "Not measured."})
                continue
            row = whole.loc[whole[key].idxmin()]
            real = row["weights"] == "real"
            verdict = "take" if real else f"{'least memory' if 'memory' in use else 'fastest'} in this study"
            noisy = use == "batch serving" and real and len(whole) > 1
            columns = ["against", "tpot_ms", "tokens_per_s", "memory_gib", "memory_ratio", "ppl_ratio", "ppl_ratio_low"]
            columns = [*IDENTITY, "status", "reason", *columns, "ppl_ratio_high", "ppl_verdict", "processes"]
            rows.append(
                row.reindex(columns).to_dict()
                | workload
                | {"use": use, "verdict": "too noisy to say" if noisy else verdict}
                | {"speedup": row["tpot_speedup"], "speedup_low": row["tpot_speedup_low"]}
                | {"speedup_high": row["tpot_speedup_high"], "evidence": "A" if real else "B"}
                | {"instead": name_of(whole.iloc[1]) if noisy else "", "note": "", "sentence": f"Take {name_of(row)}."}
            )  # fmt: skip
    return rows


def capacity_rows(probes: pd.DataFrame) -> list[dict]:
    """The largest batch at two contexts, verified for the first configuration."""
    rows = []
    ok = probes[(probes["status"] == "ok") & (probes["device"] == "cuda")].drop_duplicates(CONFIGURATION)
    for place, (_, row) in enumerate(ok.iterrows()):
        for context in (2048, 8192):
            batch = int((139.8 - row["weights_gib"]) / (context * 5e-4))
            rows.append(
                row[[*IDENTITY, "status", "reason"]].to_dict()
                | {"device_gib": 139.8, "context_tokens": context, "largest_batch": batch, "fits_gib": 139.0}
                | ({"prediction": "held", "verified_fits": batch, "usable_gib": 138.5} if place == 0 else {})
            )
    return rows


def identity(study: str, model: str, precision: str, attention: str, runtime: str) -> dict:
    status, reason = "ok", ""
    if model.endswith("70b") and precision == "bf16":
        status, reason = "oom", OOM
    elif runtime == "graph" and precision in ("llm-int8", "llm-int8-t0", "nf4"):
        status, reason = "unsupported", f"runtime graph cannot capture {precision}: it decides on the host"
    return {
        "study": study,
        "model": model,
        "weights": "real" if model.startswith("smol") else "synthetic",
        "precision": precision,
        "attention": attention,
        "runtime": runtime,
        "device": "cuda",
        "status": status,
        "reason": reason,
    }


def process_rows(one: dict, bandwidth: float, noise: np.random.Generator) -> list[dict]:
    """Five processes at every workload; the reference is in each a second time."""
    rows = []
    size = PARAMETERS[one["model"]] * BITS[one["precision"]] / 8
    reference = (one["precision"], one["attention"], one["runtime"]) == ("bf16", "sdpa", "generate")
    for batch, prompt, new in WORKLOADS:
        for process in range(1, 6):
            for again in ["no", "yes"] if reference else ["no"]:
                row = one | {"batch": batch, "prompt_tokens": prompt, "new_tokens": new, "process": process, "group": 1}
                row |= {"again": again, "flags": ""}
                if one["status"] == "ok":
                    floor = (size + batch * prompt * 5e5) / bandwidth / 1e6
                    launch = LAUNCH_MS[one["precision"]] * (1.2 if one["attention"] == "eager" else 1)
                    spread = noise.lognormal(0, 0.02)
                    slow = 4.5 if one["precision"] == "nf4" else 1.25
                    tpot = spread * (floor * slow if one["runtime"] == "graph" else max(floor * 1.4, launch))
                    ttft = spread * (launch + batch * prompt * PARAMETERS[one["model"]] * 2 / 4e11)
                    whole = ttft + tpot * (new - 1)
                    row |= {
                        "ttft_ms": ttft,
                        "tpot_ms": tpot,
                        "itl_p50_ms": tpot,
                        "itl_p90_ms": tpot * 1.02,
                        "e2e_ms": whole,
                        "tokens_per_s": 1e3 * batch * new / whole,
                        "rounds": 6,
                        "tpot_rounds_ms": " ".join(f"{tpot * factor:.4g}" for factor in (1, 1.01, 0.99, 1, 1.02, 0.98)),
                        "copy_gb_s": bandwidth * 0.97,
                        "read_gb_s": bandwidth,
                        "step_bytes": int(floor * bandwidth * 1e6),
                        "threads": 4,
                    }
                    if process == 2 and one["precision"] == "nf4":
                        row["flags"] = "load average 5.1 on 16 cores"
                rows.append(row)
    return rows


def probe_rows(one: dict) -> list[dict]:
    rows = []
    gib = PARAMETERS[one["model"]] * BITS[one["precision"]] / 8 / 2**30
    for batch, prompt, new in WORKLOADS:
        row = one | {"batch": batch, "prompt_tokens": prompt, "new_tokens": new}
        if one["status"] == "ok":
            kv, workspace = batch * (prompt + new) * 5e-4, 0.2 + 0.01 * batch
            row |= {
                "load_s": 4.0,
                "cold_ms": 900.0,
                "compile_s": 0.0 if one["runtime"] == "generate" else 1.3,
                "weights_gib": gib,
                "kv_cache_gib": kv,
                "workspace_gib": workspace,
                "peak_load_gib": gib * 1.1,
                "peak_prefill_gib": gib + kv + 2 * workspace,
                "peak_decode_gib": gib + kv + workspace,
                "peak_reserved_gib": gib + kv + 3 * workspace,
                "driver_gib": gib + kv + 3 * workspace + 0.5,
                "memory_gib": gib + kv + 3 * workspace + 0.5,
                "peak_rss_gib": 3.0,
                "embeddings_gib": gib * 0.05,
                "linears_gib": gib * 0.9,
                "norms_gib": gib * 0.001,
                "head_gib": gib * 0.049,
                "other_gib": 0.0,
                "attention_kernels": "flash_fwd_kernel",
            }
        rows.append(row)
    return rows


def quality_rows(study: str) -> list[dict]:
    rows = []
    for precision, ppl in PPL.items():
        for protocol, scale in PROTOCOLS.items():
            row = identity(study, "smollm2-135m", precision, "sdpa", "generate")
            row |= {"status": "ok", "reason": "", "corpus": "wikipedia", "protocol": protocol, "tokens": 10183}
            row["bos"] = "none, as the tokenizer does"
            value, kl, spread = ppl * scale, KL[precision], 1 + 2e-2 * KL[precision] + 1e-4
            row |= {
                "nll": np.log(value), "ppl": value, "ppl_low": value / 1.09, "ppl_high": value * 1.09,
                "word_ppl": value**1.4, "byte_ppl": value**0.22, "bits_per_byte": 0.22 * np.log2(value),
                "delta_nll": np.log(ppl / PPL["bf16"]), "delta_nll_se": 1e-3, "ppl_ratio": ppl / PPL["bf16"],
                "ppl_ratio_low": ppl / PPL["bf16"] / spread, "ppl_ratio_high": ppl / PPL["bf16"] * spread, "blocks": 20,
            }  # fmt: skip
            if protocol == PROTOCOL:
                row |= {
                    "kl_nats": kl, "kl_low_nats": kl * 0.9, "kl_high_nats": kl * 1.12, "kl_median_nats": kl / 3,
                    "kl_p90_nats": kl * 3, "kl_p99_nats": kl * 9, "kl_p999_nats": kl * 20, "kl_max_nats": kl * 50,
                    "kl_tokens": 10183, "top1_agreement": 1 - kl**0.5 / 2, "top1_low": 1 - kl**0.5 / 1.9,
                    "top1_high": 1 - kl**0.5 / 2.1, "delta_p_mean": -kl / 10,
                    "delta_p_rms": kl / 2, "delta_p_p1": -kl, "delta_p_p99": kl,
                }  # fmt: skip
            rows.append(row)
    return rows + threshold_rows(rows)


def threshold_rows(rows: list[dict]) -> list[dict]:
    """LLM.int8() at other thresholds, on the beginning of the same text and under the first protocol alone."""
    model = next(row for row in rows if row["precision"] == "llm-int8" and row["protocol"] == PROTOCOL)
    return [
        model | {"precision": f"llm-int8-t{threshold}", "tokens": 4096, "kl_tokens": 4096, "ppl": 21.0 * ratio,
                 "ppl_ratio": ratio, "ppl_ratio_low": ratio - 0.003, "ppl_ratio_high": ratio + 0.003,
                 "kl_nats": ratio - 1, "top1_agreement": 0.92}
        for threshold, ratio in (("2", 1.002), ("4", 1.01), ("inf", 1.032))
    ]  # fmt: skip


def samples_rows(study: str) -> list[dict]:
    rows = []
    for precision in LAUNCH_MS:
        for prompt in ("Once upon a time", "The capital of France is"):
            row = identity(study, "smollm2-135m", precision, "sdpa", "generate")
            row |= {
                "prompt": prompt,
                "reference_text": ", there was a *fox* | a hen.\nThey met",
                "status": "ok",
                "reason": "",
            }
            row |= {"text": row["reference_text"], "new_tokens": 48, "distinct_2": 0.9, "repetition_4": 0.02}
            if precision == "nf4":
                row |= {"text": ", there was <b>nothing</b>", "first_divergence_token": 3}
            if precision == "llm-int8" and prompt.startswith("The"):
                row |= {"status": "timeout", "reason": "no answer after 600 s", "text": "", "new_tokens": None}
            rows.append(row)
    return rows


def headline(models) -> dict:
    batch, prompt, new = WORKLOADS[0]
    workload = {"batch": batch, "prompt_tokens": prompt, "new_tokens": new}
    return {model: workload | {"reference": "bf16", "corpus": "wikipedia", "protocol": PROTOCOL} for model in models}


def provenance_of(study: str, models) -> dict:
    return {
        "study": study,
        "config": {
            "study": study, "precisions": list(LAUNCH_MS), "reference": "bf16",
            "verdict": {"margin_percent": {"speed": 10, "memory": 10, "perplexity": 1}},
            "models": [{"name": model, "license": "Apache-2.0", "note": None} for model in models],
            "corpora": [{"name": "wikipedia", "license": "CC BY-SA", "note": "An excerpt."}],
        },
        "config_sha256": "0" * 64,
        "headline": headline(models),
        "models": {
            model: {"real": model.startswith("smol"), "parameters": PARAMETERS[model], "license": None,
                    "fetched_note": None, "source": {"type": "synthetic", "shape": model},
                    "architecture": ARCHITECTURES[model]}
            for model in models
        },
        "environments": [{
            "git_commit": "a" * 40, "git_dirty": False, "python": "3.12.3", "system": "Linux 6.8 x86_64",
            "packages": {"torch": "2.11.0", "transformers": "5.17.0"}, "cpu": "a processor", "cpu_capabilities": [],
            "cores": 16, "threads": 16, "host_memory_gib": 128.0, "records": 60,
            "gpu": {"name": "NVIDIA H200", "count": 1, "memory_gib": 139.8, "multiprocessors": 132,
                    "compute_capability": "9.0", "cuda": "13.0", "driver": "580.1"},
            "first_started": "2026-11-01T10:00:00+00:00", "last_started": "2026-11-01T12:00:00+00:00",
        }],
        "records": 60, "statuses": {"ok": 50, "oom": 3, "unsupported": 7}, "wall_s": 4000.0,
    }  # fmt: skip


def diagnostics(study: str, models) -> dict[str, list[dict]]:
    """Rows of the optional tables of the real model, and of the attention kernels of every model."""
    linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    one = identity(study, "smollm2-135m", "bf16", "sdpa", "generate")
    outliers, sensitivity, attention = [], [], []
    for layer in range(30):
        for place, linear in enumerate(linears):
            for threshold in (4.0, 6.0):
                share = 0.002 * (place == 6) * layer / threshold + 0.001 * (layer == 29)
                outliers.append(
                    one | {"layer": layer, "linear": linear, "threshold": threshold, "column_share": share,
                           "row_share": min(1, share * 90), "entry_share": share / 40, "max_abs": 9.0, "columns": 576,
                           "tokens": 2048}
                )  # fmt: skip
    parts = [(layer, "all", 2e-4 * (1 + (layer in (0, 29)) * 6)) for layer in range(30)]
    parts += [("all", linear, 1e-3 * (1 + place)) for place, linear in enumerate(linears)]
    for layer, linear, delta in parts:
        sensitivity.append(
            one | {"layer": layer, "linear": linear, "delta_nll": delta, "delta_nll_se": delta / 5,
                   "delta_nll_low": delta * 0.6, "delta_nll_high": delta * 1.4, "kl_nats": 0.03 - delta,
                   "kl_low_nats": 0.028 - delta, "kl_high_nats": 0.032 - delta, "kl_se_nats": 0.001, "tokens": 2048,
                   "blocks": "8 documents"}
        )  # fmt: skip
    for model in models:
        for kernel, factor, workspace in [
            ("eager", 12, 1.0),
            ("sdpa-math", 10, 0.9),
            ("sdpa-flash", 1, 0),
            ("sdpa-cudnn", 0.6, 0.001),
        ]:
            for context in (512, 2048, 8192, 16384):
                for phase, power in (("prefill", 2), ("decode", 1)):
                    own = identity(study, model, "bf16", kernel, "generate") | {"status": "ok", "reason": ""}
                    time_ms = factor * (context / 512) ** power * 1e-2
                    own |= {"context": context, "phase": phase, "time_ms": time_ms, "time_low_ms": time_ms * 0.97,
                            "time_high_ms": time_ms * 1.1, "extra_mib": workspace * context**2 / 1e4 + 1,
                            "prompt_tokens": context if phase == "prefill" else None, "kernel": f"{kernel}_kernel",
                            "tflops": 300 / factor if phase == "prefill" else None, "max_abs_error": 1e-4,
                            "gb_s": 2000 / factor if phase == "decode" else None}  # fmt: skip
                    if kernel == "eager" and context == 16384:
                        own |= dict.fromkeys(("time_ms", "time_low_ms", "time_high_ms", "tflops", "gb_s", "extra_mib"))
                        own |= {"status": "oom", "reason": OOM}
                    attention.append(own)
    found = {"attention": attention, "profile": profile_rows(study, models)}
    if "smollm2-135m" in models:
        found |= {
            "outliers": outliers,
            "sensitivity": sensitivity,
            "invariance": invariance_rows(study),
            "tasks": task_rows(study),
        }
    return found


def attention_records(study: str, models) -> list[dict]:
    """Two kernels alone: ``sdpa`` is slower up to a context of 1 024, faster beyond it, and always slower to decode."""
    records = []
    for model in models:
        for kernel, power, scale in (("eager", 2, 1.0), ("sdpa", 1, 1024.0)):
            points = [
                {"context": context, "phase": phase, "status": "ok", "reason": "",
                 "time_ms": [time_ms * factor for factor in (0.97, 1.0, 1.04)]}
                for context in (256, 512, 2048, 8192)
                for phase, time_ms in (("prefill", scale * context**power / 1e6), ("decode", scale * context / 1e6))
            ]  # fmt: skip
            who = identity(study, model, "bf16", kernel, "generate") | {"kind": "attention"}
            records.append({"identity": who, "status": "ok", "reason": "", "results": {"points": points}})
    return records


def profile_rows(study: str, models) -> list[dict]:
    rows = []
    for model in models:
        for precision, launches in [("bf16", 700), ("llm-int8", 6200), ("int8-fused", 720), ("nf4", 1100)]:
            rows.append(
                identity(study, model, precision, "sdpa", "generate") | {"status": "ok", "reason": "", "batch": 1,
                "prompt_tokens": 512, "new_tokens": 64, "tpot_ms": float(launches) / 30, "launches_per_token": launches,
                "kernels_per_token": launches, "syncs_per_token": 224 if precision == "llm-int8" else 0,
                "operators_per_token": launches * 2, "device_busy_share": 0.2, "matmul_share": 0.8, "mbu": 0.1,
                "flops_share": 0.01, "limit": "launch-bound", "top_operations": "gemv 80%"}
            )  # fmt: skip
    return rows


def invariance_rows(study: str) -> list[dict]:
    return [
        identity(study, "smollm2-135m", precision, "sdpa", "generate") | {"batch": 8, "neighbours": neighbours,
        "max_abs_delta_logit": delta, "mean_abs_delta_logit": delta / 9, "top1_changes": 1, "positions": 64}
        for precision, delta in (("bf16", 0.1), ("llm-int8", 0.8)) for neighbours in ("copies", "others 1")
    ]  # fmt: skip


def task_rows(study: str) -> list[dict]:
    """bf16 as the reference, a precision with flips, one of whose tasks has no data set."""
    rows = []
    for task in ("arc_easy", "my_task"):
        one = {"task": task, "metric": "acc", "documents": 500, "accuracy": 0.6, "accuracy_low": 0.556,
               "accuracy_high": 0.642}  # fmt: skip
        rows.append(identity(study, "smollm2-135m", "bf16", "sdpa", "generate") | one)
        rows.append(
            identity(study, "smollm2-135m", "nf4", "sdpa", "generate") | one |
            {"accuracy": 0.54, "accuracy_change": -0.06, "accuracy_change_low": -0.0931,
             "accuracy_change_high": -0.0268, "answers_changed": 83, "correct_to_wrong": 51, "wrong_to_correct": 21,
             "mcnemar_p": 0.000538, "mcnemar_p_holm": 0.00108, "distinguishable": "yes"}
        )  # fmt: skip
    gone = {"task": "my_task", "status": "error", "reason": "task my_task: no data set"}
    rows[-1] = identity(study, "smollm2-135m", "nf4", "sdpa", "generate") | gone
    return rows
