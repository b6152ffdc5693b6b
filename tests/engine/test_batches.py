"""Splitting batches into micro-batches and merging the results."""

from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

from pipepar.engine.script.batch_merge import merge
from pipepar.engine.script.batch_split import rows, split
from pipepar.errors import InputError


@given(st.integers(0, 20), st.integers(1, 8))
def test_split_and_merge_are_inverse(total: int, size: int) -> None:
    batch: dict[str, Any] = {
        "x": torch.randn(total, 3),
        "y": (torch.arange(total), None, "constant", 2.5),
    }
    leaves, structure = pytree.tree_flatten(batch)
    assert rows(leaves) == total
    flat = split(leaves, total, size)
    parts: list[Any] = [pytree.tree_unflatten(part, structure) for part in flat]
    sizes = [len(part["x"]) for part in parts]
    assert sizes == [min(size, total - begin) for begin in range(0, max(total, 1), size)]
    merged = merge(parts, sizes)
    assert torch.equal(merged["x"], batch["x"])
    assert torch.equal(merged["y"][0], batch["y"][0])
    assert merged["y"][1:] == batch["y"][1:]


def test_values_without_rows_are_repeated() -> None:
    parts = list(split([torch.arange(4), torch.tensor(7), 1.5], 4, 2))
    assert [part[1:] for part in parts] == [[torch.tensor(7), 1.5]] * 2


def test_a_single_micro_batch_is_returned_unchanged() -> None:
    loss: Any = torch.tensor(1.0)
    assert merge([loss], [5]) is loss


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ([1, "a", torch.tensor(2)], "found no input tensor with a first dimension"),
        ([torch.zeros(2), torch.zeros(3, 1)], r"differ: \[2, 3\]"),
    ],
)
def test_inputs_without_a_common_batch_size_are_refused(leaves: list[Any], message: str) -> None:
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
def test_outputs_without_one_row_per_sample_are_refused(outputs: list[Any]) -> None:
    with pytest.raises(InputError, match="does not have one row per sample"):
        merge(outputs, [2, 2])


def test_outputs_of_different_nesting_are_refused() -> None:
    with pytest.raises(InputError, match="nested differently"):
        merge([(torch.zeros(1),), [torch.zeros(1)]], [1, 1])


def test_rows_ignores_scalars_and_constants() -> None:
    assert rows([7, torch.tensor(2), torch.zeros(3, 2), None, torch.zeros(3)]) == 3
    assert rows([torch.zeros(0, 5)]) == 0


def test_equal_constants_are_merged() -> None:
    parts = [(torch.zeros(2), 1.5, None), (torch.ones(1), 1.5, None)]
    merged = merge(parts, [2, 1])
    assert merged[0].tolist() == [0, 0, 1]
    assert merged[1:] == (1.5, None)
