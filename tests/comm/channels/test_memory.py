"""Tensors as bytes and back, and the sizes of receive buffers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipepar.comm.channels.memory import (
    PIECE_BYTES,
    core,
    fits,
    grow,
    message_ranges,
    pieces,
    tensor_from_buffer,
    tensor_layouts,
)
from pipepar.microbatch import TensorSpec


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """Any view of a small buffer: dense, with holes, expanded, overlapping, 0-d or empty."""
    dims = draw(st.integers(0, 4))
    shape = tuple(draw(st.integers(0, 4)) for _ in range(dims))
    stride = tuple(draw(st.integers(0, 9)) for _ in range(dims))
    return torch.arange(200.0).as_strided(shape, stride, draw(st.integers(0, 9)))


@given(views())
def test_a_view_keeps_its_values_and_strides(view: torch.Tensor) -> None:
    (tensor_layout,) = tensor_layouts((TensorSpec.of(view),))
    memory = core(view).contiguous() if tensor_layout.has_holes else view
    count = tensor_layout.nbytes // 4
    raw = memory.as_strided((count,), (1,))  # what MPI reads from its address
    buffer = raw.clone().view(torch.uint8)
    found = tensor_from_buffer(tensor_layout, buffer)
    assert torch.equal(found, view)
    assert found.stride() == view.stride()


@given(views())
def test_no_more_bytes_are_sent_than_the_extent(view: torch.Tensor) -> None:
    spec = TensorSpec.of(view)
    assert spec.nbytes <= 4 * spec.extent
    if spec.has_holes:
        assert spec.nbytes == 4 * spec.own < 4 * spec.extent
    if view.is_contiguous():
        assert spec.nbytes == view.nbytes


sizes_of_tensors = st.lists(st.integers(0, 3 * PIECE_BYTES), min_size=1, max_size=3).map(tuple)


@given(sizes_of_tensors, sizes_of_tensors)
def test_tensors_fit_into_grown_buffers(
    buffer_sizes: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    assert fits(sizes, grow(buffer_sizes, sizes))


@pytest.mark.parametrize("nbytes", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES - 1])
def test_messages_cover_a_tensor_once(nbytes: int) -> None:
    found = list(message_ranges(1000, nbytes))
    assert len(found) == pieces(nbytes)
    assert sum(size for _, size in found) == nbytes
    at = 1000
    for begin, size in found:
        assert begin == at
        assert 0 < size <= PIECE_BYTES
        at += size


def test_the_size_of_a_message_fits_a_c_int() -> None:
    assert PIECE_BYTES < 2**31


def test_only_buffers_that_are_too_small_grow() -> None:
    assert not fits((7, 9), (10, 5))
    assert grow((10, 5), (7, 9)) == (10, 9)
    assert grow((10, 5), (7,)) == (7,)
    assert grow((10,), (PIECE_BYTES + 1,)) == (PIECE_BYTES + 1,)


def test_the_number_of_messages_must_match() -> None:
    assert not fits((PIECE_BYTES,), (PIECE_BYTES + 1,))
    assert fits((PIECE_BYTES,), (PIECE_BYTES,))
    assert not fits((1, 2), (3,))


def test_expanded_elements_count_once() -> None:
    rows = torch.arange(3.0).expand(4, 3)
    assert core(rows).shape == (1, 3)
    assert core(rows.t()).shape == (3, 1)
