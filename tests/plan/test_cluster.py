"""Valid and invalid `cluster.toml` files."""

from pathlib import Path

import pytest

from pipepar.errors import InputError
from pipepar.plan.cluster import read_cluster
from pipepar.plan.costs import DeviceCost, LinkCost
from pipepar.plan.hardware import Cluster

DEVICE = '[[device]]\nkind = "gpu"\nmemory = "40 GiB"\nspeed = "20 TFLOPS"\n'
CPU = '[[device]]\nkind = "cpu"\nmemory = "64 GB"\nspeed = "800 GFLOPS"\n'
LINK = '[[link]]\nlatency = "10 us"\nbandwidth = "25 GB/s"\n'
PAIR = '[[link]]\nbetween = ["gpu", "gpu"]\nlatency = "2us"\nbandwidth = "0.3 TB/s"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster.toml"


def read(path: Path, text: str) -> Cluster:
    path.write_text(text)
    return read_cluster(path)


def test_devices_are_in_file_order(path: Path) -> None:
    gpus = DEVICE + "count = 2\n"
    cluster = read(path, CPU + gpus + CPU + LINK)
    gpu, cpu = DeviceCost(20e12, 40 * 2**30, "gpu"), DeviceCost(800e9, 64e9, "cpu")
    assert cluster.devices == (cpu, gpu, gpu, cpu)


def test_a_link_for_a_pair_of_kinds_overrides_the_link_for_all(path: Path) -> None:
    cluster = read(path, CPU + DEVICE + "count = 2\n" + LINK + PAIR)
    assert cluster.link(1, 2) == LinkCost(2 * 1e-6, 0.3e12)
    assert cluster.link(0, 1) == cluster.link(1, 0) == LinkCost(10 * 1e-6, 25e9)
    assert cluster.link(0, 2) == cluster.link(0, 1)


def test_a_link_holds_in_both_directions(path: Path) -> None:
    pair = PAIR.replace('"gpu", "gpu"', '"gpu", "cpu"')
    cluster = read(path, CPU + DEVICE + pair)
    assert cluster.link(0, 1) == cluster.link(1, 0) == LinkCost(2 * 1e-6, 0.3e12)


def test_one_device_needs_no_link(path: Path) -> None:
    assert read(path, DEVICE).links == {}


@pytest.mark.parametrize(
    ("bandwidth", "expected"),
    [("25 GB/s", 25e9), ("100 Gbit/s", 12.5e9), ("1.5e2 MB/s", 150e6), ("2TB/s", 2e12)],
)
def test_units_of_bandwidth(path: Path, bandwidth: str, expected: float) -> None:
    text = DEVICE + "count = 2\n" + LINK.replace("25 GB/s", bandwidth)
    assert read(path, text).link(0, 1).bandwidth == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no device, expected one or more; add a [[device]]"),
        (DEVICE + "speed = 3", "is not valid TOML: Cannot overwrite a value"),
        ("depth = 2\n" + DEVICE, "depth is unknown, expected device, link; remove it"),
        ('[device]\nkind = "gpu"', "expected a list of tables; write [[device]] above each"),
        (DEVICE + "cores = 4", "device[0].cores is unknown, expected kind, count, memory, speed"),
        (DEVICE + "count = 0", "device[0].count is 0, expected a whole number, 1 or more"),
        (DEVICE + 'count = "2"', "device[0].count is '2', expected a whole number, 1 or more"),
        (DEVICE + "count = true", "device[0].count is True, expected a whole number"),
        (DEVICE.replace('"gpu"', "3"), "device[0].kind is 3, expected a name; write, for example"),
        (DEVICE.replace("kind", "#"), "device[0].kind is missing, expected a name"),
        (DEVICE.replace("memory", "#"), "device[0].memory is missing, expected a number above 0"),
        (DEVICE.replace("40 GiB", "40 GIB"), "memory is '40 GIB', expected a number above 0 with"),
        (DEVICE.replace('"40 GiB"', "40"), "memory is 40, expected a number above 0 with a unit"),
        (DEVICE.replace("40 GiB", "GiB"), 'for example "16 GiB"'),
        (DEVICE.replace("40 GiB", "-1 GiB"), "memory is '-1 GiB', expected a number above 0"),
        (DEVICE.replace("20 TFLOPS", "0 TFLOPS"), "speed is '0 TFLOPS', expected"),
        (DEVICE.replace("20 TFLOPS", "20 GiB"), "(MFLOPS, GFLOPS, TFLOPS, PFLOPS)"),
        (DEVICE.replace("20 TFLOPS", "1e999 TFLOPS"), "speed is '1e999 TFLOPS', expected"),
        (CPU + DEVICE + CPU.replace("64", "32") + LINK, "kind 'cpu' that differ in memory or"),
        (CPU + DEVICE, "no link between 'cpu' and 'gpu', expected one for every pair of"),
        (DEVICE + DEVICE, "with between = ['gpu', 'gpu'], or one without 'between' for all"),
        (CPU + DEVICE + PAIR, "no link between 'cpu' and 'gpu'"),
        (DEVICE + LINK + LINK, "link[1] is the second without 'between', expected one"),
        (DEVICE + PAIR + LINK + PAIR, "link[2] is the second between these kinds, expected one"),
        (CPU + PAIR, "link[0].between is ['gpu', 'gpu'], expected two of the kinds"),
        (DEVICE + PAIR.replace(', "gpu"]', "]"), "link[0].between is ['gpu'], expected two of"),
        (DEVICE + LINK.replace("10 us", "10"), "link[0].latency is '10', expected a number with"),
        (DEVICE + LINK.replace("25 GB/s", "25 GB"), "link[0].bandwidth is '25 GB', expected"),
    ],
)
def test_invalid_values_are_refused(path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(path, text)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_cluster(path)


def test_a_file_that_is_not_utf8_is_refused(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not valid TOML"):
        read_cluster(path)


def test_the_documented_example_is_valid(path: Path) -> None:
    from pipepar.plan import cluster

    documented = (cluster.__doc__ or "").split("::\n", 1)[1].split("Every quantity")[0]
    found = read(path, documented)
    assert [device.kind for device in found.devices] == ["gpu", "gpu", "gpu", "cpu"]
    assert found.link(0, 1).bandwidth > found.link(2, 3).bandwidth
