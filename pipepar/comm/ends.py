"""The two ends of a link: which channel serves it, by where its tensors lie on either side.

host -> host   MPI
GPU  -> GPU    NCCL, announced over MPI
GPU  -> host   copied into pinned memory, and from there over MPI
host -> GPU    over MPI into pinned memory; the stage that needs it copies it on
"""

from __future__ import annotations

from collections.abc import Mapping

from pipepar.comm.channel import Receiver, Sender
from pipepar.comm.edge import Edge
from pipepar.comm.gpu import Gpu
from pipepar.comm.gpu_channel import Courier, GpuReceiver, GpuSender, Watch
from pipepar.comm.link import Link
from pipepar.comm.mpi import MpiReceiver, MpiSender
from pipepar.comm.native._progress import Engine
from pipepar.comm.staged import StagedSender
from pipepar.errors import WireError


class Ends:
    """Makes one rank's ends of channels.

    Args:
        engine: what moves MPI's messages.
        gpu: this rank's, None where no link is from or to it.
        couriers: by producer and consumer, what moves bytes between two GPUs.
        watch: is told of every transfer between two GPUs; None to take no times of them.

    Raises:
        WireError: the engine cannot use the GPU.
    """

    def __init__(
        self,
        engine: Engine,
        gpu: Gpu | None,
        couriers: Mapping[tuple[int, int], Courier],
        watch: Watch | None,
    ) -> None:
        if gpu is not None and (code := engine.enter(*gpu.entry)):
            raise WireError(
                f"the progress engine cannot use {gpu.device}, CUDA error {code}; see that "
                "nvidia-smi shows it, or run with --device cpu"
            )
        self._engine = engine
        self._gpu = gpu
        self._couriers = couriers
        self._watch = watch

    def sender(self, link: Link, edge: Edge) -> Sender:
        """The end that sends. *Local.*"""
        if not link.from_gpu or self._gpu is None:
            return MpiSender(edge, self._engine)
        if not link.to_gpu:
            return StagedSender(edge, self._engine, self._gpu)
        told = MpiSender(edge, self._engine)
        courier = self._couriers[link.producer, link.consumer]
        return GpuSender(told, courier, self._gpu, link.depth, self._watch)

    def receiver(self, link: Link, edge: Edge) -> Receiver:
        """The end that receives; its first receives are posted. *Local.*"""
        if not link.to_gpu or self._gpu is None:
            return MpiReceiver(edge, self._engine)
        if not link.from_gpu:
            return MpiReceiver(edge, self._engine, self._gpu.pinned)
        told = MpiReceiver(edge, self._engine)
        courier = self._couriers[link.producer, link.consumer]
        return GpuReceiver(told, courier, self._gpu, self._watch)
