"""What happens before what: vector clocks, and accesses to memory that nothing orders.

Every CUDA stream and every thread of a host is an actor that counts what it did. A clock says how
far of each actor is known to be done. One access comes before another only if the other's clock
includes it, in whatever order the two happened to be executed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

Clock: TypeAlias = dict[int, int]
"""How far of each actor is done; never changed once made."""


def joined(*clocks: Clock) -> Clock:
    """What is done by any of these clocks."""
    everything: Clock = {}
    for clock in clocks:
        for actor, tick in clock.items():
            everything[actor] = max(tick, everything.get(actor, 0))
    return everything


@dataclass(frozen=True, slots=True)
class Access:
    """One operation's use of a range of a block."""

    actor: int
    tick: int
    begin: int
    end: int
    writes: bool
    who: str

    def comes_before(self, clock: Clock) -> bool:
        return self.tick <= clock.get(self.actor, 0)

    def meets(self, other: Access) -> bool:
        overlap = self.begin < other.end and other.begin < self.end
        return overlap and (self.writes or other.writes)

    def stands_for(self, other: Access) -> bool:
        """Whether whatever meets the other and comes after it is held up by this one as well."""
        covers = self.begin <= other.begin and other.end <= self.end
        return covers and (self.writes or not other.writes)

    def __str__(self) -> str:
        return f"{self.who} {'writes' if self.writes else 'reads'} [{self.begin}, {self.end})"


@dataclass(eq=False, slots=True)
class Block:
    """Memory that is given out again and again, and stays the same memory for the checker."""

    name: str
    root: torch.Tensor
    """uint8 [capacity]; keeps the bytes alive for operations that come later than their tensor."""
    given_out: bool = True
    accesses: list[Access] = field(default_factory=list)

    def access(self, access: Access, clock: Clock) -> Iterator[str]:
        """Note an access that comes after all that the clock includes; yields the races."""
        kept = []
        for earlier in self.accesses:
            ordered = earlier.comes_before(clock)
            if not ordered and earlier.meets(access):
                yield f"race on {self.name}: {earlier}; {access}; nothing orders them"
            if not (ordered and access.stands_for(earlier)):
                kept.append(earlier)
        self.accesses = [*kept, access]


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes of a block; what operations hold on to, since tensors are let go of."""

    block: Block
    begin: int
    end: int

    @property
    def bytes(self) -> torch.Tensor:
        return self.block.root[self.begin : self.end]
