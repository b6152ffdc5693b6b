"""The loop over in-process channels: a whole pipeline in one process, a thread a stage."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from pipepar.comm.channels.inproc import InprocChannel
from pipepar.engine.fault import FAULT, Fault, fault_of
from pipepar.engine.loop import SAMPLES, Arrival, Inlet, Outlet, Program, arrivals, run
from pipepar.engine.wiring import edges_of
from pipepar.errors import StageError, WireError
from pipepar.microbatch import MicroBatch, Value
from pipepar.plan.plan import Plan
from pipepar.trace import Tracer


def feed(values: Sequence[torch.Tensor]) -> Iterator[Arrival]:
    for index, value in enumerate(values):
        yield index, {"x": value}


def stage(function: Callable[..., Sequence[Value]], inputs: str, outputs: str) -> Program:
    return Program(tuple(inputs.split()), tuple(outputs.split()), lambda values: function(*values))


def drain(results: Iterator[Arrival]) -> list[Arrival]:
    return list(results)


def test_four_stages_with_a_skip() -> None:
    """x -> a -> b -> c -> d, where the last stage also needs a, straight from the first."""
    chain = [InprocChannel(2) for _ in range(3)]
    skip = InprocChannel(6)
    programs = [
        stage(lambda x: (x + 1,), "x", "a"),
        stage(lambda a: (a * 2,), "a", "b"),
        stage(lambda b: (b - 3,), "b", "c"),
        stage(lambda c, a: (c * a,), "c a", "d"),
    ]
    inlets = [
        [],
        [Inlet(("a",), chain[0])],
        [Inlet(("b",), chain[1])],
        [Inlet(("c",), chain[2]), Inlet(("a",), skip)],
    ]
    outlets = [
        [Outlet(("a",), chain[0]), Outlet(("a",), skip)],
        [Outlet(("b",), chain[1])],
        [Outlet(("c",), chain[2])],
        [],
    ]
    xs = [torch.randn(3) for _ in range(50)]
    tracers = [Tracer(k) for k in range(4)]
    threads = [
        threading.Thread(
            target=lambda k=k: drain(
                run(
                    programs[k],
                    feed(xs) if k == 0 else arrivals(inlets[k], tracers[k]),
                    outlets[k],
                    tracers[k],
                )
            )
        )
        for k in range(3)
    ]
    for thread in threads:
        thread.start()
    results = drain(run(programs[3], arrivals(inlets[3], tracers[3]), outlets[3], tracers[3]))
    for thread in threads:
        thread.join()
    assert [index for index, _ in results] == list(range(50))
    for (_, values), x in zip(results, xs, strict=True):
        assert torch.equal(values["d"], ((x + 1) * 2 - 3) * (x + 1))  # type: ignore[arg-type]
    assert all(tracer.totals["compute"].count == 50 for tracer in tracers)


def test_a_fault_reaches_all_that_need_a_value() -> None:
    """x -> a, then b and c of that, then d of both; b fails, and c knows nothing of it."""

    def fails(a: torch.Tensor) -> tuple[torch.Tensor]:
        if a[0] > 5:
            raise ValueError("too much")
        return (a * 2,)

    programs = [
        stage(lambda x: (x + 1,), "x", "a"),
        stage(fails, "a", "b"),
        stage(lambda a: (a * 3,), "a", "c"),
        stage(lambda b, c: (b + c,), "b c", "d"),
    ]
    needed = {(0, 1): ("a",), (0, 2): ("a",), (1, 3): ("b",), (2, 3): ("c",)}
    plan = SimpleNamespace(edges=needed, stages=programs)
    edges = edges_of(cast(Plan, plan), (SAMPLES, FAULT))
    channels = {edge: InprocChannel(9) for edge in edges}
    source: list[Arrival] = [
        (index, {"x": torch.tensor([x]), SAMPLES: torch.tensor([index]), FAULT: None})
        for index, x in enumerate([1.0, 7.0, 2.0])
    ]
    for at, program in enumerate(programs):
        inlets = [Inlet(edges[edge], channels[edge]) for edge in edges if edge[1] == at]
        outlets = [Outlet(edges[edge], channels[edge]) for edge in edges if edge[0] == at]
        arriving = arrivals(inlets, Tracer(at)) if at else source
        results = drain(run(program, arriving, outlets, Tracer(at)))
    assert [fault_of(values) for _, values in results] == [
        *(None, Fault(1, "ValueError: too much"), None)
    ]
    assert [values["d"] for _, values in results] == [10, None, 15]


def test_a_failing_stage_names_itself_the_microbatch_and_the_samples() -> None:
    def broken(x: torch.Tensor) -> Sequence[Value]:
        if x.sum() > 2:
            raise ValueError("too large")
        return (x,)

    source: list[Arrival] = [
        (index, {"x": torch.tensor(float(index)), SAMPLES: torch.arange(3) + 3 * index})
        for index in range(5)
    ]
    with pytest.raises(
        StageError, match=r"stage 7 failed on micro-batch 3, samples 9, 10, 11: ValueError: too"
    ) as caught:
        drain(run(stage(broken, "x", "y"), source, (), Tracer(7)))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_value_that_cannot_cross_is_named() -> None:
    channel = InprocChannel(1)
    program = stage(lambda x: ([1],), "x", "strange")  # type: ignore[arg-type,return-value]
    with pytest.raises(StageError, match=r"stage 0 could not send micro-batch 0 \(strange\)"):
        drain(run(program, feed([torch.ones(1)]), [Outlet(("strange",), channel)], Tracer(0)))


def test_channels_out_of_step_are_noticed() -> None:
    one, other = InprocChannel(2), InprocChannel(2)
    one.send(MicroBatch(0, (1,)))
    other.send(MicroBatch(1, (1,)))
    inlets = [Inlet(("a",), one), Inlet(("b",), other)]
    with pytest.raises(WireError, match=r"stage 1 are out of step: \[0, 1\]"):
        next(arrivals(inlets, Tracer(1)))


def test_one_channel_ending_early_is_noticed() -> None:
    one, other = InprocChannel(2), InprocChannel(2)
    one.end()
    other.send(MicroBatch(0, (1,)))
    inlets = [Inlet(("a",), one), Inlet(("b",), other)]
    with pytest.raises(WireError, match=r"out of step: \[None, 0\]"):
        next(arrivals(inlets, Tracer(1)))


def test_a_full_channel_blocks_and_abort_releases() -> None:
    channel, sent, errors = InprocChannel(2), [], []

    def work() -> None:
        try:
            for index in range(5):
                channel.send(MicroBatch(index, ()))
                sent.append(index)
        except WireError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    assert sent == [0, 1]
    assert channel.ready()
    channel.abort()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert len(errors) == 1
    with pytest.raises(WireError, match="aborted"):
        next(channel.receive())


def test_streams_follow_one_another() -> None:
    channel = InprocChannel(10)
    for length in (2, 0, 3):
        for index in range(length):
            channel.send(MicroBatch(index, (length,)))
        channel.end()
    found = [[m.index for m in channel.receive()] for _ in range(3)]
    assert found == [[0, 1], [], [0, 1, 2]]
    channel.close()
    channel.close()
