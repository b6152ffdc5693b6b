"""Locks the output of a job before anything is loaded or measured."""

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
    """An output that is locked by this run; made by `claim_output`."""

    output: Path
    """The path of the output as the user gave it."""
    path: Path
    """The same path with a symbolic link resolved."""
    answer: Answer
    """Makes the rows from the model's output."""
    answer_name: str
    """The name of `answer` for messages."""
    classes: tuple[str, ...] | None
    """Names of the model's classes, empty if they have none; None without --labels."""
    lenient: bool
    """Whether the job continues without samples that fail."""
    replaces: bool
    """Whether there is a file under the final name, of this job or another one."""
    overwrites: bool
    """Whether there is an unfinished output that is overwritten instead of resumed."""
    partial: Partial
    """The partial file, locked by this run."""
    unfinished: Unfinished | None
    """The unfinished output to resume; None to start from the beginning."""
    held: ExitStack
    """Closes the partial file, and the writer if the sink opened it."""


@contextmanager
def claim_output(job: Job) -> Iterator[OutputClaim]:
    """Lock the output of a job, and find an unfinished output of an earlier run.

    An empty partial file is created if there is none. When the context is left, the partial file
    is removed if it is empty; otherwise it remains for a later run.

    Args:
        job: the options of the job.

    Yields:
        The locked output.

    Raises:
        InputError: the output cannot be written or resumed, another run writes to it, a file of the
            task is missing, or the --postprocess function cannot be imported.
        OSError: the file system refuses an operation.
    """
    check_output_path(job.output)
    path = target_of(job.output)
    answer_name = f"--postprocess {job.postprocess}" if job.postprocess else job.task_name
    answer = _open_answer(job, answer_name)
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
            answer_name=answer_name,
            classes=None if classes is None else tuple(classes),
            lenient=job.lenient,
            replaces=replaces,
            overwrites=overwrites,
            partial=partial,
            unfinished=unfinished,
            held=held,
        )


def _open_answer(job: Job, name: str) -> Answer:
    """Return the --postprocess function, else the answer of the task, else `as_tensors`.

    `as_tensors` also applies if the format of the output supports only tensors.
    """
    if job.postprocess is not None:
        function = import_path(job.postprocess, UserFunction.POSTPROCESS)
        return answered_by(function, name)
    if not job.writes_answers:
        return as_tensors
    answers = job.resolved_task.answers
    return as_tensors if answers is None else answers(job.folder)
