"""The processor and the free memory of this host."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")


def processor() -> str:
    """Return the model name of the processor; its architecture if the name is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def free_memory() -> float:
    """Return the bytes of memory that this process could still allocate.

    This is the available memory of the host, or less if a control group limits the process. Batch
    systems set such limits. Other ranks of the host may allocate the same bytes.
    """
    return min([_available(), *_left_of_limits()])


def _available() -> float:
    """Return the available bytes of the host; all its memory if the kernel does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(next((int(kibibytes) * 1024 for kibibytes in found), total))


def _left_of_limits() -> Iterator[float]:
    """Yield the free bytes of each control group of this process that has a memory limit."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(_GROUPS, path, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            yield from _left(_GROUPS / "memory", path, *names)


def _left(root: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[float]:
    """Yield the free bytes of a control group and of each group above it, if they have a limit.

    Args:
        root: the folder of the groups.
        path: the path of the group below `root`.
        limit: the name of the file with the limit.
        usage: the name of the file with the bytes in use.
        prefix: the prefix of the names in `memory.stat` that count the groups below, too.
    """
    group = root / path.lstrip("/")
    for place in (group, *group.parents):
        if root in (place, *place.parents):
            most, used = _number(place / limit), _number(place / usage)
            if most < math.inf and used < math.inf:
                yield min(most, max(0.0, most - used + _cached(place / "memory.stat", prefix)))


def _cached(path: Path, prefix: str) -> float:
    """Return the bytes of cached file pages, which the kernel frees before an allocation fails."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    counts = dict(line.partition(" ")[::2] for line in lines)
    files = (counts.get(f"{prefix}{name}_file", "") for name in ("active", "inactive"))
    return float(sum(int(count) for count in files if count.isdecimal()))


def _number(path: Path) -> float:
    """Return the number in a file of the kernel; infinity if the file has none or is missing."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return math.inf
    return float(text) if text.isdecimal() else math.inf
