"""The work itself: samples through the stages, and those that failed again, one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipepar.comm.world import World
from pipepar.data.readers.reader import Reader
from pipepar.data.sample_set import SampleSet
from pipepar.engine.assembly import Assembly
from pipepar.engine.device_to_host import copied_to_host
from pipepar.engine.fault import FAULT
from pipepar.engine.loop import SAMPLES, Arrival, arrivals, run
from pipepar.jobs.inputs import feed_all
from pipepar.jobs.outputs import Sink
from pipepar.progress import Display
from pipepar.supervision.stopping import Asked
from pipepar.trace import Tracer


@dataclass(frozen=True, slots=True)
class Work:
    """A rank's share of it."""

    world: World
    """All ranks."""
    reader: Reader | None
    """The input, on rank 0."""
    sink: Sink | None
    """The output, on the last rank."""
    assembly: Assembly
    """This rank's stage."""
    carried: tuple[str, ...]
    """What travels along, see `inputs.carried_names`."""
    tracer: Tracer
    """This stage's times."""
    display: Display
    """Rank 0's is told how far the work is."""
    asked_to_stop: Asked
    """What, if anything, tells rank 0 to begin no more samples."""

    def do(self, done: SampleSet, alone: SampleSet) -> None:
        """All samples but those that are done. *Collective.*

        In a job that goes on without samples that fail, those of a micro-batch that failed come
        once more at the end, each in a micro-batch of its own: it is read, padded and computed as
        if it were alone, and what its neighbours were cannot matter.

        Args:
            done: by an earlier run.
            alone: those that failed together in an earlier run.

        Raises:
            InputError: a sample cannot be read, or what was returned cannot be written.
            StageError: a stage or a function of the user's failed; the cause is chained to it.
        """
        count = len(done) + done.missing
        self._stream(
            self.assembly.agreed.micro_batch, SampleSet(count, [*done.runs(), *alone.runs()])
        )
        if FAULT not in self.carried and not len(alone):
            return
        text = json.dumps(self.sink.settled() if self.sink else [])
        left = SampleSet(count, json.loads(self.world.all_gather(text)[-1]))
        if not left.missing:
            return
        if self.world.rank == 0 and not self.asked_to_stop():
            self.display.note(
                f"{left.missing:,} samples were in micro-batches that failed; each is tried alone"
            )
        self._stream(1, left)

    def _stream(self, micro_batch: int, done: SampleSet) -> None:
        assembly, tracer = self.assembly, self.tracer
        if self.reader is None:
            source = arrivals(assembly.wiring.inlets, tracer)
        else:
            graph, asked = assembly.graph, self.asked_to_stop
            source = feed_all(self.reader, micro_batch, graph, tracer, done, asked, self.carried)
        results = run(assembly.program, source, assembly.wiring.outlets, tracer)
        if self.sink is not None:
            results = self.sink.take(self._at_hand(results), assembly, tracer)
        if self.world.rank == 0:
            results = self._shown(results, done.missing)
        for _ in results:
            pass

    def _at_hand(self, results: Iterator[Arrival]) -> Iterator[Arrival]:
        """The results in the host's memory."""
        assembly = self.assembly
        gpu = assembly.context.gpu
        if gpu is None:
            return results
        return copied_to_host(
            results, assembly.plan.outputs, gpu, assembly.agreed.depth, self.tracer
        )

    def _shown(self, results: Iterator[Arrival], count: int) -> Iterator[Arrival]:
        with self.display.samples(count) as advance:
            for index, values in results:
                samples: torch.Tensor = values[SAMPLES]  # type: ignore[assignment]
                advance(len(samples))
                yield index, values
