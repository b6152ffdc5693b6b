"""Counts the calls in a profile that make the host wait for its GPU."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import torch

_BEGIN: Final = "pipepar: counting begins"
_END: Final = "pipepar: counting ends"

# Of the runtime API and of the driver API; libraries use either.
_WAITS: Final = frozenset(
    """cudaDeviceSynchronize cudaStreamSynchronize cudaEventSynchronize cudaMemcpy cudaMemcpy2D
    cudaMemcpyPeer cuCtxSynchronize cuStreamSynchronize cuEventSynchronize cuMemcpy cuMemcpyHtoD
    cuMemcpyDtoH cuMemcpyDtoD""".split()
)
# These can wait for the GPU too.
_ALLOCATES: Final = frozenset(
    "cudaMalloc cudaFree cudaHostAlloc cudaMallocHost cudaFreeHost cuMemAlloc cuMemFree".split()
)
_VERSION: Final = re.compile(r"(_v\d+|_ptsz|_ptds)+$")
_API: Final = re.compile(r"cu(da)?[A-Z]")


@dataclass(frozen=True, slots=True)
class Call:
    """One event of a profile."""

    name: str
    """The name of the function or the kernel."""
    begin: float
    """The start, microseconds."""
    end: float
    """The end, microseconds of the same clock."""
    on_host: bool
    """Whether it ran on the host, not on the GPU."""


@dataclass(frozen=True, slots=True)
class WaitCounts:
    """The calls between two points of a profile."""

    calls: int
    """All CUDA calls; with 0 the profiler recorded nothing, and the other counts are unknown."""
    waits: Counter[str]
    """Calls that make the host wait for the GPU, by name."""
    allocations: Counter[str]
    """Calls that allocate or free memory, by name; most of them wait too."""
    pageable: int
    """Copies between the GPU and pageable memory, for which the host waits."""

    @property
    def total(self) -> int:
        """All waits of the host."""
        return self.waits.total() + self.allocations.total() + self.pageable

    def __str__(self) -> str:
        """Return the names and counts, most frequent first."""
        named = self.waits + self.allocations + Counter({"pageable copies": self.pageable})
        return ", ".join(f"{name} {count}" for name, count in named.most_common()) or "none"


def count(calls: Iterable[Call]) -> WaitCounts:
    """Count the calls between the two marks.

    Raises:
        ValueError: a mark is missing, or there are several.
    """
    calls = list(calls)
    begins = [call.end for call in calls if call.on_host and call.name == _BEGIN]
    ends = [call.begin for call in calls if call.on_host and call.name == _END]
    if len(begins) != 1 or len(ends) != 1:
        raise ValueError(f"found {len(begins)} and {len(ends)} marks, expected one of each")
    inside = [call for call in calls if begins[0] <= call.begin <= ends[0]]
    names = Counter(_VERSION.sub("", call.name) for call in inside if call.on_host)
    return WaitCounts(
        sum(number for name, number in names.items() if _API.match(name)),
        Counter({name: number for name, number in names.items() if name in _WAITS}),
        Counter({name: number for name, number in names.items() if name in _ALLOCATES}),
        sum(_is_pageable(call.name) for call in inside if not call.on_host),
    )


def profiled(action: Callable[[Callable[[], None], Callable[[], None]], None]) -> WaitCounts:
    """Run a function under torch's profiler, and count its calls.

    Args:
        action: the function. It calls its first argument where the counting begins, and its second
            where it ends.
    """
    activities = torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
    with torch.profiler.profile(activities=activities) as profile:
        action(lambda: _mark(_BEGIN), lambda: _mark(_END))
    return count(map(_call, profile.events() or ()))


def _mark(name: str) -> None:
    with torch.profiler.record_function(name):
        pass


def _call(event: Any) -> Call:
    """Convert a FunctionEvent of torch."""
    on_host = event.device_type.name == "CPU"
    return Call(event.name, event.time_range.start, event.time_range.end, on_host)


def _is_pageable(name: str) -> bool:
    return name.startswith("Memcpy") and "Pageable" in name
