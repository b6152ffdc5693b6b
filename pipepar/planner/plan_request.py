"""The options of a plan, and their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipepar.plan.plan import Plan

DEPTH: Final = 2
"""The default depth; a stage can continue while its neighbour is one micro-batch late."""

MICRO_BATCH: Final = 32
"""The default micro-batch without measurements; large enough for most devices."""

CALL_MICRO_BATCH: Final = 8
"""The default micro-batch of calls from a script, which usually have fewer rows than a file."""

_LARGEST: Final = 256


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The options of a plan."""

    samples: int | None = None
    """Number of samples to compute; None if unknown."""
    micro_batch: int | None = None
    """Samples in a micro-batch, at least 1; None to choose."""
    depth: int | None = None
    """Micro-batches that may wait on each end of a channel, at least 1; None to choose."""
    free_order: bool = False
    """Whether any device may take any stage; links must then depend only on kinds of devices."""
    fewer: bool = False
    """Whether devices may be left out."""
    reorder: bool = False
    """Whether a measured plan may use ranks of several kinds in any order."""
    fresh: bool = False
    """Whether to measure again the times that earlier jobs have cached."""
    given: Plan | None = None
    """A plan to use instead of making one, on rank 0; micro_batch and depth override it."""
    default: int = MICRO_BATCH
    """The micro-batch if none is requested, planned or measured."""

    @classmethod
    def for_calls(cls, rows: int, micro_batch: int | None, depth: int | None) -> PlanRequest:
        """Return the options of a script, from the example of its calls.

        Args:
            rows: number of rows of the example. It limits the sizes to choose from; an example of
                at most one row fixes the micro-batch at `CALL_MICRO_BATCH`, unless requested.
            micro_batch: see `PlanRequest.micro_batch`.
            depth: see `PlanRequest.depth`.
        """
        default = CALL_MICRO_BATCH
        if rows <= 1:  # the size of a call is unknown from an example of one row
            micro_batch = micro_batch or default
        # A call may have more rows than the example, so do not limit the requested micro-batch.
        samples = rows if rows >= (micro_batch or 1) else None
        return cls(samples, micro_batch, depth, default=default)

    def sizes(self, fixed: int | None) -> list[int]:
        """Return the sizes of micro-batch to choose from, ascending.

        A requested size is the only one, but at most the number of samples. Without a request,
        the sizes are the powers of two up to 256 and the number of samples.

        Args:
            fixed: the only size that the model accepts; None for most models.
        """
        if fixed is not None:
            return [fixed]
        if self.micro_batch is not None:
            return [min(self.micro_batch, self.samples or self.micro_batch)]
        most = min(_LARGEST, self.samples or _LARGEST)
        return [1 << power for power in range(most.bit_length())]

    @property
    def depths(self) -> Sequence[int]:
        """The depths to choose from, best first; a smaller one takes less memory."""
        return (DEPTH, 1) if self.depth is None else (self.depth,)

    @property
    def example_rows(self) -> int:
        """Number of samples to capture the model with.

        It is the requested micro-batch, else that of the given plan, else the default.
        """
        return self.micro_batch or (self.given and self.given.micro_batch) or self.default

    @property
    def counted_size(self) -> int:
        """The micro-batch of a plan without measurements.

        It is the requested one; else the smaller of the default and the number of samples.
        """
        return self.micro_batch or min(self.default, self.samples or self.default)

    def completed(self, plan: Plan, fixed: int | None = None) -> Plan:
        """Return a plan with a micro-batch and a depth: requested, else its own, else the default.

        Args:
            plan: the plan.
            fixed: the only micro-batch that the model accepts, used in place of the default; None
                for most models.
        """
        micro_batch = self.micro_batch or plan.micro_batch or fixed or self.default
        return replace(plan, micro_batch=micro_batch, depth=self.depth or plan.depth or DEPTH)
