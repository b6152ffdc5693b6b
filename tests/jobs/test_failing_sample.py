"""The message names the first sample that fails alone, if another one succeeds."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from pipepar.data.readers.reader import Feed
from pipepar.data.sample_names import sample_names, stage_errors
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError, PipeparError, StageError, WireError
from pipepar.jobs.failing_sample import (
    depends_on_samples,
    describe_failing,
    fault_of_one_sample,
    find_failing_row,
    select_row,
)


@given(some.integers(1, 40), some.data())
def test_the_first_sample_that_fails_alone(count: int, data: Any) -> None:
    bad = data.draw(some.sets(some.integers(0, count - 1), min_size=1, max_size=count))
    samples = [100 + row for row in range(count)]

    def alone(row: int) -> None:
        if row in bad:
            raise ValueError

    found = describe_failing(samples, ValueError(), alone)
    if len(bad) < count or count == 1:
        assert found == f"sample {100 + min(bad)}"
    else:
        assert found.startswith("samples 100, 101")


def test_samples_that_fail_only_together() -> None:
    found = describe_failing(range(12), ValueError(), lambda row: row)
    assert found == "samples 0, 1, 2, 3, 4, 5, 6, 7, ..."


def test_no_trials_if_out_of_memory() -> None:
    tries = list[int]()
    assert describe_failing(range(2), MemoryError(), tries.append) == "samples 0, 1"
    assert not tries


def test_the_trials_have_a_time_limit() -> None:
    tries = list[int]()

    def alone(row: int) -> None:
        tries.append(row)
        time.sleep(0.6)
        raise ValueError

    assert find_failing_row(12, alone) is None
    assert len(tries) <= 3


class Reading:
    """A reader of single samples, of which some fail."""

    def __init__(self, count: int, bad: set[int]) -> None:
        self._count, self._bad = count, bad

    def __len__(self) -> int:
        return self._count

    def feeds(self, micro_batch: int, done: SampleSet | None = None) -> Iterator[Feed]:
        assert micro_batch == 1
        for sample in range(self._count):
            if done is None or sample not in done:
                yield Feed(torch.tensor([sample]), (), {}, {}, self._fault(sample))

    def example(self) -> Feed:
        raise NotImplementedError

    def _fault(self, sample: int) -> PipeparError | None:
        return StageError(f"it failed on sample {sample}") if sample in self._bad else None


@pytest.mark.parametrize(
    ("bad", "message"),
    [({0, 4, 9}, "it failed on sample 4"), ({2}, "together"), ({3, 4, 7}, "together")],
    ids=["one", "none", "all"],
)
def test_each_sample_of_a_failed_micro_batch_is_read_alone(bad: set[int], message: str) -> None:
    """Also if the samples are not consecutive, as those of texts."""
    reader = Reading(10, bad)
    together = StageError("together")
    together.__cause__ = ValueError()
    assert str(fault_of_one_sample(reader, [7, 3, 4], together)) == message
    together.__cause__ = MemoryError()
    assert fault_of_one_sample(reader, [7, 3, 4], together) is together
    unreadable = InputError("no picture")
    assert fault_of_one_sample(reader, [7, 3, 4], unreadable) is unreadable


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate")],
)
def test_out_of_memory_does_not_depend_on_samples(error: Exception) -> None:
    assert not depends_on_samples(error)
    raised = StageError("a stage failed")
    raised.__cause__ = error
    assert not depends_on_samples(raised)
    assert depends_on_samples(RuntimeError("shapes"))
    assert not depends_on_samples(WireError("bytes"))


def test_pipepars_own_errors_pass_unchanged() -> None:
    def describe(_error: Exception) -> str:
        return sample_names([0, 1])

    with pytest.raises(InputError, match="so"), stage_errors("it", describe):
        raise InputError("so")
    expected = pytest.raises(StageError, match="it failed on samples 0, 1: KeyError: 'so'")
    with expected as found, stage_errors("it", describe):
        raise KeyError("so")
    assert isinstance(found.value.__cause__, KeyError)


def test_select_row_of_each_tensor_with_rows() -> None:
    tree = ({"a": torch.arange(4), "b": torch.tensor(7)}, torch.ones(3, 4), 4)
    first, *rest = select_row(tree, 2, 4)
    assert first["a"].tolist() == [2]
    assert first["b"] == 7
    assert rest[0].shape == (3, 4)
