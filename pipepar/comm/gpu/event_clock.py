"""Time as a GPU's compute stream takes it: events between what it does, read long after."""

from __future__ import annotations

import time

from pipepar.comm.gpu.cuda import Event, Gpu, wait_for_event
from pipepar.trace import Mark


class GpuClock:
    """See `trace.Clock`; a stage's times are then those of its GPU, and no host waits to take them.

    So what lies between two marks is what the compute stream did there, or waited for: bytes that
    had not arrived, room that was not free, or a host that had not told it anything.

    Args:
        gpu: whose compute stream; waits once for what it has been told so far.
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
        """See `Clock.seconds`."""
        if not mark.query():
            return None
        passed = self._last.elapsed_time(mark) / 1e3
        if passed <= 0:
            return self._seconds + passed
        # From mark to mark: a difference in float32 milliseconds grows coarse over hours.
        self._seconds += passed
        self._last = mark
        return self._seconds
