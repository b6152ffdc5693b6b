"""Going on with what an earlier run has left.

The last rank has the output and its journal, rank 0 the input: what is done is agreed on here.
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
from pipepar.planner.plan_job import Agreed, Note


@dataclass(frozen=True, slots=True)
class Resuming:
    """What is left of an earlier run, if it is to be resumed; made by `Resuming.look`."""

    world: World
    """All ranks."""
    job: Job
    """What the user asked for."""
    left: Fields | None
    """What the job is known by that is to be resumed; None to begin anew."""

    @classmethod
    def look(cls, world: World, job: Job, claim: OutputClaim | None, note: Note) -> Resuming:
        """See what is left. *Collective.*

        Args:
            world: all ranks.
            job: what the user asked for.
            claim: of the output on the last rank, None elsewhere.
            note: receives, on rank 0, what the user should know of it.

        Raises:
            InputError: the last rank cannot tell of which job it is.
        """
        text = "null"
        if claim is not None:
            left = claim.unfinished and claim.unfinished.header
            text = json.dumps([left, claim.overwrites, claim.replaces])
        sink = Ends.of_files(world.size).sink
        left, overwrites, replaces = json.loads(world.all_gather(text)[sink])
        world.together(lambda: _check_format(left, job))
        if world.is_root:
            _tell(job, left is not None, overwrites, replaces, note)
        return cls(world, job, left)

    @property
    def micro_batch(self) -> int | None:
        """How many samples travel together; None if the user leaves that open."""
        return self.left["micro_batch"] if self.left else self.job.micro_batch

    def check(self, graph: Graph, source: Source, context: DeviceContext, count: int) -> Fields:
        """What this job is known by, on rank 0; refuse to resume another.

        Args:
            graph: the captured model.
            source: where its weights lie.
            context: which devices compute.
            count: number of samples.

        Returns:
            Of the micro-batch as far as it is known; nothing on the other ranks.

        Raises:
            InputError: named_os_errors every difference.
        """
        if not self.world.is_root:
            return {}
        wanted = self.job.micro_batch
        size = self.micro_batch if wanted is None else min(wanted, count)
        own = identity(self.job, graph, source, context, count, size)
        if self.left is not None:
            require_same(self.left, own, self.job.output)
        return own

    def begin(
        self, claim: OutputClaim | None, own: Fields, agreed: Agreed, count: int
    ) -> tuple[Sink | None, SampleSet, SampleSet]:
        """Open the output. *Collective.*

        Args:
            claim: of the output on the last rank, None elsewhere.
            own: what this job is known by, on rank 0.
            agreed: how the samples travel.
            count: number of samples.

        Returns:
            The output on the last rank. And on every rank the samples whose results are there, and
            those of micro-batches that failed, which are to be tried alone.

        Raises:
            PipeparError: the output cannot be opened; PeerError on the other ranks.
        """
        world = self.world
        size = min(agreed.micro_batch, count)
        header = json.loads(world.broadcast(json.dumps({**own, "micro_batch": size})))
        progress = partial(world.heartbeat.tell, "other", 0)
        sink = world.together(lambda: Sink(claim, count, header, progress) if claim else None)
        runs = json.dumps(sink.resumed() if sink else None)
        done, alone = json.loads(world.all_gather(runs)[Ends.of_files(world.size).sink])
        return sink, SampleSet(count, done), SampleSet(count, alone)


def _tell(job: Job, resumes: bool, overwrites: bool, replaces: bool, note: Note) -> None:
    """What the user should know of what is left."""
    if overwrites:
        note(
            f"an earlier run left {job.output} unfinished, which this one overwrites; --resume "
            "would go on with it"
        )
    elif job.resume and not resumes and replaces:
        note(f"output {job.output} exists and nothing of it is unfinished; it is made anew")
    elif job.resume and not resumes:
        note(f"nothing is left of output {job.output} to resume; beginning anew")


def _check_format(left: Fields | None, job: Job) -> None:
    if left is not None and left.get("format") != FORMAT:
        raise InputError(
            f"--resume: the journal of output {job.output} has the format "
            f"{left.get('format')}, expected {FORMAT}; go on with the version of pipepar "
            "that wrote it, or leave --resume out to begin anew"
        )
