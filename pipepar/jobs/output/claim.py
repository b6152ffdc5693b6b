"""A job's output, kept from other runs before anything is loaded or measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipepar.data.writers.open_output import check_output_path, target_of
from pipepar.data.writers.partial import Partial, named_os_errors
from pipepar.data.writers.unfinished import Unfinished, find_unfinished, is_unfinished
from pipepar.jobs.options import Job
from pipepar.model.source.import_path import UserFunction, import_path
from pipepar.tasks.answers import Answer, answered_by, as_tensors
from pipepar.tasks.model_folder import classes_of


@dataclass(frozen=True, slots=True)
class OutputClaim:
    """An output that no other run writes to; made by `claim_output`."""

    output: Path
    """The output as the user names it."""
    path: Path
    """The file that this stands for."""
    answer: Answer
    """What makes rows of the model's output."""
    answered_by: str
    """What that is, for messages."""
    classes: tuple[str, ...] | None
    """Names of the classes of which the right ones are known; None without labels."""
    lenient: bool
    """Whether the job goes on without samples that fail."""
    replaces: bool
    """Whether there is a finished output, of this job or another one."""
    overwrites: bool
    """Whether something is left that could have been resumed, and is not to be."""
    partial: Partial
    """The hidden file beside it, held by this run."""
    unfinished: Unfinished | None
    """What an earlier run has left to go on with; None if nothing, or it is not to be resumed."""
    held: ExitStack
    """What is closed with the claim, at the latest."""


@contextmanager
def claim_output(job: Job) -> Iterator[OutputClaim]:
    """Keep other runs from a job's output, and see what is left of it.

    Nothing is written yet. What can be resumed stays when the context is left.

    Args:
        job: its output, task, postprocess and labels count.

    Raises:
        InputError: the output cannot be written, another run writes to it, it cannot be resumed, or
            what the task needs is missing.
        OSError: the file system refuses.
    """
    check_output_path(job.output)
    path = target_of(job.output)
    answered = f"--postprocess {job.postprocess}" if job.postprocess else job.task_name
    answer = _open_answer(job, answered)
    classes = classes_of(job.folder).names if job.labels is not None else None
    replaces, overwrites = path.exists(), not job.resume and is_unfinished(path)
    with ExitStack() as held:
        with named_os_errors(path):
            partial = Partial(path)
            held.callback(partial.keep)
            unfinished = find_unfinished(partial) if job.resume else None
        yield OutputClaim(
            output=job.output,
            path=path,
            answer=answer,
            answered_by=answered,
            classes=None if classes is None else tuple(classes),
            lenient=job.lenient,
            replaces=replaces,
            overwrites=overwrites,
            partial=partial,
            unfinished=unfinished,
            held=held,
        )


def _open_answer(job: Job, answered: str) -> Answer:
    if job.postprocess is not None:
        function = import_path(job.postprocess, UserFunction.POSTPROCESS)
        return answered_by(function, answered)
    if not job.writes_answers:
        return as_tensors
    answers = job.resolved_task.answers
    return as_tensors if answers is None else answers(job.folder)
