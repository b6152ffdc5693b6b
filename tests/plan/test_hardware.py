"""Links between devices in a row, in any order, and of a subset."""

from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Cluster, DeviceSubset, Hardware, Neighbours, several_kinds

A, B, C, D = (DeviceCost(speed, memory=speed, kind=f"{speed:g}") for speed in (1.0, 2.0, 3.0, 4.0))
LINKS = (LinkCost(1e-6, 30.0), LinkCost(3e-6, 20.0), LinkCost(2e-6, 10.0))
ROW = Neighbours((A, B, C, D), LINKS)


def test_a_link_between_neighbours_is_the_measured_link() -> None:
    assert [ROW.link(place, place + 1) for place in range(3)] == list(LINKS)


def test_a_path_over_several_links_is_as_slow_as_the_slowest() -> None:
    assert ROW.link(0, 2) == LinkCost(3e-6, 20.0)
    assert ROW.link(1, 3) == LinkCost(3e-6, 10.0)
    assert ROW.link(0, 3) == LinkCost(3e-6, 10.0)


def test_a_link_is_the_same_in_both_directions() -> None:
    pairs = [(one, other) for one in range(4) for other in range(4) if one != other]
    assert all(ROW.link(one, other) == ROW.link(other, one) for one, other in pairs)


def test_a_single_device_has_no_links() -> None:
    assert Neighbours((A,), ()).devices == (A,)


def test_a_subset_has_the_order_of_the_stages() -> None:
    taken = DeviceSubset(ROW, (3, 0, 2))
    assert tuple(taken.devices) == (D, A, C)
    assert taken.link(0, 1) == ROW.link(3, 0)
    assert taken.link(1, 2) == ROW.link(0, 2)


def test_a_subset_of_a_subset_has_the_right_devices() -> None:
    whole: Hardware = DeviceSubset(ROW, (1, 2, 3))
    taken = DeviceSubset(whole, (2, 0))
    assert tuple(taken.devices) == (D, B)
    assert taken.link(0, 1) == ROW.link(3, 1)


def test_a_subset_of_a_cluster() -> None:
    near, far = LinkCost(1e-6), LinkCost(1e-3)
    links = {frozenset((A.kind,)): near, frozenset((A.kind, B.kind)): far}
    taken = DeviceSubset(Cluster((A, B, A), links), (0, 2, 1))
    assert [taken.link(0, 1), taken.link(1, 2)] == [near, far]


def test_devices_of_a_kind_become_equal_in_a_cluster() -> None:
    """Each device equals the worst of its kind, each link the slowest measured for its kinds."""
    fast, slow = DeviceCost(3.0, 10.0, "a"), DeviceCost(2.0, 20.0, "a")
    other = DeviceCost(1.0, 5.0, "b")
    measured = Neighbours((fast, other, slow, fast), LINKS)
    free = Cluster.by_kind(measured)
    assert free.devices == (*(DeviceCost(2.0, 10.0, "a"), other), *[DeviceCost(2.0, 10.0, "a")] * 2)
    assert free.link(0, 1) == free.link(2, 1) == LinkCost(3e-6, 20.0)
    assert free.link(0, 2) == LINKS[2]
    assert several_kinds(free)


def test_a_pair_of_kinds_without_a_measured_link_gets_the_slowest() -> None:
    free = Cluster.by_kind(ROW)
    assert free.link(0, 1) == LINKS[0]
    assert free.link(0, 3) == ROW.link(0, 3)
    assert not several_kinds(Neighbours((A, A), LINKS[:1]))
