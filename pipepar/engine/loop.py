"""The loop, the whole of it: for each micro-batch that arrives, compute, send on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from pipepar.comm.channels.channel import Receiver, Sender
from pipepar.data.failing_sample import blamed, is_of_samples, part
from pipepar.engine.fault import FAULT, Fault
from pipepar.errors import PipeparError, StageError, WireError
from pipepar.microbatch import MicroBatch, Value
from pipepar.trace import Tracer

Arrival: TypeAlias = tuple[int, dict[str, Value]]
"""A micro-batch at a stage: its index, and the values known there by name."""

SAMPLES = "#samples"
"""Name, no model's own, of the rows of a micro-batch where the source numbers them: an int64 tensor
[b] of positions in the user's input, which travels along."""


@dataclass(frozen=True, slots=True)
class Inlet:
    """A channel into a stage."""

    names: tuple[str, ...]
    """What its values are called, in order."""
    channel: Receiver
    """Where they come from."""


@dataclass(frozen=True, slots=True)
class Outlet:
    """A channel out of a stage."""

    names: tuple[str, ...]
    """Which values it takes, in order."""
    channel: Sender
    """Where they go."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a stage computes."""

    inputs: tuple[str, ...]
    """Names of the values it is called with, in order."""
    outputs: tuple[str, ...]
    """Names of the values it returns, in order."""
    compute: Callable[[tuple[Value, ...]], Sequence[Value]]
    """The stage itself."""


def arrivals(inlets: Sequence[Inlet], tracer: Tracer) -> Iterator[Arrival]:
    """The micro-batches of one stream, each once all of its values are there. *Local.*

    Raises:
        WireError: the channels disagree about what comes next.
    """
    streams = [inlet.channel.receive() for inlet in inlets]
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
        values: dict[str, Value] = {}
        for inlet, come in zip(inlets, present, strict=True):
            fault = values.get(FAULT)
            values.update(zip(inlet.names, come.values, strict=True))
            if fault:  # another producer's; this one need not know of it
                values[FAULT] = fault
        yield index, values


def run(
    program: Program, source: Iterable[Arrival], outlets: Sequence[Outlet], tracer: Tracer
) -> Iterator[Arrival]:
    """Compute each micro-batch of one stream and send it on. *Local*; every stage runs its own.

    Yields:
        Each micro-batch after it has been sent, with all the values known at this stage.

    Raises:
        StageError: the stage failed on a micro-batch that does not travel on with its `FAULT`; the
            cause is chained to it.
    """
    stage, now = tracer.stage, tracer.clock.now
    for index, values in source:
        tracer.enter("compute", index, values.get(SAMPLES))
        begin = now()
        values.update(_computed(program, stage, index, values))
        computed = now()
        tracer.record("compute", index, begin, computed)
        if outlets:
            tracer.enter("send", index)
            _send(index, values, outlets, stage)
            tracer.record("send", index, computed, now())
        tracer.enter("other", index)
        yield index, values
    for outlet in outlets:
        outlet.channel.end()


def _computed(
    program: Program, stage: int, index: int, values: dict[str, Value]
) -> dict[str, Value]:
    """What the stage makes of a micro-batch; nothing where it fails and may, or did so before."""
    nothing: dict[str, Value] = dict.fromkeys(program.outputs)
    if values.get(FAULT):
        return nothing
    try:
        outputs = program.compute(tuple(values[name] for name in program.inputs))
    except Exception as error:
        if FAULT not in values or not is_of_samples(error):
            raise StageError(_failure(program, stage, index, values, error)) from error
        return nothing | {FAULT: Fault.of(stage, error).to_text()}
    return dict(zip(program.outputs, outputs, strict=True))


def _send(index: int, values: dict[str, Value], outlets: Sequence[Outlet], stage: int) -> None:
    for outlet in outlets:
        try:
            outlet.channel.send(MicroBatch(index, tuple(values[name] for name in outlet.names)))
        except PipeparError as error:
            names = ", ".join(outlet.names)
            raise StageError(
                f"stage {stage} could not send micro-batch {index} ({names}): {error}"
            ) from error


def _failure(
    program: Program, stage: int, index: int, values: dict[str, Value], error: Exception
) -> str:
    samples = values.get(SAMPLES)
    rows = ""
    if isinstance(samples, torch.Tensor) and is_of_samples(error):
        given = tuple(values[name] for name in program.inputs)
        count = len(samples)
        told = blamed(samples.tolist(), lambda some: program.compute(part(given, some, count)))
        rows = f", {told}"
    return f"stage {stage} failed on micro-batch {index}{rows}: {type(error).__name__}: {error}"
