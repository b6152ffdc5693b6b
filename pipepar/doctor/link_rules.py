"""Rules for the links between neighbouring ranks, and for the clocks of hosts."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Final

from pipepar.doctor.facts import Finding
from pipepar.format import readable_rate, readable_seconds
from pipepar.host.link_speed import LinkFacts

# A link is slow if it is slower than the others of its kind by this factor. A latency below the
# floor is never slow, since the processes themselves vary more.
_SLOW_FACTOR: Final = 4.0
_LATENCY_FLOOR: Final = 200e-6
# Bytes per second. 1 Gbit/s Ethernet carries 0.12 GB/s; cluster networks carry 1 GB/s or more.
_LEAST_BANDWIDTH: Final = 0.2e9
# Seconds that clocks may differ; the span of a micro-batch on a timeline is rarely shorter.
_LARGEST_SKEW: Final = 1e-3

_WITHIN_REMEDY: Final = "check that each rank has cores of its own, and that the host is not shared"
_BETWEEN_REMEDY: Final = (
    "check that MPI uses the fast network (ompi_info, ucx_info -d), else name it (--mca "
    "btl_tcp_if_include NAME, UCX_NET_DEVICES); check that the hosts are not shared"
)


def judge_links(links: Sequence[LinkFacts], hosts: Sequence[str]) -> list[Finding]:
    """Return the findings about the links.

    Args:
        links: the links between neighbouring ranks, in order; none for a single rank.
        hosts: the host of each rank.
    """
    if not links:
        return []
    return [*_speed(links, hosts), *_clocks(links, hosts)]


def _speed(links: Sequence[LinkFacts], hosts: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for the slow links within hosts, and one for those between hosts."""
    wrong = False
    for inside, remedy in ((True, _WITHIN_REMEDY), (False, _BETWEEN_REMEDY)):
        kind = [link for link in links if _inside(link, hosts) == inside]
        slow = [(link, why) for link in kind if (why := _slow(link, kind))]
        if slow:
            wrong = True
            found = [f"{_between(link, hosts)}: {speed}" for link, (speed, _) in slow]
            expected = dict.fromkeys(expectation for _, (_, expectation) in slow)
            yield Finding("links", "warning", "; ".join(found), "; ".join(expected), remedy)
    if not wrong:
        latency = readable_seconds(max(link.latency for link in links))
        bandwidth = readable_rate(min(link.bandwidth for link in links))
        yield Finding("links", "ok", f"{latency}, {bandwidth} or better")


def _slow(link: LinkFacts, kind: Sequence[LinkFacts]) -> tuple[str, str] | None:
    """Return the found and the expected speed of a link if it is slow, else None.

    Args:
        link: the link to check.
        kind: all links of its kind.
    """
    others = [other for other in kind if other is not link]
    if link.bandwidth < _LEAST_BANDWIDTH:
        return readable_rate(link.bandwidth), f"{readable_rate(_LEAST_BANDWIDTH)} or more"
    if not others:
        return None
    bandwidth = statistics.median(other.bandwidth for other in others)
    if link.bandwidth * _SLOW_FACTOR < bandwidth:
        return readable_rate(link.bandwidth), f"about {readable_rate(bandwidth)}, as the others"
    latency = statistics.median(other.latency for other in others)
    if link.latency > max(_SLOW_FACTOR * latency, _LATENCY_FLOOR):
        return readable_seconds(link.latency), f"about {readable_seconds(latency)}, as the others"
    return None


def _clocks(links: Sequence[LinkFacts], hosts: Sequence[str]) -> Iterator[Finding]:
    """Yield a finding for each host whose clock differs from the clock of rank 0."""
    # Ranks of a host have the same clock, so a link within a host adds no skew.
    between = [(0.0, 0.0) if _inside(k, hosts) else (k.skew, k.uncertainty) for k in links]
    skews = itertools.accumulate(skew for skew, _ in between)
    uncertainties = itertools.accumulate(uncertainty for _, uncertainty in between)
    apart: dict[str, float] = {}
    largest = 0.0
    for link, skew, uncertainty in zip(links, skews, uncertainties, strict=True):
        largest = max(largest, abs(skew))
        if abs(skew) - uncertainty > _LARGEST_SKEW:
            apart.setdefault(hosts[link.second], skew)
    for host, skew in apart.items():
        direction = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "clocks",
            "warning",
            f"{host} is {readable_seconds(abs(skew))} {direction} {hosts[0]}",
            f"{readable_seconds(_LARGEST_SKEW)} at most",
            "synchronise the clocks of the hosts with chrony or NTP; until then do not compare "
            "times in traces and logs of different hosts",
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
