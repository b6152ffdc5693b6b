"""The whole examination: every rank's facts, every link's speed, and what there is to say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from pipepar.comm.group.timeout import deadline
from pipepar.comm.world import World
from pipepar.doctor.facts import LEVELS, Finding, Level, RankFacts
from pipepar.doctor.link_rules import judge_links
from pipepar.doctor.look_around import look_around, with_devices
from pipepar.doctor.rank_rules import judge_ranks
from pipepar.host.device_context import DeviceContext
from pipepar.host.link_speed import LinkFacts, measure_links

# Who cannot look around says so before the others give up on it.
_LOOKING: Final = 30.0
_WAITING: Final = 60.0


@dataclass(frozen=True, slots=True)
class Checkup:
    """What was found, the same on every rank."""

    ranks: Sequence[RankFacts]
    """By rank."""
    links: Sequence[LinkFacts]
    """Between every two neighbours."""
    findings: Sequence[Finding]
    """What there is to say, by subject."""

    @property
    def status(self) -> Level:
        """The worst finding's level."""
        return max((finding.level for finding in self.findings), key=LEVELS.index)

    def to_json(self) -> str:
        """One document.

        ``{"status": LEVEL, "ranks": [...], "links": [...], "findings": [...]}``; the entries have
        the fields of `RankFacts`, `LinkFacts` and `Finding`, in bytes, seconds and bytes a second,
        and a LEVEL is "ok", "warning" or "problem".
        """
        return json.dumps({"status": self.status, **asdict(self)}, indent=2)


def examine(world: World) -> Checkup:
    """Look at every rank, measure every link, and judge. *Collective.*

    Raises:
        PeerError: another rank could not look around; that one raises its own problem.
    """
    wait = (
        f"rank {world.rank} on {world.host} waits for other ranks for {_WAITING:.0f} s; see that "
        "all of them are alive, and what those that are say"
    )
    with deadline(world.abort, _WAITING, wait):
        facts = world.together(lambda: _look_around(world))
        gathered = [RankFacts.from_json(text) for text in world.all_gather(facts.to_json())]
    ranks = with_devices(gathered)
    links = measure_links(world, DeviceContext.on_hosts(world))
    return Checkup(ranks, links, [*judge_ranks(ranks), *judge_links(links, world.hosts)])


def _look_around(world: World) -> RankFacts:
    stuck = (
        f"rank {world.rank} on {world.host} cannot look at its host within {_LOOKING:.0f} s; see "
        "that its file systems (/dev/shm, TMPDIR, the working directory) and devices answer"
    )
    with deadline(world.abort, _LOOKING, stuck):
        return look_around(world)
