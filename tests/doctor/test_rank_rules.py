"""The rules for ranks and links, on facts given by hand: ok, warning and problem."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pipepar.doctor.facts import Finding, RankFacts, Space
from pipepar.doctor.inspect_rank import with_devices
from pipepar.doctor.link_rules import judge_links
from pipepar.doctor.rank_rules import judge_ranks
from pipepar.host.link_speed import LinkFacts

GIB = 2**30
SPACES = [
    Space("shared memory", "/dev/shm", GIB),
    Space("temporary files", "/tmp", 10 * GIB),
    Space("working directory", "/home/me", 10 * GIB),
]


def healthy(rank: int, host: str = "a") -> RankFacts:
    """Return the facts of one of two ranks of a host, each with four of eight cores."""
    return RankFacts(
        rank=rank,
        host=host,
        cores=[f"{host}{4 * (rank % 2) + core}" for core in range(4)],
        allotted=8,
        threads=4,
        cpu="some processor",
        memory=64 * GIB,
        devices=[],
        mpi="Open MPI v5.0.1",
        thread_level="MPI_THREAD_MULTIPLE",
        versions={"Python": "3.11.2", "torch": "2.9.0"},
        environment={},
        spaces=SPACES,
    )


def complaints(*ranks: RankFacts) -> list[Finding]:
    findings = [finding for finding in judge_ranks(ranks) if finding.level != "ok"]
    assert all(finding.expected and finding.remedy for finding in findings)
    return findings


def only(*ranks: RankFacts) -> Finding:
    """Return the single finding that is not ok."""
    (finding,) = complaints(*ranks)
    return finding


def test_healthy_ranks_have_one_finding_for_each_rule() -> None:
    ranks = [healthy(0), healthy(1), healthy(2, "b"), healthy(3, "b")]
    findings = judge_ranks(ranks)
    assert {finding.level for finding in findings} == {"ok"}
    checks = "ranks cores threads environment devices MPI versions space"
    assert [finding.check for finding in findings] == checks.split()
    assert findings[0].found == "4 ranks on 2 hosts"


def test_one_rank_gets_the_command_for_several() -> None:
    alone = replace(healthy(0), threads=8, cores=list("01234567"), mpi="", thread_level="")
    assert not complaints(alone)
    assert "mpirun -n 4 pipepar doctor" in judge_ranks([alone])[0].remedy


def test_two_ranks_on_one_core_are_a_problem() -> None:
    bound = [replace(healthy(rank), cores=["0"], threads=1, allotted=2) for rank in (0, 1)]
    found = only(*bound)
    assert (found.check, found.level) == ("cores", "problem")
    assert found.found == "ranks 0-1 share 1 core on a"
    assert "--bind-to core" in found.remedy


def test_three_unbound_ranks_on_two_cores_are_a_problem() -> None:
    free = [replace(healthy(rank), cores=["0", "1"], threads=1, allotted=2) for rank in range(3)]
    assert only(*free).found == "ranks 0-2 share 2 cores on a"


def test_the_same_cores_on_two_hosts_are_not_shared() -> None:
    ranks = [healthy(0, "a"), healthy(1, "b")]
    assert not complaints(*(replace(one, cores=["0"], threads=1, allotted=1) for one in ranks))


def test_ranks_that_share_enough_cores_are_fine() -> None:
    cores = [str(core) for core in range(8)]
    assert not complaints(*(replace(healthy(rank), cores=cores) for rank in (0, 1)))


def test_a_binding_to_too_few_cores_is_a_warning() -> None:
    found = only(*(replace(healthy(rank), cores=[str(rank)], threads=1) for rank in (0, 1)))
    assert (found.check, found.level) == ("threads", "warning")
    assert found.found == "1 thread, bound to 1 core, on ranks 0-1"
    assert found.expected == "4 each, the host's 8 cores shared out"
    assert found.remedy == "mpirun --map-by slot:PE=4, or srun --cpus-per-task=4"


def test_fewer_threads_by_omp_num_threads_are_a_warning() -> None:
    one = {"OMP_NUM_THREADS": "1"}
    found = only(*(replace(healthy(rank), threads=1, environment=one) for rank in (0, 1)))
    assert (found.check, found.level) == ("threads", "warning")
    assert found.remedy == "unset OMP_NUM_THREADS or set it to 4"


def test_more_threads_than_cores_are_a_warning() -> None:
    many = {"OMP_NUM_THREADS": "8"}
    found = only(*(replace(healthy(rank), threads=8, environment=many) for rank in (0, 1)))
    assert (found.check, found.level) == ("threads", "warning")
    assert "8 threads" in found.found
    assert found.expected.startswith("4 at most")


def test_an_environment_that_differs_is_a_warning() -> None:
    found = only(healthy(0), replace(healthy(1), environment={"OMP_NUM_THREADS": "4"}))
    assert (found.check, found.level) == ("environment", "warning")
    assert found.found == "OMP_NUM_THREADS not set on rank 0; OMP_NUM_THREADS=4 on rank 1"


@pytest.mark.parametrize("other", [{"cpu": "an older one"}, {"devices": ["some GPU (80.0 GiB)"]}])
def test_devices_that_differ_are_a_warning(other: dict[str, object]) -> None:
    found = only(healthy(0), replace(healthy(1), **other))  # type: ignore[arg-type]
    assert (found.check, found.level) == ("devices", "warning")
    assert "rank 0" in found.found
    assert "rank 1" in found.found


def with_gpus(count: int, *ranks: RankFacts, sharing: str = "") -> list[RankFacts]:
    """Return the ranks of hosts with `count` GPUs each, all visible to every rank."""
    devices = ["some GPU (80.0 GiB)"] * count
    environment = {"NCCL_MULTI_RANK_GPU_ENABLE": sharing} if sharing else {}
    return with_devices(
        [
            replace(
                facts,
                devices=devices,
                gpus=[f"{facts.host}{index}" for index in range(count)],
                environment=environment,
            )
            for facts in ranks
        ]
    )


def test_a_gpu_for_each_rank_is_fine() -> None:
    ranks = with_gpus(2, healthy(0), healthy(1), healthy(2, "b"), healthy(3, "b"))
    assert not complaints(*ranks)
    assert [facts.device for facts in ranks] == [
        f"cuda:{index} some GPU (80.0 GiB)" for index in (0, 1, 0, 1)
    ]
    assert [facts.gpu for facts in ranks] == ["a0", "a1", "b0", "b1"]


def test_no_gpu_at_all_is_fine() -> None:
    ranks = with_gpus(0, healthy(0), healthy(1))
    assert not complaints(*ranks)
    assert [(facts.device, facts.gpu) for facts in ranks] == [("cpu", "")] * 2


def test_a_rank_without_a_gpu_next_to_ranks_with_one_is_a_warning() -> None:
    found = only(*with_gpus(1, healthy(0), healthy(1)))
    assert (found.check, found.level) == ("devices", "warning")
    assert found.found == "1 GPU on a for 2 ranks: rank 1 would compute on the CPU"
    assert found.remedy.startswith("start 1 rank on that host, or ask for a GPU for each rank")
    assert "NCCL_MULTI_RANK_GPU_ENABLE=1" in found.remedy


def test_ranks_that_would_share_a_gpu_are_a_warning() -> None:
    found = only(*with_gpus(1, healthy(0), healthy(1), sharing="1"))
    assert (found.check, found.level) == ("devices", "warning")
    assert found.found == ("ranks 0-1 on a would share a GPU, cuda:0 some GPU (80.0 GiB)")
    assert "NCCL 2.30.3" in found.expected


def test_an_mpi_without_threads_is_a_problem() -> None:
    found = only(healthy(0), replace(healthy(1), thread_level="MPI_THREAD_SERIALIZED"))
    assert (found.check, found.level) == ("MPI", "problem")
    assert found.found == "MPI_THREAD_SERIALIZED on rank 1"


def test_two_mpi_libraries_are_a_problem() -> None:
    found = only(healthy(0), replace(healthy(1), mpi="MPICH 4.2"))
    assert (found.check, found.level) == ("MPI", "problem")
    assert found.found == "Open MPI v5.0.1 on rank 0; MPICH 4.2 on rank 1"


def test_versions_that_differ_are_a_problem() -> None:
    newer = {"Python": "3.11.2", "torch": "2.10.0"}
    found = only(healthy(0), healthy(1), replace(healthy(2, "b"), versions=newer, allotted=4))
    assert (found.check, found.level) == ("versions", "problem")
    assert found.found == "torch 2.9.0 on ranks 0-1; torch 2.10.0 on rank 2"


def test_a_package_missing_on_all_ranks_is_a_problem() -> None:
    versions = {"Python": "3.11.2", "torch": ""}
    found = only(*(replace(healthy(rank), versions=versions) for rank in (0, 1)))
    assert found.level == "problem"
    assert found.found == "torch not installed on ranks 0-1"


@pytest.mark.parametrize(
    ("place", "mib", "level"),
    [
        (0, 31, "problem"),  # 16 MiB of shared memory for each of two ranks
        (0, 32, "warning"),
        (0, 127, "warning"),
        (0, 128, "ok"),
        (1, 63, "problem"),
        (1, 64, "warning"),
        (1, 1023, "warning"),
        (1, 1024, "ok"),
        (2, 63, "problem"),
        (2, 1023, "warning"),
        (2, 1024, "ok"),
    ],
)
def test_the_limits_of_free_space(place: int, mib: int, level: str) -> None:
    spaces = list(SPACES)
    spaces[place] = replace(spaces[place], free=mib * 2**20)
    ranks = [replace(healthy(rank), spaces=spaces) for rank in (0, 1)]
    found = complaints(*ranks)
    assert [finding.level for finding in found] == [level] * (level != "ok")
    assert all(SPACES[place].path in finding.found for finding in found)  # one for each host


def links(*changes: dict[str, float]) -> list[LinkFacts]:
    good = LinkFacts(0, 1, latency=20e-6, bandwidth=5e9, skew=1e-6, uncertainty=20e-6)
    return [
        replace(good, first=rank, second=rank + 1, **change) for rank, change in enumerate(changes)
    ]


def only_of_links(found: Sequence[Finding]) -> Finding:
    (finding,) = (finding for finding in found if finding.level != "ok")
    assert finding.level == "warning"
    assert finding.expected
    assert finding.remedy
    return finding


def test_healthy_links_are_ok() -> None:
    found = judge_links(links({}, {}, {}), "aabb")
    assert [(finding.check, finding.level) for finding in found] == [
        ("links", "ok"),
        ("clocks", "ok"),
    ]
    assert judge_links([], "a") == []


def test_a_link_with_far_less_bandwidth_than_the_others_is_a_warning() -> None:
    found = only_of_links(judge_links(links({}, {"bandwidth": 1.2e9}, {}), "aaaa"))
    assert found.check == "links"
    assert found.found == "ranks 1 and 2 (a): 1.20 GB/s"
    assert "5.00 GB/s" in found.expected


def test_a_link_with_far_more_latency_than_the_others_is_a_warning() -> None:
    found = only_of_links(judge_links(links({}, {}, {"latency": 3e-4}), "abcd"))
    assert found.found == "ranks 2 and 3 (c, d): 300.0 us"


def test_slow_links_of_one_kind_are_one_finding() -> None:
    slow = {"bandwidth": 0.11e9}
    found = judge_links(links(slow, slow, {}, slow), "aaabc")
    assert [finding.found for finding in found if finding.level == "warning"] == [
        "ranks 0 and 1 (a): 0.11 GB/s; ranks 1 and 2 (a): 0.11 GB/s",
        "ranks 3 and 4 (b, c): 0.11 GB/s",
    ]


def test_a_latency_below_the_floor_is_fine() -> None:
    found = judge_links(links({}, {}, {"latency": 1.9e-4}), "abcd")
    assert {finding.level for finding in found} == {"ok"}


def test_links_between_hosts_are_not_compared_with_links_within_a_host() -> None:
    found = judge_links(links({}, {"bandwidth": 1e9, "latency": 9e-4}, {}), "aabb")
    assert {finding.level for finding in found} == {"ok"}


def test_a_link_slower_than_a_cluster_network_is_a_warning() -> None:
    found = only_of_links(judge_links(links({"bandwidth": 0.11e9}), "ab"))
    assert found.found == "ranks 0 and 1 (a, b): 0.11 GB/s"
    assert found.expected == "0.20 GB/s or more"


def test_clocks_that_differ_are_a_warning_for_each_host() -> None:
    ahead = {"skew": 0.5}
    found = judge_links(links({}, ahead, {}, {"skew": -0.498}), "aabbc")
    wrong = [finding for finding in found if finding.level != "ok"]
    assert [finding.found for finding in wrong] == [
        "b is 500.0 ms ahead of a",
        "c is 2.0 ms ahead of a",
    ]


def test_a_skew_within_its_uncertainty_is_fine() -> None:
    found = judge_links(links({"skew": 3e-3, "uncertainty": 2.5e-3}), "ab")
    assert found[-1].level == "ok"
