"""The device of this rank, as the loop and the channels use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from pipepar.comm.gpu.cuda import CudaGpu, Gpu
from pipepar.comm.gpu.event_clock import GpuClock
from pipepar.comm.world import World
from pipepar.errors import InputError, PipeparError
from pipepar.host.devices import DeviceChoice, Devices, choose_devices
from pipepar.host.machine import free_memory
from pipepar.microbatch import Value
from pipepar.trace import Clock, HostClock

_HOST: Final = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """The device of this rank, and the kinds of device of all ranks."""

    devices: Devices
    """The devices of all ranks."""
    gpu: Gpu | None
    """The GPU of this rank; None if it computes on the CPU."""

    @staticmethod
    def on_hosts(world: World) -> DeviceContext:
        """Return the context of a job whose ranks all compute on the CPU. *Collective.*"""
        return DeviceContext(choose_devices(world, "cpu"), None)

    @property
    def device(self) -> torch.device:
        """The device of the tensors of its stage."""
        return _HOST if self.gpu is None else self.gpu.device

    @property
    def kind(self) -> str:
        """The kind of its device; ranks of one kind take the same time for the same operation."""
        if self.gpu is not None:
            return self.devices.name
        threads = torch.get_num_threads()
        return f"{self.devices.name}, {threads} thread{'s' * (threads > 1)}"

    @property
    def room(self) -> float:
        """Bytes of free memory on its device, divided by the number of ranks that share it."""
        if self.device.type == "cuda":
            return _free_on_gpu(self.device) / self.devices.sharers
        return free_memory() / self.devices.sharers

    def is_gpu(self, rank: int) -> bool:
        """Return whether a rank computes on a GPU."""
        return self.devices.by_rank[rank] == "cuda"

    def reached(self, value: Value) -> Value:
        """Return a value that the channels and the stage of this rank can access.

        Args:
            value: a tensor, or another value of a micro-batch.

        Returns:
            A copy on the host if it is a tensor on another GPU; otherwise the value itself.
        """
        if not isinstance(value, torch.Tensor) or value.device in (self.device, _HOST):
            return value
        return value.to(_HOST)

    def require_stream(self) -> None:
        """Refuse to compute on a CUDA stream that copies are not ordered with.

        Raises:
            InputError: the current CUDA stream is not the one that the pipeline was made with.
        """
        if self.device.type != "cuda" or self.gpu is None:
            return
        if torch.cuda.current_stream(self.device) != self.gpu.compute:
            raise InputError(
                f"this pipeline was made while another CUDA stream of {self.device} was current; "
                "use it under the same one, outside of other torch.cuda.stream blocks"
            )

    def clock(self) -> Clock:
        """Return a clock for the times of its stage; on a GPU this synchronises once."""
        return HostClock() if self.gpu is None else GpuClock(self.gpu)


def open_device_context(
    world: World, wanted: DeviceChoice, note: Callable[[str], None]
) -> DeviceContext:
    """Choose the device of this rank, and initialise it. *Collective.*

    Args:
        world: all ranks, before they claim their threads.
        wanted: "cuda" for GPUs only, "cpu" for CPUs only, "auto" for GPUs as far as there are any.
        note: called on rank 0 with a note about ranks without a GPU or far from it.

    Raises:
        PipeparError: the GPU of this rank cannot be used, or a GPU is required and this rank has
            none. The other ranks raise PeerError.
    """
    devices = choose_devices(world, wanted)
    if devices.note and world.is_root:
        note(devices.note)
    return DeviceContext(devices, world.together(lambda: _open_gpu(world, devices)))


def _open_gpu(world: World, devices: Devices) -> Gpu | None:
    """Initialise the GPU of this rank; return None if it computes on the CPU."""
    if devices.mine.type != "cuda":
        return None
    try:
        return CudaGpu(devices.mine)
    except RuntimeError as error:
        raise PipeparError(
            f"rank {world.rank} on {world.host} cannot use {devices.mine}, "
            f"{devices.name}: {error}; check with nvidia-smi which processes use it, and whether "
            "its compute mode allows several, or run with --device cpu"
        ) from error


def _free_on_gpu(device: torch.device) -> float:
    """Return the bytes that are free in the driver, or reserved but unused by torch."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return float(torch.cuda.mem_get_info(device)[0] + unused)
