"""The free memory of a rank: the available memory and the limits of control groups."""

import platform
from pathlib import Path

import pytest

from pipepar.host import machine
from pipepar.host.machine import free_memory, processor

AVAILABLE = 1_000_000 * 1024


class Host:
    """A made-up tree of files of the kernel."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("/proc/meminfo", "MemTotal: 2000000 kB\nMemAvailable: 1000000 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.at(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def in_groups(self, *lines: str) -> None:
        self.write("/proc/self/cgroup", "\n".join(lines) + "\n")

    def limit_v2(self, group: str, most: object, used: object) -> None:
        self.write(f"/sys/fs/cgroup{group}/memory.max", f"{most}\n")
        self.write(f"/sys/fs/cgroup{group}/memory.current", f"{used}\n")

    def limit_v1(self, group: str, most: object, used: object) -> None:
        self.write(f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes", f"{most}\n")
        self.write(f"/sys/fs/cgroup/memory{group}/memory.usage_in_bytes", f"{used}\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)

    def moved(path: str) -> Path:
        return made.at(path) if path.startswith("/proc") else Path(path)

    monkeypatch.setattr(machine, "Path", moved)
    monkeypatch.setattr(machine, "_GROUPS", made.at("/sys/fs/cgroup"))
    return made


def test_without_limits_free_memory_is_the_available_memory(host: Host) -> None:
    host.in_groups("0::/user")
    assert free_memory() == AVAILABLE


def test_a_limit_leaves_the_unused_part(host: Host) -> None:
    host.in_groups("0::/job/step")
    host.limit_v2("/job/step", 5000, 1200)
    assert free_memory() == 3800


def test_a_limit_of_version_1(host: Host) -> None:
    host.in_groups("9:cpu,cpuacct:/job", "4:hugetlb,memory:/job", "0::/")
    host.limit_v1("/job", 5000, 1200)
    assert free_memory() == 3800


def test_other_controllers_limit_no_memory(host: Host) -> None:
    host.in_groups("4:memoryless:/job", "5:name=memory:/job")
    host.limit_v1("/job", 5000, 1200)
    assert free_memory() == AVAILABLE


@pytest.mark.parametrize("group", ["", "/job", "/job/step"])
def test_limits_of_parent_groups_count(host: Host, group: str) -> None:
    host.in_groups("0::/job/step/task")
    host.limit_v2("/job/step/task", 9000, 0)
    host.limit_v2(group, 6000, 1000)
    assert free_memory() == 5000


def test_the_group_of_a_container_is_the_root(host: Host) -> None:
    """The path is a path of the host, which does not exist in the container."""
    host.in_groups("4:memory:/docker/4711")
    host.limit_v1("", 7000, 3000)
    assert free_memory() == 4000


def test_files_outside_the_groups_are_ignored(host: Host) -> None:
    host.in_groups("0::/job")
    host.write("/sys/fs/memory.max", "5000")
    host.write("/sys/fs/memory.current", "0")
    assert free_memory() == AVAILABLE


def test_a_limit_above_the_memory_is_ignored(host: Host) -> None:
    host.in_groups("4:memory:/")
    host.limit_v1("/", 9223372036854771712, 4096)
    assert free_memory() == AVAILABLE


@pytest.mark.parametrize(("most", "used"), [("max", 100), ("", 100), ("-1", 100), (100, "?")])
def test_a_limit_that_is_not_a_number_is_ignored(host: Host, most: object, used: object) -> None:
    host.in_groups("0::/job")
    host.limit_v2("/job", most, used)
    assert free_memory() == AVAILABLE


def test_a_limit_that_cannot_be_read_is_ignored(host: Host) -> None:
    host.in_groups("0::/job")
    host.limit_v2("/job", 5000, 0)
    host.at("/sys/fs/cgroup/job/memory.max").unlink()
    host.at("/sys/fs/cgroup/job/memory.max").mkdir()
    assert free_memory() == AVAILABLE


def test_a_process_without_a_group_has_no_limit(host: Host) -> None:
    assert free_memory() == AVAILABLE


def test_usage_above_the_limit_leaves_nothing(host: Host) -> None:
    host.in_groups("0::/job")
    host.limit_v2("/job", 5000, 6000)
    assert free_memory() == 0


def test_cached_files_count_as_free(host: Host) -> None:
    """Cached files count as used, but the kernel frees them when memory is needed."""
    host.in_groups("0::/job")
    host.limit_v2("/job", 5000, 4900)
    stat = "anon 700\n\nfile 4200\nactive_file 1500\ninactive_file 2500\nshmem 200\n"
    host.write("/sys/fs/cgroup/job/memory.stat", stat)
    assert free_memory() == 100 + 1500 + 2500


def test_cached_files_of_version_1_include_child_groups(host: Host) -> None:
    host.in_groups("4:memory:/job")
    host.limit_v1("/job", 5000, 4900)
    stat = "active_file 1\ninactive_file 2\ntotal_active_file 1500\ntotal_inactive_file 2500\n"
    host.write("/sys/fs/cgroup/memory/job/memory.stat", stat)
    assert free_memory() == 100 + 1500 + 2500


def test_free_memory_is_at_most_the_limit(host: Host) -> None:
    """The counters of the kernel are not updated at the same time."""
    host.in_groups("0::/job")
    host.limit_v2("/job", 5000, 100)
    host.write("/sys/fs/cgroup/job/memory.stat", "inactive_file 300\n")
    assert free_memory() == 5000


def test_without_available_memory_the_total_is_used(host: Host) -> None:
    for text in ("MemTotal: 2000000 kB\n", None):
        host.at("/proc/meminfo").unlink()
        if text is not None:
            host.write("/proc/meminfo", text)
        assert free_memory() > 2**20  # the total memory


def test_the_name_of_the_processor(host: Host) -> None:
    assert processor() == platform.machine()
    host.write("/proc/cpuinfo", "processor : 0\nmodel name\t: Fast CPU: v2 @ 3 GHz\nflags : a\n")
    assert processor() == "Fast CPU: v2 @ 3 GHz"
    host.write("/proc/cpuinfo", "processor : 0\n")
    assert processor() == platform.machine()


def test_this_host_has_memory() -> None:
    assert 0 < free_memory() < 2**60
