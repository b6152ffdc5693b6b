"""The same stream through torch.distributed.pipelining: ScheduleGPipe over gloo."""

from __future__ import annotations

import os
import socket
from array import array

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from benchmarks.shared.sides.load import Load, timed


def join_gloo(comm: MPI.Intracomm, address: str, interface: str) -> None:
    """Initialize torch.distributed on the same ranks. *Collective.*

    Args:
        comm: all ranks.
        address: the address of rank 0, which opens the store on a free port and broadcasts the
            port.
        interface: the network interface for the data.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    port, listening = array("i", [0]), None
    if comm.rank == 0:
        server = socket.create_server((address, 0))
        port[0] = server.getsockname()[1]
        listening = server.detach()
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
    """Shut down torch.distributed. *Collective.*"""
    dist.destroy_process_group()


class GpipeSide:
    """A pass is one step of the schedule.

    Args:
        comm: both ranks.
        load: the load to stream.
        microbatches: the micro-batches of one step; each has its own receive buffer for the whole
            step.
        merge: whether the last rank merges the outputs into one tensor, which is the default of a
            step. The merge is not part of a hop, but a large part of the time of such a step.
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
        """See `Side.check`."""
        outputs = self._schedule.eval(*self._batch)
        if self._comm.rank == 1:
            self._load.require(self.name, list(outputs.split(len(self._load.part(0)))))

    def run(self) -> float:
        """See `Side.run`."""
        return timed(
            self._comm, lambda: self._schedule.eval(*self._batch, return_outputs=self._merge)
        )
