"""A pipeline of equal stages on GPUs, one on each rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import nn

from benchmarks.catalog.gpu.profile import WaitCounts, profiled
from pipepar.comm.gpu.cuda import Gpu, wait_for_event
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

_DEPTH: Final = 2
_TAIL: Final = 4


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of micro-batches and stages."""

    rows: int
    """The rows of a micro-batch."""
    width: int
    """The columns of a micro-batch."""
    layers: int
    """The products with a matrix [width, width] in each stage."""
    microbatches: int
    """The number of micro-batches in one pass."""

    def sample(self) -> torch.Tensor:
        """Return a micro-batch on the host, bfloat16 [rows, width]."""
        return torch.ones(self.rows, self.width, dtype=torch.bfloat16)


def wait_until_idle(gpu: Gpu) -> None:
    """Wait until the compute stream of a GPU is empty."""
    event = gpu.event()
    event.record(gpu.compute)
    wait_for_event(event)


def timed(gpu: Gpu, action: Callable[[], object]) -> float:
    """Return the seconds of an action, from an idle GPU to an idle GPU."""
    wait_until_idle(gpu)
    begin = time.perf_counter()
    action()
    wait_until_idle(gpu)
    return time.perf_counter() - begin


class GpuPipeline:
    """Equal stages, one on each rank, assembled as in a job.

    The constructor is *collective*.

    Args:
        world: all ranks.
        context: the device of this rank, a GPU.
        size: the sizes of micro-batches and stages.
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
        """Close the channels. *Collective.*"""
        self._assembly.wiring.close()

    def alone(self) -> float:
        """Return the seconds of a micro-batch in this stage without channels. *Collective.*"""
        (resident,) = HostToDevice(self._gpu)((self._sample,))
        (program,), count = self._assembly.programs, self._size.microbatches

        def compute() -> None:
            for _ in range(count):
                program.compute((resident,), ONLY_STEP)

        compute()
        wait_until_idle(self._gpu)
        self._world.all_gather("")
        return timed(self._gpu, compute) / count

    def together(self) -> float:
        """Return the seconds of a micro-batch in this stage of a full pipeline. *Collective.*"""
        marks = [self._gpu.event(timed=True) for _ in range(2)]
        first, last = self._full, self._full + self._size.microbatches

        def at(index: int) -> None:
            for mark, position in zip(marks, (first, last), strict=True):
                if index == position:
                    mark.record(self._gpu.compute)

        self._stream(last + 1, before=at)
        wait_until_idle(self._gpu)
        return marks[0].elapsed_time(marks[1]) / 1e3 / (last - first)

    def waits(self) -> WaitCounts:
        """Count the calls that block this host in the middle of a stream. *Collective.*"""
        first, last = self._full, self._full + self._size.microbatches

        def stream(begin: Callable[[], None], end: Callable[[], None]) -> None:
            def at(index: int) -> None:
                if index == first:
                    begin()
                if index == last:
                    end()

            self._stream(last + _TAIL, after=at)
            wait_until_idle(self._gpu)

        self._stream(first)
        self._world.all_gather("")
        return profiled(stream)

    @property
    def _full(self) -> int:
        """The number of micro-batches that fill every stage and channel."""
        return 4 * _DEPTH * self._world.size

    def _stream(
        self,
        count: int,
        before: Callable[[int], None] = lambda index: None,
        after: Callable[[int], None] = lambda index: None,
    ) -> None:
        """Run the loop of a job.

        Args:
            count: the number of micro-batches.
            before: is called with each index before the micro-batch is computed.
            after: is called with each index after the micro-batch left the stage.
        """
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
