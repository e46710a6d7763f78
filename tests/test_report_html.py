"""`snakemake --report`: opened in a real browser, with categories, figures and captions in it.

The study is never measured: its tables are hand-made, its other files empty, and Snakemake is told that all is done.
"""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hand_made
import pytest
import tiny
from conftest import REPOSITORY
from llmstudy.report import figures

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=10000",
    "--window-size=1400,900",
]
MODEL = "smollm2-135m"
# Opens a category, as a reader would.
CLICKS = """<script>
const press = text => [...document.querySelectorAll("a, button, li, td, span")]
  .filter(node => node.textContent.trim() === text).forEach(node => node.click());
setTimeout(() => press("Answer"), 1500);
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


def snakemake(folder, *arguments):
    command = [sys.executable, "-m", "snakemake", "--configfile", "study.json", *arguments]
    run = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, env=os.environ | {"HOME": str(folder)}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name in ("workflow", "envs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", folder)
    (folder / "unused/model").mkdir(parents=True)  # so that no model is made
    source = {"type": "path", "folder": str(folder)}
    models = [{"name": MODEL, "parameters_millions": 135, "source": source}]
    corpora = [{"name": "text", "source": {"type": "path", "file": str(folder / "text.txt"), "format": "txt"}}]
    config = tiny.study(folder / "unused", models=models, corpora=corpora)
    (folder / "study.json").write_text(json.dumps(config))
    for row in csv.DictReader(io.StringIO(snakemake(folder, "--detailed-summary")), delimiter="\t"):
        path = folder / row["output_file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir(exist_ok=True)
    results = hand_made.write_study(folder / "results" / config["study"], models=(MODEL,))
    figures.draw(results, results / "figures")
    snakemake(folder, "--touch", "--cores", "1")
    snakemake(folder, "--report", "report.html")
    return folder / "report.html"


def dom(page: Path, profile: Path) -> str:
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.split('id="app"')[1].split("<script")[0]


def test_the_first_page_lists_every_category_and_introduces_the_study(html, tmp_path):
    page = dom(html, tmp_path)
    for category in {"Tables", "Answer", "Speed", "Memory", "Quality"}:
        assert f">{category}<" in page
    assert "which precision should" in html.read_text(encoding="utf-8")


def test_a_category_opens_and_names_its_results(html, tmp_path):
    page = tmp_path / "clicked.html"
    text = html.read_text(encoding="utf-8")
    before, end, after = text.rpartition("</body>")
    page.write_text(before + CLICKS + end + after, encoding="utf-8")
    opened = dom(page, tmp_path / "profile")
    for name in (figures.FIGURES["trade_off"].title, "summary.csv", "advice.csv"):
        assert name in opened


def test_every_result_has_its_caption(html):
    text = html.read_text(encoding="utf-8")
    for caption in (
        "Time per output token beside its floor",
        "Share of a linear layer",
        "Speed of a configuration at a",
    ):
        assert caption in text.replace("\\n", " ")
