"""The splits of pipepar are as good as published splits, and as the best possible ones."""

import inspect
import itertools
import math
from dataclasses import replace

import pytest

from benchmarks.catalog.splits.example import SLACK, Example, Split, examples
from pipepar.plan.costs import LinkCost
from pipepar.plan.partition import partition

EXAMPLES = {example.name: example for example in examples()}
CASES = [(example, link) for example in EXAMPLES.values() for link in example.links.values()]
# Four devices; with eight there are 60 million ways to cut.
SMALL = [(example, link) for example, link in CASES if len(example.theirs.kinds) == 4]


def brute_force(example: Example, link: LinkCost) -> float:
    """Return the smallest bottleneck of every split and order, in seconds."""
    kinds = example.theirs.kinds
    positions = range(1, len(example.crossing))
    return min(
        example.bottleneck(Split(cuts, order), link)
        for order in set(itertools.permutations(kinds))
        for cuts in itertools.combinations(positions, len(kinds) - 1)
    )


@pytest.mark.parametrize(("example", "link"), CASES)
def test_ours_is_at_most_theirs(example: Example, link: LinkCost) -> None:
    theirs = example.bottleneck(example.theirs, link)
    assert example.bottleneck(example.ours(link, slack=0), link) <= theirs
    assert example.bottleneck(example.ours(link, slack=SLACK), link) <= theirs * (1 + SLACK)


@pytest.mark.parametrize(("example", "link"), CASES)
def test_ours_uses_the_same_devices(example: Example, link: LinkCost) -> None:
    assert sorted(example.ours(link, slack=0).kinds) == sorted(example.theirs.kinds)


@pytest.mark.parametrize(("example", "link"), SMALL)
def test_ours_equals_brute_force(example: Example, link: LinkCost) -> None:
    least = brute_force(example, link)
    assert example.bottleneck(example.ours(link, slack=0), link) == least
    assert example.bottleneck(example.ours(link, slack=SLACK), link) <= least * (1 + SLACK)
    assert math.isclose(example.smallest(link), least)


def test_layers_of_two_kinds_of_devices_reach_the_smallest() -> None:
    example = EXAMPLES["PipeEdge ViT-Base"]
    (link,) = example.links.values()
    ours = example.bottleneck(example.ours(link, slack=0), link)
    assert math.isclose(ours, example.smallest(link))


@pytest.mark.parametrize("bandwidth", [1e6, 1e8, math.inf])
def test_smallest_equals_brute_force_on_two_kinds(bandwidth: float) -> None:
    whole = EXAMPLES["PipeEdge ViT-Base"]
    part = replace(
        whole,
        seconds={kind: own[:12] for kind, own in whole.seconds.items()},
        crossing=whole.crossing[:12],
        theirs=Split((3, 6, 9), ("mb", "mb", "rcc", "rcc")),
    )
    link = LinkCost(bandwidth=bandwidth)
    assert math.isclose(part.smallest(link), brute_force(part, link))


@pytest.mark.parametrize(
    ("name", "link", "seconds"),
    [
        # The first stage: 22.316 + 6.405 + 0.813 + 0.733 + 0.756 + 1.148 ms.
        ("PipeDream AlexNet", "uncounted", 0.032171),
        # 47,775,744 bytes in both directions.
        ("PipeDream AlexNet", "1 GB/s", 0.095551488),
        # The last stage: 10.659 + 19.145, 0.144 + 0.201, 10.611 + 66.214, 24.782 + 5.373 ms.
        ("PipeDream GNMT-16", "uncounted", 0.137129),
        # The first stage: 22.307 + 24.613 + 4.446 + 5.553 + 46.201 + 113.330 ms.
        ("PipeDream VGG-16", "uncounted", 0.216450),
        ("PipeDream VGG-16", "1 GB/s", 3.288334336),
        # Layers 19 to 24 on a Minnowboard.
        ("PipeEdge ViT-Base", "1000 Mbit/s", 1.752058),
    ],
)
def test_their_bottleneck_by_hand(name: str, link: str, seconds: float) -> None:
    example = EXAMPLES[name]
    found = example.bottleneck(example.theirs, example.links[link])
    assert math.isclose(found, seconds, abs_tol=1e-6)


def test_the_slack_is_the_default() -> None:
    assert inspect.signature(partition).parameters["slack"].default == SLACK
