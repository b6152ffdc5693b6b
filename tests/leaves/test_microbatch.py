"""Splitting a batch and merging it again, and what a tensor's memory is made of."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipepar.errors import InputError
from pipepar.microbatch import TensorSpec, compact, merge, rows, split


@given(st.integers(0, 20), st.integers(1, 8))
def test_split_and_merge_are_inverse(total: int, size: int) -> None:
    batch: dict[str, Any] = {
        "x": torch.randn(total, 3),
        "y": (torch.arange(total), None, "constant", 2.5),
    }
    parts = list(split(batch, size))
    sizes = [len(part["x"]) for part in parts]
    assert sizes == [min(size, total - begin) for begin in range(0, max(total, 1), size)]
    merged = merge(parts, sizes)
    assert torch.equal(merged["x"], batch["x"])
    assert torch.equal(merged["y"][0], batch["y"][0])
    assert merged["y"][1:] == batch["y"][1:]


def test_what_has_no_rows_repeats() -> None:
    parts = list(split((torch.arange(4), torch.tensor(7), 1.5), 2))
    assert [part[1:] for part in parts] == [(torch.tensor(7), 1.5)] * 2


def test_a_single_microbatch_comes_back_whatever_it_is() -> None:
    loss: Any = torch.tensor(1.0)
    assert merge([loss], [5]) is loss


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ([1, "a", torch.tensor(2)], "nothing to split"),
        ([torch.zeros(2), torch.zeros(3, 1)], r"differ: \[2, 3\]"),
    ],
)
def test_inputs_without_a_common_batch_are_refused(leaves: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rows(leaves)


@pytest.mark.parametrize(
    "outputs",
    [
        [torch.tensor(1.0), torch.tensor(2.0)],
        [torch.zeros(5, 2), torch.zeros(5, 2)],
        [1.0, 2.0],
    ],
)
def test_outputs_without_a_row_a_sample_cannot_be_joined(outputs: list[Any]) -> None:
    with pytest.raises(InputError, match="no row for every sample"):
        merge(outputs, [2, 2])


def test_outputs_nested_differently_cannot_be_joined() -> None:
    with pytest.raises(InputError, match="nested differently"):
        merge([(torch.zeros(1),), [torch.zeros(1)]], [1, 1])


Make = Callable[[torch.Tensor], torch.Tensor]

# Of a float32 tensor of 4 rows by 6: a view, whether others' elements lie between its own, and the
# number of elements that travel.
VIEWS: list[tuple[str, Make, bool, int]] = [
    ("whole", lambda x: x, False, 24),
    ("transposed", lambda x: x.t(), False, 24),
    ("permuted", lambda x: x.view(1, 2, 3, 4).permute(0, 3, 1, 2), False, 24),
    ("rows", lambda x: x[1:3], False, 12),
    ("every other row", lambda x: x[::2], True, 12),
    ("every other column", lambda x: x[:, ::2], True, 12),
    ("some columns", lambda x: x[:, 1:4], True, 12),
    ("one column", lambda x: x[:, 0], True, 4),
    ("two of a row", lambda x: x[0, ::5], True, 2),
    ("a corner, turned", lambda x: x[1:, 2:].t(), True, 12),
    ("one element", lambda x: x[2, 3], False, 1),
    ("one element, 2-d", lambda x: x[:1, :1], False, 1),
    ("expanded", lambda x: x[0].expand(5, 6), False, 6),
    ("expanded, with holes", lambda x: x[:, None, ::2].expand(4, 7, 3), True, 12),
    ("one element, expanded", lambda x: x[:1, :1].expand(8, 9), False, 1),
    ("overlapping", lambda x: x.flatten().unfold(0, 5, 2), False, 23),
    ("overlapping in one element", lambda x: x.as_strided((3, 2), (2, 4)), False, 9),
    ("a step that leads nowhere", lambda x: x.as_strided((3, 1), (2, 3)), True, 3),
    ("no rows", lambda x: x[:0], False, 0),
    ("no columns, expanded", lambda x: x[0, :0].expand(3, 0), False, 0),
]


@pytest.mark.parametrize(
    ("make", "has_holes", "own"), [each[1:] for each in VIEWS], ids=[each[0] for each in VIEWS]
)
def test_a_view_travels_without_the_elements_between_its_own(
    make: Make, has_holes: bool, own: int
) -> None:
    spec = TensorSpec.of(make(torch.arange(24.0).view(4, 6)))
    assert spec.has_holes is has_holes
    assert spec.nbytes == 4 * own


def test_what_is_expanded_to_nothing_takes_nothing() -> None:
    assert TensorSpec.of(torch.zeros(1).expand(0)).own == 0


@st.composite
def cuts(draw: st.DrawFn) -> torch.Tensor:
    """Any part of a dense tensor, its dimensions in any order."""
    dims = draw(st.integers(1, 4))
    whole = torch.arange(6**dims).view((6,) * dims)
    slices = st.builds(slice, st.integers(0, 6), st.integers(0, 6), st.integers(1, 4))
    part = whole[tuple(draw(slices) for _ in range(dims))]
    return part.permute(draw(st.permutations(range(dims))))


@given(cuts())
def test_a_part_of_a_tensor_takes_its_own_elements_and_no_others(part: torch.Tensor) -> None:
    spec = TensorSpec.of(part)
    places = part.flatten().tolist()  # each element says where it lies
    reach = max(places) - min(places) + 1 if places else 0
    assert (spec.numel, spec.own, spec.extent) == (len(places), len(places), reach)
    assert spec.has_holes == (len(places) < reach)
    assert spec.nbytes == 8 * len(places)


def test_a_small_view_does_not_keep_a_large_tensor_alive() -> None:
    memory = torch.arange(100)
    assert compact(memory) is memory
    assert compact(part := memory[:50], slack=2) is part
    for found in (compact(memory[:49], slack=2), compact(memory[:99]), compact(memory[::2])):
        assert found.untyped_storage().nbytes() == found.nbytes
    assert torch.equal(compact(memory[40:60]), memory[40:60])


def test_the_rows_are_those_of_the_tensors_with_dimensions() -> None:
    assert rows([7, torch.tensor(2), torch.zeros(3, 2), None, torch.zeros(3)]) == 3
    assert rows([torch.zeros(0, 5)]) == 0


def test_outputs_that_are_alike_are_joined_to_one() -> None:
    parts = [(torch.zeros(2), 1.5, None), (torch.ones(1), 1.5, None)]
    joined = merge(parts, [2, 1])
    assert joined[0].tolist() == [0, 0, 1]
    assert joined[1:] == (1.5, None)
