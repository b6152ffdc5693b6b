"""The policy of a file job for a micro-batch on which a stage fails."""

from __future__ import annotations

from pipepar.engine.loop import Compute, FailurePolicy
from pipepar.jobs.failing_sample import depends_on_samples, describe_failing, select_row
from pipepar.microbatch import MicroBatch, Value


def failure_policy(lenient: bool) -> FailurePolicy:
    """Return the policy of a job; its error messages name samples.

    Args:
        lenient: whether to skip a micro-batch that fails; the job tries its samples alone later.
            Errors that do not depend on the samples end the job anyway.
    """
    return FailurePolicy(depends_on_samples if lenient else _never, _failing_samples)


def _never(error: Exception) -> bool:
    return False


def _failing_samples(
    microbatch: MicroBatch, values: tuple[Value, ...], compute: Compute, error: Exception
) -> str:
    """Return a comma and a phrase for the sample that fails alone, or for all samples.

    Empty if the micro-batch has no samples, or if the error does not depend on them.
    """
    if microbatch.samples is None or not depends_on_samples(error):
        return ""
    samples = microbatch.samples.tolist()
    found = describe_failing(
        samples, error, lambda row: compute(select_row(values, row, len(samples)))
    )
    return f", {found}"
