"""What a profile says of a host and its GPU: calls that made the host wait, and what overlapped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

_BEGIN: Final = "pipepar: counting begins"
_END: Final = "pipepar: counting ends"

# Of the runtime and of the driver; libraries call either.
_WAITS: Final = frozenset(
    """cudaDeviceSynchronize cudaStreamSynchronize cudaEventSynchronize cudaMemcpy cudaMemcpy2D
    cudaMemcpyPeer cuCtxSynchronize cuStreamSynchronize cuEventSynchronize cuMemcpy cuMemcpyHtoD
    cuMemcpyDtoH cuMemcpyDtoD""".split()
)
# They wait for the GPU as well, or may.
_ALLOCATES: Final = frozenset(
    "cudaMalloc cudaFree cudaHostAlloc cudaMallocHost cudaFreeHost cuMemAlloc cuMemFree".split()
)
_VERSION: Final = re.compile(r"(_v\d+|_ptsz|_ptds)+$")
_API: Final = re.compile(r"cu(da)?[A-Z]")


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that a profile tells of."""

    name: str
    begin: float
    """Microseconds."""
    end: float
    """Microseconds, the same clock."""
    on_host: bool
    """Whether the host did it; else the GPU."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What lay between two points of a profile."""

    calls: int
    """Calls of CUDA in all; without any, the profiler saw nothing, and the rest says nothing."""
    waits: Counter[str]
    """Calls for which the host waits for the GPU, by name."""
    allocations: Counter[str]
    """Calls that take or return memory, by name; most wait too."""
    pageable: int
    """Copies between the GPU and memory that is not page-locked, for which the host waits."""

    @property
    def total(self) -> int:
        """All that makes the host wait."""
        return self.waits.total() + self.allocations.total() + self.pageable

    def __str__(self) -> str:
        """By name, most frequent first."""
        named = self.waits + self.allocations + Counter({"pageable copies": self.pageable})
        return ", ".join(f"{name} {count}" for name, count in named.most_common()) or "none"


def count(calls: Iterable[Call]) -> Counted:
    """Count what lies between the two marks.

    Raises:
        ValueError: one of the marks is missing.
    """
    seen = list(calls)
    begins = [call.end for call in seen if call.on_host and call.name == _BEGIN]
    ends = [call.begin for call in seen if call.on_host and call.name == _END]
    if len(begins) != 1 or len(ends) != 1:
        raise ValueError(f"found {len(begins)} and {len(ends)} marks, expected one of each")
    inside = [call for call in seen if begins[0] <= call.begin <= ends[0]]
    names = Counter(_VERSION.sub("", call.name) for call in inside if call.on_host)
    return Counted(
        sum(number for name, number in names.items() if _API.match(name)),
        Counter({name: number for name, number in names.items() if name in _WAITS}),
        Counter({name: number for name, number in names.items() if name in _ALLOCATES}),
        sum(_is_pageable(call.name) for call in inside if not call.on_host),
    )


def profiled(action: Callable[[Callable[[], None], Callable[[], None]], None]) -> Counted:
    """Run something under torch's profiler, and count.

    Args:
        action: calls its first argument where counting begins, its second where it ends.
    """
    activities = torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
    with torch.profiler.profile(activities=activities) as profile:
        action(lambda: _mark(_BEGIN), lambda: _mark(_END))
    return count(map(_call, profile.events() or ()))


def hidden(first: float, second: float, both: float) -> float:
    """How much of the shorter of two went on behind the longer: 1 all, 0 none.

    Args:
        first: seconds of the one alone.
        second: seconds of the other alone.
        both: seconds of both at once.
    """
    return (first + second - both) / min(first, second)


def hidden_shares(turns: Sequence[Sequence[float]]) -> list[float]:
    """`hidden` of each repetition: the one, the other, both."""
    return [hidden(*turn) for turn in turns]


def _mark(name: str) -> None:
    with torch.profiler.record_function(name):
        pass


def _call(event: Any) -> Call:
    """Of a FunctionEvent of torch's."""
    on_host = event.device_type.name == "CPU"
    return Call(event.name, event.time_range.start, event.time_range.end, on_host)


def _is_pageable(name: str) -> bool:
    return name.startswith("Memcpy") and "Pageable" in name
