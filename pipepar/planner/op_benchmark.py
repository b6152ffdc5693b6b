"""How long operations take, each computed by itself: once for each that differs from the others.

What an operation reads is cut out of memory that is made once. Activations always lie in the same
place, so that small ones are in the caches, as they are when the operation before has just made
them; weights follow one another through as much memory as a stage's weights take, so that they
come from as far away as in a run.
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

# More than a core has of its caches for itself; touching more memory would take too long.
_MOST_WEIGHTS: Final = 64 * 2**20
_NOISE: Final = 2**16
_ALIGNED: Final = 64  # elements, so that every tensor begins where an allocator would put it
_ROUNDS: Final = 5
# Waiting for a GPU takes longer than many an operation, of which a run enqueues one after another.
_REPEATS: Final = 10
# Slow operations are not computed as often.
_SECONDS: Final = 1.0
# Long enough to see a neighbour on the same core, or a quota that is renewed ten times a second.
_PACE_SECONDS: Final = 0.5

Call = Callable[[], Any]


class OpBenchmark:
    """Operations that can be computed again and again.

    Args:
        operations: all different.
        device: where to compute.
        weight_bytes: of a stage; so much memory the weights are spread over.
        room: bytes that one operation may take; one that needs more is not computed.
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
        self._round()  # finds out what fails, and warms up

    def medians(self) -> list[float | None]:
        """Seconds of each operation, warm; None for one that cannot be computed by itself."""
        rounds: list[list[float | None]] = []
        end = time.perf_counter() + _SECONDS
        while not rounds or (len(rounds) < _ROUNDS and time.perf_counter() < end):
            rounds.append(self._round())
        columns = ([t for t in times if t is not None] for times in zip(*rounds, strict=True))
        # One that failed in any round is not to be relied on.
        return [statistics.median(c) if len(c) == len(rounds) else None for c in columns]

    def pace(self, expected: Sequence[float | None], counts: Sequence[int]) -> float:
        """How fast this device computes the operations now, 1 where it takes what is expected.

        The mean over a while, unlike a median, counts what the device does not compute at all
        because something else does.

        Args:
            expected: seconds of each operation; None for one that does not count.
            counts: how often the model has each.
        """
        planned = taken = 0.0
        end = time.perf_counter() + _PACE_SECONDS
        while not taken or time.perf_counter() < end:
            times = zip(self._round(), expected, counts, strict=True)
            known = [(t, e, n) for t, e, n in times if t is not None and e is not None]
            if not known:
                return 1.0
            taken += sum(seconds * count for seconds, _, count in known)
            planned += sum(awaited * count for _, awaited, count in known)
        return planned / taken

    def _round(self) -> list[float | None]:
        """Compute every operation once, and tell the seconds of each."""
        return [self._attempt(place) for place in range(len(self._operations))]

    def _attempt(self, place: int) -> float | None:
        """Compute one operation; one that fails on made-up values is not tried again."""
        operation = self._operations[place]
        try:
            return None if operation is None else self._timed(operation)
        except torch.AcceleratorError:  # from now on, nothing can be computed on this GPU
            raise
        except Exception:  # told to whoever asks, as a time that is not there
            self._operations[place] = None
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
        self._memory.mend()
        return seconds

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _is_timed(operation: Operation, room: float) -> bool:
    """Whether there is room for it, and made-up values tell how long it takes.

    In a mixture of experts, what there is to compute depends on more than sizes.
    """
    own = named_tensors(operation.target) if isinstance(operation.target, nn.Module) else {}
    size = sum(each.spec.extent * each.spec.dtype.itemsize for each in operation.needed)
    size += sum(tensor.nbytes for tensor in own.values())
    return size <= room and "grouped_mm" not in operation.signature


def _with_values(operation: Operation, device: torch.device) -> Operation:
    """The operation with a copy of its module that has weights, for as long as it is computed."""
    if not isinstance(operation.target, nn.Module):
        return operation
    return replace(operation, target=_filled(operation.target, device))


def _filled(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy with values: its own where it has them, such as a table of positions."""
    own = named_tensors(module)
    made = copy.deepcopy(module).to_empty(device=device)
    for name, tensor in named_tensors(made).items():
        if own[name].is_meta:
            _fill(tensor.detach())
        else:
            tensor.detach().copy_(own[name])
    return made


def _fill(tensor: torch.Tensor) -> None:
    """Numbers of no meaning: not all alike, none of them slow as the tiniest are.

    Whole numbers are 0, which is a position in any table.
    """
    if not tensor.is_floating_point():
        tensor.zero_()
        return
    flat = tensor.as_strided((TensorSpec.of(tensor).extent,), (1,))  # channels may come last
    size = min(_NOISE, len(flat))
    # Not every type of number can be drawn.
    noise = torch.empty(size, device=tensor.device).uniform_(0.1, 1.0).to(tensor.dtype)
    # Drawing so many numbers would take longer than all the rest.
    for begin in range(0, len(flat), _NOISE):
        part = flat[begin : begin + _NOISE]
        part.copy_(noise[: len(part)])


class _Memory:
    """Where arguments come from, by dtype."""

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
        """The operation with its arguments."""
        for block in self._activations.values():
            block.rewind()
        args, kwargs = pytree.tree_map(self._given, (operation.args, dict(operation.kwargs)))
        return partial(operation.target, *args, **kwargs)

    def mend(self) -> None:
        """Put back what the operation has written over, else its values grow or fade."""
        for block in (*self._activations.values(), *self._weights.values()):
            block.mend()

    def _given(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return self._device
        if not isinstance(leaf, Needed):
            return leaf
        blocks = self._weights if leaf.weight else self._activations
        return blocks[leaf.spec.dtype].take(leaf.spec).requires_grad_(leaf.requires_grad)


def _sizes(operation: Operation, weight: bool) -> Mapping[torch.dtype, int]:
    """Elements that an operation needs at once, by dtype."""
    sizes: dict[torch.dtype, int] = defaultdict(int)
    for each in operation.needed:
        if each.weight == weight:
            sizes[each.spec.dtype] += _rounded(each.spec)
    return sizes


def _rounded(spec: TensorSpec) -> int:
    return -(-spec.extent // _ALIGNED) * _ALIGNED


class _Block:
    """One piece of memory that tensors are cut out of, one behind the other and round again."""

    def __init__(self, dtype: torch.dtype, size: int, device: torch.device) -> None:
        self._memory = torch.empty(size, dtype=dtype, device=device)
        _fill(self._memory)
        self._next = 0
        self._version = self._memory._version

    def rewind(self) -> None:
        """Begin at the beginning."""
        self._next = 0

    def mend(self) -> None:
        """Fill it again if anybody wrote into it."""
        if self._memory._version != self._version:
            _fill(self._memory)
            self._version = self._memory._version

    def take(self, spec: TensorSpec) -> torch.Tensor:
        """The next tensor of that shape and strides."""
        size = _rounded(spec)
        if self._next + size > len(self._memory):
            self._next = 0
        begin, self._next = self._next, self._next + size
        return self._memory.as_strided(spec.shape, spec.stride, begin)
