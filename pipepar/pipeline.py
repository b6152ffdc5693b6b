"""The Python door: ``with Pipeline(model, example_args=(x,)) as pipe: y = pipe(x)``."""

from __future__ import annotations

import itertools
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pipepar.comm.world import World
from pipepar.errors import InputError, PipeparError
from pipepar.microbatch import MicroBatch, TensorSpec, Value, merge, rows, split
from pipepar.model.source import Source, from_module
from pipepar.runtime.assembly import assemble
from pipepar.runtime.failure import FailTogether
from pipepar.runtime.loop import Arrival, arrivals, run
from pipepar.runtime.summary import RunSummary, summarise
from pipepar.runtime.threads import crowded
from pipepar.runtime.wiring import admission
from pipepar.trace import Tracer


class Pipeline:
    """A model spread over the ranks of the job, one contiguous stage each. *Collective.*

    Every rank makes the same Pipeline and makes the same calls on it. Rank 0's data count and rank
    0 gets the results; elsewhere a call takes part in the work and returns None. Results equal, bit
    for bit, those of the unsplit model called on the same micro-batches with as many threads.

    Used in a ``with`` statement, it ends the whole job when any rank fails.

    Args:
        model: any module that can be captured, with the same weights on every rank; it is not
            modified.
        example_args: positional inputs for one call, tensors [batch, ...]; only their shapes and
            dtypes matter. Sizes of the first two dimensions may vary later where the model allows.
        example_kwargs: the same for keyword inputs.
        micro_batch: rows that travel together, at least 1.
        depth: micro-batches that may wait on each end of a channel, at least 1.

    Raises:
        PipeparError: the model cannot be captured or cut into as many stages as there are ranks.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        example_args: Sequence[Any] = (),
        example_kwargs: Mapping[str, Any] | None = None,
        micro_batch: int = 8,
        depth: int = 2,
    ) -> None:
        self._world = World.start()
        self._together = FailTogether(self._world)
        self._micro_batch = micro_batch
        self._window = admission(self._world.size, depth)
        self._open: _Stream | None = None
        try:
            source = self._world.together(lambda: _checked(model, micro_batch, depth))
            self._assembly = assemble(
                self._world,
                source,
                example_args,
                example_kwargs or {},
                depth=depth,
                results_to_root=True,
            )
        except PipeparError:  # every rank has been told
            raise
        except BaseException as error:
            self._together.fail(error)
            raise
        warning = crowded(self._world)
        if warning and self._world.rank == min(self._world.cores):
            warnings.warn(warning, stacklevel=2)
        self._reset()

    def _reset(self) -> None:
        self._tracer = Tracer(self._world.rank)
        self._samples, self._seconds = 0, 0.0

    @property
    def rank(self) -> int:
        """This process's rank, and its stage."""
        return self._world.rank

    def __enter__(self) -> Pipeline:
        """Watch over the job: from here on, a failure of any rank ends all."""
        self._together.__enter__()
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
        return self._stream(map(_as_call, batches))

    def summary(self) -> RunSummary:
        """Speed, bound, and each stage's share since the last summary. *Collective.*

        Returns:
            The same on every rank; `runtime.summary.print_summary` shows it to a person.
        """
        self._settle()
        assembly = self._assembly
        result = summarise(
            self._world,
            self._tracer,
            assembly.stage.weight_bytes,
            assembly.threads,
            self._samples,
            self._seconds,
        )
        self._reset()
        return result

    def _stream(self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        self._settle()
        begin = time.perf_counter()
        try:
            yield from self._results(calls)
        finally:
            self._seconds += time.perf_counter() - begin

    def _results(self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]]) -> Iterator[Any]:
        if self._world.rank != 0:
            inlets = self._assembly.wiring.inlets
            for _ in self._run(arrivals(inlets, self._tracer)):
                pass
            return
        gather = _Gather(self._assembly.graph.unflatten_outputs)
        work = self._run(self._feed(calls, gather))
        channel = self._assembly.wiring.results
        if channel is None:
            for index, values in work:
                names = self._assembly.plan.outputs
                gather.add(MicroBatch(index, tuple(values[name] for name in names)))
                yield from gather.finished()
            return
        stream = self._open = _Stream(channel.receive())
        try:
            for index, _ in work:
                while gather.taken <= index and (
                    index + 1 - gather.taken >= self._window or channel.ready()
                ):
                    gather.add(next(stream.results))
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

    def _run(self, source: Iterator[Arrival]) -> Iterator[Arrival]:
        return run(self._assembly.program, source, self._assembly.wiring.outlets, self._tracer)

    def _feed(
        self, calls: Iterator[tuple[tuple[Any, ...], dict[str, Any]]], gather: _Gather
    ) -> Iterator[Arrival]:
        graph, count = self._assembly.graph, itertools.count()
        for call in calls:
            total = rows(pytree.tree_leaves(call))
            gather.expect(total, self._micro_batch)
            self._samples += total
            for args, kwargs in split(call, self._micro_batch):
                values = graph.flatten_inputs(args, kwargs)
                yield next(count), dict(zip(graph.inputs, values, strict=True))


@dataclass(slots=True)
class _Stream:
    """A stream under way on rank 0."""

    results: Iterator[MicroBatch]
    """What comes back."""
    ended: bool = False
    """Whether its end has been sent."""
    left: bool = False
    """Whether its caller takes no more of it: at its end, by a break, or by an exception."""


class _Gather:
    """Puts the micro-batches of each batch together again."""

    def __init__(self, unflatten: Any) -> None:
        self._unflatten = unflatten
        self._expected: deque[list[int]] = deque()  # for each batch, its micro-batches' rows
        self._parts: list[Any] = []
        self.taken = 0

    def expect(self, total: int, size: int) -> None:
        """A batch of that many rows has been admitted."""
        sizes = [min(size, total - begin) for begin in range(0, max(total, 1), size)]
        self._expected.append(sizes)

    def add(self, microbatch: MicroBatch) -> None:
        """The next micro-batch of results has come."""
        self.taken += 1
        values: tuple[Value, ...] = microbatch.values
        self._parts.append(self._unflatten(values))

    def finished(self) -> Iterator[Any]:
        """The batch whose last micro-batch has just come, if it has."""
        if self._expected and len(self._parts) == len(self._expected[0]):
            parts, self._parts = self._parts, []
            yield pytree.tree_map_only(
                torch.Tensor, _compact, merge(parts, self._expected.popleft())
            )


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that does not hold on to a receive buffer much larger than itself."""
    if tensor.untyped_storage().nbytes() > 2 * TensorSpec.of(tensor).nbytes:
        return tensor.clone()
    return tensor


def _checked(model: torch.nn.Module, micro_batch: int, depth: int) -> Source:
    for name, number in (("micro_batch", micro_batch), ("depth", depth)):
        if number < 1:
            raise InputError(f"{name} is {number}, expected at least 1")
    return from_module(model)


def _as_call(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, dict):
        return (), batch
    return (batch,), {}
