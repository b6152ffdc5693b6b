"""The source, the sink and the rank of each stage; the same on every rank.

Other modules take them from here, and do not assume that rank 0 is the source or has stage 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipepar.errors import PlanError


@dataclass(frozen=True, slots=True)
class Ends:
    """The ranks where micro-batches enter and leave a job; they do not depend on the plan."""

    source: int
    """The rank that reads the input."""
    sink: int
    """The rank that collects the results."""

    @classmethod
    def of_files(cls, ranks: int) -> Ends:
        """Return the ends of a job on files: the first rank reads, the last rank writes."""
        return cls(0, ranks - 1)

    @classmethod
    def of_script(cls) -> Ends:
        """Return the ends of a script: the first rank calls the model and receives the results."""
        return cls(0, 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """The ranks that run a plan."""

    ends: Ends
    """The source and the sink."""
    ranks: tuple[int, ...]
    """The rank of each stage, all different; a rank may have no stage."""

    @classmethod
    def of(cls, ends: Ends, order: Sequence[int] | None, stages: int, ranks: int) -> Placement:
        """Return the placement of a plan.

        Args:
            ends: the source and the sink.
            order: the rank of each stage; None for stage k on rank k.
            stages: number of stages.
            ranks: number of ranks in the job.

        Raises:
            PlanError: a stage is on a rank that the job does not have.
        """
        placed = tuple(range(stages)) if order is None else tuple(order)
        absent = [rank for rank in placed if rank >= ranks]
        if absent:
            raise PlanError(
                f"found a stage on rank {absent[0]}, expected ranks 0 to {ranks - 1}; start "
                f"{max(placed) + 1} ranks for this plan, or plan again"
            )
        return cls(ends, placed)

    def stage_of(self, rank: int) -> int | None:
        """Return the stage of a rank, or None if it has no stage."""
        return self.ranks.index(rank) if rank in self.ranks else None

    @property
    def enters_elsewhere(self) -> bool:
        """Whether the source and the first stage are on different ranks."""
        return self.ranks[0] != self.ends.source

    @property
    def leaves_elsewhere(self) -> bool:
        """Whether the sink and the last stage are on different ranks."""
        return self.ranks[-1] != self.ends.sink
