"""Finds the tasks: each file of `pipepar.tasks.catalog` defines one as `TASK`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipepar.discovery import load, names_in, summaries_of
from pipepar.errors import InputError
from pipepar.tasks import catalog

if TYPE_CHECKING:
    from pipepar.tasks.task import Task  # imports torch, which --help does not need


def task_names() -> list[str]:
    """Return the names of all tasks, sorted, without importing their files."""
    return [_name_of(module) for module in names_in(catalog)]


def task_summaries() -> dict[str, str]:
    """Return the first docstring line of each task's file, by task name, without importing it."""
    return {_name_of(module): line for module, line in summaries_of(catalog).items()}


def find_task(name: str) -> Task:
    """Import and return the task with a name.

    Args:
        name: its name in Hugging Face's pipelines.

    Raises:
        InputError: there is no such task.
    """
    if name not in task_names():
        raise InputError(
            f"found task {name!r}, expected one of {', '.join(task_names())}; give --task"
        )
    task: Task = load(catalog, name.replace("-", "_"), "TASK")
    return task


def _name_of(module: str) -> str:
    return module.replace("_", "-")
