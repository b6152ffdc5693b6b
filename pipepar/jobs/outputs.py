"""From what leaves the last stage to the user's output file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeAlias

import torch

from pipepar.data.failing_sample import blame, is_of_samples, part
from pipepar.data.sample_set import SampleSet
from pipepar.data.writers.journal import Fields
from pipepar.data.writers.open_output import check_output, open_output, target_of
from pipepar.data.writers.partial import Partial, naming
from pipepar.data.writers.row_writer import Writer
from pipepar.data.writers.unfinished import Resumable, Unfinished, find_unfinished, is_unfinished
from pipepar.engine.assembly import Assembly
from pipepar.errors import InputError, PipeparError, StageError
from pipepar.jobs.options import Job
from pipepar.jobs.quarantine import Quarantine
from pipepar.microbatch import SINK, Fault, MicroBatch, samples_of
from pipepar.model.source.import_path import import_path
from pipepar.report.confusion import Confusion, Tally
from pipepar.tasks.answers import Answer, answered_by, as_tensors
from pipepar.tasks.classes import class_logits
from pipepar.tasks.model_folder import classes_of
from pipepar.trace import Tracer

Runs: TypeAlias = list[tuple[int, int]]


class Sink:
    """``with Sink(job) as sink:`` writes what leaves the last stage, and counts how often it was
    right. Local.

    Attributes:
        left: what the job is known by that the output is left of; None if there is nothing left, or
            it is not to be resumed.
        overwrites: whether something is left that could have been resumed.
        replaces: whether there is a finished output, of this job or another one.
    """

    def __init__(self, job: Job) -> None:
        """Get ready; nothing is written yet.

        Args:
            job: its output, task, postprocess and labels count.

        Raises:
            InputError: the output cannot be written, or what the task needs is missing.
        """
        check_output(job.output)
        self._output = job.output
        self._path = target_of(job.output)
        self._what = f"--postprocess {job.postprocess}" if job.postprocess else job.task_name
        self._answer = _open_answer(job, self._what)
        self._tally = Tally(classes_of(job.folder).names) if job.labels is not None else None
        self._quarantine = Quarantine(job.output)
        self._lenient = job.lenient
        self.replaces = self._path.exists()
        self.overwrites = not job.resume and is_unfinished(self._path)
        self.left: Fields | None = None
        self._resume = job.resume
        self._unfinished: Unfinished | None = None
        self._writer: Writer | None = None

    def __enter__(self) -> Sink:
        """Keep other runs from the output, and see what is left of it.

        Raises:
            InputError: another run writes to it, or it cannot be resumed.
            OSError: the file system refuses.
        """
        with ExitStack() as stack, naming(self._path):
            self._partial = Partial(self._path)
            stack.callback(self._partial.keep)
            if self._resume:
                self._unfinished = find_unfinished(self._partial)
                self.left = self._unfinished.header if self._unfinished else None
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the output; what can be resumed stays."""
        self._stack.__exit__(kind, error, trace)

    def open(self, count: int, header: Fields, progress: Callable[[], None]) -> tuple[Runs, Runs]:
        """Open the output.

        Args:
            count: number of samples.
            header: what the job is known by.
            progress: is called while what is left is looked at, which may take long.

        Returns:
            The samples that an earlier run has written, and those that are to be tried alone, or
            were, as half-open ranges.

        Raises:
            OSError: the file system refuses.
        """
        left = self._unfinished and replace(self._unfinished, progress=progress)
        resumable = Resumable(self._partial, header, left, self._taken)
        self._writer = self._stack.enter_context(open_output(self._output, count, resumable))
        apart = SampleSet(count)
        apart.add(self._quarantine.together)
        apart.add(self._quarantine if self._lenient else ())
        return list(self._writer.done.runs()), list(apart.runs())

    def take(
        self, results: Iterator[MicroBatch], assembly: Assembly, tracer: Tracer
    ) -> Iterator[MicroBatch]:
        """Write all results to the output, and pass them on.

        Args:
            results: micro-batches of the model's outputs, on the host.
            assembly: the last stage.
            tracer: this stage's times.

        Raises:
            InputError: what was returned cannot be written.
            StageError: a function of the user's failed; the cause is chained to it.
        """
        for microbatch in results:
            with tracer.span("sink", microbatch.index):
                self._write(microbatch, assembly)
            tracer.enter("other", microbatch.index)
            yield microbatch

    def settled(self) -> Runs:
        """The samples that need not be tried again, written or not, as half-open ranges."""
        writer = self._opened()
        settled = SampleSet(writer.count, writer.done.runs())
        settled.add(self._quarantine if self._lenient else ())
        return list(settled.runs())

    def finish(self) -> int:
        """Put the output under its name, or leave it to be resumed if samples are missing.

        Returns:
            The number of samples that are written.

        Raises:
            InputError: samples failed, and not one has a result.
            OSError: the file system refuses.
        """
        writer = self._opened()
        failed = [sample for sample in self._quarantine if sample not in writer.done]
        if len(failed) == writer.done.missing:
            if failed:
                self._leave_out(writer, failed)
            with naming(self._path):
                self._quarantine.write()
        else:
            writer.suspend()
        self._stack.close()
        return len(writer.done)

    @property
    def failed(self) -> int:
        """Number of samples that the output has no results of."""
        return len(self._quarantine)

    def confusion(self) -> Confusion | None:
        """What was taken for what; None without labels."""
        return self._tally.confusion() if self._tally else None

    def _write(self, microbatch: MicroBatch, assembly: Assembly) -> None:
        samples = samples_of(microbatch)
        if microbatch.error is not None:
            self._fail(samples, microbatch.error)
            return
        try:
            self._take(samples, microbatch, assembly)
        except (InputError, StageError) as error:
            if not (self._lenient and is_of_samples(error)):
                raise
            self._fail(samples, Fault.of(SINK, error))
            return
        self._quarantine.discard(samples.tolist())

    def _take(self, samples: torch.Tensor, microbatch: MicroBatch, assembly: Assembly) -> None:
        output = assembly.graph.unflatten_outputs(microbatch.values)
        extras = microbatch.columns

        def again(rows: slice) -> object:
            return self._answer(*part((output, extras), rows, len(samples)))

        with blame(self._what, samples, again):
            rows = self._answer(output, extras)
        if self._tally is None:
            self._opened().write(samples, rows)
            return
        # Counted once the rows are written: they may not fit the output.
        counted = Tally(()).add(class_logits(output), extras["label"])
        self._opened().write(samples, rows, {"counted": counted})
        self._tally.restore(counted)

    def _fail(self, samples: torch.Tensor, fault: Fault) -> None:
        self._opened().note(self._quarantine.add(samples.tolist(), fault))

    def _taken(self, samples: list[int], note: dict[str, Any] | None) -> None:
        """Take over what an earlier run has noted of a micro-batch."""
        self._quarantine.discard(samples)
        if note is None:
            return
        if self._tally is not None and "counted" in note:
            self._tally.restore(note["counted"])
        self._quarantine.restore(note)

    def _leave_out(self, writer: Writer, failed: list[int]) -> None:
        """Give the samples without results rows that say nothing."""
        if not len(writer.done):
            raise InputError(
                f"all {len(failed)} samples failed, {self._quarantine.first}; expected one at "
                f"least that does not. Nothing is written to {self._path}"
            )
        writer.leave_blank(torch.tensor(failed), self._quarantine.to_note())

    def _opened(self) -> Writer:
        if self._writer is None:
            raise PipeparError(f"output {self._path} is not open; open it before writing")
        return self._writer


def _open_answer(job: Job, what: str) -> Answer:
    if job.postprocess is not None:
        function = import_path(job.postprocess, "a function that makes rows of the output")
        return answered_by(function, what)
    if not job.writes_answers:
        return as_tensors
    answers = job.resolved_task.answers
    return as_tensors if answers is None else answers(job.folder)
