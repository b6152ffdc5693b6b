"""Layouts of tensors: elements, holes and bytes that are sent."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipepar.microbatch import TensorSpec, compact

Make = Callable[[torch.Tensor], torch.Tensor]

# Views of a float32 tensor [4, 6]: name, view, whether it has holes, number of elements sent.
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
def test_skipped_elements_are_not_sent(make: Make, has_holes: bool, own: int) -> None:
    spec = TensorSpec.of(make(torch.arange(24.0).view(4, 6)))
    assert spec.has_holes is has_holes
    assert spec.nbytes == 4 * own


def test_a_tensor_expanded_to_nothing_has_no_elements() -> None:
    assert TensorSpec.of(torch.zeros(1).expand(0)).own == 0


@st.composite
def cuts(draw: st.DrawFn) -> torch.Tensor:
    """Draw any slice of a dense tensor, with permuted dimensions."""
    dims = draw(st.integers(1, 4))
    whole = torch.arange(6**dims).view((6,) * dims)
    slices = st.builds(slice, st.integers(0, 6), st.integers(0, 6), st.integers(1, 4))
    part = whole[tuple(draw(slices) for _ in range(dims))]
    return part.permute(draw(st.permutations(range(dims))))


@given(cuts())
def test_a_part_of_a_tensor_counts_its_own_elements_only(part: torch.Tensor) -> None:
    spec = TensorSpec.of(part)
    positions = part.flatten().tolist()  # each element is its own position in memory
    reach = max(positions) - min(positions) + 1 if positions else 0
    assert (spec.numel, spec.own, spec.extent) == (len(positions), len(positions), reach)
    assert spec.has_holes == (len(positions) < reach)
    assert spec.nbytes == 8 * len(positions)


def test_a_small_view_does_not_keep_a_large_tensor_alive() -> None:
    memory = torch.arange(100)
    assert compact(memory) is memory
    assert compact(part := memory[:50], slack=2) is part
    for found in (compact(memory[:49], slack=2), compact(memory[:99]), compact(memory[::2])):
        assert found.untyped_storage().nbytes() == found.nbytes
    assert torch.equal(compact(memory[40:60]), memory[40:60])
