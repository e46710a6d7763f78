"""LLM.int8() at one outlier threshold: its quality on the beginning of the text, and its decode time.

0 switches the decomposition off. ``inf`` does not: bitsandbytes then still compares every activation with the threshold
and finds none, so that the difference between the two is what the search alone costs.
"""

from __future__ import annotations

import numpy as np

from llmstudy import runtimes
from llmstudy.measure.prompts import prompt_batch
from llmstudy.measure.quality import Reference, measure_protocol, replace_arrays
from llmstudy.measure.session import Session, log
from llmstudy.measure.speed import run_once
from llmstudy.measure.stream import protocol_name, token_stream
from llmstudy.models.precisions import llm_int8


def measure(session: Session) -> dict:
    """``{"protocols": [entry of a quality record], "runs": [as in a latency record]}``; arrays as for quality."""
    settings = session.settings
    # The registry's llm-int8 is the one with threshold 6; here the job's own takes its place.
    session.precision = llm_int8.with_threshold("llm-int8", float(settings["threshold"]))
    model, _ = session.load_model()
    corpus, name = settings["corpus"], protocol_name(settings["protocol"], settings["bos"])
    stream = token_stream(session, corpus)
    found = measure_protocol(session, model, stream, settings["protocol"], Reference.open(session, corpus))
    entry = {"corpus": corpus, "protocol": name, "words": stream.words, "utf8_bytes": stream.utf8_bytes}
    entry |= {"status": "ok", "reason": "", "tokens": len(found["nll"])}
    entry |= {f"mean_{key}": float(np.mean(values)) for key, values in found.items()}
    arrays = {f"{corpus}/{name}/{key}": values for key, values in found.items()}
    replace_arrays(session.artifacts / "arrays.npz", arrays | {f"{corpus}/{name}/document": stream.document[1:]})
    results = {"protocols": [entry]}
    session.save(results)
    log(f"threshold {settings['threshold']}: mean NLL {entry['mean_nll']:.4f} over {entry['tokens']} tokens")
    return results | {"runs": decode_runs(session, model, settings["workload"], settings["runs"])}


def decode_runs(session: Session, model, workload: dict, runs: int) -> list[dict]:
    """Timed runs of one workload after one that warms up."""
    input_ids = prompt_batch(session, workload["batch"], workload["prompt_tokens"])
    runtime = runtimes.get("generate")(model, **workload)
    with session.attention_forced():
        run_once(runtime, input_ids, workload)
        return [run_once(runtime, input_ids, workload) for _ in range(runs)]
