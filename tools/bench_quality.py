"""Is quality evaluation limited by the model? Its tokens/s against a bare forward pass over the same windows.

    python tools/bench_quality.py resources/models/<model> resources/corpora/<corpus>

Both run alternately in one process, so that a machine that slows down slows both. Quality is timed twice: NLL alone,
and with KL divergence and agreement against a stored reference, which is also read from disk.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow" / "scripts"))

from llmstudy.measure.quality import values_of  # noqa: E402
from llmstudy.measure.reference import Reference, Settings, rows_of, store  # noqa: E402
from llmstudy.measure.scoring import Protocol, score_windows  # noqa: E402
from llmstudy.measure.session import Session, resolve_device  # noqa: E402
from llmstudy.measure.text import TokenStream, token_stream, windows  # noqa: E402
from llmstudy.runner.job import Identity, Job  # noqa: E402
from llmstudy.runtimes import BASE  # noqa: E402

TARGET = 0.9


def main() -> None:
    """Print one line for each way of evaluating."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="bench-quality-") as folder:
        session = session_of(options, Path(folder))
        settings = session.settings_as(Settings)
        protocol, vocabulary = settings.protocols[0], session.weights.config().vocab_size
        stream = token_stream(session, "text", settings)
        model, _ = session.load_model()
        scored = partial(score_windows, session, model, stream, protocol, None)
        tokens = rows_of(stream, settings)
        store(session, "text", tokens, partial(scored, until=tokens))

        def quality(compared: bool) -> None:
            reference = Reference(session.artifacts, "text", vocabulary, session.device) if compared else None
            values_of(scored, len(stream.ids) - 1, reference)

        ways = {"NLL": lambda: quality(False), "NLL, KL and agreement": lambda: quality(True)}
        for name, way in ways.items():
            bare, full = pair(session, lambda: forward(session, model, stream, protocol), way, options.rounds)
            report(name, len(stream.ids) - 1, bare, full)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a fetched model, with manifest.json")
    parser.add_argument("corpus", type=Path, help="folder of a fetched corpus, with text.jsonl")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def session_of(options: argparse.Namespace, folder: Path) -> Session:
    """Return a quality session over the options whose reference is stored in ``folder``."""
    settings = {
        "corpora": ["text"],
        "reference": options.precision,
        "protocols": [{"window": options.window, "stride": options.stride}],
        "decode": {"batches": [], "prompts": 1, "prompt_tokens": 2, "new_tokens": 2},
        "bos": False,
        "documents": None,
        "tokens_per_document": None,
        "max_tokens": options.tokens,
        "kl_tokens": options.tokens,
    }
    job = Job(
        identity=Identity("bench", "quality", options.model.name, options.precision, options.attention, BASE),
        module="measure.quality",
        cases="protocols",
        device=options.device,
        threads=options.threads,
        model_folder=str(options.model),
        corpora={"text": str(options.corpus)},
        prompt_corpus="text",
        reference_folder=str(folder),
        settings=settings,
    )
    return Session(job=job, device=resolve_device(options.device), artifacts=folder, save=lambda results: None)


def forward(session: Session, model, stream: TokenStream, protocol: Protocol) -> None:
    """Compute the logits of the scored positions of every window, and nothing else."""
    import torch

    ids = torch.from_numpy(stream.ids).to(session.device)
    with torch.no_grad(), session.attention_forced():
        for window in windows(len(ids), protocol.window, protocol.stride):
            model(ids[None, window.begin : window.end], use_cache=False, logits_to_keep=window.scored)
    session.synchronize()


def pair(session: Session, bare: Callable, full: Callable, rounds: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each, run alternately, after one run of each to warm up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for run, taken in zip((bare, full), seconds):
            session.synchronize()
            start = time.perf_counter()
            run()
            session.synchronize()
            if number:
                taken.append(time.perf_counter() - start)
    return seconds


def report(name: str, tokens: int, bare: list[float], full: list[float]) -> None:
    """Print the ratio of each round's pair: median and range."""
    ratios = sorted(b / f for b, f in zip(bare, full))
    ratio = statistics.median(ratios)
    rates = [tokens / statistics.median(seconds) for seconds in (full, bare)]
    outcome = "reached" if ratio >= TARGET else "missed"
    print(
        f"{name}: {rates[0]:.0f} tokens/s, forward alone {rates[1]:.0f}; "
        f"ratio {ratio:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), target {TARGET}: {outcome}"
    )


if __name__ == "__main__":
    main()
