"""Transfers between two simulated GPUs, as by an NCCL communicator of two ranks."""

from __future__ import annotations

import torch

from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.order import Region
from tests.helpers.simulated.streams import Operation, SimulatedStream


class _Transfer(Operation):
    """One side of a transfer; the other side is the operation of the same turn."""

    def __init__(
        self,
        end: SimulatedCommunicator,
        stream: SimulatedStream,
        sends: bool,
        region: Region | None,
    ) -> None:
        self.end = end
        self.turn = len(end.transfers)
        self.sends = sends
        self.region = region
        self.nbytes = region.end - region.begin if region else 0
        self.left = False
        """Whether it was sent before the receive was ready."""
        self.payload: torch.Tensor | None = None
        regions = [region] if region else []
        super().__init__(
            stream,
            f"{'send' if sends else 'receive'} {self.turn}",
            reads=regions if sends else [],
            writes=[] if sends else regions,
        )

    @property
    def is_next(self) -> bool:
        return self.is_head and self.turn == self.end.turn and not self.end.aborted

    def other(self) -> _Transfer | None:
        transfers = self.end.peer.transfers
        return transfers[self.turn] if self.turn < len(transfers) else None

    def may_run(self) -> bool:
        if self.end.aborted:
            return True
        if not self.is_next:
            return False
        if self.sends and self.nbytes <= self.end.eager:
            return True
        other = self.other()
        if other is None or not (other.left or other.is_next):
            return False
        if self.sends == other.sends or self.nbytes != other.nbytes:
            self.end.fail(f"{self} of {self.nbytes} bytes meets {other} of {other.nbytes} bytes")
            return False
        return True

    def execute(self) -> None:
        scheduler = self.stream.scheduler
        other = self.other()
        if self.end.aborted:
            self.reads = self.writes = ()
            scheduler.complete([self])
        elif self.sends and self.nbytes <= self.end.eager:
            self.left = True
            self.payload = self.region.bytes.clone() if self.region else None
            scheduler.complete([self])
        elif other is not None and other.left:
            if self.region and other.payload is not None:
                self.region.bytes.copy_(other.payload)
            scheduler.complete([self], other.after or {})
        elif other is not None:
            source, target = (self, other) if self.sends else (other, self)
            if source.region and target.region:
                target.region.bytes.copy_(source.region.bytes)
            scheduler.complete([self, other])
            other.end.turn += 1
        self.end.turn += 1


class SimulatedCommunicator:
    """One end; created by `link`. It transfers in the order of the calls, whatever the stream.

    Args:
        gpu: the GPU of this end.
        eager: see `link`.
    """

    peer: SimulatedCommunicator

    def __init__(self, gpu: SimulatedGpu, eager: int) -> None:
        self.gpu = gpu
        self.eager = eager
        self.transfers: list[_Transfer] = []
        self.turn = 0
        self.aborted = False
        self.closed = False
        self._problem = ""

    def send(self, address: int, nbytes: int, stream: int) -> None:
        """Enqueue a send from this GPU's memory on a stream."""
        self._enqueue(True, address, nbytes, stream)

    def receive(self, address: int, nbytes: int, stream: int) -> None:
        """Enqueue a receive into this GPU's memory on a stream."""
        self._enqueue(False, address, nbytes, stream)

    def problem(self) -> str:
        """Return the error of the communicator; empty if there is none."""
        return self._problem

    def close(self) -> None:
        """Close this end; RuntimeError while transfers are under way. May be called twice."""
        if not self.aborted and self.turn < len(self.transfers):
            raise RuntimeError(f"closed while {self.transfers[self.turn]} is under way")
        self.closed = True

    def abort(self) -> None:
        """Make all transfers of this end do nothing; the other end waits for ever."""
        self.aborted = self.closed = True

    def fail(self, problem: str) -> None:
        """Note the first error, after which the transfer never completes."""
        if not self._problem:
            self._problem = self.peer._problem = problem
            self.gpu.scheduler.faults.append(problem)

    def _enqueue(self, sends: bool, address: int, nbytes: int, stream: int) -> None:
        with self.gpu.scheduler.lock:
            if self.closed:
                raise RuntimeError("the communicator is closed")
            region = self.gpu.find(address, nbytes)
            transfer = _Transfer(self, self.gpu.stream_of(stream), sends, region)
            self.transfers.append(transfer)
            self.gpu.scheduler.enqueue(transfer)


def link(
    a: SimulatedGpu, b: SimulatedGpu, eager: int = 0
) -> tuple[SimulatedCommunicator, SimulatedCommunicator]:
    """Return the two ends of a communicator.

    Args:
        a: a GPU.
        b: another GPU of the same scheduler.
        eager: the size in bytes up to which a send does not wait for the receive, as with NCCL's
            buffers. A larger send is a rendezvous: both sides complete together.
    """
    ends = SimulatedCommunicator(a, eager), SimulatedCommunicator(b, eager)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends
