"""Accuracy in tasks of lm-eval, and every single answer, so that two precisions can be compared document by document.

Two precisions can be equally accurate and still answer many documents differently (Dutta et al. 2024,
arXiv:2407.09141), hence the arrays beside the record. Each has one entry per document, pooled over the tasks of a
group, under ``<name as configured>/``:

    document       uint64 hash of the document and its prompt, which pairs two precisions
    correct        int8, 0 or 1
    answer         text: number of the chosen answer, or the filtered answer that the model generates; if it only scores
                   one text, whether that is its greedy continuation
    choices        int32, number of values of ``loglikelihood`` that belong to the document; 0 if the model generates
    loglikelihood  float32 nats of the answers, one document after the other
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from llmstudy.errors import StudyError
from llmstudy.fetch.tasks import load, open_manager
from llmstudy.measure.scoring import finite_logits
from llmstudy.measure.session import Session
from llmstudy.measure.text import require_rows

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

# Metrics that are 0 or 1 per document, in the order of preference; all others are in ``scores`` alone.
CORRECTNESS = ("acc", "exact_match")


@dataclass(frozen=True)
class Settings:
    """Names of tasks or groups; folder with further task files; documents of each task (None: all), solved examples
    before each question (None: the task's number), and answers scored side by side."""

    tasks: tuple[str, ...]
    include_path: str | None
    limit: int | None
    num_fewshot: int | None
    batch_size: int


def measure(session: Session) -> dict:
    """Return ``{"lm_eval": version, "tasks": [{"task", "status", "reason", "metric", "documents", "scores"}]}``.

    ``metric`` is what ``correct`` is by, ``scores`` every value that lm-eval gave, by task and metric.
    """
    settings = session.settings_as(Settings)
    manager = open_manager(settings.include_path)
    model = wrap(session, session.load_model()[0], settings.batch_size)
    results: dict = {"lm_eval": metadata.version("lm-eval"), "tasks": []}
    for name in settings.tasks:
        with session.case(results, "tasks", task=name) as entry:
            entry |= measure_task(session, model, manager, name, settings)
    return results


def wrap(session: Session, model, batch_size: int) -> HFLM:
    """Return the model for lm-eval, with a log-softmax in fp32: lm-eval's default is the model's dtype, in whose 8 bits
    of a bf16 answers tie."""
    from lm_eval.models.huggingface import HFLM

    class Quiet(HFLM):
        """HFLM without progress bars, which redraw one line and make a log unreadable."""

        def loglikelihood(self, requests, disable_tqdm=True):
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests, disable_tqdm=True):
            return super().generate_until(requests, disable_tqdm=True)

        def tok_encode(self, *arguments, **options):
            return require_rows(session, super().tok_encode(*arguments, **options))

    return Quiet(
        pretrained=model,
        tokenizer=session.weights.tokenizer,
        batch_size=batch_size,
        max_length=session.weights.context,
        softmax_dtype="float32",
    )


def measure_task(session: Session, model: HFLM, manager, name: str, settings: Settings) -> dict:
    """Evaluate one task or group and keep the arrays of its documents; return its part of the entry. Raise StudyError
    if the task or its data set is missing, or no metric says which documents are answered correctly."""
    import lm_eval

    try:
        loaded = load(manager, name)
    except ConnectionError as error:
        raise StudyError(
            f"task {name}: its data set is not in the cache of this machine, and measuring jobs stay off the hub; "
            "where there is a network: snakemake --cores 1 --forcerun fetch_tasks"
        ) from error
    with session.attention_forced(), finite_logits(model.model):
        results = lm_eval.simple_evaluate(
            model,
            tasks=[*loaded["tasks"].values()],
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            bootstrap_iters=0,
        )
    rows, metrics = [], set()
    for leaf, task in loaded["tasks"].items():
        metric, answers = documents(task, results["samples"][leaf])
        rows += answers
        metrics.add(metric)
    session.keep_arrays({f"{name}/{key}": values for key, values in columns(rows).items()})
    return {"metric": " and ".join(sorted(metrics)), "documents": len(rows), "scores": scores(results["results"])}


def documents(task: Task, samples: list[dict]) -> tuple[str, list[dict]]:
    """Return the metric that says which documents are answered correctly, and for each document its ``document``,
    ``correct``, ``answer`` and ``loglikelihood``; of several filters the first counts. Raise StudyError if there is no
    such metric, or it is not 0 or 1 for a document."""
    metric = next((name for name in CORRECTNESS if name in samples[0]["metrics"]), None)
    if metric is None:
        raise StudyError(
            f"task {task.task_name}: of its metrics ({', '.join(samples[0]['metrics'])}) none says which documents are "
            f"answered correctly; allowed: tasks with {' or '.join(CORRECTNESS)}"
        )
    rows = []
    for sample in samples:
        if sample["filter"] != samples[0]["filter"]:
            continue
        if sample[metric] not in (0, 1):
            raise StudyError(f"task {task.task_name}: {metric} of a document is {sample[metric]}; allowed: 0 or 1")
        digest = hashlib.sha256(f"{sample['doc_hash']}{sample['prompt_hash']}".encode()).digest()
        row = {"document": int.from_bytes(digest[:8], "big"), "correct": int(sample[metric])}
        rows.append(row | answer_of(task, sample))
    return metric, rows


def answer_of(task: Task, sample: dict) -> dict:
    """Return ``answer`` and ``loglikelihood`` of a document. Raise FloatingPointError if a log-likelihood is not
    finite."""
    responses = sample["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        # Some tasks score the answers a second time, without the question.
        nats = [response[0] for response in responses[: len(task.doc_to_choice(sample["doc"]))]]
        answer = str(np.argmax(nats))
    elif task.OUTPUT_TYPE == "loglikelihood":
        nats, answer = [responses[0][0]], str(responses[0][1])
    else:
        nats, answer = [], str(responses[0])
    if not all(map(math.isfinite, nats)):
        raise FloatingPointError(f"task {task.task_name}: a log-likelihood is not finite")
    return {"answer": answer, "loglikelihood": nats}


def columns(rows: list[dict]) -> dict[str, np.ndarray]:
    """Return one array per quantity, as the module describes them."""
    return {
        "document": np.array([row["document"] for row in rows], dtype=np.uint64),
        "correct": np.array([row["correct"] for row in rows], dtype=np.int8),
        "answer": np.array([row["answer"] for row in rows], dtype=np.str_),
        "choices": np.array([len(row["loglikelihood"]) for row in rows], dtype=np.int32),
        "loglikelihood": np.array([nats for row in rows for nats in row["loglikelihood"]], dtype=np.float32),
    }


def scores(results: dict) -> dict[str, dict[str, float]]:
    """Return every finite number that lm-eval gave, by task and ``metric,filter``; its standard errors are not there,
    since they need its bootstrap."""
    return {
        task: {
            key: float(value)
            for key, value in values.items()
            if "," in key and isinstance(value, int | float) and math.isfinite(value)
        }
        for task, values in results.items()
    }
