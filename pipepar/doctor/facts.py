"""The facts that `pipepar doctor` gathers, and its findings, as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

Level: TypeAlias = Literal["ok", "warning", "problem"]
"""The severity of a finding: fine; may be slow or misleading; or likely to fail or very slow."""

LEVELS: Final[tuple[Level, ...]] = ("ok", "warning", "problem")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Space:
    """The free space in a directory where files are created."""

    use: str
    """Its use: shared memory, temporary files, working directory."""
    path: str
    """The directory."""
    free: int
    """Free bytes for this user; 0 if the directory is not writable."""


@dataclass(frozen=True, slots=True)
class RankFacts:
    """The facts of one rank and its host."""

    rank: int
    """The rank, from 0."""
    host: str
    """The name of its host."""
    cores: Sequence[str]
    """The cores that it is bound to, each as the list of its hardware threads, such as 0,64."""
    allotted: int
    """Number of cores of the host that the job may use."""
    threads: int
    """Number of threads that it would compute with."""
    cpu: str
    """Model of the processor."""
    memory: int
    """Bytes of memory of the host."""
    devices: Sequence[str]
    """The visible CUDA devices, each as its name and memory."""
    mpi: str
    """The MPI library; empty for a process without a launcher, which needs none."""
    thread_level: str
    """The thread level of MPI, such as MPI_THREAD_MULTIPLE; empty without MPI."""
    versions: Mapping[str, str]
    """Versions of Python, of the main packages, and of NCCL if torch has it; empty if missing."""
    environment: Mapping[str, str]
    """The environment variables that are set and affect the computation."""
    spaces: Sequence[Space]
    """The directories where files are created."""
    gpus: Sequence[str] = ()
    """The UUID of each of `devices`."""
    local_rank: int | None = None
    """Its rank on its host, from its launcher; None if the launcher sets none."""
    device: str = ""
    """The device that it would use by default: cpu, or, for example, cuda:1 and its name."""
    gpu: str = ""
    """The UUID of that device; empty for the CPU."""

    def to_json(self) -> str:
        """Return the facts as JSON, for another rank."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RankFacts:
        """Return the facts that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**fields | {"spaces": [Space(**space) for space in fields["spaces"]]})


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """The name of the check, in one or two words."""
    level: Level
    """The severity."""
    found: str
    """What was found."""
    expected: str = ""
    """What was expected; empty if the level is ok."""
    remedy: str = ""
    """What to do; if the level is ok, an optional hint."""


def by_host(ranks: Sequence[RankFacts]) -> dict[str, list[RankFacts]]:
    """Return the facts of the ranks of each host, in the order of `ranks`."""
    hosts: dict[str, list[RankFacts]] = {}
    for facts in ranks:
        hosts.setdefault(facts.host, []).append(facts)
    return hosts
