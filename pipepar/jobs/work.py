"""The work of a job: all samples through the stages, then those that failed, one by one."""

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
    """A rank's share of it: the roles that the placement gives it."""

    assembly: Assembly
    """This rank's stage and channels."""
    reader: Reader | None
    """The input, at the source."""
    sink: Sink | None
    """The output, at the sink."""
    lenient: bool
    """Whether the job goes on without samples that fail."""

    def do(self, done: SampleSet, alone: SampleSet) -> None:
        """Compute all samples but those that are done. *Collective.*

        In a job that goes on without samples that fail, those of a micro-batch that failed come
        once more at the end, each in a micro-batch of its own: it is read, padded and computed as
        if it were alone, so that its neighbours cannot matter.

        Args:
            done: by an earlier run.
            alone: those that failed together in an earlier run.

        Raises:
            InputError: a sample cannot be read, or what was returned cannot be written.
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
        if self.reader is not None and not run.asked_to_stop():
            run.display.note(
                f"{left.missing:,} samples were in micro-batches that failed; each is tried alone"
            )
        self._stream(1, left)

    def _stream(self, micro_batch: int, done: SampleSet) -> None:
        """Run this rank's roles for one stream, each role but one in a thread of its own.

        Usually a rank has one role: the source feeds the first stage of its own rank, and the sink
        writes what the last stage of its own rank makes, in one loop. A rank has several only where
        the plan puts these stages elsewhere; then none of them may block another.
        """
        wiring, run = self.assembly.wiring, self.assembly.run
        beside = Tracer(run.tracer.stage) if wiring.known else run.tracer
        roles: list[Iterable[object]] = []
        schedule: Schedule | None = arrivals(wiring.inlets, run.tracer) if wiring.inlets else None
        if self.reader is not None and wiring.entry is not None:
            roles.append(_sent(self._samples(self.reader, micro_batch, done, beside), wiring.entry))
        elif self.reader is not None:
            schedule = self._samples(self.reader, micro_batch, done, run.tracer)
        if self.sink is not None and wiring.exit is not None:
            roles.append(self.sink.take(wiring.exit.receive(), self.assembly.graph, beside))
        if schedule is not None:
            roles.append(self._results(schedule))
        _run_together(roles)
        if beside is not run.tracer:
            run.tracer.add_totals(beside)

    def _samples(
        self, reader: Reader, micro_batch: int, done: SampleSet, tracer: Tracer
    ) -> Iterator[MicroBatch]:
        """The input's micro-batches; one counts as shown once the next is asked for."""
        run, graph = self.assembly.run, self.assembly.graph
        feed = feed_all(reader, micro_batch, graph, tracer, done, self.lenient)
        with run.display.samples(done.missing) as advance:
            for microbatch in takewhile(lambda _: not run.asked_to_stop(), feed):
                yield microbatch
                advance(len(samples_of(microbatch)))

    def _results(self, schedule: Schedule) -> Iterator[MicroBatch]:
        """What the stage makes; at the last one, the sink writes the model's outputs."""
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
        return self.sink.take(results, assembly.graph, tracer)


def _sent(samples: Iterable[MicroBatch], entry: Outlet) -> Iterator[MicroBatch]:
    """Send the input to the first stage on another rank."""
    for microbatch in samples:
        entry.send(microbatch, "source")
        yield microbatch
    entry.channel.end()


def _run_together(roles: list[Iterable[object]]) -> None:
    """Exhaust all of these, the last of them in this thread: that of the stage, if there is one.

    What another thread raises ends the job by `threading.excepthook`, as `FailTogether` sets it:
    this thread may wait for that one's results.
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
