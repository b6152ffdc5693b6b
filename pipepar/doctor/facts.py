"""What `pipepar doctor` knows of ranks and links, and what it says of them: numbers and strings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]
"""How bad a finding is: fine, slower than need be, or sure to go wrong."""

LEVELS: Final[tuple[Level, ...]] = ("ok", "warning", "problem")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Space:
    """Free space in one of the places where files are made."""

    use: str
    """Its use: shared memory, temporary files, working directory."""
    path: str
    """The directory."""
    free: int
    """Bytes that this user may still write; 0 where it may not write at all."""


@dataclass(frozen=True, slots=True)
class RankFacts:
    """One rank and the host it runs on."""

    rank: int
    """0-based."""
    host: str
    """Its machine."""
    cores: Sequence[str]
    """The cores it is bound to, each by the list of its hardware threads, such as 0,64."""
    allotted: int
    """Cores of the host that the job may use."""
    threads: int
    """Threads it would compute with."""
    cpu: str
    """Model of its processor."""
    memory: int
    """Bytes of the host's memory."""
    devices: Sequence[str]
    """CUDA devices that torch sees, each by its name and memory."""
    mpi: str
    """The MPI library; empty where one process needs none."""
    thread_level: str
    """What the MPI library supports, such as MPI_THREAD_MULTIPLE; empty without one."""
    versions: Mapping[str, str]
    """Python, the packages that count, and NCCL where torch has it; empty if not installed."""
    environment: Mapping[str, str]
    """Environment variables that change how it computes, those that are set."""
    spaces: Sequence[Space]
    """Where files are made."""
    gpus: Sequence[str] = ()
    """The UUID of each of `devices`."""
    local_rank: int | None = None
    """Its number on its host by its launcher; None if that gives none."""
    device: str = ""
    """What it would compute on if nothing else is asked for: cpu, or cuda:1 and what that is."""
    gpu: str = ""
    """The UUID of that; empty for the CPU."""

    def to_json(self) -> str:
        """As text for another rank; undone by `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankFacts:
        """Undo `to_json`."""
        fields = json.loads(text)
        return cls(**fields | {"spaces": [Space(**space) for space in fields["spaces"]]})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, and what there is to say about it."""

    check: str
    """What was looked at, in a word or two."""
    level: Level
    """How bad it is."""
    found: str
    """What is so."""
    expected: str = ""
    """What should be so; empty where all is well."""
    remedy: str = ""
    """What to do; may be given where all is well, as a hint."""


def by_host(ranks: Sequence[RankFacts]) -> dict[str, list[RankFacts]]:
    """The ranks of each host, in their order."""
    hosts: dict[str, list[RankFacts]] = {}
    for facts in ranks:
        hosts.setdefault(facts.host, []).append(facts)
    return hosts
