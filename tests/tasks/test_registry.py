"""Tasks are files of a folder, found by their names."""

import pytest

from pipepar.errors import InputError
from pipepar.tasks.registry import find_task, task_names


def test_a_task_that_is_not_known() -> None:
    with pytest.raises(InputError, match="found task 'dreaming', expected one of feature-extract"):
        find_task("dreaming")


@pytest.mark.parametrize("name", task_names())
def test_every_file_defines_a_task(name: str) -> None:
    assert find_task(name).head.auto_class is None or find_task(name).head.wrapper is not None
