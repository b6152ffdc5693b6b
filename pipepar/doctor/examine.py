"""The whole examination: the facts of all ranks, the speed of all links, and the findings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from pipepar.comm.group.timeout import deadline
from pipepar.comm.world import World
from pipepar.doctor.facts import LEVELS, Finding, Level, RankFacts
from pipepar.doctor.inspect_rank import inspect_rank, with_devices
from pipepar.doctor.link_rules import judge_links
from pipepar.doctor.rank_rules import judge_ranks
from pipepar.host.device_context import DeviceContext
from pipepar.host.link_speed import LinkFacts, measure_links

# Seconds for the facts of one rank, and for those of all ranks. The first is shorter, so that the
# rank that cannot gather its facts is reported instead of the ranks that wait for it.
_FACTS_TIMEOUT: Final = 30.0
_RANKS_TIMEOUT: Final = 60.0


@dataclass(frozen=True, slots=True)
class Checkup:
    """The facts and findings about a job, the same on every rank."""

    ranks: Sequence[RankFacts]
    """The facts of each rank."""
    links: Sequence[LinkFacts]
    """The links between neighbouring ranks, from host memory to host memory; none for one rank."""
    findings: Sequence[Finding]
    """The findings, grouped by subject; at least one."""

    @property
    def status(self) -> Level:
        """The level of the worst finding."""
        return max((finding.level for finding in self.findings), key=LEVELS.index)

    def to_json(self) -> str:
        """Return one indented JSON document.

        ``{"status": LEVEL, "ranks": [...], "links": [...], "findings": [...]}``; the entries have
        the fields of `RankFacts`, `LinkFacts` and `Finding`, in bytes, seconds and bytes per
        second. A LEVEL is "ok", "warning" or "problem".
        """
        return json.dumps({"status": self.status, **asdict(self)}, indent=2)


def examine(world: World) -> Checkup:
    """Gather the facts of every rank, measure every link, and apply all rules. *Collective.*

    Sets the number of threads of the rank, as a run does. Aborts the job if the facts of this rank,
    the facts of all ranks, or the measurement of one link take too long. Each has its own timeout.

    Raises:
        OSError: a directory that a run writes to cannot be inspected on this rank.
        RuntimeError: CUDA cannot be initialised on this rank, although torch reports a device.
        PeerError: another rank raised an error.
    """
    late = (
        f"rank {world.rank} on {world.host} has waited for other ranks for {_RANKS_TIMEOUT:.0f} s; "
        "check that all of them are alive, and read their messages"
    )
    with deadline(world.abort, _RANKS_TIMEOUT, late):
        facts = world.together(lambda: _own_facts(world))
        gathered = [RankFacts.from_json(text) for text in world.all_gather(facts.to_json())]
    ranks = with_devices(gathered)
    links = measure_links(world, DeviceContext.on_hosts(world))
    return Checkup(ranks, links, [*judge_ranks(ranks), *judge_links(links, world.hosts)])


def _own_facts(world: World) -> RankFacts:
    """Return the result of `inspect_rank`; abort the job if it takes too long."""
    late = (
        f"rank {world.rank} on {world.host} cannot inspect its host within {_FACTS_TIMEOUT:.0f} s; "
        "check that its file systems (/dev/shm, TMPDIR, the working directory) and devices respond"
    )
    with deadline(world.abort, _FACTS_TIMEOUT, late):
        return inspect_rank(world)
