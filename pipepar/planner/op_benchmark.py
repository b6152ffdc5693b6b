"""Benchmarks of single operations.

The arguments of an operation are views of memory that is allocated once. Activations always have
the same addresses, so small ones are in the caches, as in a run, where the operation before has
just written them. Consecutive weights are in different parts of a block as large as the weights of
a stage, up to a limit. So they come from the same level of the memory hierarchy as in a run.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from torch import nn

from pipepar.microbatch import TensorSpec
from pipepar.model.module_tensors import named_tensors
from pipepar.model.split.operations import Needed, Operation

# The most bytes for weights, since filling more takes too long; larger than the caches of a core.
_MOST_WEIGHTS: Final = 64 * 2**20
# Number of random values; tensors repeat them, since drawing more would take too long.
_NOISE: Final = 2**16
# Elements; tensors are aligned as an allocator would align them.
_ALIGNED: Final = 64
_ROUNDS: Final = 5
# Synchronising with a GPU takes longer than many operations, so several calls share one.
_REPEATS: Final = 10
# No further round begins after this time.
_SECONDS: Final = 1.0
# Long enough to detect another process on the core, or a CPU quota with a period of 0.1 s.
_PACE_SECONDS: Final = 0.5

Call = Callable[[], Any]


class OpBenchmark:
    """Measures the seconds of operations on made-up values.

    The constructor runs each operation, to warm up and to exclude operations that fail.

    Args:
        operations: the operations, all different.
        device: the device to compute on.
        weight_bytes: bytes of the weights of a stage, which the weights are spread over.
        room: bytes that one operation may take; an operation that needs more is not computed.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        device: torch.device,
        weight_bytes: int,
        room: float = math.inf,
    ) -> None:
        self._device = device
        self._repeats = _REPEATS if device.type == "cuda" else 1
        self._operations = [each if _is_timed(each, room) else None for each in operations]
        timed = [each for each in self._operations if each is not None]
        self._memory = _Memory(timed, device, min(weight_bytes, _MOST_WEIGHTS))
        self._round()

    def medians(self) -> list[float | None]:
        """Return the median seconds of each operation; None if it is excluded.

        An operation is excluded if it needs too much memory, fails, or has a time that depends on
        its values.
        """
        rounds: list[list[float | None]] = []
        end = time.perf_counter() + _SECONDS
        while not rounds or (len(rounds) < _ROUNDS and time.perf_counter() < end):
            rounds.append(self._round())
        columns = ([t for t in times if t is not None] for times in zip(*rounds, strict=True))
        # An operation that failed in any round has no reliable time.
        return [statistics.median(c) if len(c) == len(rounds) else None for c in columns]

    def pace(self, expected: Sequence[float | None], counts: Sequence[int]) -> float:
        """Return the present speed of this device relative to expected times; above 1 if faster.

        It is a mean over half a second, since a median would not count pauses while another process
        uses the device. It is 1 if no operation can be timed.

        Args:
            expected: seconds of each operation; None for one that does not count.
            counts: how often each operation occurs in the model.
        """
        planned = taken = 0.0
        end = time.perf_counter() + _PACE_SECONDS
        while not taken or time.perf_counter() < end:
            times = zip(self._round(), expected, counts, strict=True)
            known = [(t, e, n) for t, e, n in times if t is not None and e is not None]
            if not known:
                return 1.0
            taken += sum(seconds * count for seconds, _, count in known)
            planned += sum(seconds * count for _, seconds, count in known)
        return planned / taken

    def _round(self) -> list[float | None]:
        """Time every operation, and return the seconds of each; None if it is excluded."""
        return [self._attempt(index) for index in range(len(self._operations))]

    def _attempt(self, index: int) -> float | None:
        """Return the seconds of one operation; None, and exclude it, if it fails."""
        operation = self._operations[index]
        try:
            return None if operation is None else self._timed(operation)
        except torch.AcceleratorError:  # the GPU is unusable after this error
            raise
        except Exception:  # it fails on made-up values; the planner counts its work instead
            self._operations[index] = None
            return None

    def _timed(self, operation: Operation) -> float:
        call = self._memory.call(_with_values(operation, self._device))
        with torch.no_grad():
            self._finish()
            begin = time.perf_counter()
            for _ in range(self._repeats):
                call()
            self._finish()
            seconds = (time.perf_counter() - begin) / self._repeats
        self._memory.refill_if_written()
        return seconds

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _is_timed(operation: Operation, room: float) -> bool:
    """Return whether an operation fits in `room`, and its time does not depend on values.

    In a mixture of experts, the values decide how much each expert computes.
    """
    own = named_tensors(operation.target) if isinstance(operation.target, nn.Module) else {}
    size = sum(each.spec.extent * each.spec.dtype.itemsize for each in operation.needed)
    size += sum(tensor.nbytes for tensor in own.values())
    return size <= room and "grouped_mm" not in operation.signature


def _with_values(operation: Operation, device: torch.device) -> Operation:
    """Return the operation with a copy of its module that has weights."""
    if not isinstance(operation.target, nn.Module):
        return operation
    return replace(operation, target=_filled(operation.target, device))


def _filled(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy on a device, with made-up values for tensors on meta, else with its own."""
    own = named_tensors(module)
    made = copy.deepcopy(module).to_empty(device=device)
    for name, tensor in named_tensors(made).items():
        if own[name].is_meta:
            _fill(tensor.detach())
        else:
            tensor.detach().copy_(own[name])
    return made


def _fill(tensor: torch.Tensor) -> None:
    """Fill a tensor with made-up values.

    Floating-point values differ, and none is denormal, which would be slow. Integers are 0, which
    is a valid index of any table.
    """
    if not tensor.is_floating_point():
        tensor.zero_()
        return
    flat = tensor.as_strided((TensorSpec.of(tensor).extent,), (1,))  # channels may come last
    size = min(_NOISE, len(flat))
    # Random values cannot be drawn in every dtype.
    noise = torch.empty(size, device=tensor.device).uniform_(0.1, 1.0).to(tensor.dtype)
    for begin in range(0, len(flat), _NOISE):
        part = flat[begin : begin + _NOISE]
        part.copy_(noise[: len(part)])


class _Memory:
    """The memory of the arguments, by dtype."""

    def __init__(
        self, operations: Sequence[Operation], device: torch.device, weight_bytes: int
    ) -> None:
        self._device = device
        activations: dict[torch.dtype, int] = defaultdict(int)
        weights: dict[torch.dtype, int] = defaultdict(int)
        for operation in operations:
            for dtype, size in _sizes(operation, weight=False).items():
                activations[dtype] = max(activations[dtype], size)
            for dtype, size in _sizes(operation, weight=True).items():
                room = size + weight_bytes // dtype.itemsize
                weights[dtype] = max(weights[dtype], room)
        self._activations = {
            dtype: _Block(dtype, size, device) for dtype, size in activations.items()
        }
        self._weights = {dtype: _Block(dtype, size, device) for dtype, size in weights.items()}

    def call(self, operation: Operation) -> Call:
        """Return a function without arguments that computes the operation on this memory."""
        for block in self._activations.values():
            block.rewind()
        args, kwargs = pytree.tree_map(self._argument, (operation.args, dict(operation.kwargs)))
        return partial(operation.target, *args, **kwargs)

    def refill_if_written(self) -> None:
        """Restore values that an operation has overwritten; otherwise they would grow or vanish."""
        for block in (*self._activations.values(), *self._weights.values()):
            block.refill_if_written()

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return self._device
        if not isinstance(leaf, Needed):
            return leaf
        blocks = self._weights if leaf.weight else self._activations
        return blocks[leaf.spec.dtype].take(leaf.spec).requires_grad_(leaf.requires_grad)


def _sizes(operation: Operation, weight: bool) -> Mapping[torch.dtype, int]:
    """Return the number of elements that the weights, or else the activations, need, by dtype."""
    sizes: dict[torch.dtype, int] = defaultdict(int)
    for each in operation.needed:
        if each.weight == weight:
            sizes[each.spec.dtype] += _rounded(each.spec)
    return sizes


def _rounded(spec: TensorSpec) -> int:
    return -(-spec.extent // _ALIGNED) * _ALIGNED


class _Block:
    """A ring of memory; tensors are views of consecutive parts of it."""

    def __init__(self, dtype: torch.dtype, size: int, device: torch.device) -> None:
        self._memory = torch.empty(size, dtype=dtype, device=device)
        _fill(self._memory)
        self._next = 0
        self._version = self._memory._version

    def rewind(self) -> None:
        """Make `take` continue at the beginning."""
        self._next = 0

    def refill_if_written(self) -> None:
        """Fill the memory again if an operation wrote into it."""
        if self._memory._version != self._version:
            _fill(self._memory)
            self._version = self._memory._version

    def take(self, spec: TensorSpec) -> torch.Tensor:
        """Return the next part as a tensor with the shape and strides of `spec`."""
        size = _rounded(spec)
        if self._next + size > len(self._memory):
            self._next = 0
        begin, self._next = self._next, self._next + size
        return self._memory.as_strided(spec.shape, spec.stride, begin)
