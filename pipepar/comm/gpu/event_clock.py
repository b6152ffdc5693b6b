"""A clock on the compute stream of a GPU: events that are read after they complete."""

from __future__ import annotations

import time

from pipepar.comm.gpu.cuda import Event, Gpu, wait_for_event
from pipepar.trace import Mark


class GpuClock:
    """A `trace.Clock` that measures time on a GPU, without blocking the host.

    The time between two marks includes waits of the compute stream: for bytes that have not
    arrived, for a free slot, or for work from the host.

    Args:
        gpu: the GPU. The constructor waits until its compute stream is idle.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._last: Event = self.now()
        wait_for_event(self._last)
        self._seconds = time.perf_counter()

    def now(self) -> Mark:
        """See `Clock.now`."""
        event = self._gpu.event(timed=True)
        event.record(self._gpu.compute)
        return event

    def seconds(self, mark: Mark) -> float | None:
        """Return the time of a mark in seconds of `time.perf_counter`; see `Clock.seconds`."""
        if not mark.query():
            return None
        passed = self._last.elapsed_time(mark) / 1e3
        if passed <= 0:
            return self._seconds + passed
        # Add up differences of neighbours: elapsed_time is float32, which is coarse over hours.
        self._seconds += passed
        self._last = mark
        return self._seconds
