"""The limits for links and clocks, with values on both sides of each limit."""

from dataclasses import replace

import pytest

from pipepar.doctor.facts import Finding
from pipepar.doctor.link_rules import judge_links
from pipepar.host.link_speed import LinkFacts

GOOD = LinkFacts(0, 1, latency=100e-6, bandwidth=4e9, skew=0.0, uncertainty=0.0)


def judged(hosts: str, *changes: dict[str, float]) -> list[Finding]:
    links = [
        replace(GOOD, first=rank, second=rank + 1, **change) for rank, change in enumerate(changes)
    ]
    return judge_links(links, hosts)


def levels(hosts: str, *changes: dict[str, float]) -> list[str]:
    return [finding.level for finding in judged(hosts, *changes)]


@pytest.mark.parametrize(
    ("change", "level"),
    [
        ({"bandwidth": 1.01e9}, "ok"),
        ({"bandwidth": 0.99e9}, "warning"),  # below a quarter of the others
        ({"latency": 399e-6}, "ok"),
        ({"latency": 401e-6}, "warning"),  # above four times the others
    ],
)
def test_the_limits_for_a_link_that_is_slower_than_the_others(
    change: dict[str, float], level: str
) -> None:
    assert levels("abcd", {}, change, {}) == [level, "ok"]


@pytest.mark.parametrize(("bandwidth", "level"), [(0.201e9, "ok"), (0.199e9, "warning")])
def test_the_limit_of_the_bandwidth_of_a_single_link(bandwidth: float, level: str) -> None:
    assert levels("ab", {"bandwidth": bandwidth}) == [level, "ok"]


@pytest.mark.parametrize(
    ("skew", "uncertainty", "level"),
    [
        (0.9e-3, 0.0, "ok"),
        (1.1e-3, 0.0, "warning"),
        (-1.1e-3, 0.0, "warning"),
        (3e-3, 1.9e-3, "warning"),
        (3e-3, 2.1e-3, "ok"),
    ],
)
def test_the_limit_of_the_skew_of_clocks(skew: float, uncertainty: float, level: str) -> None:
    assert levels("ab", {"skew": skew, "uncertainty": uncertainty})[-1] == level


def test_a_clock_behind_is_reported() -> None:
    assert judged("ab", {"skew": -0.5})[-1].found == "b is 500.0 ms behind a"


def test_skews_and_uncertainties_add_up_from_host_to_host() -> None:
    step = {"skew": 0.6e-3}
    assert judged("abc", step, step)[-1].found == "c is 1.2 ms ahead of a"
    uncertain = {"skew": 0.6e-3, "uncertainty": 0.15e-3}
    assert levels("abc", uncertain, uncertain) == ["ok", "ok"]
    assert judged("abc", uncertain, uncertain)[-1].found == "within 1.2 ms of rank 0's"


def test_the_ok_finding_has_the_worst_values() -> None:
    links, clocks = judged("aab", {"latency": 120e-6}, {"bandwidth": 3e9})
    assert links.found == "120.0 us, 3.00 GB/s or better"
    assert clocks.found == "within 0.0 us of rank 0's"
    assert judged("aa", {})[-1].found == "one host, one clock"
