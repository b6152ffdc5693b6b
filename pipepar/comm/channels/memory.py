"""Tensors as bytes, and receive buffers.

A tensor without holes in memory (contiguous, transposed, channels-last, expanded) is sent from its
own memory. A tensor with holes (``x[:, ::2]``) is packed by the sender, and the receiver restores
its strides.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from pipepar.comm.channels.spec import Spec
from pipepar.microbatch import TensorSpec, Value

Sizes: TypeAlias = tuple[int, ...]
"""Bytes of each tensor of a micro-batch, or of the buffer for it."""

# The count of an MPI message is a C int, so a longer tensor is sent as several messages.
PIECE_BYTES: Final = 1 << 30
# Alignment of torch's CUDA allocator: torch may choose another kernel for another alignment.
_ALIGNMENT: Final = 512
# torch cannot copy every dtype, so bytes are copied as a dtype of the same width.
_COPYABLE: Final = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}
# From malloc.h of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def fits(sizes: Sizes, buffer_sizes: Sizes) -> bool:
    """Return whether buffers of these sizes can receive tensors of `sizes` bytes.

    There must be one buffer for each tensor, of the same size or larger. Buffer and tensor must
    have the same number of messages, because each posted receive must match a message.
    """
    return len(sizes) == len(buffer_sizes) and all(
        size <= buffer_size and pieces(size) == pieces(buffer_size)
        for size, buffer_size in zip(sizes, buffer_sizes, strict=True)
    )


def grow(buffer_sizes: Sizes, sizes: Sizes) -> Sizes:
    """Return the new buffer sizes after tensors of `sizes` bytes did not fit into the buffers.

    A buffer gets the larger of both sizes if its number of messages is that of its tensor;
    otherwise it gets the size of the tensor, which may be smaller. If there are more or fewer
    tensors than buffers, the result is `sizes`. Sender and receiver both compute this, so it must
    not depend on anything else.
    """
    if len(sizes) != len(buffer_sizes):
        return sizes
    return tuple(
        max(size, buffer_size) if pieces(size) == pieces(buffer_size) else size
        for size, buffer_size in zip(sizes, buffer_sizes, strict=True)
    )


def pieces(nbytes: int) -> int:
    """Return the number of messages for a tensor of `nbytes` bytes; 0 for an empty one."""
    return -(-nbytes // PIECE_BYTES)


def message_ranges(address: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Yield the address and the length in bytes of each message for a tensor's memory."""
    for begin in range(0, nbytes, PIECE_BYTES):
        yield address + begin, min(PIECE_BYTES, nbytes - begin)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """The layout of one tensor of a micro-batch."""

    position: int
    """Its position among the entries of the spec."""
    spec: TensorSpec
    """Its dtype, shape and stride."""
    nbytes: int
    """Bytes to send."""
    has_holes: bool
    """Whether it is packed before it is sent."""


def tensor_layouts(spec: Spec) -> tuple[TensorLayout, ...]:
    """Return the layouts of the tensors in a spec, without its other entries."""
    return tuple(
        TensorLayout(position, entry, entry.nbytes, entry.has_holes)
        for position, entry in enumerate(spec)
        if isinstance(entry, TensorSpec)
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of all micro-batches with one spec: the spec and the layouts of its tensors."""

    spec: Spec
    tensors: tuple[TensorLayout, ...]

    @classmethod
    def of(cls, spec: Spec) -> Layout:
        """Return the layout for a spec."""
        return cls(spec, tensor_layouts(spec))

    @property
    def sizes(self) -> Sizes:
        """The bytes to send for each tensor."""
        return tuple(tensor_layout.nbytes for tensor_layout in self.tensors)


def packed(tensors: Sequence[TensorLayout]) -> tuple[tuple[int, ...], int]:
    """Return the offsets of tensors in one buffer, aligned, and the buffer's size; in bytes."""
    begins, end = [], 0
    for tensor_layout in tensors:
        begins.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = begins[-1] + tensor_layout.nbytes
    return tuple(begins), end


def plain(value: Value) -> Value:
    """Return the value; for a lazily conjugated or negated tensor, a copy with that applied."""
    if isinstance(value, torch.Tensor) and (value.is_conj() or value.is_neg()):
        return value.resolve_conj().resolve_neg()
    return value


def core(tensor: torch.Tensor) -> torch.Tensor:
    """Return an unexpanded view of a tensor, in a dtype of the same width that torch can copy.

    The size of each expanded dimension (stride 0) becomes 1, or remains 0.
    """
    for dim, step in enumerate(tensor.stride()):
        if step == 0:
            tensor = tensor.narrow(dim, 0, min(tensor.shape[dim], 1))
    return tensor.view(_COPYABLE[tensor.dtype.itemsize])


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory of a tensor without holes, as a view of shape [nbytes], uint8."""
    spec = TensorSpec.of(tensor)
    begin = tensor.storage_offset() * spec.dtype.itemsize
    view = tensor.new_empty(0, dtype=torch.uint8)
    return view.set_(tensor.untyped_storage(), begin, (spec.nbytes,), (1,))


def whole(tensor_layout: TensorLayout, tensor: torch.Tensor) -> torch.Tensor:
    """Return a view of the elements to send, as the source of a copy.

    The view is `core` if the tensor has holes, which the view then has too; otherwise it is `flat`.
    """
    return core(tensor) if tensor_layout.has_holes else flat(tensor)


def dense(tensor_layout: TensorLayout, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whose memory begins with the bytes to send: the tensor, or a packed copy."""
    return core(tensor).contiguous() if tensor_layout.has_holes else tensor


def tensor_from_buffer(
    tensor_layout: TensorLayout,
    buffer: torch.Tensor,
    copy: Callable[[torch.Tensor, torch.Tensor], object] = torch.Tensor.copy_,
) -> torch.Tensor:
    """Return the tensor whose bytes a buffer holds.

    Args:
        tensor_layout: the layout of the tensor.
        buffer: uint8 [at least nbytes], on any device; its storage offset must be a multiple of
            the item size.
        copy: copies its second argument into its first; called only for a tensor with holes.

    Returns:
        A view of the buffer, or for a tensor with holes a new tensor on the same device.
    """
    spec = tensor_layout.spec
    if not tensor_layout.has_holes:
        view = buffer.new_empty(0, dtype=spec.dtype)
        begin = buffer.storage_offset() // spec.dtype.itemsize
        return view.set_(buffer.untyped_storage(), begin, spec.shape, spec.stride)
    tensor = buffer.new_empty_strided(spec.shape, spec.stride, dtype=spec.dtype)
    inner = core(tensor)
    copy(inner, buffer[: tensor_layout.nbytes].view(inner.dtype).view(inner.shape))
    return tensor


def return_freed_memory() -> None:
    """Return free memory of this process to the kernel; do nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Make glibc reuse large blocks of freed memory instead of returning them to the kernel.

    By default glibc returns blocks of 32 MiB and more, and often smaller ones. New blocks cost a
    page fault for every 4 KiB, which takes many times as long as the transfer of a micro-batch.

    Does nothing without glibc, or if a MALLOC_ environment variable is set.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    # Older versions refuse more than 32 MiB. Setting only M_TRIM_THRESHOLD would stop glibc from
    # raising M_MMAP_THRESHOLD by itself.
    if mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25):
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
