"""The calls of a script on a Pipeline, and the stream that they form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from pipepar.microbatch import MicroBatch
from pipepar.trace import Tracer

T = TypeVar("T")
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the keyword inputs of one call."""


def as_call(batch: Any) -> Call:
    """Return a batch as positional and keyword arguments.

    Args:
        batch: a tuple of positional inputs, a dict of keyword inputs, or a single input.
    """
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, dict):
        return (), batch
    return (batch,), {}


def from_caller(calls: Iterator[T], tracer: Tracer) -> Iterator[T]:
    """Yield the calls, and report "caller" while the script prepares the next one.

    The heartbeat does not limit the time of that activity.
    """
    while True:
        tracer.enter("caller", 0)
        call = next(calls, None)
        tracer.enter("other", 0)
        if call is None:
            return
        yield call


def to_caller(results: Iterator[T], tracer: Tracer) -> Iterator[T]:
    """Yield the results, and report "caller" while the script uses one."""
    tracer.enter("other", 0)
    for result in results:
        tracer.enter("caller", 0)
        yield result
        tracer.enter("other", 0)


@dataclass(slots=True)
class OpenStream:
    """A stream of which the rank of the source has not received all results yet."""

    results: Iterator[MicroBatch]
    """The results from the last stage."""
    ended: bool = False
    """Whether the end of the stream has been sent to the first stage."""
    closed: bool = False
    """Whether the script takes no more results: after the last one, a break or an exception."""
