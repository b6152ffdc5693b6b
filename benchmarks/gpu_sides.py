"""What `gpu` measures on its ranks: hops, streams through stages, and copies beside computing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import nn

from benchmarks.calls import Counted, profiled
from pipepar.comm.channels.link import Link
from pipepar.comm.gpu.cuda import Gpu, wait_for_event
from pipepar.comm.gpu.nccl import Communicator, Nccl
from pipepar.comm.world import World
from pipepar.engine.assembly import assemble, capture_together
from pipepar.engine.device_to_host import copied_to_host
from pipepar.engine.host_to_device import HostToDevice
from pipepar.engine.loop import arrivals, outputs_of, run
from pipepar.engine.shared_source import SharedSource
from pipepar.host.device_context import DeviceContext
from pipepar.host.run_context import RunContext
from pipepar.microbatch import ONLY_STEP, MicroBatch, Step, Value
from pipepar.model.source.open_source import from_module
from pipepar.plan.placement import Ends
from pipepar.planner.plan_job import agree_on_plan
from pipepar.planner.plan_offline import make_plan
from pipepar.planner.plan_request import PlanRequest
from pipepar.trace import Tracer

_BURST: Final = 8
# The progress engine looks every 5 ms: long enough that all announcements are there.
_SETTLE_SECONDS: Final = 0.03
_DEPTH: Final = 2
_AHEAD: Final = 2
_TAIL: Final = 4


@dataclass(frozen=True, slots=True)
class Size:
    """What flows, and what is computed."""

    rows: int
    width: int
    layers: int
    """Products with a matrix [width, width], for each stage."""
    microbatches: int
    """In a pass."""

    def sample(self) -> torch.Tensor:
        """A micro-batch on the host, bfloat16 [rows, width]."""
        return torch.ones(self.rows, self.width, dtype=torch.bfloat16)


def idle(gpu: Gpu) -> None:
    """Wait until a GPU has done what its compute stream was told."""
    event = gpu.event()
    event.record(gpu.compute)
    wait_for_event(event)


def timed(gpu: Gpu, action: Callable[[], object]) -> float:
    """Seconds of an action, from an idle GPU to an idle GPU."""
    idle(gpu)
    begin = time.perf_counter()
    action()
    idle(gpu)
    return time.perf_counter() - begin


def enqueued(world: World, gpu: Gpu, nbytes: int, bursts: int) -> list[list[float]]:
    """Seconds that a host takes to send or to take a micro-batch, by burst. *Collective.*

    Nobody waits: as many are sent as the channel holds, and they are taken when all are announced.

    Args:
        world: all ranks; rank 0 sends to rank 1, the others look on.
        gpu: this rank's.
        nbytes: of a micro-batch.
        bursts: how often; the first is not measured.

    Returns:
        On rank 0 those of sending, on rank 1 those of taking, none elsewhere.
    """
    link = Link(0, 1, _BURST, from_gpu=True, to_gpu=True)
    receivers, senders = world.connect([link], gpu)
    payload = gpu.empty(nbytes)
    streams = [receiver.receive() for receiver in receivers.values()]
    found: list[list[float]] = []
    for burst in range(bursts + 1):
        numbers = range(burst * _BURST, (burst + 1) * _BURST)
        world.all_gather("")
        spent: list[float] = []
        for sender in senders.values():
            spent += [_spent(partial(sender.send, MicroBatch(k, (payload,)))) for k in numbers]
        world.all_gather("")
        time.sleep(_SETTLE_SECONDS)
        for stream in streams:
            spent += [_spent(partial(next, stream)) for _ in numbers]
        world.all_gather("")
        idle(gpu)
        if burst and spent:
            found.append(spent)
    for sender in senders.values():
        sender.end()
    for stream in streams:
        for _ in stream:
            pass
    for sender in senders.values():
        sender.close()
    for receiver in receivers.values():
        receiver.close()
    return found


def enqueued_to_itself(nccl: Nccl, gpu: Gpu, nbytes: int, bursts: int) -> list[list[float]]:
    """Seconds that NCCL takes to be told of a send and its receive on one rank."""
    edge = Communicator.start(nccl, nccl.unique_id(), 0, 1, "edge rank 0 -> rank 0")
    source, target, stream = gpu.empty(nbytes), gpu.empty(nbytes), gpu.stream()

    def cross() -> None:
        with nccl.group():
            edge.send(source.data_ptr(), nbytes, stream.cuda_stream)
            edge.receive(target.data_ptr(), nbytes, stream.cuda_stream)

    found: list[list[float]] = []
    idle(gpu)
    for _ in range(bursts + 1):
        found.append([_spent(cross) for _ in range(_BURST)])
        done = gpu.event()
        done.record(stream)
        wait_for_event(done)
    edge.close()
    return found[1:]


def _spent(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


class Line:
    """Equal stages in a row, one on each rank, put together as a job puts them together.

    Making one is *collective*.
    """

    def __init__(self, world: World, context: DeviceContext, size: Size) -> None:
        assert context.gpu is not None
        layers = range(size.layers * world.size)
        model = nn.Sequential(*(nn.Linear(size.width, size.width) for _ in layers))
        model = model.to(torch.bfloat16).eval()
        self._sample = size.sample()
        run, shared = RunContext.begin(world, context), SharedSource(from_module(model), False)
        graph = capture_together(run, shared, (self._sample,), {})
        plan = make_plan(graph, world.size)
        request = PlanRequest(micro_batch=size.rows, depth=_DEPTH, given=plan)
        agreed = agree_on_plan(run, graph, request)
        self._assembly = assemble(run, shared, graph, agreed, Ends.of_files(world.size))
        self._world, self._context, self._gpu, self._size = world, context, context.gpu, size

    def close(self) -> None:
        """Let go of the channels. *Collective.*"""
        self._assembly.wiring.close()

    def alone(self) -> float:
        """Seconds of a micro-batch of this rank's stage by itself. *Collective*, all at once."""
        (resident,) = HostToDevice(self._gpu)((self._sample,))
        (program,), count = self._assembly.programs, self._size.microbatches

        def compute() -> None:
            for _ in range(count):
                program.compute((resident,), ONLY_STEP)

        compute()
        idle(self._gpu)
        self._world.all_gather("")
        return timed(self._gpu, compute) / count

    def together(self) -> float:
        """Seconds of a micro-batch of this rank's stage in a full pipeline. *Collective.*"""
        marks = [self._gpu.event(timed=True) for _ in range(2)]
        first, last = self._full, self._full + self._size.microbatches

        def at(index: int) -> None:
            for mark, place in zip(marks, (first, last), strict=True):
                if index == place:
                    mark.record(self._gpu.compute)

        self._stream(last + 1, before=at)
        idle(self._gpu)
        return marks[0].elapsed_time(marks[1]) / 1e3 / (last - first)

    def synchronisations(self) -> Counted:
        """What makes this rank's host wait in the middle of a stream. *Collective.*"""
        first, last = self._full, self._full + self._size.microbatches

        def stream(begin: Callable[[], None], end: Callable[[], None]) -> None:
            def at(index: int) -> None:
                if index == first:
                    begin()
                if index == last:
                    end()

            self._stream(last + _TAIL, after=at)
            idle(self._gpu)

        self._stream(first)
        self._world.all_gather("")
        return profiled(stream)

    @property
    def _full(self) -> int:
        """Micro-batches until every stage and channel has some."""
        return 4 * _DEPTH * self._world.size

    def _stream(
        self,
        count: int,
        before: Callable[[int], None] = lambda index: None,
        after: Callable[[int], None] = lambda index: None,
    ) -> None:
        """The loop as a job runs it; tells of each micro-batch before it is computed and after."""
        assembly, numbers = self._assembly, iter(range(count))

        (program,) = assembly.programs

        def compute(values: tuple[Value, ...], step: Step) -> Sequence[Value]:
            before(next(numbers))
            return program.compute(values, step)

        tracer = Tracer(self._world.rank, clock=self._context.clock())
        inlets, outlets = assembly.wiring.inlets, assembly.wiring.outlets
        source = self._feed(count) if self._world.is_root else arrivals(inlets, tracer)
        results = run([replace(program, compute=compute)], source, outlets, tracer)
        if self._world.rank == assembly.placement.ends.sink:
            outputs = assembly.wiring.positions(assembly.plan.outputs)
            results = outputs_of(results, outputs)
            results = copied_to_host(results, self._gpu, _DEPTH, tracer)
        for each in results:
            after(each.index)

    def _feed(self, count: int) -> Iterator[MicroBatch]:
        return (MicroBatch(index, (self._sample,)) for index in range(count))


class Copies:
    """Copies between a host's page-locked memory and its GPU, and computing."""

    def __init__(self, gpu: Gpu, size: Size) -> None:
        self._gpu, self._count = gpu, size.microbatches
        sample = size.sample()
        flat = sample.flatten().view(torch.uint8)
        self._host = gpu.pinned(flat.nbytes).copy_(flat).view(sample.dtype).view(sample.shape)
        (self._resident,) = HostToDevice(gpu)((self._host,))
        weight = torch.eye(size.width, dtype=torch.bfloat16)
        (self._weight,) = HostToDevice(gpu)((weight,))
        self._layers = 1
        copies, computing = self._run(True, False), self._run(False, True)
        copies, computing = self._run(True, False), self._run(False, True)
        self._layers = max(1, round(copies / computing))

    def turn(self) -> list[float]:
        """Seconds of computing alone, of copies alone, and of both at once."""
        return [self._run(False, True), self._run(True, False), self._run(True, True)]

    def _run(self, copies: bool, computing: bool) -> float:
        upload = HostToDevice(self._gpu)

        def results() -> Iterator[MicroBatch]:
            for index in range(self._count):
                (x,) = upload((self._host,)) if copies else (self._resident,)
                yield MicroBatch(index, (self._computed(x) if computing else x,))

        def stream() -> None:
            made = results()
            for _ in copied_to_host(made, self._gpu, _AHEAD, Tracer(0)) if copies else made:
                pass

        return timed(self._gpu, stream)

    def _computed(self, x: Value) -> Value:
        for _ in range(self._layers):
            x = x @ self._weight  # type: ignore[operator]
        return x
