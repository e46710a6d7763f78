"""Tasks of lm-eval with their data sets: those that it knows, and those of a folder of task files.

Data sets go into the cache that ``datasets`` keeps for all programs (``HF_HOME``), because lm-eval reads them there
alone. They have no pin unless a task file gives a ``revision``, so every record names its documents by a hash, and only
equal ones are compared.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from llmstudy import files
from llmstudy.errors import StudyError, Unsupported
from llmstudy.fetch import hub

if TYPE_CHECKING:
    from lm_eval.tasks.manager import TaskDict, TaskManager

PACKAGE = "lm-eval==0.4.13"
MISSING = f"tasks need lm-eval, which is not installed here: pip install {PACKAGE}, or run with --use-conda"


def open_manager(include_path: str | None) -> TaskManager:
    """Return lm-eval's register of tasks, in which those of ``include_path`` hide others of the same name; raise
    Unsupported if lm-eval is not installed."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        if error.name != "lm_eval":
            raise
        raise Unsupported(MISSING) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task file does not change
    return TaskManager(include_path=include_path)


def load(manager: TaskManager, name: str) -> TaskDict:
    """Return a task, or the tasks of a group, with data: ``{"tasks": {name: Task}, "groups": …, "group_map": …}``.

    Raise StudyError if there is no such task, and ConnectionError if its data set cannot be loaded.
    """
    if name not in manager.task_index:
        raise StudyError(
            f"diagnostics.tasks.tasks: {name!r} is not known; allowed: tasks of {PACKAGE} (lm-eval ls tasks) and of "
            "diagnostics.tasks.include_path"
        )
    return manager.load([name])


def fetch_tasks(names: list[str], include_path: str | None, target: Path) -> None:
    """Bring the data sets of all tasks into the cache and write what they are.

    ``target`` lists the tasks of each configured name: ``{"dataset", "subset", "documents"}``. Raise StudyError if
    lm-eval is not installed, there is no such task, or ``hub`` gives no data: not found, gated, no network.
    """
    try:
        manager = open_manager(include_path)
    except Unsupported as error:
        raise StudyError(str(error)) from error
    content = {}
    for name in names:
        with hub.errors_named(f"task {name}"):
            tasks = load(manager, name)["tasks"]
        content[name] = {
            leaf: {"dataset": task.DATASET_PATH, "subset": task.DATASET_NAME, "documents": len(task.eval_docs)}
            for leaf, task in tasks.items()
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(target, content)
