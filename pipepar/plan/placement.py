"""Which rank has which role: plain numbers, the same on every rank.

No other code derives a role from a rank's number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipepar.errors import PlanError


@dataclass(frozen=True, slots=True)
class Ends:
    """The ranks at which micro-batches enter and leave a job; known before it is planned."""

    source: int
    """Rank that reads the input."""
    sink: int
    """Rank that collects the results."""

    @classmethod
    def of_files(cls, ranks: int) -> Ends:
        """The first rank reads the input file, the last one writes the output file."""
        return cls(0, ranks - 1)

    @classmethod
    def of_script(cls) -> Ends:
        """The first rank's script calls the model and gets the results."""
        return cls(0, 0)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a plan runs."""

    ends: Ends
    """Where micro-batches enter and leave."""
    ranks: tuple[int, ...]
    """For each stage the rank that runs it, all different; a rank may be without a stage."""

    @classmethod
    def of(cls, ends: Ends, order: Sequence[int] | None, stages: int, ranks: int) -> Placement:
        """The placement of a plan.

        Args:
            ends: where micro-batches enter and leave.
            order: the rank of each stage; None for stage k on rank k.
            stages: number of stages.
            ranks: number of ranks in the job.

        Raises:
            PlanError: the order names a rank that the job does not have.
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
        """The stage that a rank runs; None for a rank without one."""
        return self.ranks.index(rank) if rank in self.ranks else None

    @property
    def enters_elsewhere(self) -> bool:
        """Whether the source is another rank than that of the first stage."""
        return self.ranks[0] != self.ends.source

    @property
    def leaves_elsewhere(self) -> bool:
        """Whether the sink is another rank than that of the last stage."""
        return self.ranks[-1] != self.ends.sink
