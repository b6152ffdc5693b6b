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
from pipepar.engine.script.batch_split import rows, split
from pipepar.engine.script.script_source import check_given, given_source, values_on_root
from pipepar.engine.script.stream_calls import OpenStream, as_call, awaited, device_of, handed
from pipepar.engine.wiring import admission
from pipepar.errors import PipeparError, WireError
from pipepar.host.device_context import open_device_context
from pipepar.host.devices import Wanted
from pipepar.host.run_context import RunContext
from pipepar.host.threads import crowded
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
    """A model spread over the ranks of the job, one contiguous stage each. *Collective.*

    Every rank makes the same Pipeline and makes the same calls on it. Rank 0's data count and rank
    0 gets the results; elsewhere a call takes part in the work and returns None. Results equal, bit
    for bit, those of the unsplit model called on the same micro-batches with as many threads.

    Used in a ``with`` statement, it ends the whole job when any rank fails.

    Args:
        model: any module that can be captured; it is not modified. Either every rank has the same
            weights, or only rank 0 has any, the others having built it in `values_on_root`: then
            rank 0 sends each stage its own. A Hugging Face folder, an exported program (.pt2) or
            package.module:factory can be named instead, as on the command line.
        layers: instead of a model that cannot be captured, its layers: each is called with what the
            one before returned, by position if that is a tuple. While ranks measure, copies of
            them compute made-up values.
        task: what a Hugging Face folder is to do; "raw" returns the model's own output.
        weights: a checkpoint for a factory that is named.
        dtype: what a model that is named computes in; None for what it says itself. Inputs are not
            cast to it.
        example_args: positional inputs for one call, tensors [batch, ...]; only their shapes and
            dtypes matter. Sizes of the first two dimensions may vary later where the model allows;
            where they cannot, the batch is that of a micro-batch, and a warning says so.
        example_kwargs: the same for keyword inputs.
        micro_batch: rows that travel together, at least 1; None to measure which number is best
            for batches as large as the example, or 8 if that has one row.
        depth: micro-batches that may wait on each end of a channel, at least 1; None for 2, or 1
            where memory is short.
        device: what ranks compute on: "cuda" for a GPU each, "cpu", or "auto" for a GPU where there
            is one, which becomes torch's current device. A model stays where it is; results lie
            where a call's inputs lay.

    Raises:
        PipeparError: the model cannot be captured or cut into as many stages as there are ranks.
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
        device: Wanted = "auto",
    ) -> None:
        self._world = World.start()
        self._together = FailTogether(self._world)
        self._open: OpenStream | None = None
        try:
            self._world.together(lambda: check_given(model, layers, micro_batch, depth))
            path = None if weights is None else Path(weights)
            given: Any = list(layers or ()) if model is None else model
            shared = given_source(self._world, given, task, path, dtype)
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
            held = shared.held(device_context.device)
            agreed = agree_on_plan(context, graph, request, held)
            self._assembly = assemble(context, shared, graph, agreed, Ends.of_script())
        except WireError as error:  # between this rank and another; the rest do not know
            self._together.fail(error)
            raise
        except PipeparError:  # raised on every rank
            raise
        except BaseException as error:
            self._together.fail(error)
            raise
        if (warning := crowded(self._world)) and self._world.rank == min(self._world.cores):
            warnings.warn(warning, stacklevel=2)
        limitation = graph.limitation(shared.source.name)
        if limitation and self._world.is_root:
            warnings.warn(limitation, stacklevel=2)
        self._window = admission(self._world.size, agreed.depth)
        self._context, self._samples, self._seconds = self._assembly.run, 0, 0.0

    @property
    def rank(self) -> int:
        """This process's rank, and its stage."""
        return self._world.rank

    @property
    def micro_batch(self) -> int:
        """Rows that travel together."""
        return self._assembly.agreed.micro_batch

    def __enter__(self) -> Pipeline:
        """Watch over the job: from here on, a failure of any rank ends all."""
        self._together.__enter__()
        self._context.tracer.enter("caller", 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; abort the job if the body failed."""
        self._together.__exit__(kind, error, trace)
        if error is None:
            self.close()

    def close(self) -> None:
        """Let go of the channels. *Collective*, may be called twice."""
        self._settle()
        self._assembly.wiring.close()
        self._world.close()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a whole batch: split, streamed, merged. *Collective.*

        Args:
            args: the model's inputs, nested as in the example; tensors [B, ...].
            kwargs: the same by keyword.

        Returns:
            On rank 0 what the model returns, rows in order; None elsewhere.

        Raises:
            InputError: the input does not match the example.
            StageError: the stage of this rank failed.
        """
        results = list(self._stream(iter([(args, kwargs)])))
        return results[0] if results else None

    def stream(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Run any number of batches without ever draining the pipeline. *Collective.*

        Args:
            batches: each a tuple of positional inputs, a dict of keyword inputs, or the one input;
                rank 0's are taken, the others' are left alone. A batch's tensors may not be changed
                before its result has come: they may be sent from where they lie.

        Yields:
            On rank 0 what the model returns for each batch, in order; nothing elsewhere, where the
            loop must be entered all the same.
        """
        return self._stream(map(as_call, batches))

    def summary(self) -> RunRecord:
        """Speed, bound, and each stage's share since the last summary. *Collective.*

        Returns:
            The same on every rank; `report.summary.print_summary` shows it to a person.
        """
        self._settle()
        stage = stage_record(self._context, self._assembly.weight_bytes, self._seconds)
        placement = self._assembly.placement
        record = gather_record(self._world, placement, stage, Findings(self._samples))
        self._context = self._context.with_new_times()
        self._samples, self._seconds = 0, 0.0
        return record

    def _stream(self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        self._settle()
        assembly = self._assembly
        self._context.device_context.require_stream()
        begin = time.perf_counter()
        try:
            with assembly.oom_explained():
                yield from handed(
                    self._results(awaited(calls, self._context.tracer)), self._context.tracer
                )
        finally:
            self._context.tracer.enter("caller", 0)
            self._seconds += time.perf_counter() - begin

    def _results(self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        assembly = self._assembly
        if self._world.rank != assembly.placement.ends.source:
            deque(self._run(arrivals(assembly.wiring.inlets, self._context.tracer)), maxlen=0)
            return
        gather = BatchMerge(assembly.graph.unflatten_outputs)
        work = self._run(self._feed(calls, gather))
        if (channel := assembly.wiring.exit) is None:
            for microbatch in self._on_host(work):
                gather.add(microbatch)
                yield from gather.finished()
            return
        stream, tracer = OpenStream(channel.receive()), self._context.tracer
        self._open = stream
        try:
            for fed in work:
                while gather.taken <= fed.index and (
                    fed.index + 1 - gather.taken >= self._window or channel.ready()
                ):
                    tracer.enter("receive", fed.index)
                    begin = tracer.clock.now()
                    gather.add(next(stream.results))
                    tracer.record("receive", fed.index, begin, tracer.clock.now())
                    yield from gather.finished()
            stream.ended = True
            for microbatch in stream.results:
                gather.add(microbatch)
                yield from gather.finished()
            self._open = None
        finally:
            stream.left = True

    def _settle(self) -> None:
        """Let what the last stream left under way come out, if its caller wanted no more of it."""
        stream, self._open = self._open, None
        if stream is None:
            return
        if not stream.left:
            self._open = stream
            raise PipeparError(
                "a stream of this pipeline is still open; take all of its results, or close() it, "
                "before the next call"
            )
        if not stream.ended:
            for outlet in self._assembly.wiring.outlets:
                outlet.channel.end()
        deque(stream.results, maxlen=0)

    def _on_host(self, work: Iterator[MicroBatch]) -> Iterator[MicroBatch]:
        """The model's outputs, where this rank computes all of it."""
        assembly = self._assembly
        outputs = outputs_of(work, assembly.wiring.positions(assembly.plan.outputs))
        if (gpu := self._context.device_context.gpu) is None:
            return outputs
        return copied_to_host(outputs, gpu, assembly.agreed.depth, self._context.tracer)

    def _run(self, schedule: Schedule) -> Iterator[MicroBatch]:
        outlets = self._assembly.wiring.outlets
        return run(self._assembly.programs, schedule, outlets, self._context.tracer)

    def _feed(
        self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]], gather: BatchMerge
    ) -> Iterator[MicroBatch]:
        graph, count = self._assembly.graph, itertools.count()
        signature, reached = graph.signature, self._context.device_context.reached
        for call in calls:
            leaves, structure = flatten(call, signature.structure)
            total = rows(leaves)
            require_batches(graph, total, self.micro_batch, "micro_batch")
            gather.expect(total, self.micro_batch, device_of(leaves))
            self._samples += total
            if structure is not signature.structure:
                leaves = signature.leaves_of(*call)
            for part in split(leaves, total, self.micro_batch):
                values = signature.check(part)
                yield MicroBatch(next(count), tuple(map(reached, values)))
