"""The memory of a simulated GPU, allocated as by torch's caching allocator."""

from __future__ import annotations

import weakref
from bisect import bisect_right, insort
from collections import deque

import numpy as np
import torch

from pipepar.microbatch import TensorSpec
from tests.helpers.simulated.order import Block, Region

_ROUNDING = 512  # as in torch


class Pool:
    """The memory of one GPU, or the pinned memory of its host.

    Args:
        name: the name in messages.
        reuses: whether freed memory is allocated again at once, the block freed last first. If
            False, it is never allocated again.
    """

    def __init__(self, name: str, reuses: bool) -> None:
        self._name = name
        self._reuses = reuses
        self._count = 0
        self._blocks: dict[int, Block] = {}  # by address
        self._addresses: list[int] = []  # sorted
        self._free: list[Block] = []
        # Filled by finalizers, which may run at any time; emptied by `_collect`.
        self._freed: deque[Block] = deque()

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Return memory, uint8 [nbytes], which earlier operations may still use."""
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        self._collect()
        block = next((b for b in reversed(self._free) if len(b.root) >= nbytes), None)
        if block is None:
            block = self._create(nbytes)
        else:
            self._free.remove(block)
        block.in_use = True
        # A new array for each allocation; it lives as long as the storage of the tensor.
        array = block.root.numpy()[:nbytes]
        weakref.finalize(array, self._release, block)
        return torch.from_numpy(array)

    def find(self, address: int, nbytes: int) -> Region:
        """Return the bytes at an address.

        Raises:
            LookupError: they are not in this pool, or were freed.
        """
        index = bisect_right(self._addresses, address) - 1
        if index >= 0:
            start = self._addresses[index]
            block, begin = self._blocks[start], address - start
            if begin + nbytes <= len(block.root) and block.in_use:
                return Region(block, begin, begin + nbytes)
        raise LookupError(f"{nbytes} bytes at {address:#x} are not in {self._name}")

    def region(self, tensor: torch.Tensor) -> Region | None:
        """Return the bytes of a tensor, or None if it is empty; raises the errors of `find`."""
        spec = TensorSpec.of(tensor)
        if spec.extent == 0:
            return None
        return self.find(tensor.data_ptr(), spec.extent * tensor.itemsize)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Return whether the bytes of a tensor are in this pool."""
        try:
            return self.region(tensor) is not None
        except LookupError:
            return False

    def _create(self, nbytes: int) -> Block:
        capacity = -(-nbytes // _ROUNDING) * _ROUNDING
        root = torch.from_numpy(np.full(capacity, 0xA5, np.uint8))
        block = Block(f"block {self._count} of {self._name}", root)
        self._count += 1
        self._blocks[root.data_ptr()] = block
        insort(self._addresses, root.data_ptr())
        return block

    def _release(self, block: Block) -> None:
        block.in_use = False
        self._freed.append(block)

    def _collect(self) -> None:
        while self._freed:
            block = self._freed.popleft()
            if self._reuses:
                self._free.append(block)
            else:
                del self._blocks[block.root.data_ptr()]
                self._addresses.remove(block.root.data_ptr())


def alias(tensor: torch.Tensor, region: Region | None) -> torch.Tensor:
    """Return a tensor over the same bytes that does not keep the memory allocated."""
    if region is None:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage = region.block.root.untyped_storage()
    over = torch.empty(0, dtype=tensor.dtype)
    return over.set_(storage, region.begin // tensor.itemsize, tensor.shape, tensor.stride())
