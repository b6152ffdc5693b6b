"""Simulation of a pipeline: the costs of a plan become the spans of a trace.

Times are constant, so no event queue is needed. Micro-batches are simulated one after another,
stage by stage; each time is the latest of the few times that it depends on. For one stage, with m a
micro-batch and D the depth of the channel that it crosses:

1. *receive* ends when m has arrived on every channel into the stage. The input of the first stage
   is available at once.
2. *compute* follows, and takes the time of the stage.
3. *send* passes m to the channels of the stage, to the nearest stage first. The sending end of a
   channel holds D micro-batches, so it waits until m - D has been transferred. Then m + 1 follows.

Independently of the stages, for each channel:

4. The transfer of m begins when m was passed to the channel, m - 1 has been transferred, and the
   receiver has taken m - D, since the receiving end also holds D micro-batches.
5. It ends after the time of the transfer.

The depth of a channel that skips stages is multiplied by the number of stages that it spans, as in
a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipepar.plan.plan import Edge
from pipepar.trace import Span, Totals, bound


@dataclass(frozen=True, slots=True)
class Timeline:
    """A predicted run; time 0 is when the first stage begins."""

    stages: int
    """Number of stages."""
    spans: tuple[Span, ...]
    """The spans of all stages, sorted by micro-batch and then by stage; in seconds."""

    @property
    def seconds(self) -> float:
        """Seconds until all stages are done."""
        return max(span.end for span in self.spans)

    @property
    def fill(self) -> float:
        """Seconds until the last stage begins to compute its first micro-batch."""
        return min(span.begin for span in self._computed(self.stages - 1))

    @property
    def drain(self) -> float:
        """Seconds from the end of the work of the first stage to the end of the run."""
        return self.seconds - max(span.end for span in self._computed(0))

    @property
    def bound(self) -> float:
        """Seconds of a perfect pipeline with the same stages; see `trace.bound`."""
        totals = [Totals() for _ in range(self.stages)]
        for span in self.spans:
            if span.kind == "compute":
                totals[span.stage].add(span.seconds)
        return bound(totals)

    def _computed(self, stage: int) -> Iterator[Span]:
        return (span for span in self.spans if span.stage == stage and span.kind == "compute")


def simulate(
    compute: Sequence[float], transfer: Mapping[Edge, float], microbatches: int, depth: int = 2
) -> Timeline:
    """Return the predicted timeline of a run.

    Args:
        compute: for each stage, seconds to compute one micro-batch, 0 or more.
        transfer: for each edge (producer, consumer), seconds to transfer one micro-batch.
        microbatches: number of micro-batches, 1 or more.
        depth: micro-batches that may wait on each end of a channel between neighbours, 1 or more.

    Returns:
        The timeline, with the spans of a trace of the run, except those of reading and writing.

    Raises:
        ValueError: there is no stage or micro-batch, the depth is 0, or an edge does not lead from
            a stage to a later one.
    """
    if min(len(compute), microbatches, depth) < 1:
        raise ValueError(
            f"found {len(compute)} stages, {microbatches} micro-batches and depth {depth}, "
            "expected 1 or more of each"
        )
    stages = [_Stage(index, seconds) for index, seconds in enumerate(compute)]
    for (producer, consumer), seconds in sorted(transfer.items()):
        if not 0 <= producer < consumer < len(stages):
            raise ValueError(
                f"found edge {producer} -> {consumer}, expected an edge to a later one of "
                f"{len(stages)} stages"
            )
        channel = _Channel(seconds, depth * (consumer - producer))
        stages[producer].outlets.append(channel)
        stages[consumer].inlets.append(channel)
    spans = [
        span for number in range(microbatches) for stage in stages for span in stage.step(number)
    ]
    return Timeline(len(stages), tuple(spans))


class _Channel:
    """One edge: the times when each micro-batch was transferred, and taken by the receiver."""

    def __init__(self, seconds: float, depth: int) -> None:
        self._seconds = seconds
        self._depth = depth
        self.transferred: list[float] = []
        self.taken: list[float] = []

    def send(self, now: float) -> float:
        """Send the next micro-batch as soon as the sending end has room.

        Args:
            now: the time when the stage is ready to send.

        Returns:
            The time when the stage may continue.
        """
        sent = max(now, _before(self.transferred, self._depth))
        free = max(_before(self.transferred, 1), self._receiver_free())
        self.transferred.append(max(sent, free) + self._seconds)
        return sent

    def _receiver_free(self) -> float:
        """Return the time when the receiver has room for the next micro-batch."""
        earlier = len(self.transferred) - self._depth
        return self.taken[earlier] if earlier >= 0 else 0.0


class _Stage:
    """One stage, which processes one micro-batch after another."""

    def __init__(self, index: int, seconds: float) -> None:
        self._index = index
        self._seconds = seconds
        self._free = 0.0
        self.inlets: list[_Channel] = []
        self.outlets: list[_Channel] = []

    def step(self, number: int) -> Iterator[Span]:
        """Simulate one micro-batch, which all earlier stages have already processed.

        Args:
            number: the index of the micro-batch; called in ascending order.

        Yields:
            The spans of receive, compute and send.
        """
        begin = self._free
        received = max([begin, *(channel.transferred[number] for channel in self.inlets)])
        for channel in self.inlets:
            channel.taken.append(received)
        computed = received + self._seconds
        self._free = computed
        for channel in self.outlets:
            self._free = channel.send(self._free)
        if self.inlets:
            yield Span(self._index, "receive", number, begin, received)
        yield Span(self._index, "compute", number, received, computed)
        if self.outlets:
            yield Span(self._index, "send", number, computed, self._free)


def _before(times: Sequence[float], steps: int) -> float:
    """Return the time of the micro-batch `steps` before the next one; 0 if there was none."""
    return times[-steps] if len(times) >= steps else 0.0
