"""What the tables of the optional measurements say, in a sentence above each."""

from __future__ import annotations

import pandas as pd

from llmstudy.report import markdown
from llmstudy.report.study import Study
from llmstudy.tables.phrases import number


def profile(study: Study) -> str:
    """Per model the most and the fewest launches of a decode step, with what they leave of the device's time."""
    sentences = []
    for model, rows in _measured(study, "profile", "launches_per_token"):
        most, fewest = (rows.loc[getattr(rows["launches_per_token"], end)()] for end in ("idxmax", "idxmin"))
        if most["launches_per_token"] == fewest["launches_per_token"]:
            continue
        sentences.append(f"A token of `{model}` takes {_step(most)}; {_step(fewest)}.")
    return " ".join(sentences)


def _step(row: pd.Series) -> str:
    launches, waits = row["launches_per_token"], row["syncs_per_token"]
    return (
        f"`{row['precision']}` ({row['attention']}, {row['runtime']}) "
        f"{number(launches)} {'launch' if launches == 1 else 'launches'} and "
        f"{number(waits)} {'wait' if waits == 1 else 'waits'} of the host, and the device works "
        f"{markdown.percent(row['device_busy_share'])} of the time"
    )


def sweep(study: Study) -> str:
    """Per model what the decomposition of LLM.int8() costs and gains over its thresholds."""
    sentences = []
    for model, rows in _measured(study, "sweep", "ppl_ratio"):
        best, plain = rows.loc[rows["ppl_ratio"].idxmin()], rows[rows["threshold"] == 0]
        if plain.empty or best["threshold"] == 0:
            continue
        plain = plain.iloc[0]
        sentences.append(
            f"Of `{model}` threshold {best['threshold']:g} loses {markdown.loss(best)} of perplexity where no "
            f"decomposition loses {markdown.loss(plain)} (95 % intervals, {number(best['tokens'])} tokens), and a "
            f"token takes {number(best['tpot_ms'] / plain['tpot_ms'])} times as long."
        )
    return " ".join(sentences)


def invariance(study: Study) -> str:
    """Per model which precisions give a prompt other first choices beside copies of itself, and beside other texts.

    What changes beside copies comes from the batch's shape, what changes only beside others from their content.
    """
    sentences = []
    for model, rows in _measured(study, "invariance", "top1_changes"):
        copies = rows["neighbours"] == "copies"
        for beside, own in (("copies of itself", rows[copies]), ("other texts", rows[~copies])):
            if len(own):
                sentences.append(f"Beside {beside}, {_changes(model, own)}.")
    return " ".join(sentences)


def _changes(model: str, rows: pd.DataFrame) -> str:
    """How many first choices change at most, precision by precision."""
    worst = rows.loc[rows.groupby("precision", sort=False)["top1_changes"].idxmax()]
    changed = worst[worst["top1_changes"] > 0].sort_values("top1_changes", ascending=False, kind="stable")
    told = [
        f"`{row['precision']}` up to {row['top1_changes']:.0f} of {row['positions']:.0f}"
        for _, row in changed.iterrows()
    ]
    if not told:
        return f"no first choice of `{model}` changes in any precision"
    same = [f"`{name}`" for name in worst.loc[worst["top1_changes"] == 0, "precision"]]
    rest = f"; in {', '.join(same)} none" if same else ""
    return f"first choices of `{model}` change: {', '.join(told)}{rest}"


def _measured(study: Study, table: str, quantity: str) -> list[tuple[str, pd.DataFrame]]:
    """Rows in which a quantity was measured (a CPU launches nothing), model by model; none without such a table."""
    frame = study.table(table)
    return list(frame[frame[quantity].notna()].groupby("model", sort=False)) if len(frame) else []
