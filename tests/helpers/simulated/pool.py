"""The memory of a simulated GPU, given out as torch's caching allocator does it."""

from __future__ import annotations

import weakref
from bisect import bisect_right, insort
from collections import deque

import numpy as np
import torch

from pipepar.microbatch import TensorSpec
from tests.helpers.simulated.order import Block, Region

_ROUNDING = 512  # torch's own


class Pool:
    """Memory of one GPU, or the pinned memory of its host.

    Args:
        name: what its blocks are called in messages.
        again: whether memory that was let go of is given out again, at once and to the first that
            it is large enough for, what was let go of last before all else. Otherwise, never.
    """

    def __init__(self, name: str, again: bool) -> None:
        self._name = name
        self._again = again
        self._count = 0
        self._blocks: dict[int, Block] = {}  # by address
        self._known: list[int] = []  # addresses, in order
        self._free: list[Block] = []
        # Python calls us back whenever it pleases, so this only notes it.
        self._let_go: deque[Block] = deque()

    def give(self, nbytes: int) -> torch.Tensor:
        """Memory, uint8 [nbytes]; whoever had it before may not be done with it."""
        if nbytes == 0:
            return torch.empty(0, dtype=torch.uint8)
        self._collect()
        block = next((b for b in reversed(self._free) if len(b.root) >= nbytes), None)
        if block is None:
            block = self._make(nbytes)
        else:
            self._free.remove(block)
        block.given_out = True
        # Of each turn of a block there is one array, which lives as long as the tensor's storage.
        turn = block.root.numpy()[:nbytes]
        weakref.finalize(turn, self._take_back, block)
        return torch.from_numpy(turn)

    def find(self, address: int, nbytes: int) -> Region:
        """The bytes at an address.

        Raises:
            LookupError: they are not of this memory, or were let go of.
        """
        place = bisect_right(self._known, address) - 1
        if place >= 0:
            start = self._known[place]
            block, begin = self._blocks[start], address - start
            if begin + nbytes <= len(block.root) and block.given_out:
                return Region(block, begin, begin + nbytes)
        raise LookupError(f"{nbytes} bytes at {address:#x} are not of {self._name}")

    def region(self, tensor: torch.Tensor) -> Region | None:
        """The bytes of a tensor; None where it has none. Raises as `find` does."""
        spec = TensorSpec.of(tensor)
        if spec.extent == 0:
            return None
        return self.find(tensor.data_ptr(), spec.extent * tensor.itemsize)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether there are bytes of a tensor here."""
        try:
            return self.region(tensor) is not None
        except LookupError:
            return False

    def _make(self, nbytes: int) -> Block:
        capacity = -(-nbytes // _ROUNDING) * _ROUNDING
        root = torch.from_numpy(np.full(capacity, 0xA5, np.uint8))
        block = Block(f"block {self._count} of {self._name}", root)
        self._count += 1
        self._blocks[root.data_ptr()] = block
        insort(self._known, root.data_ptr())
        return block

    def _take_back(self, block: Block) -> None:
        block.given_out = False
        self._let_go.append(block)

    def _collect(self) -> None:
        while self._let_go:
            block = self._let_go.popleft()
            if self._again:
                self._free.append(block)
            else:
                del self._blocks[block.root.data_ptr()]
                self._known.remove(block.root.data_ptr())


def alias(tensor: torch.Tensor, region: Region | None) -> torch.Tensor:
    """The same bytes in the same layout, which do not count as memory that is still in use."""
    if region is None:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage = region.block.root.untyped_storage()
    over = torch.empty(0, dtype=tensor.dtype)
    return over.set_(storage, region.begin // tensor.itemsize, tensor.shape, tensor.stride())
