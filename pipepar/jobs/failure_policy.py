"""What becomes of a micro-batch that a stage of a file job fails on."""

from __future__ import annotations

from pipepar.data.failing_sample import failing_samples, is_of_samples, select_rows
from pipepar.engine.loop import Compute, FailurePolicy
from pipepar.microbatch import MicroBatch, Value


def failure_policy(lenient: bool) -> FailurePolicy:
    """The policy of a job.

    Args:
        lenient: whether the job goes on without samples that fail.
    """
    return FailurePolicy(is_of_samples if lenient else _never, _failed_samples)


def _never(error: Exception) -> bool:
    return False


def _failed_samples(
    microbatch: MicroBatch, values: tuple[Value, ...], compute: Compute, error: Exception
) -> str:
    """The sample that fails alone, or all samples of the micro-batch."""
    samples = microbatch.samples
    if samples is None or not is_of_samples(error):
        return ""
    count = len(samples)
    found = failing_samples(
        samples.tolist(), lambda rows: compute(select_rows(values, rows, count))
    )
    return f", {found}"
