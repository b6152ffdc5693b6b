"""A tensor as bytes: what of its memory travels, and how it is laid out again.

A tensor whose memory is its own (contiguous, transposed, channels-last, expanded) goes as it lies.
One with holes (``x[:, ::2]``) is packed once by the sender and laid out with its strides by the
receiver.
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

Envelope: TypeAlias = tuple[int, ...]
"""Bytes of the buffer for each tensor of a micro-batch."""

# MPI counts are C ints: longer tensors travel in pieces.
PIECE_BYTES: Final = 1 << 30
# Where torch's own allocator begins a tensor on a GPU: kernels are chosen by alignment.
_ALIGNMENT: Final = 512
# A packed view needs a dtype that torch can copy, and any of the same width will do.
_COPYABLE: Final = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def fits(sizes: Envelope, envelope: Envelope) -> bool:
    """Whether tensors of these sizes can land in the buffers posted for an envelope."""
    return len(sizes) == len(envelope) and all(
        size <= room and pieces(size) == pieces(room)
        for size, room in zip(sizes, envelope, strict=True)
    )


def grow(envelope: Envelope, sizes: Envelope) -> Envelope:
    """The next generation's envelope; the same on both sides."""
    if len(sizes) != len(envelope):
        return sizes
    return tuple(
        max(size, room) if pieces(size) == pieces(room) else size
        for size, room in zip(sizes, envelope, strict=True)
    )


def pieces(nbytes: int) -> int:
    """Number of messages for a tensor of that many bytes; none for an empty one."""
    return -(-nbytes // PIECE_BYTES)


def message_ranges(address: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Address and length of each piece of a tensor's memory."""
    for begin in range(0, nbytes, PIECE_BYTES):
        yield address + begin, min(PIECE_BYTES, nbytes - begin)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a micro-batch, worked out once for as long as the spec holds."""

    position: int
    """Where it stands among the micro-batch's values."""
    spec: TensorSpec
    """What it looks like."""
    nbytes: int
    """Bytes that travel."""
    has_holes: bool
    """Whether it is packed for the journey."""


def tensor_layouts(spec: Spec) -> tuple[TensorLayout, ...]:
    """The tensors of a spec."""
    return tuple(
        TensorLayout(position, entry, entry.nbytes, entry.has_holes)
        for position, entry in enumerate(spec)
        if isinstance(entry, TensorSpec)
    )


def sizes_of(tensors: tuple[TensorLayout, ...]) -> Envelope:
    """The bytes of each tensor."""
    return tuple(tensor_layout.nbytes for tensor_layout in tensors)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a micro-batch is made of, worked out once for as long as the spec holds."""

    spec: Spec
    tensors: tuple[TensorLayout, ...]
    """The spec's tensors."""

    @classmethod
    def of(cls, spec: Spec) -> Layout:
        """Work it out."""
        return cls(spec, tensor_layouts(spec))


def packed(tensors: Sequence[TensorLayout]) -> tuple[tuple[int, ...], int]:
    """Where each tensor's bytes begin when they share one piece of a GPU's memory, and how many
    bytes that takes."""
    begins, end = [], 0
    for tensor_layout in tensors:
        begins.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
        end = begins[-1] + tensor_layout.nbytes
    return tuple(begins), end


def plain(value: Value) -> Value:
    """A tensor whose memory holds its values: no lazy conjugation or negation."""
    if isinstance(value, torch.Tensor) and (value.is_conj() or value.is_neg()):
        return value.resolve_conj().resolve_neg()
    return value


def core(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's elements in memory, each once, as a dtype that torch can copy."""
    for dim, step in enumerate(tensor.stride()):
        if step == 0:
            tensor = tensor.narrow(dim, 0, min(tensor.shape[dim], 1))
    return tensor.view(_COPYABLE[tensor.dtype.itemsize])


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor without holes as they lie, uint8, over its own memory."""
    spec = TensorSpec.of(tensor)
    begin = tensor.storage_offset() * spec.dtype.itemsize
    over = tensor.new_empty(0, dtype=torch.uint8)
    return over.set_(tensor.untyped_storage(), begin, (spec.nbytes,), (1,))


def whole(tensor_layout: TensorLayout, tensor: torch.Tensor) -> torch.Tensor:
    """What of a tensor's memory travels, as a tensor that can be copied into a slot."""
    return core(tensor) if tensor_layout.has_holes else flat(tensor)


def dense(tensor_layout: TensorLayout, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose memory begins with the bytes that travel: itself, or packed."""
    return core(tensor).contiguous() if tensor_layout.has_holes else tensor


def laid_out(
    tensor_layout: TensorLayout,
    buffer: torch.Tensor,
    copy: Callable[[torch.Tensor, torch.Tensor], object] = torch.Tensor.copy_,
) -> torch.Tensor:
    """The tensor that a spec describes, over the bytes that arrived in a buffer.

    Args:
        tensor_layout: which tensor.
        buffer: uint8, on any device; may be part of something larger, from a place that suits the
            dtype on.
        copy: fills its first argument from its second, where a tensor with holes is laid out again.
    """
    spec = tensor_layout.spec
    if not tensor_layout.has_holes:
        over = buffer.new_empty(0, dtype=spec.dtype)
        begin = buffer.storage_offset() // spec.dtype.itemsize
        return over.set_(buffer.untyped_storage(), begin, spec.shape, spec.stride)
    tensor = buffer.new_empty_strided(spec.shape, spec.stride, dtype=spec.dtype)
    inner = core(tensor)
    copy(inner, buffer[: tensor_layout.nbytes].view(inner.dtype).view(inner.shape))
    return tensor


def return_freed_memory() -> None:
    """Give the kernel back what lies free now, when something much larger is to come.

    Of no effect where the C library is not glibc.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_memory() -> None:
    """Let this process reuse large blocks of memory instead of returning them.

    glibc gives blocks from 32 MiB on back to the kernel, and often smaller ones; taking them again
    costs a page fault for every 4 KiB, many times what the transfer of a micro-batch costs. Other C
    libraries, and users who have set MALLOC_ variables of their own, are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    # Older versions refuse more than 32 MiB. The second call alone would freeze the threshold low.
    if mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25):
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
