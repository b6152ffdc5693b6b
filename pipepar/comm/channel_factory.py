"""The choice of a channel for a link, by the devices at its two ends.

host -> host   MPI
GPU  -> GPU    NCCL for tensors on the GPU, MPI for everything else
GPU  -> host   a copy to pinned memory, then MPI
host -> GPU    MPI into pinned memory; the receiving stage copies from there to its GPU
"""

from __future__ import annotations

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.comm.channels.link import Link
from pipepar.comm.channels.mpi_endpoint import MpiEndpoint
from pipepar.comm.channels.mpi_receiver import MpiReceiver
from pipepar.comm.channels.mpi_sender import MpiSender
from pipepar.comm.gpu.cuda import Gpu
from pipepar.comm.gpu.nccl_channel import GpuReceiver, GpuSender, P2PTransport, Watch
from pipepar.comm.gpu.staged import StagedSender
from pipepar.comm.native._progress import Engine
from pipepar.errors import WireError


class ChannelFactory:
    """Makes the senders and receivers of one rank.

    Args:
        engine: the progress engine that tests the MPI requests.
        gpu: the GPU of this rank; None if no link uses one.
        watch: called with every transfer between two GPUs and its times; None to measure none.

    Raises:
        WireError: the thread of the engine cannot use the GPU.
    """

    def __init__(self, engine: Engine, gpu: Gpu | None, watch: Watch | None) -> None:
        if gpu is not None and (code := engine.enter(*gpu.entry)):
            raise WireError(
                f"the progress engine cannot use {gpu.device}, CUDA error {code}; check that "
                "nvidia-smi lists it, or run with --device cpu"
            )
        self._engine = engine
        self._gpu = gpu
        self._watch = watch

    def sender(self, link: Link, endpoint: MpiEndpoint, transport: P2PTransport | None) -> Sender:
        """Return the sending end of a link.

        Args:
            link: the link; this rank is its producer.
            endpoint: the end of the MPI channel between the hosts.
            transport: NCCL between the two GPUs; None unless both ends are GPUs.
        """
        if not link.from_gpu or self._gpu is None:
            return MpiSender(endpoint, self._engine)
        if transport is None:
            return StagedSender(endpoint, self._engine, self._gpu)
        host_channel = MpiSender(endpoint, self._engine)
        return GpuSender(host_channel, transport, self._gpu, link.depth, self._watch)

    def receiver(
        self, link: Link, endpoint: MpiEndpoint, transport: P2PTransport | None
    ) -> Receiver:
        """Return the receiving end of a link, with its first receives posted.

        Args:
            link: the link; this rank is its consumer.
            endpoint: the end of the MPI channel between the hosts.
            transport: NCCL between the two GPUs; None unless both ends are GPUs.
        """
        if not link.to_gpu or self._gpu is None:
            return MpiReceiver(endpoint, self._engine)
        if transport is None:
            return MpiReceiver(endpoint, self._engine, self._gpu.pinned)
        host_channel = MpiReceiver(endpoint, self._engine)
        return GpuReceiver(host_channel, transport, self._gpu, self._watch)
