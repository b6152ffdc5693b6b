"""The two ends of a link: which channel serves it, by where its tensors lie on either side.

host -> host   MPI
GPU  -> GPU    NCCL, announced over MPI
GPU  -> host   copied into pinned memory, and from there over MPI
host -> GPU    over MPI into pinned memory; the stage that needs it copies it on
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
    """Makes one rank's ends of channels.

    Args:
        engine: what moves MPI's messages.
        gpu: this rank's, None where no link is from or to it.
        watch: receives every transfer between two GPUs; None to take no times of them.

    Raises:
        WireError: the engine cannot use the GPU.
    """

    def __init__(
        self,
        engine: Engine,
        gpu: Gpu | None,
        watch: Watch | None,
    ) -> None:
        if gpu is not None and (code := engine.enter(*gpu.entry)):
            raise WireError(
                f"the progress engine cannot use {gpu.device}, CUDA error {code}; see that "
                "nvidia-smi shows it, or run with --device cpu"
            )
        self._engine = engine
        self._gpu = gpu
        self._watch = watch

    def sender(self, link: Link, endpoint: MpiEndpoint, transport: P2PTransport | None) -> Sender:
        """The end that sends; with a transport where both ends are GPUs."""
        if not link.from_gpu or self._gpu is None:
            return MpiSender(endpoint, self._engine)
        if transport is None:
            return StagedSender(endpoint, self._engine, self._gpu)
        host_channel = MpiSender(endpoint, self._engine)
        return GpuSender(host_channel, transport, self._gpu, link.depth, self._watch)

    def receiver(
        self, link: Link, endpoint: MpiEndpoint, transport: P2PTransport | None
    ) -> Receiver:
        """The end that receives; its first receives are posted."""
        if not link.to_gpu or self._gpu is None:
            return MpiReceiver(endpoint, self._engine)
        if transport is None:
            return MpiReceiver(endpoint, self._engine, self._gpu.pinned)
        host_channel = MpiReceiver(endpoint, self._engine)
        return GpuReceiver(host_channel, transport, self._gpu, self._watch)
