"""How a file job handles a micro-batch on which a stage fails."""

from __future__ import annotations

from pipepar.engine.loop import Compute, FailurePolicy
from pipepar.jobs.failing_sample import depends_on_samples, describe_failing, select_row
from pipepar.microbatch import MicroBatch, Value


def failure_policy(lenient: bool) -> FailurePolicy:
    """Return the policy of a job, whose error messages name the samples that fail.

    Args:
        lenient: whether the job continues without samples that fail. Errors that do not depend on
            the samples end the job anyway.
    """
    return FailurePolicy(depends_on_samples if lenient else _never, _failing_samples)


def _never(error: Exception) -> bool:
    return False


def _failing_samples(
    microbatch: MicroBatch, values: tuple[Value, ...], compute: Compute, error: Exception
) -> str:
    """Return a phrase for the samples that fail, with a comma before it.

    It is empty without samples, or if other samples would fail too; see `depends_on_samples`.
    """
    if microbatch.samples is None or not depends_on_samples(error):
        return ""
    samples = microbatch.samples.tolist()
    found = describe_failing(
        samples, error, lambda row: compute(select_row(values, row, len(samples)))
    )
    return f", {found}"
