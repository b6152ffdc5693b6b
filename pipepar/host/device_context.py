"""Where a rank computes: its device, and what the loop and the channels need of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from pipepar.comm.gpu.cuda import CudaGpu, Gpu
from pipepar.comm.gpu.event_clock import GpuClock
from pipepar.comm.world import World
from pipepar.errors import InputError, PipeparError
from pipepar.host.devices import Devices, Wanted, choose_devices
from pipepar.host.machine import free_memory
from pipepar.microbatch import Value
from pipepar.trace import Clock, HostClock

_HOST: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """One rank's place among the devices of the job."""

    devices: Devices
    """Every rank's."""
    gpu: Gpu | None
    """This rank's; None where it computes on its host."""

    @staticmethod
    def on_hosts(world: World) -> DeviceContext:
        """Every rank computes on its host. *Collective.*"""
        return DeviceContext(choose_devices(world, "cpu"), None)

    @property
    def device(self) -> torch.device:
        """What tensors of its stage lie on."""
        return _HOST if self.gpu is None else self.gpu.device

    @property
    def kind(self) -> str:
        """Ranks of one kind take the same time for the same operation."""
        if self.gpu is not None:
            return self.devices.name
        threads = torch.get_num_threads()
        return f"{self.devices.name}, {threads} thread{'s' * (threads > 1)}"

    @property
    def room(self) -> float:
        """Bytes of its device's memory that it could still take, if all who share it do alike."""
        if self.device.type == "cuda":
            return _free_on_gpu(self.device) / self.devices.sharers
        return free_memory() / self.devices.sharers

    def is_gpu(self, rank: int) -> bool:
        """Whether a rank computes on a GPU."""
        return self.devices.by_rank[rank] == "cuda"

    def reached(self, value: Value) -> Value:
        """A value where this rank's channels and its stage can reach it: not on another GPU."""
        if not isinstance(value, torch.Tensor) or value.device in (self.device, _HOST):
            return value
        return value.to(_HOST)

    def require_stream(self) -> None:
        """Refuse to compute on a CUDA stream that nothing else is ordered by.

        Raises:
            InputError: the caller has made another one current.
        """
        if self.device.type != "cuda" or self.gpu is None:
            return
        if torch.cuda.current_stream(self.device) != self.gpu.compute:
            raise InputError(
                f"this pipeline was made while another CUDA stream of {self.device} was current; "
                "use it under the same one, outside of other torch.cuda.stream blocks"
            )

    def clock(self) -> Clock:
        """What the times of its stage are taken by; on a GPU it waits for that once."""
        return HostClock() if self.gpu is None else GpuClock(self.gpu)


def open_device_context(world: World, wanted: Wanted, note: Callable[[str], None]) -> DeviceContext:
    """Choose this rank's device, and make it ready. *Collective.*

    Args:
        world: all ranks, before they claim their threads.
        wanted: "cuda" for GPUs only, "cpu" for hosts only, "auto" for a GPU where there is one.
        note: receives, on rank 0, which ranks do without.

    Raises:
        PipeparError: a rank has no GPU and is to have one; raised once, PeerError elsewhere.
    """
    devices = choose_devices(world, wanted)
    if devices.note and world.is_root:
        note(devices.note)
    return DeviceContext(devices, world.together(lambda: _ready(world, devices)))


def _ready(world: World, devices: Devices) -> Gpu | None:
    if devices.mine.type != "cuda":
        return None
    try:
        return CudaGpu(devices.mine)
    except RuntimeError as error:
        raise PipeparError(
            f"rank {world.rank} on {world.host} cannot use {devices.mine}, "
            f"{devices.name}: {error}; see with nvidia-smi who does, and whether it lets several, "
            "or run with --device cpu"
        ) from error


def _free_on_gpu(device: torch.device) -> float:
    """Bytes that the driver has, and those that torch has taken but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)
