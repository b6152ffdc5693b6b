"""The sink: writes the results of the last stage to the output file."""

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
from pipepar.data.writers.unfinished import Resumable
from pipepar.errors import InputError, StageError
from pipepar.jobs.failing_sample import depends_on_samples, describe_failing, select_row
from pipepar.jobs.output.claim import OutputClaim
from pipepar.jobs.output.quarantine import Quarantine
from pipepar.microbatch import SINK, Fault, MicroBatch, samples_of
from pipepar.model.capture.graph import Graph
from pipepar.report.confusion import Confusion, Tally
from pipepar.tasks.classes import class_logits
from pipepar.trace import Tracer

Ranges: TypeAlias = list[tuple[int, int]]
"""Half-open ranges of samples."""


class Sink:
    """Writes the results of the last stage to the output, and compares them with the labels."""

    def __init__(
        self, claim: OutputClaim, count: int, header: Fields, progress: Callable[[], None]
    ) -> None:
        """Open the output, and restore the results of an earlier run.

        Args:
            claim: the output; its `held` closes the writer.
            count: number of samples.
            header: the identity of the job.
            progress: called regularly while results are restored, which may take long.

        Raises:
            InputError: the output cannot be opened or resumed.
            OSError: the file system refuses.
        """
        self._path = claim.path
        self._lenient = claim.lenient
        self._answer, self._answer_name = claim.answer, claim.answer_name
        self._tally = None if claim.classes is None else Tally(claim.classes)
        self._quarantine = Quarantine(claim.output)
        self._close = claim.held.close
        left = claim.unfinished and replace(claim.unfinished, progress=progress)
        resumable = Resumable(claim.partial, header, left, self._restore_record)
        self._writer = claim.held.enter_context(open_output(claim.output, count, resumable))

    def resumed(self) -> tuple[Ranges, Ranges]:
        """Return the samples that are written, and other samples that the first stream leaves out.

        The latter failed in an earlier run. Samples that failed with their micro-batch are tried
        alone in the second stream. Samples that failed alone are left out only if the job continues
        without samples that fail; they are then not tried again.
        """
        failed = SampleSet(self._writer.count)
        failed.add(self._quarantine.failed_together)
        failed.add(self._quarantine if self._lenient else ())
        return list(self._writer.done.ranges()), list(failed.ranges())

    def write_all(
        self, results: Iterator[MicroBatch], graph: Graph, tracer: Tracer
    ) -> Iterator[MicroBatch]:
        """Write all results to the output, and yield each micro-batch afterwards.

        A micro-batch that failed is also yielded; its samples are recorded as failed.

        Args:
            results: micro-batches of the model's outputs, on the host.
            graph: the model.
            tracer: records the times of writing.

        Raises:
            InputError: a result cannot be written.
            StageError: a function of the user's failed; the cause is chained to it.
            OSError: the file system refuses.
        """
        for microbatch in results:
            with tracer.span("sink", microbatch.index):
                self._write(microbatch, graph)
            tracer.enter("other", microbatch.index)
            yield microbatch

    def settled(self) -> Ranges:
        """Return the samples that need not be tried again.

        They are written or, if the job continues without samples that fail, failed alone.
        """
        writer = self._writer
        settled = SampleSet(writer.count, writer.done.ranges())
        settled.add(self._quarantine if self._lenient else ())
        return list(settled.ranges())

    def finish(self) -> int:
        """Complete the output, or leave it unfinished for --resume.

        It is completed if every sample without results failed alone. These samples get placeholder
        rows, and their errors are written to a file.

        Returns:
            The number of samples that have rows, including placeholder rows.

        Raises:
            InputError: all samples failed alone, or another run replaced the partial file.
            OSError: the file system refuses.
        """
        writer = self._writer
        failed = [sample for sample in self._quarantine if sample not in writer.done]
        if len(failed) == writer.done.missing:
            if failed:
                self._write_blank(failed)
            with named_os_errors(self._path):
                self._quarantine.write()
        else:
            writer.suspend()
        self._close()
        return len(writer.done)

    @property
    def failed(self) -> int:
        """Number of samples that failed alone."""
        return len(self._quarantine)

    def confusion(self) -> Confusion | None:
        """Return the confusion matrix; None without labels."""
        return self._tally.confusion() if self._tally else None

    def _write(self, microbatch: MicroBatch, graph: Graph) -> None:
        samples = samples_of(microbatch)
        if microbatch.error is not None:
            self._fail(samples, microbatch.error)
            return
        try:
            self._write_results(samples, microbatch, graph)
        except (InputError, StageError) as error:
            if not (self._lenient and depends_on_samples(error)):
                raise
            self._fail(samples, Fault.of(SINK, error))
            return
        self._quarantine.discard(samples.tolist())

    def _write_results(self, samples: torch.Tensor, microbatch: MicroBatch, graph: Graph) -> None:
        output = graph.unflatten_outputs(microbatch.values)
        columns = microbatch.columns

        def alone(row: int) -> object:
            return self._answer(*select_row((output, columns), row, len(samples)))

        def describe(error: Exception) -> str:
            return describe_failing(samples.tolist(), error, alone)

        with stage_errors(self._answer_name, describe):
            rows = self._answer(output, columns)
        if self._tally is None:
            self._writer.write(samples, rows)
            return
        # Added to the tally after the rows are written, since writing them may fail.
        counted = Tally(()).add(class_logits(output), columns["label"])
        self._writer.write(samples, rows, {"counted": counted})
        self._tally.add_counts(counted)

    def _fail(self, samples: torch.Tensor, fault: Fault) -> None:
        self._writer.add_note(self._quarantine.add(samples.tolist(), fault))

    def _restore_record(self, samples: list[int], note: dict[str, Any] | None) -> None:
        """Restore the failed samples and the tally from a record of an earlier run."""
        self._quarantine.discard(samples)
        if note is None:
            return
        if self._tally is not None and "counted" in note:
            self._tally.add_counts(note["counted"])
        self._quarantine.restore(note)

    def _write_blank(self, failed: list[int]) -> None:
        """Write placeholder rows for the samples that failed alone; raise InputError if all did."""
        if not len(self._writer.done):
            raise InputError(
                f"all {len(failed)} samples failed, {self._quarantine.first}; expected at least "
                f"one result. Nothing is written to {self._path}"
            )
        self._writer.write_blank(torch.tensor(failed), self._quarantine.to_note())
