"""From what leaves the last stage to the user's output file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from pipepar.data.sample_names import stage_errors
from pipepar.data.sample_set import SampleSet
from pipepar.data.writers.journal import Fields
from pipepar.data.writers.open_output import open_output
from pipepar.data.writers.partial import named_os_errors
from pipepar.data.writers.row_writer import RowWriter
from pipepar.data.writers.unfinished import Resumable
from pipepar.errors import InputError, StageError
from pipepar.jobs.failing_sample import depends_on_samples, name_failing, select_row
from pipepar.jobs.output.claim import OutputClaim
from pipepar.jobs.output.quarantine import Quarantine
from pipepar.microbatch import SINK, Fault, MicroBatch, samples_of
from pipepar.model.capture.graph import Graph
from pipepar.report.confusion import Confusion, Tally
from pipepar.tasks.classes import class_logits
from pipepar.trace import Tracer

Runs: TypeAlias = list[tuple[int, int]]


class Sink:
    """Writes what leaves the last stage to a job's output, and counts how often it was right."""

    def __init__(
        self, claim: OutputClaim, count: int, header: Fields, progress: Callable[[], None]
    ) -> None:
        """Open the output, and take over what an earlier run has left of it.

        Args:
            claim: of the output; closed with it.
            count: number of samples.
            header: what the job is known by.
            progress: is called while what is left is looked at, which may take long.

        Raises:
            OSError: the file system refuses.
        """
        self._path = claim.path
        self._lenient = claim.lenient
        self._answer, self._what = claim.answer, claim.answered_by
        self._tally = None if claim.classes is None else Tally(claim.classes)
        self._quarantine = Quarantine(claim.output)
        self._close = claim.held.close
        left = claim.unfinished and replace(claim.unfinished, progress=progress)
        resumable = Resumable(claim.partial, header, left, self._restore_record)
        self._writer = claim.held.enter_context(open_output(claim.output, count, resumable))

    def resumed(self) -> tuple[Runs, Runs]:
        """The samples that an earlier run has written, and those that are to be tried alone.

        Returns:
            Half-open ranges; of the second also those that were tried and failed.
        """
        apart = SampleSet(self._writer.count)
        apart.add(self._quarantine.together)
        apart.add(self._quarantine if self._lenient else ())
        return list(self._writer.done.ranges()), list(apart.ranges())

    def take(
        self, results: Iterator[MicroBatch], graph: Graph, tracer: Tracer
    ) -> Iterator[MicroBatch]:
        """Write all results to the output, and pass them on.

        Args:
            results: micro-batches of the model's outputs, on the host.
            graph: the model.
            tracer: records the times.

        Raises:
            InputError: what was returned cannot be written.
            StageError: a function of the user's failed; the cause is chained to it.
        """
        for microbatch in results:
            with tracer.span("sink", microbatch.index):
                self._write(microbatch, graph)
            tracer.enter("other", microbatch.index)
            yield microbatch

    def settled(self) -> Runs:
        """The samples that need not be tried again, written or not, as half-open ranges."""
        writer = self._writer
        settled = SampleSet(writer.count, writer.done.ranges())
        settled.add(self._quarantine if self._lenient else ())
        return list(settled.ranges())

    def finish(self) -> int:
        """Put the output under its name, or leave it to be resumed if samples are missing.

        Returns:
            The number of samples that are written.

        Raises:
            InputError: samples failed, and not one has a result.
            OSError: the file system refuses.
        """
        writer = self._writer
        failed = [sample for sample in self._quarantine if sample not in writer.done]
        if len(failed) == writer.done.missing:
            if failed:
                self._leave_out(writer, failed)
            with named_os_errors(self._path):
                self._quarantine.write()
        else:
            writer.suspend()
        self._close()
        return len(writer.done)

    @property
    def failed(self) -> int:
        """Number of samples that the output has no results of."""
        return len(self._quarantine)

    def confusion(self) -> Confusion | None:
        """What was taken for what; None without labels."""
        return self._tally.confusion() if self._tally else None

    def _write(self, microbatch: MicroBatch, graph: Graph) -> None:
        samples = samples_of(microbatch)
        if microbatch.error is not None:
            self._fail(samples, microbatch.error)
            return
        try:
            self._take(samples, microbatch, graph)
        except (InputError, StageError) as error:
            if not (self._lenient and depends_on_samples(error)):
                raise
            self._fail(samples, Fault.of(SINK, error))
            return
        self._quarantine.discard(samples.tolist())

    def _take(self, samples: torch.Tensor, microbatch: MicroBatch, graph: Graph) -> None:
        output = graph.unflatten_outputs(microbatch.values)
        extras = microbatch.columns

        def alone(row: int) -> object:
            return self._answer(*select_row((output, extras), row, len(samples)))

        with stage_errors(self._what, lambda e: name_failing(samples.tolist(), e, alone)):
            rows = self._answer(output, extras)
        if self._tally is None:
            self._writer.write(samples, rows)
            return
        # Counted once the rows are written: they may not fit the output.
        counted = Tally(()).add(class_logits(output), extras["label"])
        self._writer.write(samples, rows, {"counted": counted})
        self._tally.restore(counted)

    def _fail(self, samples: torch.Tensor, fault: Fault) -> None:
        self._writer.add_note(self._quarantine.add(samples.tolist(), fault))

    def _restore_record(self, samples: list[int], note: dict[str, Any] | None) -> None:
        """Take over what an earlier run has noted of a micro-batch."""
        self._quarantine.discard(samples)
        if note is None:
            return
        if self._tally is not None and "counted" in note:
            self._tally.restore(note["counted"])
        self._quarantine.restore(note)

    def _leave_out(self, writer: RowWriter, failed: list[int]) -> None:
        """Give the samples without results rows that say nothing."""
        if not len(writer.done):
            raise InputError(
                f"all {len(failed)} samples failed, {self._quarantine.first}; expected one at "
                f"least that does not. Nothing is written to {self._path}"
            )
        writer.write_blank(torch.tensor(failed), self._quarantine.to_note())
