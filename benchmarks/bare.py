"""The same stream by hand: two buffers, Isend and Irecv of mpi4py, and nothing around them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final

import torch
from mpi4py import MPI
from torch import nn

from benchmarks.load import Load, timed

_TAG: Final = 7
_POLL_SECONDS: Final = 100e-6


class Poller:
    """A Python thread that tests requests, so that they move on while the rank computes.

    A request is the poller's from `watch` until `wait`, which takes it back under the lock before
    it waits for it: at no time do two threads hold the same request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[MPI.Request] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Poller:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()

    def watch(self, request: MPI.Request) -> None:
        """Give it a request."""
        with self._lock:
            self._requests.append(request)

    def wait(self, request: MPI.Request) -> None:
        """Take a request back and wait for it."""
        with self._lock:
            # By identity: requests that are complete all compare equal.
            self._requests = [other for other in self._requests if other is not request]
        request.Wait()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self._requests = [request for request in self._requests if not request.Test()]
            time.sleep(_POLL_SECONDS)


class BareSide:
    """A double-buffered loop, as one would write it for one model and one size.

    Args:
        comm: both ranks.
        load: what to stream.
        polled: whether a Python thread tests the requests meanwhile.
    """

    def __init__(self, comm: MPI.Intracomm, load: Load, polled: bool = False) -> None:
        self.name = "mpi4py and a Python thread" if polled else "plain mpi4py"
        self.microbatches = load.microbatches
        self._comm, self._load, self._polled = comm, load, polled
        self._buffers = [torch.empty_like(load.parts[0]) for _ in range(2)]
        self._specs = [_memory(buffer) for buffer in self._buffers]

    def check(self) -> None:
        """See `peers.Side.check`."""
        outputs: list[torch.Tensor] = []
        self._pass(2 * len(self._load.parts), outputs)
        if self._comm.rank == 1:
            self._load.require(self.name, outputs)

    def run(self) -> float:
        """See `peers.Side.run`."""
        return timed(self._comm, lambda: self._pass(self.microbatches))

    def _pass(self, count: int, outputs: list[torch.Tensor] | None = None) -> None:
        with contextlib.ExitStack() as stack:
            poller = stack.enter_context(Poller()) if self._polled else None
            wait = poller.wait if poller else MPI.Request.Wait
            if self._comm.rank == 1:
                self._drain(count, outputs, poller, wait)
            elif isinstance(self._load.work, nn.Identity):
                self._feed_ready(count)
            else:
                self._feed(count, poller, wait)

    def _feed_ready(self, count: int) -> None:
        """Send what lies there already: the least that a hop can cost."""
        ring = [_memory(part) for part in self._load.parts]
        size, comm = len(ring), self._comm
        requests = [MPI.REQUEST_NULL, MPI.REQUEST_NULL]
        for index in range(count):
            requests[index % 2].Wait()
            requests[index % 2] = comm.Isend(ring[index % size], 1, _TAG)
        MPI.Request.Waitall(requests)

    def _feed(
        self, count: int, poller: Poller | None, wait: Callable[[MPI.Request], object]
    ) -> None:
        under_way: list[tuple[MPI.Request, torch.Tensor]] = []
        for index in range(count):
            output = self._load.work(self._load.part(index))
            if len(under_way) == 2:
                wait(under_way[0][0])
                under_way.pop(0)  # only now: the memory must outlive the transfer
            request = self._comm.Isend(_memory(output), 1, _TAG)
            under_way.append((request, output))
            if poller:
                poller.watch(request)
        for request, _ in under_way:
            wait(request)

    def _drain(
        self,
        count: int,
        outputs: list[torch.Tensor] | None,
        poller: Poller | None,
        wait: Callable[[MPI.Request], object],
    ) -> None:
        comm, work = self._comm, self._load.work
        identity = isinstance(work, nn.Identity)
        requests = [comm.Irecv(self._specs[0], 0, _TAG), MPI.REQUEST_NULL]
        if poller:
            poller.watch(requests[0])
        for index in range(count):
            here, other = index % 2, (index + 1) % 2
            if index + 1 < count:
                requests[other] = comm.Irecv(self._specs[other], 0, _TAG)
                if poller:
                    poller.watch(requests[other])
            wait(requests[here])
            output = self._buffers[here] if identity else work(self._buffers[here])
            if outputs is not None:
                outputs.append(output.clone())


def _memory(tensor: torch.Tensor) -> list[object]:
    return [MPI.buffer.fromaddress(tensor.data_ptr(), tensor.nbytes), MPI.BYTE]
