"""Resumes an unfinished output.

The last rank has the output and its journal, and rank 0 has the input, so the ranks agree here on
the samples that are done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

from pipepar.comm.world import World
from pipepar.data.sample_set import SampleSet
from pipepar.data.writers.journal import Fields
from pipepar.errors import InputError
from pipepar.host.device_context import DeviceContext
from pipepar.jobs.options import Job
from pipepar.jobs.output.claim import OutputClaim
from pipepar.jobs.output.identity import FORMAT, identity, require_same
from pipepar.jobs.output.sink import Sink
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source
from pipepar.plan.placement import Ends
from pipepar.planner.plan_job import AgreedPlan, Note


@dataclass(frozen=True, slots=True)
class Resuming:
    """The job of the unfinished output that is resumed, if any; made by `Resuming.find`."""

    world: World
    """All ranks."""
    job: Job
    """The options of the job."""
    header: Fields | None
    """The identity in the journal; None to start from the beginning."""

    @classmethod
    def find(cls, world: World, job: Job, claim: OutputClaim | None, note: Note) -> Resuming:
        """Return the job of the unfinished output on every rank. *Collective.*

        Args:
            world: all ranks.
            job: the options of the job.
            claim: the output on the last rank, None elsewhere.
            note: receives, on rank 0, remarks for the user.

        Raises:
            InputError: the journal has another format.
        """
        text = "null"
        if claim is not None:
            header = claim.unfinished and claim.unfinished.header
            text = json.dumps([header, claim.overwrites, claim.replaces])
        sink = Ends.of_files(world.size).sink
        header, overwrites, replaces = json.loads(world.all_gather(text)[sink])
        world.together(lambda: _check_format(header, job))
        if world.is_root:
            _note_start(job, header is not None, overwrites, replaces, note)
        return cls(world, job, header)

    @property
    def micro_batch(self) -> int | None:
        """Samples per micro-batch; None if neither the journal nor the user gives it."""
        return self.header["micro_batch"] if self.header else self.job.micro_batch

    def check(self, graph: Graph, source: Source, context: DeviceContext, count: int) -> Fields:
        """Return the identity of this job on rank 0, after comparing it with the journal's.

        Args:
            graph: the captured model.
            source: the location of its weights, or their values.
            context: the devices of the ranks.
            count: number of samples.

        Returns:
            The identity, with the micro-batch if it is known; an empty dict on other ranks.

        Raises:
            InputError: the identities differ; the message lists every difference.
        """
        if not self.world.is_root:
            return {}
        given = self.job.micro_batch
        size = self.micro_batch if given is None else min(given, count)
        own = identity(self.job, graph, source, context, count, size)
        if self.header is not None:
            require_same(self.header, own, self.job.output)
        return own

    def open_sink(
        self, claim: OutputClaim | None, own: Fields, agreed: AgreedPlan, count: int
    ) -> tuple[Sink | None, SampleSet, SampleSet]:
        """Open the output. *Collective.*

        Args:
            claim: the output on the last rank, None elsewhere.
            own: the identity of this job on rank 0; ignored elsewhere.
            agreed: the plan, with the micro-batch.
            count: number of samples.

        Returns:
            The sink on the last rank, None elsewhere; and on every rank the samples that are
            written, and those of failed micro-batches, which are to be tried alone.

        Raises:
            PipeparError: the output cannot be opened; PeerError on the other ranks.
        """
        world = self.world
        size = min(agreed.micro_batch, count)
        header = json.loads(world.broadcast(json.dumps({**own, "micro_batch": size})))
        progress = partial(world.heartbeat.set_activity, "other", 0)
        sink = world.together(lambda: Sink(claim, count, header, progress) if claim else None)
        ranges = json.dumps(sink.resumed() if sink else None)
        done, alone = json.loads(world.all_gather(ranges)[Ends.of_files(world.size).sink])
        return sink, SampleSet(count, done), SampleSet(count, alone)


def _note_start(job: Job, resumes: bool, overwrites: bool, replaces: bool, note: Note) -> None:
    """Report an unfinished output that is overwritten, and a --resume that has no effect."""
    if overwrites:
        note(
            f"an earlier run left {job.output} unfinished, and this run overwrites it; --resume "
            "would continue it"
        )
    elif job.resume and not resumes and replaces:
        note(f"output {job.output} is finished, so there is nothing to resume; it is replaced")
    elif job.resume and not resumes:
        note(f"output {job.output} has nothing to resume; starting from the beginning")


def _check_format(header: Fields | None, job: Job) -> None:
    if header is not None and header.get("format") != FORMAT:
        raise InputError(
            f"--resume: the journal of output {job.output} has the format "
            f"{header.get('format')}, expected {FORMAT}; use the version of pipepar that wrote "
            "it, or leave --resume out to start from the beginning"
        )
