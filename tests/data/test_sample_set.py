"""SampleSet, compared with a set of positions."""

import itertools
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipepar.data.sample_set import SampleSet, consecutive_parts
from pipepar.errors import PipeparError

COUNT = 13
POSITION = st.integers(-2, COUNT + 2)
STEP = st.lists(POSITION, max_size=6) | st.tuples(POSITION, POSITION)


@given(st.lists(STEP, max_size=8))
def test_equals_a_set_of_positions(steps: list[list[int] | tuple[int, int]]) -> None:
    """Lists are added, and ranges are passed to the constructor; both may be out of range."""
    done, marks = SampleSet(COUNT), set[int]()
    for step in steps:
        if isinstance(step, tuple):
            done = SampleSet(COUNT, [*done.ranges(), step])
            marks |= set(range(*step)) & set(range(COUNT))
        else:
            done.add(step)
            marks |= set(step) & set(range(COUNT))
    left = set(range(COUNT)) - marks
    assert len(done) == len(marks)
    assert done.missing == len(left)
    assert done.first_missing == min(left, default=-1)
    assert [at for at in range(-3, COUNT + 3) if at in done] == sorted(marks)
    for start in range(COUNT):
        for stop in range(start + 1, COUNT + 3):
            assert done.covers(start, stop) == (set(range(start, stop)) <= marks), (start, stop)
    found = list(done.ranges())
    assert [at for start, stop in found for at in range(start, stop)] == sorted(marks)
    assert all(before < start for (_, before), (start, _) in itertools.pairwise(found))


def test_an_input_without_samples() -> None:
    done = SampleSet(0)
    assert (len(done), done.missing, done.first_missing) == (0, 0, -1)
    assert list(done.ranges()) == []
    assert 0 not in done


def test_unordered_and_overlapping_ranges() -> None:
    done = SampleSet(20, [(10, 12), (0, 3), (2, 5), (11, 11), (8, 10)])
    assert list(done.ranges()) == [(0, 5), (8, 12)]
    assert len(done) == 9


def test_a_micro_batch_is_done_as_a_whole() -> None:
    done = SampleSet(9, [(0, 3), (6, 7)])
    assert done.contains_microbatch([1, 0])
    assert done.contains_microbatch([6, 2])
    assert not done.contains_microbatch([4, 3, 8])
    assert not SampleSet(9).contains_microbatch(range(9))


@pytest.mark.parametrize(("there", "batch"), [(1, [2, 3, 4]), (2, [3, 1, 2]), (1, [4, 2])])
def test_a_partly_done_micro_batch_is_refused(there: int, batch: list[int]) -> None:
    """Also if only one sample is done."""
    message = rf"{there} of the {len(batch)} samples .* begins with sample {batch[0]} are done"
    with pytest.raises(PipeparError, match=message):
        SampleSet(5, [(0, 3)]).contains_microbatch(batch)


def test_memory_grows_with_ranges_not_samples() -> None:
    """Samples arrive as those of texts: windows in order, in any order within a window."""
    some = random.Random(0)
    tracemalloc.start()
    done = SampleSet(2**40, [(2**30, 2**39)])
    for window in range(0, 1 << 15, 1 << 10):
        order = some.sample(range(window, window + (1 << 10)), 1 << 10)
        for at in range(0, 1 << 10, 16):
            assert not done.contains_microbatch(order[at : at + 16])
            done.add(order[at : at + 16])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(done.ranges()) == [(0, 1 << 15), (2**30, 2**39)]
    assert done.missing == 2**40 - (2**39 - 2**30) - (1 << 15)
    assert peak < 1 << 20


@given(st.lists(st.integers(0, 30), unique=True))
def test_consecutive_parts_are_maximal(positions: list[int]) -> None:
    found = list(consecutive_parts(positions))
    assert [at for start, stop in found for at in positions[start:stop]] == positions
    for start, stop in found:
        first = positions[start]
        assert positions[start:stop] == list(range(first, first + stop - start))
        assert stop == len(positions) or positions[stop] != positions[stop - 1] + 1
