"""The loop of a stage: take the next micro-batch of the schedule, compute, send."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.errors import PipeparError, StageError, WireError
from pipepar.microbatch import Fault, MicroBatch, Step, Value
from pipepar.trace import Tracer

Schedule: TypeAlias = Iterable[MicroBatch]
"""The micro-batches that a stage computes, in order; each says which program it is for. Their
values are those that arrive at the stage, in the order of `Wiring.known`."""

Compute: TypeAlias = Callable[[tuple[Value, ...]], object]
"""Computes the values that a stage is called with."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a stage computes for the steps of one kind."""

    inputs: tuple[int, ...]
    """Which of the values that arrive it takes, by position."""
    compute: Callable[[tuple[Value, ...], Step], Sequence[Value]]
    """Given these and the step, returns the values that the stage makes; it may keep state."""


@dataclass(frozen=True, slots=True)
class Outlet:
    """A channel out of a stage."""

    names: tuple[str, ...]
    """Names of the values that it takes, for messages."""
    positions: tuple[int, ...]
    """Where they are among all values known at the stage."""
    channel: Sender
    """Where they go."""
    beside: bool = True
    """Whether samples and columns go along; a stage needs them from one channel only."""

    def send(self, microbatch: MicroBatch, stage: int | str) -> None:
        """Send its share of a micro-batch.

        Args:
            microbatch: with all values known at the stage.
            stage: for messages.

        Raises:
            StageError: a value cannot cross, or the channel is broken.
        """
        try:
            self.channel.send(self._share(microbatch))
        except PipeparError as error:
            raise StageError(
                f"stage {stage} could not send micro-batch {microbatch.index} "
                f"({', '.join(self.names)}): {error}"
            ) from error

    def _share(self, microbatch: MicroBatch) -> MicroBatch:
        values = () if microbatch.error else select(microbatch.values, self.positions)
        if self.beside:
            return microbatch.with_values(values)
        return MicroBatch(microbatch.index, values, error=microbatch.error, step=microbatch.step)


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """What becomes of a micro-batch that a stage fails on."""

    travels_on: Callable[[Exception], bool]
    """Whether it travels on with its error in the place of its values; else the job ends."""
    describe: Callable[[MicroBatch, tuple[Value, ...], Compute, Exception], str]
    """Words for the samples that failed, given the micro-batch, the values that the stage was
    called with, a function that computes such values, and the exception; may be empty."""


STOP: Final = FailurePolicy(lambda error: False, lambda microbatch, values, compute, error: "")
"""The job ends at the first failure."""


def arrivals(receivers: Sequence[Receiver], tracer: Tracer) -> Iterator[MicroBatch]:
    """The micro-batches of one stream, each once all of its values are there.

    Args:
        receivers: the channels into a stage, in the order of `Wiring.known`.
        tracer: this stage's times.

    Raises:
        WireError: the channels disagree about what comes next.
    """
    streams = [receiver.receive() for receiver in receivers]
    for expected in itertools.count():
        tracer.enter("receive", expected)
        begin = tracer.clock.now()
        parts = [next(stream, None) for stream in streams]
        present = [part for part in parts if part is not None]
        if not present:
            return
        index = present[0].index
        if len(present) < len(parts) or any(part.index != index for part in present):
            found = [None if part is None else part.index for part in parts]
            raise WireError(f"the channels into stage {tracer.stage} are out of step: {found}")
        tracer.record("receive", index, begin, tracer.clock.now())
        yield present[0] if len(present) == 1 else _joined(present)


def run(
    programs: Sequence[Program],
    schedule: Schedule,
    outlets: Sequence[Outlet],
    tracer: Tracer,
    policy: FailurePolicy = STOP,
) -> Iterator[MicroBatch]:
    """Compute the micro-batches of one stream and send them on; every stage runs its own loop.

    Yields:
        Each micro-batch after it has been sent, with all values known at this stage.

    Raises:
        StageError: the stage failed on a micro-batch that may not travel on; the cause is chained.
    """
    now = tracer.clock.now
    for microbatch in schedule:
        index = microbatch.index
        tracer.enter("compute", index, microbatch.samples)
        begin = now()
        made = _computed(programs[microbatch.step.program], microbatch, tracer.stage, policy)
        computed = now()
        tracer.record("compute", index, begin, computed)
        if outlets:
            tracer.enter("send", index)
            for outlet in outlets:
                outlet.send(made, tracer.stage)
            tracer.record("send", index, computed, now())
        tracer.enter("other", index)
        yield made
    for outlet in outlets:
        outlet.channel.end()


def outputs_of(results: Iterable[MicroBatch], positions: Sequence[int]) -> Iterator[MicroBatch]:
    """The micro-batches of a last stage with the model's outputs as their only values.

    Args:
        results: with all values known at the stage.
        positions: where the outputs are among them.
    """
    for microbatch in results:
        if microbatch.error is not None:
            yield microbatch
        else:
            yield microbatch.with_values(select(microbatch.values, positions))


def select(values: tuple[Value, ...], positions: Sequence[int]) -> tuple[Value, ...]:
    """Some of the values, in the order of their positions."""
    return tuple(map(values.__getitem__, positions))


def _computed(
    program: Program, microbatch: MicroBatch, stage: int, policy: FailurePolicy
) -> MicroBatch:
    """The micro-batch with what the stage makes of it, or with the error that it failed with."""
    if microbatch.error is not None:
        return microbatch
    values, step = select(microbatch.values, program.inputs), microbatch.step
    try:
        made = program.compute(values, step)
    except Exception as error:
        if policy.travels_on(error):
            return replace(microbatch, values=(), error=Fault.of(stage, error))
        rows = policy.describe(microbatch, values, lambda some: program.compute(some, step), error)
        raise StageError(
            f"stage {stage} failed on micro-batch {microbatch.index}{rows}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return microbatch.with_values((*microbatch.values, *made))


def _joined(parts: Sequence[MicroBatch]) -> MicroBatch:
    """One micro-batch of the values that several channels brought."""
    main = next((part for part in parts if part.samples is not None), parts[0])
    error = next((part.error for part in parts if part.error is not None), None)
    values = () if error else tuple(itertools.chain.from_iterable(part.values for part in parts))
    return replace(main, values=values, error=error)
