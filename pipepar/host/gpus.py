"""The GPUs that this process can use, and the cores near them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

_PCI_DEVICES: Final = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class VisibleGpu:
    """A CUDA device that is visible to this process."""

    index: int
    """Its index in this process, from 0."""
    uuid: str
    """Its UUID, the same in every process of the host."""
    name: str
    """Its name, as torch reports it."""
    memory: int
    """Bytes of its memory."""
    near: frozenset[int]
    """The logical CPUs near it; empty if unknown."""


def visible_gpus() -> list[VisibleGpu]:
    """Return the visible CUDA devices; CUDA is initialised only if there is one.

    Raises:
        RuntimeError: CUDA cannot be initialised, although torch reports a device.
    """
    # torch for ROCm also reports CUDA, but has no NCCL.
    has_cuda = torch.version.cuda is not None and torch.cuda.is_available()
    count = torch.cuda.device_count() if has_cuda else 0
    return [_visible(index) for index in range(count)]


def cpus_of(text: str) -> frozenset[int]:
    """Return the CPUs in a list of the kernel's format, such as 0-3,8."""
    cpus: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def _visible(index: int) -> VisibleGpu:
    found: Any = torch.cuda.get_device_properties(index)
    return VisibleGpu(index, str(found.uuid), found.name, found.total_memory, _near(found))


def _near(found: Any) -> frozenset[int]:
    try:
        address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
        text = (_PCI_DEVICES / address / "local_cpulist").read_text(encoding="ascii").strip()
    except (AttributeError, OSError):  # an older torch, or a system without this file
        return frozenset()
    return cpus_of(text)
