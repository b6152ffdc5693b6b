"""The computation of a job: all samples, then each sample of failed micro-batches alone."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from pipepar.data.readers.reader import Reader
from pipepar.data.sample_set import SampleSet
from pipepar.engine.assembly import Assembly
from pipepar.engine.device_to_host import copied_to_host
from pipepar.engine.loop import Outlet, Schedule, arrivals, outputs_of, run
from pipepar.jobs.failure_policy import failure_policy
from pipepar.jobs.inputs import feed_all
from pipepar.jobs.output.sink import Sink
from pipepar.microbatch import MicroBatch, samples_of
from pipepar.trace import Tracer


@dataclass(frozen=True, slots=True)
class Work:
    """The part of a rank: source, stage and sink, as far as the placement assigns them to it."""

    assembly: Assembly
    """The stage and the channels of this rank."""
    reader: Reader | None
    """The input at the source, None elsewhere."""
    sink: Sink | None
    """The output at the sink, None elsewhere."""
    lenient: bool
    """Whether the job continues without samples that fail."""

    def compute(self, done: SampleSet, alone: SampleSet) -> None:
        """Compute all samples that are not done. *Collective.*

        If the job continues without samples that fail, the samples of failed micro-batches follow
        in a second stream. Each is then in a micro-batch of its own, so that it is read, padded and
        computed independently of other samples.

        Args:
            done: samples that an earlier run wrote.
            alone: samples of micro-batches that failed in an earlier run.

        Raises:
            InputError: a sample cannot be read, or a result cannot be written.
            StageError: a stage or a function of the user's failed; the cause is chained to it.
        """
        count = len(done) + done.missing
        first = SampleSet(count, [*done.ranges(), *alone.ranges()])
        self._stream(self.assembly.agreed.micro_batch, first)
        if not self.lenient and not len(alone):
            return
        text = json.dumps(self.sink.settled() if self.sink else [])
        sink = self.assembly.placement.ends.sink
        run = self.assembly.run
        left = SampleSet(count, json.loads(run.world.all_gather(text)[sink]))
        if not left.missing:
            return
        if self.reader is not None and not run.stop_requested():
            run.display.note(
                f"{left.missing:,} samples were in micro-batches that failed; each is tried alone"
            )
        self._stream(1, left)

    def _stream(self, micro_batch: int, done: SampleSet) -> None:
        """Run the roles of this rank for one stream: one in this thread, each other in a thread.

        Usually a rank runs one loop: the source feeds the first stage on its own rank, and the sink
        writes the results of the last stage on its own rank. If the plan places these stages on
        other ranks, a rank may have several roles, and these must not block each other.
        """
        wiring, run = self.assembly.wiring, self.assembly.run
        # A tracer is for one thread; the totals are added at the end.
        end_tracer = Tracer(run.tracer.stage) if wiring.known else run.tracer
        roles: list[Iterable[object]] = []
        schedule: Schedule | None = arrivals(wiring.inlets, run.tracer) if wiring.inlets else None
        if self.reader is not None and wiring.entry is not None:
            samples = self._samples(self.reader, micro_batch, done, end_tracer)
            roles.append(_send_all(samples, wiring.entry))
        elif self.reader is not None:
            schedule = self._samples(self.reader, micro_batch, done, run.tracer)
        if self.sink is not None and wiring.exit is not None:
            results = wiring.exit.receive()
            roles.append(self.sink.write_all(results, self.assembly.graph, end_tracer))
        if schedule is not None:
            roles.append(self._results(schedule))
        _run_concurrently(roles)
        if end_tracer is not run.tracer:
            run.tracer.add_totals(end_tracer)

    def _samples(
        self, reader: Reader, micro_batch: int, done: SampleSet, tracer: Tracer
    ) -> Iterator[MicroBatch]:
        """Yield the input's micro-batches until a stop is requested, and show the progress."""
        run, graph = self.assembly.run, self.assembly.graph
        feed = feed_all(reader, micro_batch, graph, tracer, done, self.lenient)
        with run.display.samples(done.missing) as advance:
            for microbatch in takewhile(lambda _: not run.stop_requested(), feed):
                yield microbatch
                advance(len(samples_of(microbatch)))

    def _results(self, schedule: Schedule) -> Iterator[MicroBatch]:
        """Return an iterator that runs the stage, and the sink if it follows on this rank."""
        assembly, tracer = self.assembly, self.assembly.run.tracer
        policy = failure_policy(self.lenient)
        outlets = assembly.wiring.outlets
        results = run(assembly.programs, schedule, outlets, tracer, policy)
        if self.sink is None or assembly.wiring.exit is not None:
            return results
        results = outputs_of(results, assembly.wiring.positions(assembly.plan.outputs))
        gpu = assembly.run.device_context.gpu
        if gpu is not None:
            results = copied_to_host(results, gpu, assembly.agreed.depth, tracer)
        return self.sink.write_all(results, assembly.graph, tracer)


def _send_all(samples: Iterable[MicroBatch], entry: Outlet) -> Iterator[MicroBatch]:
    """Send the input to the first stage on another rank; yield each micro-batch that was sent."""
    for microbatch in samples:
        entry.send(microbatch, "source")
        yield microbatch
    entry.channel.end()


def _run_concurrently(roles: list[Iterable[object]]) -> None:
    """Exhaust all iterators, the last one in this thread (that of the stage, if there is one).

    An exception in another thread ends the job through `threading.excepthook`, which `FailTogether`
    sets, since this thread may be waiting for a result of that thread.
    """
    if not roles:
        return
    *others, own = roles
    threads = [threading.Thread(target=_exhaust, args=[role], daemon=True) for role in others]
    for thread in threads:
        thread.start()
    _exhaust(own)
    for thread in threads:
        thread.join()


def _exhaust(role: Iterable[object]) -> None:
    deque(role, maxlen=0)
