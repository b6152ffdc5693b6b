"""The same stream by torch.distributed.pipelining: ScheduleGPipe over gloo."""

from __future__ import annotations

import os
import socket
from array import array

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from benchmarks.load import Load, timed


def join_gloo(comm: MPI.Intracomm, address: str, interface: str) -> None:
    """Start torch.distributed among the same ranks. *Collective.*

    Args:
        comm: all of them.
        address: of rank 0, for the store; it takes a free port there and hands it on.
        interface: network interface for the data.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    port, listening = array("i", [0]), None
    if comm.rank == 0:
        door = socket.create_server((address, 0))
        port[0] = door.getsockname()[1]
        listening = door.detach()
    comm.Bcast(port)
    store = TCPStore(
        address,
        port[0],
        comm.size,
        is_master=comm.rank == 0,
        wait_for_workers=False,
        master_listen_fd=listening,
    )
    dist.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)


def leave_gloo() -> None:
    """End torch.distributed. *Collective.*"""
    dist.destroy_process_group()


class GpipeSide:
    """One step of the schedule a pass.

    Args:
        comm: both ranks.
        load: what to stream.
        microbatches: in one step; each has a receive buffer of its own for the whole step.
        merge: whether the last rank merges the outputs into one tensor, as a step does unless told
            otherwise. It is no part of a hop, and a large part of such a step's time.
    """

    def __init__(
        self, comm: MPI.Intracomm, load: Load, microbatches: int, merge: bool = False
    ) -> None:
        self.name = "torch ScheduleGPipe" + (", outputs merged" if merge else "")
        self.microbatches = microbatches
        self._merge = merge
        self._comm, self._load = comm, load
        stage = PipelineStage(load.work, comm.rank, comm.size, torch.device("cpu"))
        self._schedule = ScheduleGPipe(stage, microbatches)
        batch = [load.part(index) for index in range(microbatches)]
        self._batch = (torch.cat(batch),) if comm.rank == 0 else ()  # [M * rows, ...]

    def check(self) -> None:
        """See `peers.Side.check`."""
        outputs = self._schedule.eval(*self._batch)
        if self._comm.rank == 1:
            self._load.require(self.name, list(outputs.split(len(self._load.part(0)))))

    def run(self) -> float:
        """See `peers.Side.run`."""
        return timed(
            self._comm, lambda: self._schedule.eval(*self._batch, return_outputs=self._merge)
        )
