"""What a pipeline would do, without running it: costs in, the spans of a trace out.

Times are constant, so no queue of events is needed: micro-batch by micro-batch and stage by stage,
every moment is the latest of the few that it waits for. With m a micro-batch and D the depth of
the channel it crosses, for one stage:

1. *receive* ends when m has arrived on every channel into the stage; all are emptied of it then.
   The first stage finds its input there at once.
2. *compute* follows and takes the stage's time.
3. *send* hands m to the stage's channels, the nearest stage's first. It waits where D micro-batches
   are still there that were handed over before: until m - D has left. Then comes m + 1.

And for the channel, beside what the stages do:

4. m sets out when it was handed over, m - 1 has left, and the receiver, which holds D micro-batches
   that it has not taken, has taken m - D.
5. It arrives, and has left, after the transfer's time.

A channel that skips stages is as many times deeper as it spans stages, as in a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipepar.plan.plan import Edge
from pipepar.trace import Span, Totals, bound


@dataclass(frozen=True, slots=True)
class Timeline:
    """A predicted run; its clock starts at 0 when the first stage does."""

    stages: int
    """How many."""
    spans: tuple[Span, ...]
    """What each stage did, by micro-batch and then by stage; seconds."""

    @property
    def seconds(self) -> float:
        """Until the last stage has computed the last micro-batch."""
        return max(span.end for span in self.spans)

    @property
    def fill(self) -> float:
        """Seconds until every stage has had work: the last begins its first micro-batch."""
        return min(span.begin for span in self._computed(self.stages - 1))

    @property
    def drain(self) -> float:
        """Seconds from the end of the first stage's work to the end of all."""
        return self.seconds - max(span.end for span in self._computed(0))

    @property
    def bound(self) -> float:
        """Seconds that a perfect pipeline would take for the same stages; see `trace.bound`."""
        totals = [Totals() for _ in range(self.stages)]
        for span in self.spans:
            if span.kind == "compute":
                totals[span.stage].add(span.seconds)
        return bound(totals)

    @property
    def efficiency(self) -> float:
        """Achieved / bound, as a share of the perfect pipeline's speed."""
        return self.bound / self.seconds if self.seconds else 1.0

    def _computed(self, stage: int) -> Iterator[Span]:
        return (span for span in self.spans if span.stage == stage and span.kind == "compute")


def simulate(
    compute: Sequence[float], transfer: Mapping[Edge, float], microbatches: int, depth: int = 2
) -> Timeline:
    """Predict when each stage does what.

    Args:
        compute: seconds that each stage computes for a micro-batch, 0 or more.
        transfer: for each edge (producer, consumer), seconds that a micro-batch is on its way.
        microbatches: how many there are, 1 or more.
        depth: micro-batches that may wait on each end of a channel between neighbours, 1 or more.

    Returns:
        The spans that a trace of the run would hold, but those of its files.

    Raises:
        ValueError: there is no stage, no micro-batch or no depth, or an edge does not lead on from
            one of the stages to a later one.
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
                f"found edge {producer} -> {consumer}, expected it to lead on among "
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
    """One edge: when each micro-batch left the sender and was taken by the receiver."""

    def __init__(self, seconds: float, depth: int) -> None:
        self._seconds = seconds
        self._depth = depth
        self.left: list[float] = []
        self.taken: list[float] = []

    def send(self, now: float) -> float:
        """Hand the next micro-batch over, as soon as there is room; the time that this is done."""
        handed = max(now, _before(self.left, self._depth))
        free = max(_before(self.left, 1), self._receiver_free())
        self.left.append(max(handed, free) + self._seconds)
        return handed

    def _receiver_free(self) -> float:
        """When there is room for the next micro-batch at the receiver."""
        earlier = len(self.left) - self._depth
        return self.taken[earlier] if earlier >= 0 else 0.0


class _Stage:
    """One stage and what it does for one micro-batch after the other."""

    def __init__(self, index: int, seconds: float) -> None:
        self._index = index
        self._seconds = seconds
        self._free = 0.0
        self.inlets: list[_Channel] = []
        self.outlets: list[_Channel] = []

    def step(self, number: int) -> Iterator[Span]:
        """Receive, compute, send; every earlier stage has done so for this micro-batch."""
        begin = self._free
        received = max([begin, *(channel.left[number] for channel in self.inlets)])
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
    """The time so many micro-batches ago; 0 where there was none."""
    return times[-steps] if len(times) >= steps else 0.0
