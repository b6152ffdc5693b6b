"""What a user says of a plan, and the defaults where nothing is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipepar.plan.plan import Plan

DEPTH: Final = 2
"""Enough that a stage goes on while its neighbour takes longer than usual once."""

MICRO_BATCH: Final = 32
"""Where nothing was measured: large enough for most devices."""

CALL_MICRO_BATCH: Final = 8
"""The same for a script's calls, which have fewer rows than a file."""

_LARGEST: Final = 256


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the user says of a plan."""

    samples: int | None = None
    """How many there are to compute; None if unknown."""
    micro_batch: int | None = None
    """How many of them travel together, at least 1; None to choose."""
    depth: int | None = None
    """Micro-batches that may wait on each end of a channel, at least 1; None to choose."""
    free_order: bool = False
    """Whether any device may take any stage; links must then depend on kinds of devices alone."""
    fewer: bool = False
    """Whether devices may be left out."""
    reorder: bool = False
    """Whether a plan by measured times may give stages to ranks of several kinds in any order."""
    fresh: bool = False
    """Whether to measure again what earlier jobs have kept."""
    given: Plan | None = None
    """A plan to use instead of making one, on rank 0; what is named above overrides it."""
    default: int = MICRO_BATCH
    """The micro-batch where none is named and none is measured."""

    @classmethod
    def for_calls(cls, rows: int, micro_batch: int | None, depth: int | None) -> PlanRequest:
        """What a script says that calls with batches like its example.

        Args:
            rows: of the example.
            micro_batch: see `PlanRequest.micro_batch`.
            depth: see `PlanRequest.depth`.
        """
        default = CALL_MICRO_BATCH
        if rows <= 1:  # a batch of one gives no size
            micro_batch = micro_batch or default
        # A call may have more rows than the example, and so fill what was asked for.
        samples = rows if rows >= (micro_batch or 1) else None
        return cls(samples, micro_batch, depth, default=default)

    def sizes(self, fixed: int | None) -> list[int]:
        """The micro-batches to choose from, ascending.

        Args:
            fixed: the only one that the model takes; None for most models.
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
        """Samples to capture the model with; most models then take any number."""
        return self.micro_batch or (self.given and self.given.micro_batch) or self.default

    @property
    def counted_size(self) -> int:
        """The micro-batch where work is counted, which says nothing in favour of any size."""
        return self.micro_batch or min(self.default, self.samples or self.default)

    def completed(self, plan: Plan, fixed: int | None = None) -> Plan:
        """A plan with a micro-batch and a depth: the user's, else its own, else the defaults.


        Args:
            plan: the plan.
            fixed: the only micro-batch that the model takes; None for most models.
        """
        micro_batch = self.micro_batch or plan.micro_batch or fixed or self.default
        return replace(plan, micro_batch=micro_batch, depth=self.depth or plan.depth or DEPTH)
