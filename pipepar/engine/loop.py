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
"""The micro-batches that a stage computes, in order. Their values are those that the stage
receives, in the order of `Wiring.known`; `MicroBatch.step` selects the program."""

Compute: TypeAlias = Callable[[tuple[Value, ...]], object]
"""Calls a stage with the given inputs."""


@dataclass(frozen=True, slots=True)
class Program:
    """The computation of a stage for the steps of one kind."""

    inputs: tuple[int, ...]
    """Positions of the program's inputs among the values that the stage receives."""
    compute: Callable[[tuple[Value, ...], Step], Sequence[Value]]
    """Takes the inputs and the step, returns the stage's outputs; it may keep state."""


@dataclass(frozen=True, slots=True)
class Outlet:
    """A channel out of a stage."""

    names: tuple[str, ...]
    """Names of the values that the channel sends, for error messages."""
    positions: tuple[int, ...]
    """Positions of these values in the order of `Wiring.known`."""
    channel: Sender
    """The sending end of the channel."""
    sends_samples: bool = True
    """Whether samples and columns are sent too; a stage receives them from one channel only."""

    def send(self, microbatch: MicroBatch, stage: int | str) -> None:
        """Send the values of one micro-batch that this channel carries, or its error.

        Args:
            microbatch: with all values known at the stage.
            stage: the sending stage or "source", for error messages.

        Raises:
            StageError: a value cannot be sent, or the channel is broken; the cause is chained.
        """
        try:
            self.channel.send(self._selected(microbatch))
        except PipeparError as error:
            sender = f"stage {stage}" if isinstance(stage, int) else f"the {stage}"
            raise StageError(
                f"{sender} could not send micro-batch {microbatch.index} "
                f"({', '.join(self.names)}): {error}"
            ) from error

    def _selected(self, microbatch: MicroBatch) -> MicroBatch:
        values = () if microbatch.error else select(microbatch.values, self.positions)
        if self.sends_samples:
            return microbatch.with_values(values)
        return MicroBatch(microbatch.index, values, error=microbatch.error, step=microbatch.step)


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """The handling of a micro-batch that a stage fails on."""

    skips: Callable[[Exception], bool]
    """Takes the exception. True: the micro-batch is sent on with the error in place of its values.
    False: the job ends."""
    describe: Callable[[MicroBatch, tuple[Value, ...], Compute, Exception], str]
    """Takes the micro-batch, the inputs of the stage, a function that calls the stage with such
    inputs, and the exception. Returns text that names the failed samples; may be empty."""


STOP: Final = FailurePolicy(lambda error: False, lambda microbatch, values, compute, error: "")
"""Ends the job at the first failure."""


def arrivals(receivers: Sequence[Receiver], tracer: Tracer) -> Iterator[MicroBatch]:
    """Receive the micro-batches of one stream.

    Args:
        receivers: the channels into a stage, in the order of `Wiring.known`.
        tracer: records the time of receiving.

    Yields:
        Each micro-batch, with the values of all channels.

    Raises:
        WireError: the channels delivered different micro-batches, or one ended before another.
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
    """Compute the micro-batches of one stream, send them, and send the end of the stream.

    Micro-batches with an error are sent without being computed.

    Args:
        programs: the programs of the stage, indexed by `Step.program`.
        schedule: the micro-batches, in the order in which they are computed.
        outlets: the channels out of the stage.
        tracer: records the times of computing and sending.
        policy: the handling of a micro-batch that the stage fails on.

    Yields:
        Each micro-batch after it has been sent, with all values known at this stage.

    Raises:
        StageError: the stage failed and `policy` does not skip the micro-batch, or a result cannot
            be sent; the cause is chained.
    """
    now = tracer.clock.now
    for microbatch in schedule:
        index = microbatch.index
        tracer.enter("compute", index, microbatch.samples)
        begin = now()
        result = _compute(programs[microbatch.step.program], microbatch, tracer.stage, policy)
        computed = now()
        tracer.record("compute", index, begin, computed)
        if outlets:
            tracer.enter("send", index)
            for outlet in outlets:
                outlet.send(result, tracer.stage)
            tracer.record("send", index, computed, now())
        tracer.enter("other", index)
        yield result
    for outlet in outlets:
        outlet.channel.end()


def outputs_of(results: Iterable[MicroBatch], positions: Sequence[int]) -> Iterator[MicroBatch]:
    """Select the model's outputs from the micro-batches of the last stage.

    Args:
        results: micro-batches with all values known at the stage.
        positions: positions of the outputs among these values.

    Yields:
        The same micro-batches with the outputs as their only values; those with an error unchanged.
    """
    for microbatch in results:
        if microbatch.error is not None:
            yield microbatch
        else:
            yield microbatch.with_values(select(microbatch.values, positions))


def select(values: tuple[Value, ...], positions: Sequence[int]) -> tuple[Value, ...]:
    """Return the values at the given positions."""
    return tuple(map(values.__getitem__, positions))


def _compute(
    program: Program, microbatch: MicroBatch, stage: int, policy: FailurePolicy
) -> MicroBatch:
    """Return the micro-batch with the stage's outputs appended, or with the stage's error.

    A micro-batch that already has an error is returned unchanged.
    """
    if microbatch.error is not None:
        return microbatch
    values, step = select(microbatch.values, program.inputs), microbatch.step
    try:
        outputs = program.compute(values, step)
    except Exception as error:
        if policy.skips(error):
            return replace(microbatch, values=(), error=Fault.of(stage, error))
        samples = policy.describe(microbatch, values, lambda v: program.compute(v, step), error)
        raise StageError(
            f"stage {stage} failed on micro-batch {microbatch.index}{samples}: "
            f"{type(error).__name__}: {error}"
        ) from error
    return microbatch.with_values((*microbatch.values, *outputs))


def _joined(parts: Sequence[MicroBatch]) -> MicroBatch:
    """Join the parts of one micro-batch, without values if a part has an error."""
    main = next((part for part in parts if part.samples is not None), parts[0])
    error = next((part.error for part in parts if part.error is not None), None)
    values = () if error else tuple(itertools.chain.from_iterable(part.values for part in parts))
    return replace(main, values=values, error=error)
