"""The clock of a stage is its compute stream, independently of when the host reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random

import pytest
import torch

from pipepar.comm.gpu.event_clock import GpuClock
from pipepar.engine.loop import Outlet, Program, arrivals, run
from pipepar.microbatch import MicroBatch, Step, Value
from pipepar.trace import Span, Tracer
from tests.helpers.gpu.exchange import POLICIES
from tests.helpers.gpu.stages import Edge, computed, host, run_hosts
from tests.helpers.seeds import seeds
from tests.helpers.simulated.gpu import SimulatedGpu
from tests.helpers.simulated.link import link
from tests.helpers.simulated.scheduler import Scheduler

COUNT = 8


def zero_of(gpu: SimulatedGpu, clock: GpuClock) -> float:
    """Return the clock's seconds at simulated time 0."""
    mark = gpu.event(timed=True)
    mark.record(gpu.compute)
    gpu.scheduler.drain()
    assert mark.mark is not None
    seconds = clock.seconds(mark)
    assert seconds is not None
    return seconds - mark.mark.time / 1e3


def test_marks_resolve_in_order_and_nothing_waits() -> None:
    scheduler = Scheduler(eagerness=0)
    gpu, other = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    clock = GpuClock(gpu)
    zero = zero_of(gpu, clock)
    left, right = link(gpu, other)
    gate, begin = gpu.empty(8), other.empty(8)
    polled = scheduler.polled
    early = clock.now()
    left.receive(gate.data_ptr(), 8, gpu.compute.cuda_stream)
    late = [clock.now()]
    for _ in range(5):
        computed(gpu, torch.ones(3))
        late.append(clock.now())
    assert scheduler.polled == polled
    scheduler.run()
    assert clock.seconds(early) is not None
    for mark in late:
        assert clock.seconds(mark) is None
    right.send(begin.data_ptr(), 8, other.compute.cuda_stream)
    scheduler.drain()
    found = [clock.seconds(mark) for mark in (early, *late)]
    times = [zero + mark.mark.time / 1e3 for mark in (early, *late)]
    assert found == pytest.approx(times, abs=1e-9)
    assert times == sorted(set(times))
    # An earlier mark can still be read.
    assert clock.seconds(early) == pytest.approx(times[0], abs=1e-9)


def test_the_constructor_waits_until_the_gpu_is_idle() -> None:
    scheduler = Scheduler(eagerness=0)
    gpu = SimulatedGpu(scheduler, "a")
    done: list[bool] = []
    gpu.launch(gpu.compute, lambda: done.append(True))
    GpuClock(gpu)
    assert done


Work = tuple[int, float]
"""The index of a micro-batch, and a simulated time in seconds at which the GPU computed on it."""


def programs_of(gpu: SimulatedGpu, work: list[Work]) -> list[Program]:
    """Return the program of a stage with three operations for each micro-batch."""
    count = 0

    def note(index: int) -> Callable[..., None]:
        return lambda *_: work.append((index, gpu.scheduler.milliseconds / 1e3))

    def compute(values: tuple[Value, ...], step: Step) -> list[Value]:
        nonlocal count
        tensor = values[0]
        assert isinstance(tensor, torch.Tensor)
        for _ in range(3):
            gpu.launch(gpu.compute, note(count), reads=[tensor], label="compute")
        count += 1
        return [tensor]

    return [Program((0,), compute)]


def assert_spans(spans: list[Span], work: list[Work], zero: float, stage: int) -> None:
    """Each operation is in the span of its micro-batch, and spans do not overlap."""
    assert all(span.end >= span.begin for span in spans)
    assert all(one.end <= two.begin + 1e-9 for one, two in pairwise(spans))
    kinds = (["receive"] if stage else []) + ["compute"] + (["send"] if stage < 2 else [])
    assert [(span.kind, span.microbatch) for span in spans] == [
        (kind, index) for index in range(COUNT) for kind in kinds
    ]
    assert len(work) == 3 * COUNT
    for index, seconds in work:
        (span,) = (s for s in spans if s.kind == "compute" and s.microbatch == index)
        assert span.begin - 1e-9 <= zero + seconds <= span.end + 1e-9


@pytest.mark.parametrize("seed", seeds(20))
def test_spans_divide_the_time_of_the_compute_stream(seed: int) -> None:
    random = Random(seed)
    scheduler = Scheduler(seed, POLICIES[seed % len(POLICIES)], random.choice([0.0, 0.3, 0.8]))
    gpus = [SimulatedGpu(scheduler, name) for name in "abc"]
    edges = [Edge.between(one, two) for one, two in pairwise(gpus)]
    clocks = [GpuClock(gpu) for gpu in gpus]
    zeros = [zero_of(gpu, clock) for gpu, clock in zip(gpus, clocks, strict=True)]
    tracers = [Tracer(k, keeps_spans=True, clock=clock) for k, clock in enumerate(clocks)]
    work: list[list[Work]] = [[], [], []]

    def source() -> Iterator[MicroBatch]:
        for index in range(COUNT):
            yield MicroBatch(index, (computed(gpus[0], torch.full((index + 1,), index)),))

    def stage(k: int) -> Iterator[bool]:
        before, after = edges[k - 1] if k else None, edges[k] if k < 2 else None
        arriving = arrivals([before.receiver], tracers[k]) if before else source()
        outlets = [Outlet(("x",), (1,), after.sender)] if after else []
        results = run(programs_of(gpus[k], work[k]), arriving, outlets, tracers[k])

        def is_ready() -> bool:
            return (before is None or before.is_ready()) and (
                after is None or after.host_channel.has_room()
            )

        return host(is_ready, results)

    run_hosts(random, [stage(k) for k in range(3)])
    for tracer in tracers:
        tracer.finish()
    for k, tracer in enumerate(tracers):
        assert_spans(tracer.spans, work[k], zeros[k], k)
        own = sum(each.seconds for each in tracer.totals.values()) + tracer.gaps
        own += sum(b.begin - a.end for a, b in pairwise(tracer.spans) if b.microbatch == 0)
        assert own == pytest.approx(tracer.spans[-1].end - tracer.spans[0].begin)
    scheduler.drain()
    scheduler.assert_ordered()


def test_transfers_are_recorded_next_to_the_spans_of_a_stage() -> None:
    scheduler = Scheduler(1)
    a, b = SimulatedGpu(scheduler, "a"), SimulatedGpu(scheduler, "b")
    clocks = GpuClock(a), GpuClock(b)
    tracers = [Tracer(k, keeps_spans=True, clock=clock) for k, clock in enumerate(clocks)]
    edge = Edge.between(a, b, watches=[tracer.record_overlapping for tracer in tracers], depth=9)

    def source() -> Iterator[MicroBatch]:
        for index in range(COUNT):
            yield MicroBatch(index, (computed(a, torch.full((50,), index)),))

    outlets = [Outlet(("x",), (1,), edge.sender)]
    first = run(programs_of(a, []), source(), outlets, tracers[0])
    second = run(programs_of(b, []), arrivals([edge.receiver], tracers[1]), [], tracers[1])
    run_hosts(Random(0), [host(edge.host_channel.has_room, first), host(edge.is_ready, second)])
    for tracer, kind in zip(tracers, ("send", "receive"), strict=True):
        tracer.finish()
        beside = [span for span in tracer.spans if span.beside]
        assert [(span.kind, span.microbatch) for span in beside] == [
            (kind, index) for index in range(COUNT)
        ]
        assert all(span.seconds > 0 for span in beside)
        computes = [span for span in tracer.spans if span.kind == "compute"]
        for transfer, compute in zip(beside, computes, strict=True):
            if kind == "send":
                assert transfer.begin > compute.end
            else:
                assert transfer.end < compute.begin
