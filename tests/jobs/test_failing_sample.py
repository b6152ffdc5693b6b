"""Whom a failure names: the first sample that fails alone, where others do not."""

import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from pipepar.data.failing_sample import failing_samples, is_of_samples, naming_samples, select_rows
from pipepar.errors import InputError, StageError, WireError


@given(some.integers(1, 40), some.data())
def test_the_first_that_fails_alone(count: int, data: Any) -> None:
    bad = data.draw(some.sets(some.integers(0, count - 1), min_size=1, max_size=count))
    tries = list[int]()

    def again(rows: slice) -> None:
        tries.append(len(range(count)[rows]))
        if bad & set(range(count)[rows]):
            raise ValueError

    told = failing_samples([100 + at for at in range(count)], again)
    if len(bad) < count or count == 1:
        assert told == f"sample {100 + min(bad)}"
    else:
        assert told.startswith("samples 100, 101")
    assert max(tries, default=0) < max(count, 2)


def test_samples_that_fail_only_together() -> None:
    def again(rows: slice) -> None:
        if rows == slice(0, 12):
            raise ValueError

    assert failing_samples(range(12), again) == "samples 0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_who_waits_is_told_soon() -> None:
    tries = list[slice]()

    def again(rows: slice) -> None:
        tries.append(rows)
        time.sleep(0.6)
        raise ValueError

    assert failing_samples(range(12), again).startswith("samples 0, 1")
    assert len(tries) <= 3


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")],
)
def test_lack_of_memory_is_nobodys(error: Exception) -> None:
    assert not is_of_samples(error)
    raised = StageError("a stage failed")
    raised.__cause__ = error
    assert not is_of_samples(raised)
    assert is_of_samples(RuntimeError("shapes"))
    assert not is_of_samples(WireError("bytes"))


def test_what_pipepar_explains_itself_is_not_explained_again() -> None:
    with (
        pytest.raises(InputError, match="so"),
        naming_samples("it", torch.arange(2), lambda rows: 0),
    ):
        raise InputError("so")
    told = pytest.raises(StageError, match="it failed on samples 0, 1: KeyError: 'so'")
    with told as found, naming_samples("it", torch.arange(2), lambda rows: 0):
        raise KeyError("so")
    assert isinstance(found.value.__cause__, KeyError)


def test_rows_of_all_that_has_them() -> None:
    tree = ({"a": torch.arange(4), "b": torch.tensor(7)}, torch.ones(3, 4), 4)
    first, *rest = select_rows(tree, slice(1, 3), 4)
    assert first["a"].tolist() == [1, 2]
    assert first["b"] == 7
    assert rest[0].shape == (3, 4)
    assert select_rows(["w", "x", "y"], slice(2, 3), 3) == ["y"]
