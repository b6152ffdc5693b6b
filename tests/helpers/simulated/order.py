"""Vector clocks, and the detection of unordered accesses to memory (races).

Each CUDA stream and each host thread is an actor that counts its operations. A clock has, for each
actor, the number of operations known to be done. An access precedes another one only if the clock
of the other includes it, independently of the order of their execution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

Clock: TypeAlias = dict[int, int]
"""The number of operations that are done, by actor; never modified."""


def joined(*clocks: Clock) -> Clock:
    """Return the maximum of clocks, by actor."""
    maximum: Clock = {}
    for clock in clocks:
        for actor, tick in clock.items():
            maximum[actor] = max(tick, maximum.get(actor, 0))
    return maximum


@dataclass(frozen=True, slots=True)
class Access:
    """The access of one operation to a range of a block."""

    actor: int
    tick: int
    begin: int
    end: int
    writes: bool
    label: str

    def precedes(self, clock: Clock) -> bool:
        return self.tick <= clock.get(self.actor, 0)

    def conflicts_with(self, other: Access) -> bool:
        overlap = self.begin < other.end and other.begin < self.end
        return overlap and (self.writes or other.writes)

    def replaces(self, other: Access) -> bool:
        """Return whether each access that conflicts with the other also conflicts with this."""
        covers = self.begin <= other.begin and other.end <= self.end
        return covers and (self.writes or not other.writes)

    def __str__(self) -> str:
        return f"{self.label} {'writes' if self.writes else 'reads'} [{self.begin}, {self.end})"


@dataclass(eq=False, slots=True)
class Block:
    """Memory that may be allocated several times; the checker treats it as the same memory."""

    name: str
    root: torch.Tensor
    """uint8 [capacity]; keeps the bytes alive for operations that outlive their tensor."""
    in_use: bool = True
    accesses: list[Access] = field(default_factory=list)

    def access(self, access: Access, clock: Clock) -> Iterator[str]:
        """Add an access with a clock of what precedes it; yield descriptions of its races."""
        remaining = []
        for earlier in self.accesses:
            ordered = earlier.precedes(clock)
            if not ordered and earlier.conflicts_with(access):
                yield f"race on {self.name}: {earlier}; {access}; nothing orders them"
            if not (ordered and access.replaces(earlier)):
                remaining.append(earlier)
        self.accesses = [*remaining, access]


@dataclass(frozen=True, slots=True)
class Region:
    """A range of bytes of a block. Operations refer to regions, since tensors may be freed."""

    block: Block
    begin: int
    end: int

    @property
    def bytes(self) -> torch.Tensor:
        return self.block.root[self.begin : self.end]
