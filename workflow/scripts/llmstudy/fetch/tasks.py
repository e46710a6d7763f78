"""Tasks of lm-eval with their data sets: its own from the hub, and one's own from a folder of task files.

The hub's data sets go into the cache that ``datasets`` keeps for all programs (``HF_HOME``), because lm-eval reads them
there alone. They have no pin unless a task file gives a ``revision``; so every record names its documents by a hash,
and only equal ones are compared.
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
    """lm-eval's register of tasks, those of ``include_path`` before its own of the same name.

    Raises:
        Unsupported: lm-eval is not installed.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        if error.name != "lm_eval":
            raise
        raise Unsupported(MISSING) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task file leaves as it is
    return TaskManager(include_path=include_path)


def load(manager: TaskManager, name: str) -> TaskDict:
    """A task, or the tasks of a group, with data: ``{"tasks": {name: Task}, "groups": …, "group_map": …}``.

    Raises:
        StudyError: no such task.
        ConnectionError: its data set is neither in the cache nor to be had.
    """
    if name not in manager.task_index:
        raise StudyError(
            f"diagnostics.tasks.tasks: {name!r} is not known; allowed: tasks of {PACKAGE} (lm-eval ls tasks) and of "
            "diagnostics.tasks.include_path"
        )
    return manager.load([name])


def fetch_tasks(names: list[str], include_path: str | None, target: Path) -> None:
    """Bring the data sets of all tasks into the cache and write what they are.

    ``target`` holds, per name as configured, the tasks behind it: ``{"dataset", "subset", "documents"}``.

    Raises:
        StudyError: lm-eval is not installed, no such task, or what ``hub`` names: not found, gated, no network.
    """
    try:
        manager = open_manager(include_path)
    except Unsupported as error:
        raise StudyError(str(error)) from error
    found = {}
    for name in names:
        with hub.errors_named(f"task {name}"):
            tasks = load(manager, name)["tasks"]
        found[name] = {
            leaf: {"dataset": task.DATASET_PATH, "subset": task.DATASET_NAME, "documents": len(task.eval_docs)}
            for leaf, task in tasks.items()
        }
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(target, found)
