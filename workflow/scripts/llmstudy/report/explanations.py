"""Tables of the optional measurements: what explains speed and loss."""

from __future__ import annotations

import pandas as pd

from llmstudy.report import markdown, selection
from llmstudy.report.figures.style import sort
from llmstudy.report.study import Study
from llmstudy.tables.phrases import number

# columns `quantity` and `along` of crossover.csv in words
COMPARED = {
    "tokens_per_s": "tokens/s",
    "ttft_ms": "TTFT",
    "prefill_ms": "prefill, kernel alone",
    "decode_ms": "decode step, kernel alone",
}
ALONG = {"batch": "batch size", "prompt_tokens": "prompt tokens", "context": "context tokens"}


def profile(study: Study) -> str | None:
    """Where a decode step's time goes; None if it was not profiled."""
    frame = study.table("profile")
    if frame.empty:
        return None
    rows = []
    for _, row in ordered(study, frame, "runtime", "attention").iterrows():
        names = [f"`{row['model']}`", f"`{row['precision']}`", f"{row['attention']}, {row['runtime']}"]
        if row["status"] != "ok":
            rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * 5])
            continue
        counts = ("launches_per_token", "syncs_per_token", "operators_per_token")
        rows.append(
            [
                *names,
                *(markdown.value(row[column]) for column in counts),
                markdown.percent(row["device_busy_share"]),
                markdown.percent(row["mbu"]),
                str(row["limit"]),
            ]
        )
    header = ["model", "precision", "as", "launches", "synchronisations", "operators", "device busy", "MBU", "limit"]
    return markdown.table(header, rows, "lllrrrrrl")


def invariance(study: Study) -> str | None:
    """Dependence of a prompt's logits on its neighbours, where there is any; None if not measured or none is."""
    frame = study.table("invariance")
    if frame.empty:
        return None
    changed = (frame["status"] != "ok") | (frame["max_abs_delta_logit"] > 0)
    return listing(
        study,
        "invariance",
        {
            "batch": ("batch", markdown.value),
            "neighbours": ("neighbours", str),
            "max_abs_delta_logit": ("largest change of a logit", markdown.value),
            "top1_changes": ("first choices changed", markdown.value),
            "positions": ("of positions", markdown.value),
        },
        "llrlrrr",
        changed,
    )


def sweep(study: Study) -> str | None:
    """Loss and decode time of LLM.int8() over its threshold; None if not measured."""
    return listing(
        study,
        "sweep",
        {
            "threshold": ("threshold", lambda x: f"{x:g}"),
            "tpot_ms": ("TPOT, ms", markdown.value),
            "ppl_ratio": (
                "perplexity ÷ reference's",
                lambda x: markdown.NOT_APPLICABLE if pd.isna(x) else markdown.ratio(x),
            ),
            "kl_nats": ("KL, nats", markdown.value),
            "top1_agreement": ("top-1 agreement", markdown.percent),
        },
        "llrrrrr",
    )


def sensitivity(study: Study, count: int = 5) -> str | None:
    """The parts whose rounding moves the model's distribution most; None if not measured."""
    parts = selection.rounded_parts(study)
    if parts.empty:
        return None
    worst = parts.sort_values("kl_nats", ascending=False).groupby("model", sort=False).head(count)
    rows = [
        [
            f"`{row['model']}`",
            str(row["layer"]),
            str(row["linear"]),
            markdown.with_interval(row["kl_nats"], row["kl_low_nats"], row["kl_high_nats"]),
            markdown.with_interval(row["delta_nll"], row["delta_nll_low"], row["delta_nll_high"]),
        ]
        for _, row in worst.iterrows()
    ]
    return markdown.table(["model", "layer", "linear", "KL, nats per token", "Δ NLL, nats per token"], rows, "lrlrr")


def outliers(study: Study) -> str | None:
    """Per threshold the share of columns and rows that some outlier touches, and of values that are outliers, mean over
    the linears and largest; None if not measured."""
    frame = study.table("outliers")
    if frame.empty or not frame["threshold"].notna().any():
        return None
    rows = []
    for (model, threshold), own in frame[frame["status"] == "ok"].groupby(["model", "threshold"], sort=False):
        worst = own.loc[own["column_share"].idxmax()]
        rows.append(
            [
                f"`{model}`",
                f"{threshold:g}",
                f"{own['column_share'].mean():.2%}",
                f"{worst['column_share']:.2%} (layer {worst['layer']}, {worst['linear']})",
                f"{own['row_share'].mean():.2%}",
                f"{own['entry_share'].mean():.3%}",
                number(own["max_abs"].max()),
                number(own["tokens"].max()),
            ]
        )
    means = ["columns, mean", "columns, most", "rows, mean", "values, mean"]
    return markdown.table(["model", "threshold", *means, "largest magnitude", "tokens"], rows, "lrrrrrrr")


def attention(study: Study) -> str | None:
    """Each kernel at the longest context that any ran, prefill and decode; None if not measured."""
    frame = study.table("attention")
    if frame.empty:
        return None
    rows = []
    for (model, phase), own in frame.groupby(["model", "phase"], sort=False):
        longest = own.loc[own["time_ms"].notna(), "context"].max()
        for _, row in own[own["context"] == longest].iterrows():
            names = [f"`{model}`", phase, f"{longest:.0f}", f"`{row['attention']}`"]
            if row["status"] != "ok":
                rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * 3])
                continue
            rate = (
                f"{number(row['tflops'])} TFLOP/s" if pd.notna(row["tflops"]) else markdown.value(row["gb_s"], " GB/s")
            )
            rows.append(
                [
                    *names,
                    markdown.with_interval(row["time_ms"], row["time_low_ms"], row["time_high_ms"]),
                    rate,
                    markdown.value(row["extra_mib"]),
                    markdown.value(row["max_abs_error"]),
                ]
            )
    header = ["model", "phase", "context", "kernel", "time, ms [range]", "rate", "workspace, MiB", "largest error"]
    return markdown.table(header, rows, "llrlrrrr") if rows else None


def crossover(study: Study) -> str | None:
    """Where one configuration overtakes another, in words; None if there are fewer than two points to compare."""
    frame = study.table("crossover")
    if frame.empty:
        return None
    rows = []
    for (along, quantity), own in frame.groupby(["along", "quantity"], sort=False):
        differing = "precision" if along == "batch" else "attention"
        for _, row in ordered(study, own).iterrows():
            rows.append(
                [
                    f"`{row['model']}`",
                    f"`{row[differing]}`",
                    f"`{row['reference']}`",
                    COMPARED[quantity],
                    where(row, along, differing),
                    f"{ALONG[along]}: {markdown.plain(str(row['text']))}",
                ]
            )
    return markdown.table(["model", "candidate", "against", "in", "at", "cross-over"], rows, "llllll")


def where(row: pd.Series, along: str, differing: str) -> str:
    """What both sides of a cross-over have in common."""
    # A kernel alone runs in no runtime.
    names = ["precision"] if along == "context" else ["precision", "attention", "runtime"]
    same = [str(row[column]) for column in names if column != differing]
    sizes = {"batch": "batch {:.0f}", "prompt_tokens": "prompt {:.0f}", "new_tokens": "{:.0f} new tokens"}
    same += [told.format(row[name]) for name, told in sizes.items() if name != along and pd.notna(row[name])]
    return ", ".join(same)


def capacity(study: Study) -> str | None:
    """The largest batch that fits, and what verified it; None if not predicted."""
    columns = {
        "attention": ("attention", str),
        "runtime": ("runtime", str),
        "context_tokens": ("context", lambda x: f"{x:.0f}"),
        "largest_batch": ("largest batch", markdown.value),
        "fits_gib": ("predicted peak, GiB", markdown.value),
        "device_gib": ("device, GiB", markdown.value),
    }
    if verified(study).empty:
        return listing(study, "capacity", columns, "llllrrrr")
    columns |= {
        "usable_gib": ("of it usable, GiB", lambda x: "–" if pd.isna(x) else number(x)),
        "verified_fits": ("verified: ran", lambda x: "–" if pd.isna(x) else f"{x:.0f}"),
        "verified_oom": ("verified: out of memory", lambda x: "–" if pd.isna(x) else f"{x:.0f}"),
        "prediction": ("prediction", lambda x: "–" if pd.isna(x) else str(x)),
    }
    return listing(study, "capacity", columns, "llllrrrrrrrl")


def verified(study: Study) -> pd.DataFrame:
    """The predictions of capacity that were run, or would have been; none in a study that asked for no verification."""
    frame = study.table("capacity")
    return frame[frame["prediction"].notna()] if "prediction" in frame else pd.DataFrame()


def capacity_verified(study: Study) -> str | None:
    """Predicted against verified in words: how many held, which missed and by what; None if none was asked for."""
    frame = verified(study)
    if frame.empty:
        return None
    judged = frame[frame["prediction"].isin(["held", "missed"])]
    held = int((judged["prediction"] == "held").sum())
    told = []
    if len(judged):
        told.append(
            f"Predictions run on the device: {held} of {len(judged)} held, which means that a batch 3 % below the "
            "predicted one ran and one 5 % above it ran out of memory, in whole sequences. The verifying process lets "
            "the allocator's segments grow (`expandable_segments`): fragments of its default can take a fifth of the "
            "device."
        )
    for _, row in judged[judged["prediction"] == "missed"].iterrows():
        fits, too_large = row["verified_fits"], row["verified_oom"]
        ran = "none that was tried ran" if not fits > 0 else f"{fits:.0f} ran"
        failed = "none that was tried ran out of memory" if pd.isna(too_large) else f"{too_large:.0f} did not"
        told.append(f"Missed: {_named(row)} was predicted to fit {row['largest_batch']:.0f}; {ran}, {failed}.")
    failed = frame.drop(judged.index)
    for (status, reason), rows in failed.fillna({"prediction_reason": ""}).groupby(["prediction", "prediction_reason"]):
        told.append(f"{len(rows)} not verified: `{status}`: {markdown.plain(reason)}.")
    return " ".join(told)


def _named(row: pd.Series) -> str:
    configuration = f"`{row['model']}` `{row['precision']}` ({row['attention']}, {row['runtime']})"
    return f"{configuration} at {row['context_tokens']:.0f} tokens"


def listing(study: Study, name: str, columns: dict, align: str, kept: pd.Series | slice = slice(None)) -> str | None:
    """Model, precision and some columns of a table's ``kept`` rows; ``columns``: column → (title, how to show it)."""
    frame = study.table(name)[kept]
    if frame.empty:
        return None
    rows = []
    for _, row in ordered(study, frame).iterrows():
        names = [f"`{row['model']}`", f"`{row['precision']}`"]
        if row["status"] != "ok":
            rows.append([*names, markdown.failure(row), *[f"`{row['status']}`"] * (len(columns) - 1)])
        else:
            rows.append([*names, *(show(row[column]) for column, (_, show) in columns.items())])
    return markdown.table(["model", "precision", *(title for title, _ in columns.values())], rows, align)


def ordered(study: Study, frame: pd.DataFrame, *then: str) -> pd.DataFrame:
    """Rows by model as configured, then by precision as everywhere."""
    parts = [sort(frame[frame["model"] == model], *then) for model in study.models]
    return pd.concat(parts)
