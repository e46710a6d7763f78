"""Accuracy in tasks of lm-eval, and every single answer, so that two precisions can be compared document by document.

Two precisions can be equally accurate and still answer many documents differently (Dutta et al. 2024,
arXiv:2407.09141), hence the arrays beside the record. Each has one entry per document, pooled over the tasks of a
group, under ``<name as configured>/``:

document       uint64 hash of the document and its prompt, which pairs two precisions
correct        int8, 0 or 1
answer         text: number of the chosen answer, or the filtered answer where the model writes one; where it only
               scores one text, whether that is its greedy continuation
choices        int32, how many of ``loglikelihood`` belong to the document; 0 where the model writes
loglikelihood  float32 nats, the answers' one after the other
"""

from __future__ import annotations

import hashlib
import math
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from llmstudy.errors import StudyError
from llmstudy.fetch.tasks import load, open_manager
from llmstudy.measure.quality import replace_arrays
from llmstudy.measure.session import Session

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

# Metrics that are 0 or 1 per document, in the order of preference; every other one stays in ``scores``.
CORRECTNESS = ("acc", "exact_match")


def measure(session: Session) -> dict:
    """``{"lm_eval": version, "tasks": [{"task", "status", "reason", "metric", "documents", "scores"}]}``.

    ``metric`` is what ``correct`` stands for, ``scores`` every value that lm-eval gave, by task and metric.
    """
    manager = open_manager(session.settings["include_path"])
    model = wrap(session, session.load_model()[0])
    results: dict = {"lm_eval": metadata.version("lm-eval"), "tasks": []}
    arrays: dict[str, np.ndarray] = {}
    for name in session.settings["tasks"]:
        session.piece(results, "tasks", {"task": name}, partial(measure_task, session, model, manager, name, arrays))
    return results


def wrap(session: Session, model) -> HFLM:
    """The model as lm-eval takes it. Log-softmax is fp32: lm-eval's default is the model's own dtype, in whose 8 bits
    of a bf16 answers tie."""
    from lm_eval.models.huggingface import HFLM

    class Quiet(HFLM):
        """Without the progress bars, which redraw one line and make a log unreadable."""

        def loglikelihood(self, requests, disable_tqdm=True):
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests, disable_tqdm=True):
            return super().generate_until(requests, disable_tqdm=True)

    return Quiet(
        pretrained=model,
        tokenizer=session.weights.tokenizer,
        batch_size=session.settings["batch_size"],
        max_length=session.weights.context,
        softmax_dtype="float32",
    )


def measure_task(session: Session, model: HFLM, manager, name: str, arrays: dict[str, np.ndarray]) -> dict:
    """Evaluate one task or group, add its documents to ``arrays`` and replace the file of these."""
    import lm_eval

    try:
        loaded = load(manager, name)
    except ConnectionError as error:
        raise StudyError(
            f"task {name}: its data set is not in the cache of this machine, and measuring jobs stay off the hub; "
            "where there is a network: snakemake --cores 1 --forcerun fetch_tasks"
        ) from error
    with session.attention_forced():
        results = lm_eval.simple_evaluate(
            model,
            tasks=[*loaded["tasks"].values()],
            task_manager=manager,
            num_fewshot=session.settings["num_fewshot"],
            limit=session.settings["limit"],
            bootstrap_iters=0,
        )
    rows, metrics = [], set()
    for leaf, task in loaded["tasks"].items():
        metric, found = documents(task, results["results"][leaf])
        rows += found
        metrics.add(metric)
    arrays |= {f"{name}/{key}": values for key, values in columns(rows).items()}
    replace_arrays(session.artifacts / "arrays.npz", arrays)
    return {"metric": " and ".join(sorted(metrics)), "documents": len(rows), "scores": scores(results["results"])}


def documents(task: Task, logged: list[dict]) -> tuple[str, list[dict]]:
    """The metric that says what is correct, and per document ``document``, ``correct``, ``answer`` and
    ``loglikelihood``; of several filters the first."""
    metric = next((one for one in CORRECTNESS if one in logged[0]["metrics"]), None)
    if metric is None:
        raise StudyError(
            f"task {task.task_name}: of its metrics ({', '.join(logged[0]['metrics'])}) none says of a document "
            f"whether it is answered correctly; allowed: tasks with {' or '.join(CORRECTNESS)}"
        )
    found = []
    for sample in (one for one in logged if one["filter"] == logged[0]["filter"]):
        if sample[metric] not in (0, 1):
            raise StudyError(f"task {task.task_name}: {metric} of a document is {sample[metric]}; allowed: 0 or 1")
        named = f"{sample['doc_hash']}{sample['prompt_hash']}".encode()
        row = {"document": int.from_bytes(hashlib.sha256(named).digest()[:8], "big"), "correct": int(sample[metric])}
        found.append(row | answered(task, sample))
    return metric, found


def answered(task: Task, sample: dict) -> dict:
    """``answer`` and ``loglikelihood`` of one document."""
    given = sample["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        # Some tasks score the answers a second time, without the question.
        nats = [one[0] for one in given[: len(task.doc_to_choice(sample["doc"]))]]
        answer = str(np.argmax(nats))
    elif task.OUTPUT_TYPE == "loglikelihood":
        nats, answer = [given[0][0]], str(given[0][1])
    else:
        nats, answer = [], str(given[0])
    if not all(map(math.isfinite, nats)):
        raise FloatingPointError(f"task {task.task_name}: a log-likelihood is not finite; the precision overflows")
    return {"answer": answer, "loglikelihood": nats}


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """One array per quantity, as the module describes them."""
    return {
        "document": np.array([row["document"] for row in rows], dtype=np.uint64),
        "correct": np.array([row["correct"] for row in rows], dtype=np.int8),
        "answer": np.array([row["answer"] for row in rows], dtype=np.str_),
        "choices": np.array([len(row["loglikelihood"]) for row in rows], dtype=np.int32),
        "loglikelihood": np.array([nats for row in rows for nats in row["loglikelihood"]], dtype=np.float32),
    }


def scores(results: dict) -> dict[str, dict[str, float]]:
    """Every finite number that lm-eval gave, by task and ``metric,filter``; the standard errors need its bootstrap."""
    return {
        task: {
            key: float(value)
            for key, value in found.items()
            if "," in key and isinstance(value, int | float) and math.isfinite(value)
        }
        for task, found in results.items()
    }
