"""Going on with what an earlier run has left.

The last rank has the output and its journal, rank 0 the input: what is done is agreed on here.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from pipepar.comm.world import World
from pipepar.data.sample_set import SampleSet
from pipepar.errors import InputError
from pipepar.host.device_context import DeviceContext
from pipepar.jobs.identity import FORMAT, identity, require_same
from pipepar.jobs.options import Job
from pipepar.jobs.outputs import Sink
from pipepar.model.capture.graph import Graph
from pipepar.model.source.open_source import Source
from pipepar.plan.placement import Ends
from pipepar.planner.plan_job import Agreed, Note


class Resuming:
    """What is left of an earlier run, if it is to be resumed, and what this one is known by."""

    def __init__(self, world: World, job: Job, sink: Sink | None, note: Note) -> None:
        """Look what is left. *Collective.*

        Args:
            world: all ranks.
            job: what the user asked for.
            sink: the output on the last rank, None elsewhere.
            note: is told, on rank 0, what the user should know of it.

        Raises:
            InputError: the last rank cannot tell of which job it is.
        """
        self._world = world
        ends = Ends.of_files(world.size)
        self._sink = ends.sink
        self._job = job
        self._own: dict[str, Any] = {}
        text = json.dumps([sink.left, sink.overwrites, sink.replaces] if sink else None)
        self._left: dict[str, Any] | None
        self._left, overwrites, replaces = json.loads(world.all_gather(text)[ends.sink])
        world.together(self._check_format)
        if not world.is_root:
            return
        if overwrites:
            note(
                f"an earlier run left {job.output} unfinished, which this one overwrites; --resume "
                "would go on with it"
            )
        elif job.resume and self._left is None and replaces:
            note(f"output {job.output} exists and nothing of it is unfinished; it is made anew")
        elif job.resume and self._left is None:
            note(f"nothing is left of output {job.output} to resume; beginning anew")

    @property
    def micro_batch(self) -> int | None:
        """How many samples travel together; None if the user leaves that open."""
        return self._left["micro_batch"] if self._left else self._job.micro_batch

    def check(self, graph: Graph, source: Source, context: DeviceContext, count: int) -> None:
        """Find out on rank 0 what the job is, and refuse to resume another. *Local.*

        Raises:
            InputError: naming every difference.
        """
        if not self._world.is_root:
            return
        wanted = self._job.micro_batch
        size = self.micro_batch if wanted is None else min(wanted, count)
        self._own = identity(self._job, graph, source, context, count, size)
        if self._left is not None:
            require_same(self._left, self._own, self._job.output)

    def begin(self, sink: Sink | None, agreed: Agreed, count: int) -> tuple[SampleSet, SampleSet]:
        """Open the output. *Collective.*

        Args:
            sink: the output on the last rank, None elsewhere.
            agreed: how the samples travel.
            count: number of samples.

        Returns:
            The samples whose results are there, and those of micro-batches that failed, which are
            to be tried alone; the same on every rank.

        Raises:
            PipeparError: the output cannot be opened; PeerError on the other ranks.
        """
        size = min(agreed.micro_batch, count)
        header = json.loads(self._world.broadcast(json.dumps(self._own | {"micro_batch": size})))
        progress = partial(self._world.heartbeat.tell, "other", 0)
        runs = self._world.together(lambda: sink.open(count, header, progress) if sink else None)
        done, alone = json.loads(self._world.all_gather(json.dumps(runs))[self._sink])
        return SampleSet(count, done), SampleSet(count, alone)

    def _check_format(self) -> None:
        if self._left is not None and self._left.get("format") != FORMAT:
            raise InputError(
                f"--resume: the journal of output {self._job.output} has the format "
                f"{self._left.get('format')}, expected {FORMAT}; go on with the version of pipepar "
                "that wrote it, or leave --resume out to begin anew"
            )
