"""Tasks through Snakemake, from task files in a folder to tasks.csv."""

import json
import os
import subprocess
import sys
from pathlib import Path

import local_task
import pages
import pytest
import tiny
import yaml
from llmstudy.tables.columns import read_table

pytestmark = pytest.mark.slow


def test_a_folder_of_tasks_becomes_a_table(tmp_path):
    folder = pages.workspace(tmp_path)
    local_task.save(folder / "tasks")
    own = {"enabled": True, "tasks": ["tiny_choice", "tiny_group"], "include_path": "tasks", "limit": 6}
    study = tiny.study(folder / "data") | {"extras": {"tasks": own}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    command = [Path(sys.executable).parent / "snakemake", "--cores", "1", "--configfile", "study.yaml", "--"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, "results/tiny/tasks.csv"], cwd=folder, capture_output=True, text=True, env=environment, timeout=600
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert (
        json.loads((folder / "resources/tasks/tiny.json").read_text())["tiny_choice"]["tiny_choice"]["documents"] == 8
    )
    table = read_table(folder / "results/tiny/tasks.csv")
    assert table[["precision", "task", "status", "documents"]].values.tolist() == [
        [precision, *rest]
        for precision in ("fp32", "bf16")
        for rest in (["tiny_choice", "ok", 6], ["tiny_group", "ok", 12])
    ]
    assert table.loc[:1, "accuracy_change"].isna().all()
    bf16 = table.loc[2:]
    gained = (bf16["wrong_to_correct"] - bf16["correct_to_wrong"]) / bf16["documents"]
    assert bf16["accuracy_change"].tolist() == pytest.approx(gained.tolist(), rel=1e-5)
    assert (bf16["answers_changed"] >= bf16["wrong_to_correct"] + bf16["correct_to_wrong"]).all()
    record = json.loads((folder / "results/tiny/records/tasks/tiny-llama/bf16.sdpa.generate.r0.json").read_text())
    assert record["results"]["lm_eval"] == "0.4.13" and record["settings"]["num_fewshot"] == 0
