"""Hand-made optional tables, and the identity that the rows of all hand-made tables share."""

from __future__ import annotations

OOM = "CUDA out of memory. Tried to allocate 448.00 MiB. GPU 0 has a total capacity of 139.80 GiB"


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


def tables(study: str, models) -> dict[str, list[dict]]:
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
