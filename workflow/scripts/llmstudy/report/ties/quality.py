"""Sentences from quality.csv, text.csv and optional outliers and sensitivity tables: real weights only."""

from collections.abc import Callable

import pandas as pd

from llmstudy.report.selection import rounding_floor
from llmstudy.report.ties.rows import PLACE, Tables, good_rows, leading, link, place
from llmstudy.tables.phrases import number

_INT8 = ("int8-fused", "int8-fused-outlier", "int8-w8a8", "llm-int8", "llm-int8-t0")
_FOUR_BIT = ("llm-int8", "nf4", "fp4")


def reference_perplexity(tables: Tables) -> str | None:
    """NLL and PPL of the least lossy precision over the longest evaluation, with its protocol."""
    frame = _real(good_rows(tables, "quality", "corpus", "protocol", "tokens", "nll", "ppl"))
    for precision in ("fp32", "bf16", "fp16"):
        row = leading(frame[frame["precision"] == precision], "-tokens")
        if row is not None:
            return (
                f"Measured ({place(row)}): over {number(row.tokens)} tokens of `{row.corpus}` (`{row.protocol}`), "
                f"`{precision}` scores {number(row.nll)} nats per token, a perplexity of {row.ppl:.2f} "
                f"({link(row, 'quality')})."
            )
    return None


def greedy_agreement(tables: Tables) -> str | None:
    """Per precision: mean tokens of greedy text that are the reference's, share identical to the end, distinct-2."""
    every = _real(good_rows(tables, "text", "prompts", "new_tokens", "distinct_2_mean"))
    compared = _real(good_rows(tables, "text", "prompts", "new_tokens", "exact_match", "identical_tokens_mean"))
    best = leading(compared, "-prompts", "-new_tokens")
    if best is None:
        return None
    repeats = every[(every[PLACE] == best[PLACE]).all(axis=1)].set_index("precision")["distinct_2_mean"]
    rows = compared[(compared[PLACE] == best[PLACE]).all(axis=1)].sort_values("identical_tokens_mean", ascending=False)
    parts = [
        f"`{row.precision}` for {row.identical_tokens_mean:.1f} tokens, {row.exact_match:.0%} of the texts to the end, "
        f"distinct-2 {repeats[row.precision]:.2f}"
        for row in rows.itertuples()
    ]
    alone = [f"`{name}` {repeats[name]:.2f}" for name in repeats.index.difference(rows["precision"])]
    reference = f"; the reference's own distinct-2: {', '.join(alone)}" if alone else ""
    return (
        f"Measured ({place(best)}), {int(best.prompts)} greedy texts of {int(best.new_tokens)} tokens stay identical "
        f"to the reference's on average: {'; '.join(parts)}{reference} ({link(best, 'text')})."
    )


def top1_agreement(tables: Tables) -> str | None:
    """Share of positions where the most probable token is the reference's, per precision, best first."""
    return _listed(tables, "-top1_agreement", lambda row: f"{row.top1_agreement:.1%}", "top-1 agreement with")


def rulers(tables: Tables) -> str | None:
    """KL divergence from the reference for every precision, from the noise floor to the deliberately bad end."""
    return _listed(tables, "kl_nats", lambda row: number(row.kl_nats), "mean KL divergence in nats from")


def int8_quality(tables: Tables) -> str | None:
    """PPL ratio with interval of weight-only int8 and LLM.int8()."""
    return _listed(tables, "ppl_ratio", _ratio, "PPL over that of", _INT8)


def nf4_quality(tables: Tables) -> str | None:
    """PPL ratio of the 4-bit precisions beside LLM.int8()'s."""
    return _listed(tables, "ppl_ratio", _ratio, "PPL over that of", _FOUR_BIT)


def outliers(tables: Tables) -> str | None:
    """Columns and single values over the paper's threshold: mean over linears, and the linear with most columns."""
    columns = ("layer", "linear", "threshold", "column_share", "entry_share", "tokens")
    frame = _real(good_rows(tables, "outliers", *columns))
    frame = frame[frame["threshold"] == 6.0]
    worst = leading(frame, "-column_share")
    if worst is None:
        return None
    mean = frame[(frame[PLACE] == worst[PLACE]).all(axis=1)][["column_share", "entry_share"]].mean()
    return (
        f"Measured ({place(worst)}): over {number(worst.tokens)} tokens, {mean.column_share:.2%} of a linear's input "
        f"columns reach threshold 6 somewhere, on average over the linears, with {mean.entry_share:.3%} of their "
        f"values; in `{worst.linear}` of layer {worst.layer}, which has most, {worst.column_share:.2%} of the columns "
        f"do ({link(worst, 'outliers')})."
    )


def sensitivity(tables: Tables) -> str | None:
    """The layer whose rounding to int8 alone moves the model's distribution most, with the standard error.

    Of a model in 16 bit also what any change would do.
    """
    frame = _real(good_rows(tables, "sensitivity", "layer", "linear", "kl_nats"))
    worst = leading(frame[(frame["linear"] == "all") & (frame["layer"].astype(str) != "all")], "-kl_nats")
    if worst is None:
        return None
    error = worst.get("kl_se_nats")
    spread = f" (standard error {number(error)})" if pd.notna(error) else ""
    scored = tables.get("quality", pd.DataFrame())
    own = scored[scored["study"] == worst["study"]] if len(scored) else scored
    floor = rounding_floor(own, worst["model"], worst["precision"])
    share = (
        f"; any change of a model in {worst['precision']} moves it by about {number(floor)}, as far as fp32 lies away"
        if pd.notna(floor)
        else ""
    )
    return (
        f"Measured ({place(worst)}): of all layers rounded to int8 one at a time, layer {worst.layer} moves the "
        f"distribution most, {number(worst.kl_nats)} nats of KL divergence per token{spread}{share} "
        f"({link(worst, 'sensitivity')})."
    )


def _real(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["weights"] == "real"]


def _ratio(row) -> str:
    low, high = getattr(row, "ppl_ratio_low", None), getattr(row, "ppl_ratio_high", None)
    return f"{row.ppl_ratio:.4f}" + (f" [{low:.4f}, {high:.4f}]" if pd.notna(low) and pd.notna(high) else "")


def _listed(
    tables: Tables, order: str, word: Callable, title: str, precisions: tuple[str, ...] | None = None
) -> str | None:
    """One value per precision in the evaluation that compares most precisions, then the one with most tokens."""
    column = order.removeprefix("-")
    frame = _real(good_rows(tables, "quality", "corpus", "protocol", "tokens", column))
    if precisions is not None:
        frame = frame[frame["precision"].isin(precisions)]
    keys = [*PLACE, "corpus", "protocol"]
    compared = frame.groupby(keys)["precision"].transform("nunique")
    best = leading(frame.assign(compared=compared), "-compared", "-tokens")
    if best is None:
        return None
    rows = frame[(frame[keys] == best[keys]).all(axis=1)].drop_duplicates("precision")
    rows = rows.sort_values(column, ascending=column == order)
    parts = ", ".join(f"`{row.precision}` {word(row)}" for row in rows.itertuples())
    return (
        f"Measured ({place(best)}, `{best.corpus}`, `{best.protocol}`, {number(best.tokens)} tokens), {title} the "
        f"reference: {parts} ({link(best, 'quality')})."
    )
