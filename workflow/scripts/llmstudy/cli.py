"""The command line: ``llmstudy measure`` makes one measurement, ``llmstudy compare`` compares two studies."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from llmstudy import config as study_config
from llmstudy import kinds
from llmstudy.errors import StudyError
from llmstudy.files import atomic_write, shared_file
from llmstudy.runner import record
from llmstudy.runner.job import Identity, Limits

MODEL, CORPUS = "model", "corpus"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0, or 1 with one line on standard error for a mistake or a change past its limit."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    root = argparse.ArgumentParser(prog="llmstudy", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("measure", help="make one measurement in a child process and print its record")
    add = command.add_argument
    add("kind", choices=[name for name, kind in kinds.KINDS.items() if kind.rule != "measure_reference"])
    add("--model", type=Path, required=True, metavar="DIR", help="folder with safetensors or a GGUF file")
    add("--precision", required=True, help="for instance bf16")
    add("--runtime", default="generate", help="default: generate")
    add("--attention", default="sdpa", help="default: sdpa")
    add("--text", type=Path, metavar="FILE", help=".txt or .jsonl; default: the report's chapters")
    add("--config", type=Path, metavar="FILE", help="a study's config, for workloads and other settings")
    add("--minutes", type=float, default=30, help="time limit; default: 30")
    command.set_defaults(run=measure)

    command = commands.add_parser("compare", help="compare two studies; exit code 1 if a change is past its limit")
    add = command.add_argument
    add("before", type=Path, metavar="BEFORE", help="folder of a study, for instance results/cpu")
    add("after", type=Path, metavar="AFTER", help="folder of another")
    add("--output", type=Path, metavar="FILE", help="write every comparison to this CSV file")
    for quantity, percent in (("tpot", 5), ("memory", 5), ("ppl", 1)):
        text = f"largest change of {quantity} for the worse, per cent; default: {percent}"
        add(f"--{quantity}-percent", type=float, default=percent, metavar="P", help=text)
    command.set_defaults(run=compare)
    return root


def measure(options: argparse.Namespace) -> int:
    """Fetch the model and the text into a temporary folder, measure, and print the record as JSON."""
    from llmstudy.fetch.corpora import fetch_corpus
    from llmstudy.fetch.models import fetch_weights

    with tempfile.TemporaryDirectory(prefix="llmstudy-") as temporary:
        folder = Path(temporary)
        study = study_config.complete(_config(options, options.text or _chapters(folder / "chapters")))
        # A panel holds what was probed; here that is one configuration.
        names = ["probe", "panel"] if options.kind == "panel" else [options.kind]
        kinds.check(study, *reversed(names))
        identity = Identity(study.name, options.kind, MODEL, options.precision, options.attention, options.runtime)
        fetch_weights(kinds.fetch_settings(study, MODEL), folder / "model", folder / "downloads")
        fetch_corpus(study.config["corpora"][0], folder / "corpus", folder / "downloads")
        for name in names:
            job = replace(
                kinds.job(study, replace(identity, kind=name)),
                model_folder=str(folder / "model"),
                corpora={CORPUS: str(folder / "corpus")},
                reference_folder=str(folder / "reference"),
                limits=Limits(60 * options.minutes),
            )
            if name == "panel":
                job.settings["configurations"] = [list(identity.configuration)]
                job.settings["probes"] = [str(folder / "probe.json")]
            path = folder / f"{name}.json"
            record.measure(job, path, folder / "log", {"arrays.npz": folder / "record.npz"})
        print(path.read_text(encoding="utf-8"), end="")
        result = record.read(path)
        if options.kind == "panel":
            _print_times(result)
        if result["status"] != "ok":
            print((folder / "log").read_text(encoding="utf-8"), file=sys.stderr)
    return 0 if result["status"] == "ok" else 1


def _print_times(panel: dict) -> None:
    """Print a line for each workload on standard error, and one more for the second call of each round."""
    from llmstudy.tables import Sources
    from llmstudy.tables.processes import processes

    for row in processes(Sources([panel], {}, {})):
        if row["status"] == "ok":
            tokens = f"batch {row['batch']}, {row['prompt_tokens']} + {row['new_tokens']} tokens"
            times = f"TTFT {row['ttft_ms']:.4g} ms, TPOT {row['tpot_ms']:.4g} ms"
            again = ", again" if row["again"] == "yes" else ""
            print(f"{tokens}{again}: {times}, medians of {row['rounds']} rounds", file=sys.stderr)


def _chapters(folder: Path) -> Path:
    """Write the report's background chapters, some thousand words of English, as one text each."""
    folder.mkdir()
    for chapter in shared_file("report/background").glob("*.j2"):
        (folder / f"{chapter.stem}.txt").write_text(chapter.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def _config(options: argparse.Namespace, text: Path) -> dict:
    """Return the config of a study of one model, one text and one configuration."""
    import yaml

    if options.config and not options.config.exists():
        raise StudyError(f"--config: {str(options.config)!r} does not exist; allowed: a study's config")
    given = yaml.safe_load(options.config.read_text(encoding="utf-8")) if options.config else {}
    if not text.exists():
        raise StudyError(f"--text: {str(text)!r} does not exist; allowed: a .txt or .jsonl file")
    form = "jsonl" if text.suffix == ".jsonl" else "txt"
    shared = {key: value for key, value in given.items() if key not in ("diagnostics", "quality_only")}
    return shared | {
        "study": "once",
        "models": [{"name": MODEL, "source": {"type": "path", "folder": str(options.model)}}],
        "corpora": [{"name": CORPUS, "source": {"type": "path", "file": str(text), "format": form}}],
        "precisions": [options.precision],
        "reference": options.precision,
        "attention": [options.attention],
        "runtimes": list(dict.fromkeys(["generate", options.runtime])),
    }


def compare(options: argparse.Namespace) -> int:
    """Print each change past its limit; return 1 if there is one."""
    from llmstudy.tables.compare import compare as compared

    limits = {f"{name}_percent": getattr(options, f"{name}_percent") for name in ("tpot", "memory", "ppl")}
    table, failures = compared(options.before, options.after, limits)
    if options.output:
        with atomic_write(options.output) as file:
            table.to_csv(file, index=False, float_format="%.6g")
    print("\n".join(failures) or f"no change past its limit in {len(table)} comparisons")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
