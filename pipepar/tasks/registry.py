"""Finds the tasks: each file of `pipepar.tasks.catalog` defines one as ``TASK``."""

from __future__ import annotations

import importlib
import pkgutil

from pipepar.errors import InputError
from pipepar.tasks import catalog
from pipepar.tasks.task import Task


def task_names() -> list[str]:
    """The names of all tasks, sorted; none of their files is imported. *Local.*"""
    return sorted(
        module.name.replace("_", "-") for module in pkgutil.iter_modules(catalog.__path__)
    )


def find_task(name: str) -> Task:
    """The task of that name. *Local.*

    Args:
        name: as Hugging Face calls it.

    Raises:
        InputError: there is no such task.
    """
    if name not in task_names():
        raise InputError(
            f"found task {name!r}, expected one of {', '.join(task_names())}; give --task"
        )
    module = importlib.import_module(f"{catalog.__name__}.{name.replace('-', '_')}")
    task: Task = module.TASK
    return task
