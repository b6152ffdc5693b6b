"""What is right and wrong about the links between neighbours, and about their clocks."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from pipepar.doctor.facts import Finding
from pipepar.format import readable_rate, readable_seconds
from pipepar.host.link_speed import LinkFacts

# A link is far slower than the others of its kind by this factor. Below the latency given here,
# what the two processes do themselves varies more than that.
_FAR: Final = 4.0
_LATENCY_FLOOR: Final = 200e-6
# Any cluster's network does better: 1 Gbit/s Ethernet moves 0.12 GB/s, its faster kin 1 and more.
_LEAST_BANDWIDTH: Final = 0.2e9
# Seconds by which clocks may differ; a micro-batch's span on a timeline is rarely shorter.
_LARGEST_SKEW: Final = 1e-3

_WITHIN_REMEDY: Final = "see that each rank has cores of its own, and no other work runs there"
_BETWEEN_REMEDY: Final = (
    "see that MPI uses the fast network (ompi_info, ucx_info -d) and name it where it does not "
    "(--mca btl_tcp_if_include NAME, UCX_NET_DEVICES); that no other work runs on the hosts"
)


def judge_links(links: Sequence[LinkFacts], hosts: Sequence[str]) -> list[Finding]:
    """All that there is to say about the links.

    Args:
        links: between every two neighbours, in order; none where there is one rank.
        hosts: of each rank.
    """
    if not links:
        return []
    return [*_speed(links, hosts), *_clocks(links, hosts)]


def _speed(links: Sequence[LinkFacts], hosts: Sequence[str]) -> Iterator[Finding]:
    """One finding for the slow links within hosts, one for those between hosts."""
    wrong = False
    for inside, remedy in ((True, _WITHIN_REMEDY), (False, _BETWEEN_REMEDY)):
        kind = [link for link in links if _inside(link, hosts) == inside]
        slow = [(link, why) for link in kind if (why := _slow(link, kind))]
        if slow:
            wrong = True
            found = [f"{_between(link, hosts)}: {speed}" for link, (speed, _) in slow]
            expected = dict.fromkeys(hoped for _, (_, hoped) in slow)
            yield Finding("links", "warning", "; ".join(found), "; ".join(expected), remedy)
    if not wrong:
        latency = readable_seconds(max(link.latency for link in links))
        bandwidth = readable_rate(min(link.bandwidth for link in links))
        yield Finding("links", "ok", f"{latency}, {bandwidth} or better")


def _slow(link: LinkFacts, kind: Sequence[LinkFacts]) -> tuple[str, str] | None:
    """What is found and what was expected of a slow link, one of a kind; else None."""
    others = [other for other in kind if other is not link]
    if link.bandwidth < _LEAST_BANDWIDTH:
        return readable_rate(link.bandwidth), f"{readable_rate(_LEAST_BANDWIDTH)} or more"
    if not others:
        return None
    bandwidth = statistics.median(other.bandwidth for other in others)
    if link.bandwidth * _FAR < bandwidth:
        return readable_rate(link.bandwidth), f"about {readable_rate(bandwidth)}, as the others"
    latency = statistics.median(other.latency for other in others)
    if link.latency > max(_FAR * latency, _LATENCY_FLOOR):
        return readable_seconds(link.latency), f"about {readable_seconds(latency)}, as the others"
    return None


def _clocks(links: Sequence[LinkFacts], hosts: Sequence[str]) -> Iterator[Finding]:
    """Each host's clock against rank 0's; ranks of a host have one clock, so that adds nothing."""
    between = [(0.0, 0.0) if _inside(k, hosts) else (k.skew, k.uncertainty) for k in links]
    skews = itertools.accumulate(skew for skew, _ in between)
    doubts = itertools.accumulate(doubt for _, doubt in between)
    apart: dict[str, float] = {}
    largest = 0.0
    for link, skew, doubt in zip(links, skews, doubts, strict=True):
        largest = max(largest, abs(skew))
        if abs(skew) - doubt > _LARGEST_SKEW:
            apart.setdefault(hosts[link.second], skew)
    for host, skew in apart.items():
        direction = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "clocks",
            "warning",
            f"{host} is {readable_seconds(abs(skew))} {direction} {hosts[0]}",
            f"{readable_seconds(_LARGEST_SKEW)} at most",
            "let chrony or NTP set the hosts' clocks; until then do not compare times in traces "
            "and logs of different hosts",
        )
    if not apart:
        one = len(set(hosts)) == 1
        found = "one host, one clock" if one else f"within {readable_seconds(largest)} of rank 0's"
        yield Finding("clocks", "ok", found)


def _between(link: LinkFacts, hosts: Sequence[str]) -> str:
    where = dict.fromkeys((hosts[link.first], hosts[link.second]))
    return f"ranks {link.first} and {link.second} ({', '.join(where)})"


def _inside(link: LinkFacts, hosts: Sequence[str]) -> bool:
    return hosts[link.first] == hosts[link.second]
