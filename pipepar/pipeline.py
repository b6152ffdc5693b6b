"""The Python API: ``with Pipeline(model, example_args=(x,)) as pipe: y = pipe(x)``."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pipepar.comm.world import World
from pipepar.engine.assembly import assemble, capture_together
from pipepar.engine.device_to_host import copied_to_host
from pipepar.engine.loop import Schedule, arrivals, outputs_of, run
from pipepar.engine.script.batch_merge import BatchMerge
from pipepar.engine.script.batch_split import device_of, rows, split
from pipepar.engine.script.script_source import check_arguments, open_shared, values_on_root
from pipepar.engine.script.stream_calls import Call, OpenStream, as_call, from_caller, to_caller
from pipepar.engine.wiring import admission
from pipepar.errors import PipeparError, WireError
from pipepar.host.device_context import open_device_context
from pipepar.host.devices import DeviceChoice
from pipepar.host.run_context import RunContext
from pipepar.host.threads import shared_cores_warning
from pipepar.microbatch import MicroBatch
from pipepar.model.capture.containers import flatten
from pipepar.plan.placement import Ends
from pipepar.planner.plan_job import agree_on_plan
from pipepar.planner.plan_request import PlanRequest
from pipepar.planner.static_shapes import require_batches
from pipepar.report.gather_record import Findings, gather_record, stage_record
from pipepar.report.run_record import RunRecord
from pipepar.supervision.failure import FailTogether

__all__ = ["Pipeline", "values_on_root"]


class Pipeline:
    """A model split over the ranks of the job, one contiguous stage per rank. *Collective.*

    Every rank constructs the same Pipeline and makes the same calls. The data of rank 0 are used,
    and rank 0 receives the results; on other ranks a call returns None. Results equal, bit for
    bit, those of the unsplit model on the same micro-batches and the same number of threads. In a
    ``with`` statement, a failure of any rank ends the whole job.

    Args:
        model: any module that torch.export can trace; it is not modified. Either every rank has the
            same weights, or the other ranks built it in `values_on_root` and rank 0 sends each
            stage its weights. Or the name of a model, as on the command line: a Hugging Face
            folder, an exported program (.pt2) or package.module:factory.
        layers: the layers of a model that cannot be traced. Each is called with the output of the
            previous one, as positional arguments if that is a tuple. Copies of the layers
            are run on random values for measurements.
        task: the task of a Hugging Face folder; "raw" returns the model's own output.
        weights: the checkpoint of a model that a factory makes.
        dtype: the dtype of a model given by name; None for its own. Inputs are not cast.
        example_args: positional inputs of one call, tensors [batch, ...]; only their shapes and
            dtypes matter. The first two dimensions may vary in later calls if the model allows it.
            If not, a warning is issued and all micro-batches must have the traced number of rows.
        example_kwargs: keyword inputs of the same call.
        micro_batch: rows per micro-batch, at least 1; None to choose it by measurements, for calls
            with as many rows as the example, or 8 if the example has one row.
        depth: micro-batches that each end of a channel may hold, at least 1; None for 2, or 1 if
            memory is short.
        device: "cuda" for a GPU per rank, "cpu", or "auto" for a GPU where there is one. The GPU
            becomes torch's current device. The model stays on its device; results are returned on
            the device of the call's inputs.

    Raises:
        PipeparError: the model cannot be traced, or cannot be cut into one stage per rank.
    """

    def __init__(  # noqa: PLR0913 - the options of the Python API
        self,
        model: torch.nn.Module | Path | str | None = None,
        *,
        layers: Iterable[torch.nn.Module] | None = None,
        task: str = "raw",
        weights: Path | str | None = None,
        dtype: torch.dtype | None = None,
        example_args: Sequence[Any] = (),
        example_kwargs: Mapping[str, Any] | None = None,
        micro_batch: int | None = None,
        depth: int | None = None,
        device: DeviceChoice = "auto",
    ) -> None:
        self._world = World.start()
        self._together = FailTogether(self._world)
        self._open: OpenStream | None = None
        try:
            self._world.together(lambda: check_arguments(model, layers, micro_batch, depth))
            checkpoint = None if weights is None else Path(weights)
            argument: Any = list(layers or ()) if model is None else model
            shared = open_shared(self._world, argument, task, checkpoint, dtype)
            example = (tuple(example_args), dict(example_kwargs or {}))
            leaves, structure = flatten(example)
            samples = self._world.together(lambda: rows(leaves))
            request = PlanRequest.for_calls(samples, micro_batch, depth)
            first = next(split(leaves, samples, request.example_rows))
            args, kwargs = pytree.tree_unflatten(first, structure)
            note = partial(warnings.warn, stacklevel=3)
            device_context = open_device_context(self._world, device, note)
            context = RunContext.begin(self._world, device_context)
            graph = capture_together(context, shared, args, kwargs)
            agreed = agree_on_plan(context, graph, request, shared.held(device_context.device))
            self._assembly = assemble(context, shared, graph, agreed, Ends.of_script())
        except BaseException as error:
            # A PipeparError is raised on every rank, except a WireError, which two ranks notice.
            if isinstance(error, WireError) or not isinstance(error, PipeparError):
                self._together.fail(error)
            raise
        warning = shared_cores_warning(self._world)
        if warning and self._world.rank == min(self._world.cores):
            warnings.warn(warning, stacklevel=2)
        limitation = graph.limitation(shared.source.name)
        if limitation and self._world.is_root:
            warnings.warn(limitation, stacklevel=2)
        self._window = admission(self._world.size, agreed.depth)
        self._context, self._samples, self._seconds = self._assembly.run, 0, 0.0

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self._world.rank

    @property
    def micro_batch(self) -> int:
        """Rows per micro-batch."""
        return self._assembly.agreed.micro_batch

    def __enter__(self) -> Pipeline:
        """Start to monitor the job: a failure of any rank then ends all ranks. *Collective.*"""
        self._together.__enter__()
        self._context.tracer.enter("caller", 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the pipeline, or abort the job if the body raised an exception."""
        self._together.__exit__(kind, error, trace)
        if error is None:
            self.close()

    def close(self) -> None:
        """Discard results of an unfinished stream; close all. *Collective.* May be called twice."""
        self._drain_open_stream()
        self._assembly.wiring.close()
        self._world.close()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a batch: split, stream and merge it. *Collective.*

        Args:
            args: positional inputs, nested as in the example; tensors [B, ...].
            kwargs: keyword inputs.

        Returns:
            On rank 0 the model's output for the batch, rows in order; None on other ranks.

        Raises:
            InputError: the inputs do not match the example.
            StageError: the stage of this rank failed.
        """
        results = list(self._stream(iter([(args, kwargs)])))
        return results[0] if results else None

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Run the model on many batches without draining the pipeline in between. *Collective.*

        Every rank must iterate over the result, also those that receive nothing.

        Args:
            batches: each a tuple of positional inputs, a dict of keyword inputs, or a single input.
                Only those of rank 0 are used. Do not modify the tensors of a batch before its
                result is returned: they may be sent without a copy.

        Yields:
            On rank 0 the model's output for each batch, in order; nothing on other ranks.
        """
        return self._stream(map(as_call, batches))

    def summary(self) -> RunRecord:
        """Return speed, bound and the times of each stage since the last summary. *Collective.*

        Returns:
            The same record on every rank; `report.summary.print_summary` prints it.
        """
        self._drain_open_stream()
        stage = stage_record(self._context, self._assembly.weight_bytes, self._seconds)
        placement = self._assembly.placement
        record = gather_record(self._world, placement, stage, Findings(self._samples))
        self._context = self._context.with_new_times()
        self._samples, self._seconds = 0, 0.0
        return record

    def _stream(self, calls: Iterator[Call]) -> Iterator[Any]:
        self._drain_open_stream()
        tracer = self._context.tracer
        self._context.device_context.require_stream()
        begin = time.perf_counter()
        try:
            with self._assembly.oom_explained():
                results = self._results(from_caller(calls, tracer))
                yield from to_caller(results, tracer)
        finally:
            tracer.enter("caller", 0)
            self._seconds += time.perf_counter() - begin

    def _results(self, calls: Iterator[Call]) -> Iterator[Any]:
        """Run the stream on this rank; yield the merged batches on the rank of the source."""
        assembly = self._assembly
        if self._world.rank != assembly.placement.ends.source:
            deque(self._run(arrivals(assembly.wiring.inlets, self._context.tracer)), maxlen=0)
            return
        merge = BatchMerge(assembly.graph.unflatten_outputs)
        work = self._run(self._feed(calls, merge))
        if (channel := assembly.wiring.exit) is None:
            for microbatch in self._outputs_on_host(work):
                merge.add(microbatch)
                yield from merge.finished()
            return
        stream, tracer = OpenStream(channel.receive()), self._context.tracer
        self._open = stream
        try:
            for sent in work:
                # Collect results that have arrived; wait for one if the pipeline is full.
                while merge.received <= sent.index and (
                    sent.index + 1 - merge.received >= self._window or channel.ready()
                ):
                    tracer.enter("receive", sent.index)
                    begin = tracer.clock.now()
                    merge.add(next(stream.results))
                    tracer.record("receive", sent.index, begin, tracer.clock.now())
                    yield from merge.finished()
            stream.ended = True
            for microbatch in stream.results:
                merge.add(microbatch)
                yield from merge.finished()
            self._open = None
        finally:
            stream.closed = True

    def _drain_open_stream(self) -> None:
        """If the script has left the last stream early, end it and discard its remaining results.

        Raises:
            PipeparError: the script still iterates over it.
        """
        stream, self._open = self._open, None
        if stream is None:
            return
        if not stream.closed:
            self._open = stream
            raise PipeparError(
                "a stream of this pipeline is still open, expected it to be finished before the "
                "next call; take all of its results, or close() it"
            )
        if not stream.ended:
            for outlet in self._assembly.wiring.outlets:
                outlet.channel.end()
        deque(stream.results, maxlen=0)

    def _outputs_on_host(self, work: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """Select the outputs and copy them to the host, on a rank with the whole model."""
        assembly = self._assembly
        outputs = outputs_of(work, assembly.wiring.positions(assembly.plan.outputs))
        if (gpu := self._context.device_context.gpu) is None:
            return outputs
        return copied_to_host(outputs, gpu, assembly.agreed.depth, self._context.tracer)

    def _run(self, schedule: Schedule) -> Iterator[MicroBatch]:
        outlets = self._assembly.wiring.outlets
        return run(self._assembly.programs, schedule, outlets, self._context.tracer)

    def _feed(self, calls: Iterator[Call], merge: BatchMerge) -> Iterator[MicroBatch]:
        """Yield the micro-batches of the calls, and announce each batch to `merge`."""
        graph, count = self._assembly.graph, itertools.count()
        signature, reached = graph.signature, self._context.device_context.reached
        for call in calls:
            leaves, structure = flatten(call, signature.structure)
            total = rows(leaves)
            require_batches(graph, total, self.micro_batch, "micro_batch")
            merge.expect(total, self.micro_batch, device_of(leaves))
            self._samples += total
            if structure is not signature.structure:
                leaves = signature.leaves_of(*call)
            for part in split(leaves, total, self.micro_batch):
                values = signature.check(part)
                yield MicroBatch(next(count), tuple(map(reached, values)))
