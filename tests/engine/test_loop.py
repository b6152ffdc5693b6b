"""The loop over in-process channels: a whole pipeline in one process, with a thread per stage."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.engine.loop import Outlet, Program, Schedule, arrivals, outputs_of, run
from pipepar.engine.wiring import edges_of
from pipepar.errors import StageError, WireError
from pipepar.jobs.failure_policy import failure_policy
from pipepar.microbatch import Fault, MicroBatch, Value
from pipepar.plan.placement import Ends, Placement
from pipepar.plan.plan import Plan
from pipepar.trace import Tracer


def feed(values: Sequence[torch.Tensor]) -> Iterator[MicroBatch]:
    for index, value in enumerate(values):
        yield MicroBatch(index, (value,))


def stage(function: Callable[..., Sequence[Value]], *inputs: int) -> list[Program]:
    """Return a stage whose inputs are at these positions of the received values."""
    return [Program(inputs or (0,), lambda values, step: function(*values))]


def outputs_at(results: Iterator[MicroBatch], position: int) -> list[Value]:
    return [each.values[0] for each in outputs_of(results, [position])]


def test_four_stages_with_a_skip() -> None:
    """x -> a -> b -> c -> d, where the last stage also receives a directly from the first."""
    chain = [InprocChannel(2) for _ in range(3)]
    skip = InprocChannel(6)
    programs = [
        stage(lambda x: (x + 1,)),
        stage(lambda a: (a * 2,)),
        stage(lambda b: (b - 3,)),
        stage(lambda c, a: (c * a,), 0, 1),
    ]
    inlets = [[], [chain[0]], [chain[1]], [chain[2], skip]]
    outlets = [
        [
            Outlet(("a",), (1,), chain[0].sender),
            Outlet(("a",), (1,), skip.sender, sends_samples=False),
        ],
        [Outlet(("b",), (1,), chain[1].sender)],
        [Outlet(("c",), (1,), chain[2].sender)],
        [],
    ]
    coming = [[channel.receiver for channel in each] for each in inlets]
    xs = [torch.randn(3) for _ in range(50)]
    tracers = [Tracer(k) for k in range(4)]
    threads = [
        threading.Thread(
            target=lambda k=k: list(
                run(
                    programs[k],
                    feed(xs) if k == 0 else arrivals(coming[k], tracers[k]),
                    outlets[k],
                    tracers[k],
                )
            )
        )
        for k in range(3)
    ]
    for thread in threads:
        thread.start()
    results = list(run(programs[3], arrivals(coming[3], tracers[3]), outlets[3], tracers[3]))
    for thread in threads:
        thread.join()
    assert [each.index for each in results] == list(range(50))
    for each, x in zip(results, xs, strict=True):
        assert torch.equal(each.values[2], ((x + 1) * 2 - 3) * (x + 1))  # type: ignore[arg-type]
    assert all(tracer.totals["compute"].count == 50 for tracer in tracers)


def test_a_fault_reaches_every_later_stage() -> None:
    """x -> a; a -> b and a -> c; b, c -> d. The stage of b fails, the stage of c does not."""

    def fails(a: torch.Tensor) -> tuple[torch.Tensor]:
        if a[0] > 5:
            raise ValueError("too much")
        return (a * 2,)

    programs = [
        stage(lambda x: (x + 1,)),
        stage(fails),
        stage(lambda a: (a * 3,)),
        stage(lambda b, c: (b + c,), 0, 1),
    ]
    needed = {(0, 1): ("a",), (0, 2): ("a",), (1, 3): ("b",), (2, 3): ("c",)}
    plan = SimpleNamespace(edges=needed, stages=programs)
    edges = edges_of(cast(Plan, plan), Placement(Ends.of_files(4), (0, 1, 2, 3)), 2)
    channels = [InprocChannel(9) for _ in edges]
    source = [
        MicroBatch(index, (torch.tensor([x]),), torch.tensor([index]))
        for index, x in enumerate([1.0, 7.0, 2.0])
    ]
    for index, program in enumerate(programs):
        pairs = list(zip(edges, channels, strict=True))
        inlets = [channel.receiver for edge, channel in pairs if edge.consumer == index]
        outlets = [
            Outlet(edge.names, (1,), channel.sender, edge.sends_samples)
            for edge, channel in pairs
            if edge.producer == index
        ]
        tracer = Tracer(index)
        schedule: Schedule = arrivals(inlets, tracer) if index else source
        results = list(run(program, schedule, outlets, tracer, failure_policy(lenient=True)))
    assert [each.error for each in results] == [None, Fault(1, "ValueError: too much"), None]
    assert [each.values[2:] for each in results] == [(10,), (), (15,)]
    assert [each.samples for each in results] == [0, 1, 2]


def test_an_error_names_the_stage_the_micro_batch_and_the_samples() -> None:
    def broken(x: torch.Tensor) -> Sequence[Value]:
        if x.sum() > 2:
            raise ValueError("too large")
        return (x,)

    source = [
        MicroBatch(index, (torch.tensor(float(index)),), torch.arange(3) + 3 * index)
        for index in range(5)
    ]
    with pytest.raises(
        StageError, match=r"stage 7 failed on micro-batch 3, samples 9, 10, 11: ValueError: too"
    ) as caught:
        list(run(stage(broken), source, (), Tracer(7), failure_policy(lenient=False)))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_value_that_cannot_be_sent_is_named() -> None:
    channel = InprocChannel(1)
    programs = stage(lambda x: ([1],))  # type: ignore[arg-type,return-value]
    outlets = [Outlet(("strange",), (1,), channel.sender)]
    with pytest.raises(StageError, match=r"stage 0 could not send micro-batch 0 \(strange\)"):
        list(run(programs, feed([torch.ones(1)]), outlets, Tracer(0)))


def test_channels_that_deliver_different_micro_batches_are_refused() -> None:
    one, other = InprocChannel(2), InprocChannel(2)
    one.sender.send(MicroBatch(0, (1,)))
    other.sender.send(MicroBatch(1, (1,)))
    with pytest.raises(WireError, match=r"stage 1 are out of step: \[0, 1\]"):
        next(arrivals([one.receiver, other.receiver], Tracer(1)))


def test_a_channel_that_ends_early_is_refused() -> None:
    one, other = InprocChannel(2), InprocChannel(2)
    one.sender.end()
    other.sender.send(MicroBatch(0, (1,)))
    with pytest.raises(WireError, match=r"out of step: \[None, 0\]"):
        next(arrivals([one.receiver, other.receiver], Tracer(1)))


def test_send_blocks_on_a_full_channel_until_abort() -> None:
    channel, sent, errors = InprocChannel(2), [], []

    def work() -> None:
        try:
            for index in range(5):
                channel.sender.send(MicroBatch(index, ()))
                sent.append(index)
        except WireError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    assert sent == [0, 1]
    assert channel.receiver.ready()
    assert not channel.sender.ready()
    channel.sender.abort()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(WireError, match="aborted"):
        next(channel.receiver.receive())


def test_a_channel_carries_one_stream_after_another() -> None:
    channel = InprocChannel(10)
    for length in (2, 0, 3):
        for index in range(length):
            channel.sender.send(MicroBatch(index, (length,)))
        channel.sender.end()
    found = [[m.index for m in channel.receiver.receive()] for _ in range(3)]
    assert found == [[0, 1], [], [0, 1, 2]]
    for end in (channel.sender, channel.receiver):
        end.close()
        end.close()
